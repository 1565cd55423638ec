"""Schedules against the papers' own formulas in t, against each other, and at both infinite ends."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from diffusion import schedules
from diffusion.clocks import Clock

INF = math.inf
ZERO_SNR = schedules.vp_discrete(schedules.rescale_zero_terminal_snr(schedules.scaled_linear_betas()))
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "plain cosine": schedules.vp_cosine(1.0, -INF, INF),
    "shifted cosine": schedules.vp_cosine(shift=4.0),
    "interpolated cosine": schedules.vp_cosine_interpolated(16.0, 0.5),
    "vp_discrete": schedules.vp_discrete(schedules.ddpm_betas()),
    "scaled linear": schedules.vp_discrete(schedules.scaled_linear_betas()),
    "zero terminal SNR": ZERO_SNR,
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "sub_vp": schedules.sub_vp(),
    "flow": schedules.flow(),
    "shifted flow": schedules.flow(shift=5.0),
    "sigmoid": schedules.sigmoid(),
    "steep sigmoid": schedules.sigmoid(-3.0, 3.0, 0.3),
    "laplace": schedules.laplace(),
    "shifted": schedules.vp_linear().shifted(-1.5),
}
SCALINGS = [schedules.VP(), schedules.VE(), schedules.SubVP(), schedules.Flow()]
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
each_scaling = pytest.mark.parametrize("scaling", SCALINGS, ids=repr)


# Clocks ---------------------------------------------------------------------------------------------------


@each
@given(t=st.floats(0.0, 1.0))
def test_time_inverts_logsnr(schedule, t):
    assert abs(schedule.time(schedule.logsnr(t)) - t) <= 1e-12


@each
@given(share=st.floats(0.0, 1.0))
def test_logsnr_inverts_time(schedule, share):
    """To 1e-12 in the log-SNR times the steepness there: t has only so many digits near 1."""
    level = schedule.logsnr_start + share * (schedule.logsnr_end - schedule.logsnr_start)
    t = float(schedule.time(level))
    if not np.nextafter(t, 0) > 0 or t == 1:
        return
    steepness = (schedule.logsnr(np.nextafter(t, 0)) - schedule.logsnr(np.nextafter(t, 1))) / 1e-16
    assert abs(schedule.logsnr(t) - level) <= 1e-12 + 1e-15 * steepness


@each
def test_logsnr_falls_and_ends_are_finite(schedule):
    levels = schedule.logsnr(np.linspace(0, 1, 5001))
    assert (np.diff(levels) < 0).all()
    assert -INF < schedule.logsnr_start < schedule.logsnr_end < INF
    times = schedule.time(np.array([schedule.logsnr_start, schedule.logsnr_end]))
    assert 0.9 < times[0] <= 1 + 1e-12 and -1e-12 <= times[1] < 0.1


@each
def test_jax_and_numpy_agree_and_keep_their_types(schedule):
    t = np.linspace(0.01, 0.99, 197)
    levels = schedule.logsnr(t)
    assert isinstance(levels, np.ndarray) and levels.dtype == np.float64
    traced = jax.jit(lambda t: (schedule.logsnr(t), schedule.time(schedule.logsnr(t))))
    there, back = traced(jnp.asarray(t, jnp.float32))
    assert there.dtype == jnp.float32
    np.testing.assert_allclose(there, levels, rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(back, t, atol=2e-6)
    assert schedule.logsnr(jnp.asarray(t, jnp.bfloat16)).dtype == jnp.bfloat16


def test_vp_linear_is_the_integral_of_beta():
    schedule = schedules.vp_linear(0.3, 12.0)
    for t in (0.03, 0.4, 0.9, 1.0):
        integral, _ = scipy.integrate.quad(lambda u: 0.3 + u * (12.0 - 0.3), 0, t, epsabs=1e-13)
        level = schedule.logsnr(t)
        np.testing.assert_allclose(schedule.alpha(level), math.exp(-integral / 2), rtol=1e-12)
        sub = schedules.sub_vp(0.3, 12.0)
        level = sub.logsnr(t)
        np.testing.assert_allclose(sub.alpha(level), math.exp(-integral / 2), rtol=1e-12)
        np.testing.assert_allclose(sub.sigma(level), 1 - math.exp(-integral), rtol=1e-11)


def test_cosine_is_a_circle():
    plain = SCHEDULES["plain cosine"]
    t = np.linspace(0.001, 0.999, 333)
    np.testing.assert_allclose(plain.alpha(plain.logsnr(t)), np.cos(np.pi * t / 2), rtol=1e-12)
    np.testing.assert_allclose(plain.sigma(plain.logsnr(t)), np.sin(np.pi * t / 2), rtol=1e-12)
    clipped = schedules.vp_cosine(1.0, -15.0, 12.0)
    assert clipped.logsnr(0.0) == pytest.approx(12.0, abs=1e-12)
    assert clipped.logsnr(1.0) == pytest.approx(-15.0, abs=1e-12)
    # The angle is linear in t between its clipped ends.
    angle = np.arctan2(clipped.sigma(clipped.logsnr(t)), clipped.alpha(clipped.logsnr(t)))
    np.testing.assert_allclose(np.diff(angle, 2), 0, atol=1e-14)


def test_interpolated_cosine_has_each_shift_at_its_end():
    noise, data = 16.0, 0.5
    schedule, base = schedules.vp_cosine_interpolated(noise, data), schedules.vp_cosine()
    for t in (0.0, 0.25, 0.5, 1.0):
        shift = (1 - t) * -2 * math.log(data) + t * -2 * math.log(noise)
        assert schedule.logsnr(t) == pytest.approx(base.logsnr(t) + shift, abs=1e-12)
    with pytest.raises(ValueError, match="offset_noise <= offset_data"):
        schedules.vp_cosine_interpolated(1.0, 2.0)


def test_flow_is_a_straight_line():
    schedule, shifted = schedules.flow(), schedules.flow(shift=3.0)
    t = np.linspace(0.001, 0.999, 333)
    np.testing.assert_allclose(schedule.sigma(schedule.logsnr(t)), t, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(schedule.logsnr(t)), 1 - t, rtol=1e-12)
    np.testing.assert_allclose(shifted.sigma(shifted.logsnr(t)), 3 * t / (1 + 2 * t), rtol=1e-12)
    s = np.exp(-np.array([schedule.logsnr_start, schedule.logsnr_end]) / 2)
    np.testing.assert_allclose(s, [999, 0.001001001], rtol=1e-8)


def test_sigmoid_is_a_clipped_logistic_curve():
    start, end, tau = -2.0, 3.0, 0.8
    schedule = schedules.sigmoid(start, end, tau)
    t = np.linspace(0.01, 0.99, 99)
    top, bottom = (1 / (1 + np.exp(-e / tau)) for e in (end, start))
    curve = 1 / (1 + np.exp(-(start + t * (end - start)) / tau))
    np.testing.assert_allclose(schedule.alpha(schedule.logsnr(t)) ** 2, (top - curve) / (top - bottom), rtol=1e-10)


def test_uniform_time_of_the_laplace_schedule_is_laplace():
    schedule = schedules.laplace(0.7, 1.3)
    t = np.linspace(0.001, 0.999, 999)
    np.testing.assert_allclose(schedule.logsnr(t), scipy.stats.laplace(0.7, 1.3).isf(t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "betas",
    [schedules.ddpm_betas(), schedules.scaled_linear_betas(), schedules.cosine_betas(), [0.1, 0.2, 0.9, 0.3]],
)
def test_discrete_is_exact_at_its_levels(betas):
    schedule = schedules.vp_discrete(betas)
    abar = np.cumprod(1 - np.asarray(betas))
    t = (np.arange(len(betas)) + 1) / len(betas)
    level = schedule.logsnr(t)
    np.testing.assert_allclose(schedule.alpha(level) ** 2, abar, rtol=1e-11)
    np.testing.assert_allclose(schedule.time(level), t, atol=1e-13)
    assert schedule.logsnr(0.0) == INF
    assert (schedule.logsnr_start, schedule.logsnr_end) == (level[-1], level[0])
    # Between two levels beta is constant, so log abar is linear.
    inside = schedule.alpha(schedule.logsnr((t[0] + t[1]) / 2)) ** 2
    np.testing.assert_allclose(inside, math.sqrt(abar[0] * abar[1]), rtol=1e-11)


def test_laplace_time_falls_at_its_mean_too():
    slope = jax.vmap(jax.grad(schedules.laplace().time))(jnp.array([-1e-3, 0.0, 1e-3]))
    np.testing.assert_allclose(slope, -1.0, atol=5e-3)


def test_zero_terminal_snr():
    betas = schedules.scaled_linear_betas()
    rescaled = schedules.rescale_zero_terminal_snr(betas)
    before, after = (np.sqrt(np.cumprod(1 - b)) for b in (betas, rescaled))
    assert rescaled[-1] == 1 and after[-1] == 0
    assert after[0] == pytest.approx(before[0], rel=1e-12)
    # Algorithm 1 of Lin et al. is a straight line through these two points.
    np.testing.assert_allclose(after, (before - before[-1]) * before[0] / (before[0] - before[-1]), atol=1e-12)
    assert ZERO_SNR.logsnr(1.0) == -INF and ZERO_SNR.time(-INF) == 1
    assert ZERO_SNR.alpha(ZERO_SNR.logsnr(1.0)) == 0 and ZERO_SNR.logsnr_start == -20
    level = ZERO_SNR.logsnr(0.9995)
    assert ZERO_SNR.alpha(level) ** 2 == pytest.approx(after[-2] ** 2 / 2, rel=1e-9)


def test_a_chain_without_signal_at_its_end_has_none_whatever_its_length():
    """(T - 1) / T + 1 / T is 1 only for some T in floating point."""
    for num in (*range(2, 130), 1000, 1999):
        schedule = schedules.vp_discrete(schedules.rescale_zero_terminal_snr(schedules.ddpm_betas(1e-3, 0.1, num)))
        assert schedule.logsnr(1.0) == -INF and schedule.logsnr(jnp.float32(1)) == -INF, num
        assert schedule.logsnr_start == min(-20.0, schedule.logsnr((num - 1) / num))


@pytest.mark.parametrize(
    "schedule, size",
    [
        (schedules.vp_linear(), lambda logsnr: np.ones_like(logsnr)),
        (schedules.ve(0.01, 5.0), lambda logsnr: np.sqrt(1 + np.exp(-logsnr))),
        (schedules.flow(), lambda logsnr: np.sqrt(1 + np.exp(-logsnr)) / (1 + np.exp(-logsnr / 2))),
    ],
    ids=["vp", "ve", "flow"],
)
def test_the_size_of_noisy_data(schedule, size):
    """In flow s = sigma / alpha with alpha + sigma = 1; of sub-VP the least is sqrt(.75), where alpha^2 = 1/2."""
    levels = np.linspace(-8, 8, 17)
    np.testing.assert_allclose(schedule.size(levels), size(levels), rtol=1e-12)
    np.testing.assert_allclose(schedule.size(jnp.asarray(levels)), size(levels), rtol=1e-5)
    sub = schedules.sub_vp()
    assert (
        sub.size(math.log(2)) == pytest.approx(math.sqrt(0.75)) == np.min(sub.size(np.linspace(-8, 8, 10_001))).round(6)
    )


def test_a_level_for_every_clip_is_rescaled_clip_by_clip():
    x, level = np.ones((2, 2)), np.array([-4.0, 0.0])
    moved = schedules.rescale(x, level, schedules.vp_linear(), schedules.ve())
    for i in range(2):
        np.testing.assert_allclose(moved[i], schedules.rescale(x[i], level[i], schedules.vp_linear(), schedules.ve()))


@each
@given(offset=st.floats(-6, 6))
def test_a_shift_is_one_constant(schedule, offset):
    shifted = schedule.shifted(offset)
    t = np.linspace(0.01, 0.99, 21)
    np.testing.assert_allclose(shifted.logsnr(t), schedule.logsnr(t) + offset, atol=1e-12)
    assert shifted.logsnr_end == pytest.approx(schedule.logsnr_end + offset)
    by_factor = schedule.shifted(factor=math.exp(-offset / 2))
    np.testing.assert_allclose(by_factor.logsnr(t), shifted.logsnr(t), atol=1e-12)
    assert schedule.shifted(0.0) is schedule


def test_published_shifts_are_that_constant():
    t = np.linspace(0.01, 0.99, 99)
    # SD3 and Wan: t' = a t / (1 + (a - 1) t); CogVideoX: abar' = abar / (c + (1 - c) abar); simple diffusion.
    flow = schedules.flow()
    warped = 5 * t / (1 + 4 * t)
    np.testing.assert_allclose(flow.shifted(factor=5.0).logsnr(t), flow.logsnr(warped), atol=1e-11)
    vp = schedules.vp_linear()
    abar = vp.alpha(vp.logsnr(t)) ** 2
    shifted = vp.shifted(factor=math.sqrt(3.0))
    np.testing.assert_allclose(shifted.alpha(shifted.logsnr(t)) ** 2, abar / (3 - 2 * abar), rtol=1e-11)
    np.testing.assert_allclose(
        schedules.vp_cosine(shift=128 / 64).logsnr(t),
        schedules.vp_cosine().logsnr(t) + 2 * math.log(64 / 128),
    )


# Scalings -------------------------------------------------------------------------------------------------


@each_scaling
@given(level=st.floats(-40, 40))
def test_alpha_and_sigma_have_that_log_snr(scaling, level):
    alpha, sigma = float(scaling.alpha(level)), float(scaling.sigma(level))
    assert 2 * (math.log(alpha) - math.log(sigma)) == pytest.approx(level, abs=1e-12, rel=1e-13)


def test_what_each_scaling_keeps():
    level = np.linspace(-20, 20, 401)
    vp, ve, sub, flow = ((s.alpha(level), s.sigma(level)) for s in SCALINGS)
    np.testing.assert_allclose(vp[0] ** 2 + vp[1] ** 2, 1, rtol=1e-14)
    np.testing.assert_array_equal(ve[0], 1)
    np.testing.assert_allclose(sub[1], 1 - sub[0] ** 2, atol=1e-15)
    np.testing.assert_allclose(flow[0] + flow[1], 1, rtol=1e-14)


@each_scaling
def test_infinite_ends_are_finite_with_their_gradients(scaling):
    clean, noise = jnp.float32(INF), jnp.float32(-INF)
    assert (float(scaling.alpha(clean)), float(scaling.sigma(clean))) == (1, 0)
    assert float(jax.grad(scaling.alpha)(clean)) == 0 and float(jax.grad(scaling.sigma)(clean)) == 0
    assert (scaling.alpha(INF), scaling.sigma(INF)) == (1, 0)
    if scaling == schedules.VE():
        assert scaling.sigma(-INF) == INF
        return
    assert (float(scaling.alpha(noise)), float(scaling.sigma(noise))) == (0, 1)
    assert float(jax.grad(scaling.alpha)(noise)) == 0 and float(jax.grad(scaling.sigma)(noise)) == 0
    assert (scaling.alpha(-INF), scaling.sigma(-INF)) == (0, 1)


@each_scaling
def test_float32_is_stable_out_to_twenty(scaling):
    level = np.linspace(-20, 20, 4001, dtype=np.float32)
    for of in (scaling.alpha, scaling.sigma):
        single, double = of(jnp.asarray(level)), of(level.astype(np.float64))
        np.testing.assert_allclose(single, double, rtol=2e-6)
        slope = jax.vmap(jax.grad(of))(jnp.asarray(level))
        central = (of(level.astype(np.float64) + 1e-4) - of(level.astype(np.float64) - 1e-4)) / 2e-4
        np.testing.assert_allclose(slope, central, rtol=1e-4, atol=1e-7)


def test_equal_log_snr_differs_by_a_rescaling_only():
    rng = np.random.default_rng(0)
    level = np.array([-INF, -12.0, -1.0, 0.5, 9.0, INF])[:, None]
    x0, eps = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    made = {s: s.alpha(level) * x0 + s.sigma(level) * eps for s in SCALINGS if s != schedules.VE()}
    for source in made:
        for target in made:
            a, b = (dataclasses.replace(schedules.vp_linear(), scaling=s) for s in (source, target))
            np.testing.assert_allclose(schedules.rescale(made[source], level, a, b), made[target], rtol=1e-12)
    finite = slice(1, 5)
    unit = (level[finite], schedules.Schedule(schedules.VE(), schedules.vp_linear().clock, -1.0, 1.0))
    y = x0[finite] + np.exp(-unit[0] / 2) * eps[finite]
    for source, x in made.items():
        np.testing.assert_allclose(x[finite] / source.alpha(unit[0]), y, rtol=1e-12)
        schedule = dataclasses.replace(schedules.vp_linear(), scaling=source)
        np.testing.assert_allclose(schedules.rescale(x[finite], unit[0], schedule, unit[1]), y, rtol=1e-12)


# Numbers that the reference post has wrong, and what is right ---------------------------------------------


def test_ddpm_endpoints():
    ddpm = SCHEDULES["vp_discrete"]
    t = (np.arange(1000) + 1) / 1000
    snr = np.exp(ddpm.logsnr(t))
    assert snr[0] == pytest.approx(9999, rel=1e-9)
    assert snr[-1] == pytest.approx(4.036e-5, rel=1e-3)
    assert ddpm.alpha(ddpm.logsnr_start) == pytest.approx(0.00635, rel=1e-3)  # mistaken for the SNR
    assert int(np.argmin(abs(snr - 0.006))) + 1 == 711
    assert ddpm.logsnr_end == pytest.approx(9.21, abs=5e-3)
    assert ddpm.logsnr_start == pytest.approx(-10.12, abs=5e-3)
    assert math.exp(-ddpm.logsnr_start / 2) == pytest.approx(157.40728, rel=1e-6)
    assert schedules.vp_cosine().logsnr(1.0) < ddpm.logsnr_start


def test_vp_linear_is_the_limit_of_ddpm():
    t = (np.arange(1000) + 1) / 1000
    gap = abs(schedules.vp_linear().logsnr(t) - SCHEDULES["vp_discrete"].logsnr(t))
    assert gap.max() < 0.1 and gap[100:900].max() < 0.05
    # First order in the step of the chain: ten times the steps, a tenth of the gap.
    fine = schedules.vp_discrete(schedules.ddpm_betas(1e-5, 2e-3, 10_000))
    assert abs(schedules.vp_linear().logsnr(t) - fine.logsnr(t)).max() < gap.max() / 9


def test_ve_is_a_straight_line():
    levels = schedules.ve(0.01, 50.0).logsnr(np.linspace(0, 1, 101))
    assert abs(np.diff(levels, 2)).max() < 1e-13
    sigma = schedules.VE().sigma(levels)
    np.testing.assert_allclose(sigma[1:] / sigma[:-1], 5000.0 ** (1 / 100), rtol=1e-12)


def test_sub_vp_dips_to_three_quarters_and_ends_further_from_one():
    sub, vp = schedules.sub_vp(), schedules.vp_linear()
    t = np.linspace(0.001, 1, 100_001)
    level = sub.logsnr(t)
    variance = sub.alpha(level) ** 2 + sub.sigma(level) ** 2
    assert variance.min() == pytest.approx(0.75, abs=1e-8)
    assert sub.alpha(level[variance.argmin()]) ** 2 == pytest.approx(0.5, abs=1e-3)
    # Equal alpha at the end, and a gap to sigma = 1 that is twice as large.
    gap_sub, gap_vp = (1 - s.sigma(s.logsnr(1.0)) ** 2 for s in (sub, vp))
    assert sub.alpha(sub.logsnr(1.0)) == pytest.approx(float(vp.alpha(vp.logsnr(1.0))), rel=1e-12)
    assert gap_sub == pytest.approx(8.64e-5, rel=1e-3) and gap_vp == pytest.approx(4.32e-5, rel=1e-3)


def test_edm_clock_is_a_sampling_grid_not_the_noise_schedule():
    edm = schedules.edm()
    # The noise schedule: x = x0 + t eps.
    t = np.geomspace(0.002, 80, 50)
    np.testing.assert_allclose(edm.sigma(-2 * np.log(t)), t, rtol=1e-12)
    np.testing.assert_array_equal(edm.alpha(-2 * np.log(t)), 1)
    # The clock: sigma^(1/7) linear.
    root = edm.sigma(edm.logsnr(np.linspace(0, 1, 101))) ** (1 / 7)
    np.testing.assert_allclose(np.diff(root, 2), 0, atol=1e-14)
    assert (edm.logsnr_start, edm.logsnr_end) == (-2 * math.log(80), -2 * math.log(0.002))


def test_where_rho_seven_puts_its_steps():
    edm = schedules.edm()

    def share(low, high):
        return float(edm.time(-2 * math.log(high)) - edm.time(-2 * math.log(low)))

    edges = np.geomspace(0.002, 80, 4)
    terciles = [share(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    np.testing.assert_allclose(terciles, [0.185, 0.307, 0.508], atol=1e-3)
    assert share(0.002, 0.01) / math.log(5) == pytest.approx(0.0453, abs=1e-4)
    assert share(10, 80) / math.log(8) == pytest.approx(0.1585, abs=1e-4)
    assert share(0.002, 0.5) == pytest.approx(0.34, abs=5e-3)


# Records and errors ---------------------------------------------------------------------------------------


@each
def test_repr_and_record_rebuild_the_schedule(schedule):
    assert eval(repr(schedule), vars(schedules)) == schedule  # noqa: S307
    saved = json.loads(json.dumps(schedules.record(schedule), allow_nan=False))
    assert schedules.restore(saved) == schedule
    assert hash(schedules.restore(saved)) == hash(schedule)


@dataclasses.dataclass(frozen=True)
class Own:
    """A clock of somebody else's, with fields of all kinds; its levels are those of the clock within."""

    within: Clock
    mode: str
    terms: int
    on: bool
    bounds: tuple[float, ...]

    def logsnr(self, t):
        return self.within.logsnr(t)

    def time(self, logsnr):
        return self.within.time(logsnr)


