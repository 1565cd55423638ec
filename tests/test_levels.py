"""Laws against exact distributions, weights against errors in prediction space, broadcasting of levels."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from diffusion import draws, levels, predictions, schedules

INF = math.inf
KEY = jax.random.key(7)
COUNT = 20_000
SINGLE = ("independent", "antithetic", "stratified")
"""Draws that levels of clips, too, can have."""


# Levels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, expected",
    [((), (1,) * 5), ((3,), (3, 1, 1, 1, 1)), ((1, 4), (1, 4, 1, 1, 1)), ((3, 4, 5, 5, 1), (3, 4, 5, 5, 1))],
)
def test_expand_pads_on_the_right(shape, expected):
    like = jnp.zeros((3, 4, 5, 5, 2))
    assert levels.expand(np.zeros(shape), like).shape == expected
    assert levels.expand(jnp.zeros(shape), like).shape == expected
    assert levels.expand(0.5, like).shape == (1,) * 5


@pytest.mark.parametrize("shape", [(4,), (2,), (3, 5), (4, 1), (3, 4, 5, 5, 3), (3, 4, 5, 5, 1, 1)])
def test_expand_refuses_what_does_not_fit(shape):
    with pytest.raises(ValueError, match=r"expected \[\], or the batch axis \(1 or 3\)"):
        levels.expand(np.zeros(shape), jnp.zeros((3, 4, 5, 5, 2)))


def test_a_bare_frame_axis_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"a level per frame is \[1, 4\] or \[3, 4\]"):
        levels.expand(np.zeros(4), jnp.zeros((3, 4, 5, 5, 2)))


def test_forward_has_each_frames_own_level():
    schedule = schedules.flow()
    x0, eps = (jax.random.normal(k, (2, 3, 4, 4, 1)) for k in jax.random.split(KEY))
    logsnr = jnp.array([[0.0, INF, -INF], [3.0, -3.0, 1.0]])
    x = levels.forward(x0, eps, logsnr, schedule)
    assert x.dtype == jnp.float32
    for b in range(2):
        for f in range(3):
            t = float(schedule.time(logsnr[b, f]))
            np.testing.assert_allclose(x[b, f], (1 - t) * x0[b, f] + t * eps[b, f], atol=1e-6)
    half = levels.forward(x0.astype(jnp.bfloat16), eps.astype(jnp.bfloat16), logsnr, schedule)
    assert half.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward_takes_clips_of_the_host_at_a_traced_level(dtype):
    x0, eps = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(dtype)
    schedule, level = schedules.flow(), np.array([-1.0, 0.0, 2.0])
    t = np.asarray(schedule.time(level))[:, None]
    x = jax.jit(lambda level: levels.forward(x0, eps, level, schedule))(level)
    np.testing.assert_allclose(x, (1 - t) * x0 + t * eps, rtol=1e-5, atol=1e-6)
    assert isinstance(levels.forward(x0, eps, level, schedule), np.ndarray)


# Laws -----------------------------------------------------------------------------------------------------


def uniform_time_cdf(schedule):
    """1 - t, stretched to the schedule's ends."""
    first, last = schedule.time(schedule.logsnr_end), schedule.time(schedule.logsnr_start)
    return lambda l: np.clip((last - schedule.time(l)) / (last - first), 0, 1)


def hyperbolic_secant_cdf(mean):
    """The integral of sech(l/2) / 2 pi."""
    return lambda l: 2 / np.pi * np.arctan(np.exp((l - mean) / 2))