def test_a_clock_of_somebody_elses_comes_back_as_it_was():
    own = Own(schedules.vp_linear().clock, "1", 3, True, (-INF, 2.0))
    schedule = schedules.Schedule(schedules.VP(), own, -10.0, 10.0)
    saved = json.loads(json.dumps(schedules.record(schedule), allow_nan=False))
    again = schedules.restore(saved, find={f"{__name__}:Own": Own}.get)
    assert again == schedule and repr(again) == repr(schedule)


def test_equality_is_by_value():
    assert schedules.vp_linear() == schedules.vp_linear(0.1, 20.0)
    assert schedules.vp_linear() != schedules.vp_linear(0.1, 19.0)
    assert schedules.vp_discrete(schedules.ddpm_betas()) == SCHEDULES["vp_discrete"]
    assert len({schedules.flow(), schedules.flow(1.0), schedules.flow(2.0)}) == 2


def test_damaged_records_are_refused_by_name():
    good = schedules.record(schedules.vp_linear())
    with pytest.raises(KeyError, match="'LinearBeta'"):
        schedules.restore({**good, "clock": {**good["clock"], "kind": "LinearBetas"}})
    with pytest.raises(ValueError, match="beta_max"):
        schedules.restore({**good, "clock": {"kind": "LinearBeta", "beta_min": 0.1}})
    with pytest.raises(ValueError, match="expected kind 'Schedule'"):
        schedules.restore(good["clock"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.vp_linear(2.0, 1.0),
        lambda: schedules.vp_linear(-0.1, 20.0),
        lambda: schedules.sub_vp(0.0, 0.0),
        lambda: schedules.vp_cosine(logsnr_min=5.0, logsnr_max=-5.0),
        lambda: schedules.vp_cosine(shift=0.0),
        lambda: schedules.ve(1.0, 0.1),
        lambda: schedules.edm(0.0, 80.0),
        lambda: schedules.edm(rho=0.0),
        lambda: schedules.flow(shift=-1.0),
        lambda: schedules.sigmoid(3.0, -3.0),
        lambda: schedules.laplace(scale=0.0),
        lambda: schedules.vp_discrete([0.1]),
        lambda: schedules.vp_discrete([0.1, 0.0]),
        lambda: schedules.vp_discrete([1.0, 0.1]),
        lambda: schedules.vp_discrete([0.1, math.nan]),
        lambda: schedules.vp_linear().shifted(math.nan),
        lambda: dataclasses.replace(schedules.vp_linear(), logsnr_start=-INF),
        lambda: dataclasses.replace(schedules.vp_linear(), logsnr_end=-30.0),
        lambda: schedules.vp_linear().logsnr(-0.1),
        lambda: schedules.flow().logsnr(np.array([0.5, 1.5])),
        lambda: SCHEDULES["vp_discrete"].logsnr(-0.5),
        lambda: schedules.flow().time(math.nan),
    ],
)
def test_bad_arguments_raise(make):
    with pytest.raises(ValueError):
        make()


def test_a_cosines_limits_are_its_ends():
    """Also where they are wider than those that it has by default; infinite ones can't be."""
    for low, high, expected in (
        (-30.0, 25.0, (-30.0, 25.0)),
        (-10.0, 9.0, (-10.0, 9.0)),
        (-math.inf, math.inf, (-20.0, 20.0)),
    ):
        for schedule in (
            schedules.vp_cosine(logsnr_min=low, logsnr_max=high),
            schedules.vp_cosine_interpolated(1.0, logsnr_min=low, logsnr_max=high),
        ):
            assert (schedule.logsnr_start, schedule.logsnr_end) == pytest.approx(expected)


@pytest.mark.parametrize("make", [schedules.vp_linear, schedules.sub_vp])
def test_a_linear_beta_from_zero_has_a_time_for_clean_data(make):
    schedule = make(beta_min=0.0)
    assert float(schedule.time(math.inf)) == 0
    assert float(schedule.logsnr(schedule.time(3.0))) == pytest.approx(3.0)