DDPM = schedules.vp_discrete(schedules.ddpm_betas())
LAWS = {
    "uniform_time": (levels.uniform_time, (schedules.vp_linear(),), uniform_time_cdf(schedules.vp_linear())),
    "uniform_time flow": (levels.uniform_time, (schedules.flow(3.0),), uniform_time_cdf(schedules.flow(3.0))),
    "uniform_time discrete": (levels.uniform_time, (DDPM,), uniform_time_cdf(DDPM)),
    "uniform_logsnr": (levels.uniform_logsnr, (schedules.edm(), -3.0, 8.0), scipy.stats.uniform(-3, 11).cdf),
    "logit_normal": (
        levels.logit_normal,
        (0.3, 0.8, 2.0),
        # In flow time before the shift t is logit-normal, so log(t / (1 - t)) = -logsnr/2 - log 2 is normal.
        lambda l: scipy.stats.norm(0.3, 0.8).sf(-l / 2 - math.log(2.0)),
    ),
    "edm_lognormal": (
        levels.edm_lognormal,
        (),
        lambda l: scipy.stats.lognorm(1.2, scale=math.exp(-1.2)).sf(np.exp(-l / 2)),
    ),
    "cosine": (levels.cosine, (-INF, INF, 2.0), hyperbolic_secant_cdf(-2 * math.log(2.0))),
    "laplace": (levels.laplace, (0.5, 0.7), scipy.stats.laplace(0.5, 0.7).cdf),
}  # fmt: skip


@pytest.mark.parametrize("law, arguments, cdf", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("draw", SINGLE)
def test_laws_have_their_distribution(law, arguments, cdf, draw):
    drawn = law(*arguments, draw=draw)(KEY, (COUNT,))
    assert drawn.shape == (COUNT,) and drawn.dtype == jnp.float32
    distance, p = scipy.stats.kstest(np.asarray(drawn, np.float64), cdf)
    if draw == "independent":
        assert p > 0.01
    # Stratified draws are far closer to the law than chance, at most one stratum off.
    assert distance < {"independent": 0.015, "antithetic": 0.015, "stratified": 1.2 / COUNT}[draw]


def test_uniform_time_takes_its_own_ends():
    drawn = levels.uniform_time(schedules.vp_cosine(), -2.0, 5.0)(KEY, (COUNT,))
    assert -2 <= drawn.min() < -1.98 and 4.98 < drawn.max() <= 5


@pytest.mark.parametrize("draw", SINGLE)
def test_levels_per_frame_are_independent(draw):
    drawn = np.asarray(levels.uniform_logsnr(schedules.ve(), -1.0, 1.0, draw)(KEY, (4000, 3)))
    assert drawn.shape == (4000, 3)
    correlation = np.corrcoef(drawn.T) - np.eye(3)
    assert abs(correlation).max() < 0.05
    # Nor is one clip's pattern over frames another's.
    steps = np.diff(drawn, axis=1)
    assert len(np.unique(np.round(steps[:, 0], 4))) > 2000
    for f in range(3):
        assert scipy.stats.kstest(drawn[:, f], scipy.stats.uniform(-1, 2).cdf).pvalue > 0.005


def test_antithetic_pairs_and_strata():
    law = levels.uniform_logsnr(schedules.ve(), -1.0, 1.0, "antithetic")
    drawn = law(KEY, (9, 2))
    np.testing.assert_allclose(drawn[:4] + drawn[5:], 0, atol=1e-6)
    for shape in ((64,), (64, 3)):
        u = draws.stratified(KEY, shape).reshape(64, -1)
        assert (np.sort(np.floor(u * 64), axis=0) == np.arange(64)[:, None]).all()
    for draw in map(draws.named, SINGLE):
        u = draw(KEY, ())
        assert u.shape == () and 0 < u < 1
        np.testing.assert_array_equal(draw(KEY, (5,)), draw(KEY, (5,)))


def test_draws_may_be_functions():
    law = levels.edm_lognormal(draw=lambda key, shape: jnp.full(shape, 0.5))
    np.testing.assert_allclose(law(KEY, (2,)), 2.4, rtol=1e-6)
    with pytest.raises(KeyError, match="nearest: 'stratified'"):
        levels.cosine(draw="stratifed")


def test_ict_pairs_have_the_papers_probabilities():
    count, mean, std = 11, -1.1, 2.0
    grid = (0.002 ** (1 / 7) + np.arange(count) / (count - 1) * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
    chance = np.diff([math.erf((math.log(s) - mean) / (math.sqrt(2) * std)) for s in grid])
    chance /= chance.sum()
    here, there = (np.exp(-np.asarray(l) / 2) for l in levels.ict_pairs(count)(KEY, (COUNT,)))
    index = np.abs(np.log(here)[:, None] - np.log(grid)).argmin(1)
    np.testing.assert_allclose(here, grid[index], rtol=1e-4)
    np.testing.assert_allclose(there, grid[index - 1], rtol=1e-4)
    seen = np.bincount(index - 1, minlength=count - 1)
    assert scipy.stats.chisquare(seen, chance * COUNT).pvalue > 0.01
    np.testing.assert_array_equal(levels.ict_discretised(count)(KEY, (50,)), levels.ict_pairs(count)(KEY, (50,))[0])


def test_ict_number_of_levels_may_be_traced():
    traces = []

    @jax.jit
    def draw(count, key):
        traces.append(1)
        return levels.ict_pairs(count)(key, (1000,))

    for count in (2, 11, 1281):
        here, there = draw(count, KEY)
        assert (here < there).all()
        for found, expected in zip((here, there), levels.ict_pairs(count)(KEY, (1000,)), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-4)
        assert len(np.unique(here)) <= count - 1
    assert len(traces) == 1
    with pytest.raises(ValueError, match="at least 2 levels"):
        levels.ict_pairs(1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: levels.uniform_time(schedules.flow(), end=INF),
        lambda: levels.uniform_logsnr(schedules.flow(), 3.0, 1.0),
        lambda: levels.uniform_logsnr(schedules.flow(), math.nan),
        lambda: levels.logit_normal(std=0.0),
        lambda: levels.logit_normal(shift=-1.0),
        lambda: levels.cosine(5.0, -5.0),
        lambda: levels.laplace(scale=-1.0),
        lambda: levels.edm(0.0),
        lambda: levels.min_snr(-5.0),
        lambda: levels.truncated_snr(0.0),
    ],
)
def test_bad_arguments_raise(make):
    with pytest.raises(ValueError):
        make()


# Weights --------------------------------------------------------------------------------------------------


SCALINGS = (schedules.VP(), schedules.VE(), schedules.SubVP(), schedules.Flow())


@pytest.mark.parametrize(
    "kind, weight, scalings",
    [
        ("x0", levels.uniform(), SCALINGS),
        ("eps", levels.snr(), SCALINGS),
        ("v", levels.v(), SCALINGS[:1]),
        ("velocity", levels.velocity(), SCALINGS),
        (predictions.F(0.7), levels.edm(0.7), SCALINGS),
    ],
)
def test_weights_are_errors_in_prediction_space(kind, weight, scalings):
    rng = np.random.default_rng(0)
    logsnr = np.linspace(-8, 8, 17)
    x, one, other = rng.normal(size=(3, 17, 4))
    for scaling in scalings:
        schedule = schedules.Schedule(scaling, schedules.vp_linear().clock, -9.0, 9.0)
        clean = [predictions.denoised(kind, p, x, logsnr, schedule) for p in (one, other)]
        error = ((clean[0] - clean[1]) ** 2).sum(-1)
        np.testing.assert_allclose(weight(logsnr) * error, ((one - other) ** 2).sum(-1), rtol=1e-7)


def test_weights_in_numbers():
    logsnr = np.log(np.array([0.25, 1.0, 4.0, 100.0]))
    snr = np.exp(logsnr)
    np.testing.assert_allclose(levels.truncated_snr()(logsnr), [1, 1, 4, 100])
    np.testing.assert_allclose(levels.min_snr()(logsnr), [0.25, 1, 4, 5])
    np.testing.assert_allclose(levels.min_snr(2.0)(logsnr), [0.25, 1, 2, 2])
    np.testing.assert_allclose(levels.velocity()(logsnr), [2.25, 4, 9, 121])
    s = 1 / np.sqrt(snr)
    np.testing.assert_allclose(levels.edm()(logsnr), (s**2 + 0.25) / (s * 0.5) ** 2)
    np.testing.assert_allclose(levels.sigmoid(1.5)(logsnr), snr / (1 + np.exp(logsnr - 1.5)))


def test_weights_at_the_ends_and_in_single_precision():
    ends = np.array([-INF, INF])
    expected = {
        levels.uniform: (1, 1),
        levels.snr: (0, INF),
        levels.v: (1, INF),
        levels.velocity: (1, INF),
        levels.truncated_snr: (1, INF),
        levels.min_snr: (0, 5),
        levels.edm: (4, INF),
        levels.sigmoid: (0, math.exp(2)),
    }
    inside = np.linspace(-20, 20, 401)
    for make, values in expected.items():
        weight = make()
        np.testing.assert_allclose(weight(ends), values, rtol=1e-12)
        single = weight(jnp.asarray(inside, jnp.float32))
        assert single.dtype == jnp.float32
        np.testing.assert_allclose(single, weight(inside), rtol=5e-6)
        assert weight(0.0) > 0


class Cubic:
    """A clock for this test: log-SNR a straight line plus a cube, between the same two ends."""

    def logsnr(self, t):
        u = 1 - 2 * t
        return 8 * (0.25 * u + 0.75 * u**3) - 1

    def time(self, logsnr):
        roots = [np.roots([6.0, 0.0, 2.0, -1 - l]) for l in np.atleast_1d(np.asarray(logsnr, np.float64))]
        real = [r[abs(r.imag) < 1e-9].real[0] for r in roots]
        return (1 - np.array(real).reshape(np.shape(logsnr))) / 2


def test_the_bound_depends_on_its_ends_only():
    """Data N(0, 1): the best estimate of eps has mean squared error sigmoid(logsnr), so the bound is half a
    difference of softplus. The unweighted eps loss differs from schedule to schedule."""
    start, end = -9.0, 7.0
    exact = (np.logaddexp(0, end) - np.logaddexp(0, start)) / 2
    x0_error = lambda l: 1 / (1 + np.exp(l))  # noqa: E731
    bounds, plain = [], []
    for clock in (schedules.Straight(start, end), Cubic()):
        t = (np.arange(20_000) + 0.5) / 20_000
        level = clock.logsnr(t)
        step = clock.logsnr(t - 0.5 / 20_000) - clock.logsnr(t + 0.5 / 20_000)
        weight = levels.vlb(lambda l, step=step: 1 / (20_000 * step))
        bounds.append((weight(level) * x0_error(level)).mean())
        plain.append((levels.snr()(level) * x0_error(level)).mean())
    np.testing.assert_allclose(bounds, exact, rtol=1e-6)
    assert abs(plain[0] - plain[1]) > 0.02


@pytest.mark.parametrize(
    "make", [schedules.vp_linear, schedules.vp_cosine, schedules.edm, schedules.flow, schedules.sigmoid]
)
def test_the_bound_from_draws_of_any_law(make):
    """The same from levels drawn as in training, over ends that all these schedules can reach."""
    schedule, start, end = make(), -6.0, 6.0
    exact = (np.logaddexp(0, end) - np.logaddexp(0, start)) / 2
    logsnr = levels.uniform_time(schedule, start, end, "stratified")(KEY, (COUNT,))
    weight = levels.vlb(levels.time_density(schedule, start, end))
    found = (weight(logsnr) / (1 + jnp.exp(logsnr))).mean()
    assert float(found) == pytest.approx(exact, rel=2e-3)


@pytest.mark.parametrize("make", [schedules.vp_cosine, schedules.sub_vp, lambda: schedules.vp_cosine_interpolated(8.0)])
def test_time_density_is_one_in_all(make):
    schedule = make()
    density = levels.time_density(schedule, -5.0, 5.0)
    grid = np.linspace(-5, 5, 2001)
    assert scipy.integrate.trapezoid(np.asarray(density(grid), np.float64), grid) == pytest.approx(1, abs=1e-4)
