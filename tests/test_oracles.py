"""Oracles against quadrature, dense and exact rational linear algebra, quantile transport and each other."""

import fractions
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import integrate, linalg, stats

from diffusion import noise as sources
from diffusion import oracles, schedules

SCHEDULES = {
    "vp": schedules.vp_linear(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "sub_vp": schedules.sub_vp(),
}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
VP = SCHEDULES["vp"]


def spread(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(seed, d):
    root = spread(seed, d, d)
    return root @ root.T / d


def noisy(schedule, x0, logsnr, seed=0):
    return schedule.alpha(logsnr) * x0 + schedule.sigma(logsnr) * spread(seed, *x0.shape)


def level_of(s):
    """The log-SNR at which sigma/alpha is s."""
    return -2 * math.log(s)


# Mixtures ---------------------------------------------------------------------------------------------------


@each_schedule
@pytest.mark.parametrize("logsnr", [-8.0, -1.0, 0.5, 4.0])
def test_denoiser_and_density_agree_with_quadrature(schedule, logsnr):
    weights, means, stds = np.array([0.2, 0.5, 0.3]), np.array([-3.0, 0.5, 2.0]), np.array([0.5, 1.0, 0.2])
    mix = oracles.gaussian_mixture(weights, means[:, None], stds**2)
    alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)

    def joint(x0, x):
        return weights @ stats.norm.pdf(x0, means, stds) * stats.norm.pdf(x, alpha * x0, sigma)

    for x in alpha * np.array([-4.0, -0.3, 1.4, 5.0]) + sigma * np.array([0.3, -1.0, 0.8, 2.0]):
        # The breakpoints are where the integrand lives: the modes, and the x0 that x points at.
        points = sorted({*np.clip([*means, *(means + 0.3), *(means - 0.3), x / alpha], -12, 12)})
        moments = [
            integrate.quad(lambda x0, n=n, x=x: x0**n * joint(x0, x), -12, 12, points=points, epsabs=0, limit=400)[0]
            for n in (0, 1)
        ]
        got = mix.denoiser(schedule)(np.array([[x]]), logsnr)[0, 0]
        np.testing.assert_allclose(got, moments[1] / moments[0], rtol=1e-9, atol=1e-9)
        density = mix.log_density(schedule)(np.array([[x]]), logsnr)[0]
        np.testing.assert_allclose(density, np.log(moments[0]), rtol=1e-9, atol=1e-9)


def test_density_agrees_with_scipy_for_full_covariances():
    weights, means = np.array([0.3, 0.7]), spread(0, 2, 4)
    full = [covariance(1, 4), covariance(2, 4)]
    mix = oracles.gaussian_mixture(weights, means, full)
    x, logsnr = spread(3, 6, 4), np.array([-3.0, 0.0, 1.0, 5.0, 12.0, np.inf])
    alpha, sigma = VP.alpha(logsnr), VP.sigma(logsnr)
    expected = [
        np.log(sum(
            w * stats.multivariate_normal.pdf(point, a * m, a**2 * c + s**2 * np.eye(4))
            for w, m, c in zip(weights, means, full, strict=True)
        ))
        for point, a, s in zip(x, alpha, sigma, strict=True)
    ]  # fmt: skip
    np.testing.assert_allclose(mix.log_density(VP)(x, logsnr), expected, rtol=1e-10)


def test_all_ways_to_write_a_covariance_agree():
    d = 5
    factors, eigenvalues, variance = spread(0, d, 2), np.array([2.0, 0.5]), 0.3
    matrix = variance * np.eye(d) + factors @ np.diag(eigenvalues) @ factors.T
    weights, means = [0.2, 0.8], spread(1, 2, d)
    diagonal = np.abs(spread(2, d)) + 0.1
    x, logsnr = 2 * spread(3, 7, d), np.linspace(-12, 14, 7)
    pairs = [
        ([oracles.low_rank(factors, eigenvalues, variance), 0.7], [matrix, 0.7 * np.eye(d)]),
        ([oracles.low_rank(factors, eigenvalues, variance), diagonal], [matrix, np.diag(diagonal)]),
        ([diagonal, 2 * diagonal], [np.diag(diagonal), np.diag(2 * diagonal)]),
        (0.4, [0.4 * np.eye(d)] * 2),
        (oracles.low_rank(spread(4, d, 8), np.ones(8)), [spread(4, d, 8) @ spread(4, d, 8).T] * 2),
    ]
    for left, right in pairs:
        one, other = (oracles.gaussian_mixture(weights, means, c) for c in (left, right))
        for name in ("denoiser", "score", "log_density", "responsibilities"):
            np.testing.assert_allclose(
                getattr(one, name)(VP)(x, logsnr), getattr(other, name)(VP)(x, logsnr), rtol=1e-9, atol=1e-10
            )
        np.testing.assert_allclose(one.covariance(), other.covariance(), atol=1e-12)


def test_one_mode_is_linear_regression():
    """E[x0 | x] of a Gaussian is the least-squares regression on x: alpha C (alpha^2 C + sigma^2)^-1."""
    c, m = covariance(5, 4), spread(6, 4)
    x = spread(7, 3, 4)
    for logsnr in (-6.0, 0.0, 6.0):
        a, s = VP.alpha(logsnr), VP.sigma(logsnr)
        expected = m + (x - a * m) @ linalg.solve(a**2 * c + s**2 * np.eye(4), a * c)
        np.testing.assert_allclose(oracles.gaussian(m, c).denoiser(VP)(x, logsnr), expected, atol=1e-12)


@each_schedule
def test_infinite_levels_give_the_data_and_the_mean(schedule):
    x = spread(0, 5, 2)
    for mix in (oracles.b2d(), oracles.gaussian_mixture([1, 2], spread(1, 2, 2), [covariance(2, 2)] * 2)):
        denoise = mix.denoiser(schedule)
        np.testing.assert_array_equal(denoise(x, np.inf), x / schedule.alpha(np.inf))
        np.testing.assert_allclose(denoise(x, -np.inf), np.tile(mix.mean(), (5, 1)), atol=1e-14)
        np.testing.assert_allclose(denoise(x, 70.0), x / schedule.alpha(70.0), rtol=1e-12)
        far = denoise(x * schedule.sigma(-70.0), -70.0)
        np.testing.assert_allclose(far, np.tile(mix.mean(), (5, 1)), atol=1e-12)
    # Pure noise of infinite size says nothing, rather than NaN.
    np.testing.assert_allclose(
        oracles.b2d().denoiser(SCHEDULES["edm"])(np.inf * np.ones((1, 2)), -np.inf), [[0, 0]], atol=1e-15
    )


@each_schedule
def test_only_the_log_snr_matters(schedule):
    """Another scaling is another x, and nothing else (at x / alpha the answers are the same)."""
    logsnr = np.array([-15.0, -3.0, 0.0, 4.0, 20.0])
    x = noisy(VP, oracles.b2d().means[:5], logsnr[:, None])
    moved = schedules.rescale(x, logsnr[:, None], VP, schedule)
    np.testing.assert_allclose(
        oracles.b2d().denoiser(schedule)(moved, logsnr),
        oracles.b2d().denoiser(VP)(x, logsnr),
        rtol=1e-9,
        atol=1e-9,
    )


def test_ready_problems_have_the_moments_of_their_definition():
    a, b = oracles.a1d(), oracles.b2d()
    # a1d: mean -.8 + 1.2; variance 1 + E m^2 - mean^2.
    np.testing.assert_allclose(a.mean(), [0.4])
    np.testing.assert_allclose(a.covariance(), [[1 + 4 - 0.16]])
    # b2d: the two squares are isotropic (4 + 16)/2/2 each axis, stds .05 .1 .15 .2 twice.
    np.testing.assert_allclose(b.mean(), [0, 0], atol=1e-15)
    np.testing.assert_allclose(
        b.covariance(), np.eye(2) * (5 + np.mean(np.array([0.05, 0.1, 0.15, 0.2]) ** 2)), atol=1e-14
    )
    np.testing.assert_allclose(np.linalg.norm(b.means, axis=1), [2, 4] * 4)
    np.testing.assert_allclose(oracles.eight_mode_ring(3.0, 0.2).covariance(), np.eye(2) * (4.5 + 0.04), atol=1e-14)


def test_samples_have_the_mean_and_covariance():
    n = 40_000
    low = oracles.low_rank(spread(0, 3, 1), [2.0], 0.1)
    for mix in (oracles.gaussian_mixture([1, 3], spread(1, 2, 3), [low, covariance(2, 3)]), oracles.b2d()):
        samples = np.asarray(mix.sample(jax.random.key(0), n), np.float64)
        scale = np.sqrt(np.diag(mix.covariance()))
        assert (np.abs(samples.mean(0) - mix.mean()) < 5 * scale / np.sqrt(n)).all()
        # Five standard errors; the fourth moments of these mixtures are at most twice the normal's.
        error = np.abs(np.cov(samples.T) - mix.covariance())
        assert (error < 5 * 2 * np.outer(scale, scale) * np.sqrt(2 / n)).all()


def test_levels_per_element_are_separate_problems():
    """With independent coordinates a level per coordinate is one 1-D problem each; with modes they share the
    mode.
    """
    mean, variance = spread(0, 3), np.array([0.5, 1.0, 2.0])
    level = np.array([[-2.0, 3.0, np.inf]])
    x = spread(1, 4, 3)
    got = oracles.gaussian(mean, variance).denoiser(VP)(x, level)
    for i in range(3):
        alone = oracles.gaussian(mean[i], variance[i]).denoiser(VP)(x[:, i], level[0, i])
        np.testing.assert_allclose(got[:, i], alone, atol=1e-14)


def test_shapes_batches_and_single_samples():
    clips = spread(0, 3, 2, 4, 4, 1)
    mix = oracles.gaussian_mixture(np.ones(3), clips, 0.5)
    x = spread(1, 5, 2, 4, 4, 1)
    flat = oracles.gaussian_mixture(np.ones(3), clips.reshape(3, -1), 0.5)
    denoise = mix.denoiser(VP)
    expected = flat.denoiser(VP)(x.reshape(5, -1), 1.0).reshape(x.shape)
    for level in (
        1.0,
        np.ones(1),
        np.ones(5),
        np.ones((1, 2)),
        np.ones((5, 2, 1, 1, 1)),
        np.ones((1, 2, 4, 4, 1)),
    ):
        np.testing.assert_allclose(denoise(x, level), expected, atol=1e-13)
    np.testing.assert_allclose(denoise(x[2], 1.0), expected[2], atol=1e-13)
    single = jax.vmap(lambda one: denoise(one, 1.0))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(single, expected, atol=1e-5)
    scalar = oracles.gaussian_mixture([0.5, 0.5], [-1.0, 1.0], 0.1)
    assert scalar.denoiser(VP)(np.zeros(6), 0.0).shape == (6,)
    assert mix.sample(jax.random.key(0), 7).shape == (7, 2, 4, 4, 1)


# Finite data sets -------------------------------------------------------------------------------------------


def test_empirical_denoiser_is_the_softmax_of_distances():
    clips = spread(0, 4, 3, 2, 2, 1)
    x, logsnr = spread(1, 6, 3, 2, 2, 1), np.linspace(-4, 4, 6)
    a, s = (f(logsnr).reshape(6, 1, 1, 1, 1, 1) for f in (VP.alpha, VP.sigma))
    distances = (((x[:, None] - a * clips) / s) ** 2).sum((2, 3, 4, 5)) / 2
    weights = np.exp(-distances) / np.exp(-distances).sum(1, keepdims=True)
    np.testing.assert_allclose(
        oracles.empirical(clips).denoiser(VP)(x, logsnr),
        np.einsum("bn,nfhwc->bfhwc", weights, clips),
        atol=1e-12,
    )


def test_empirical_limits():
    clips = spread(0, 4, 3, 2, 2, 1)
    denoise = oracles.empirical(clips).denoiser(VP)
    # Little noise: the clip itself. Pure noise: the average.
    np.testing.assert_allclose(denoise(clips + 1e-4 * spread(1, *clips.shape), level_of(1e-3)), clips, atol=1e-12)
    np.testing.assert_allclose(denoise(clips, -np.inf), np.tile(clips.mean(0), (4, 1, 1, 1, 1)), atol=1e-14)
    # Clean first frame, pure noise behind it: the first frame says which clip it is.
    level = np.array([[np.inf, -np.inf, -np.inf]])
    mixed = np.concatenate([clips[:, :1], spread(2, 4, 2, 2, 2, 1)], axis=1)
    np.testing.assert_allclose(denoise(mixed, level), clips, atol=1e-14)
    # Two clips that share their first frame stay equally likely.
    twins = np.stack([clips[0], np.concatenate([clips[0, :1], clips[1, 1:]])])
    got = oracles.empirical(np.concatenate([twins, clips[2:]])).denoiser(VP)(mixed[:1], level)
    np.testing.assert_allclose(got[0], twins.mean(0), atol=1e-14)
    # In float32 too.
    got = jax.jit(lambda d, x, level: d(x, level))(denoise, jnp.asarray(mixed, jnp.float32), level)
    np.testing.assert_allclose(got, clips, atol=1e-6)


def test_empirical_samples_are_clips_with_their_weights():
    clips = spread(0, 3, 2, 1, 1, 1)
    samples = np.asarray(oracles.empirical(clips, [1, 1, 2]).sample(jax.random.key(0), 4000))
    which = np.abs(samples[:, None] - clips).sum((2, 3, 4, 5)).argmin(1)
    np.testing.assert_allclose(samples, clips[which], atol=1e-6)
    np.testing.assert_allclose(np.bincount(which) / 4000, [0.25, 0.25, 0.5], atol=0.04)


# Gaussian processes -----------------------------------------------------------------------------------------


def dense_answer(process, schedule, x, level, noise=None):
    """Joint Gaussian conditioning with the matrices written out, one clip at a time."""
    b, f, *frame = x.shape
    p = math.prod(frame)
    k = process.covariance()
    k = np.kron(process.temporal, np.eye(p)) if len(k) < f * p else k
    c = np.kron(np.eye(f) if noise is None else noise, np.eye(p))
    mean = np.broadcast_to(process.average, (f, p)).ravel()
    answers = []
    for one, l in zip(x.reshape(b, -1), np.broadcast_to(level, (b, f)), strict=True):
        a, n = (np.repeat(g(l), p) for g in (schedule.alpha, schedule.sigma))
        cross, marginal = k * a, a[:, None] * k * a + n[:, None] * c * n
        answers.append(mean + cross @ linalg.solve(marginal, one - a * mean, assume_a="pos"))
    return np.stack(answers).reshape(x.shape)


levels_per_frame = st.lists(st.one_of(st.floats(-20, 20), st.sampled_from([-np.inf, np.inf])), min_size=5, max_size=5)


@hypothesis.given(levels_per_frame, st.sampled_from(["vp", "flow", "sub_vp"]), st.booleans())
def test_process_denoiser_equals_dense_conditioning(levels, name, correlated):
    noise = covariance(9, 5) + 0.5 * np.eye(5) if correlated else None
    process = oracles.gaussian_process(
        oracles.ornstein_uhlenbeck(5, 0.8),
        [covariance(1, 2) + 0.1 * np.eye(2), oracles.rbf(3, 0.8)],
        spread(2, 5, 2, 3),
    )
    schedule, level, x = SCHEDULES[name], np.array([levels]), spread(3, 2, 5, 2, 3)
    got = process.denoiser(schedule, noise)(x, level)
    # Only alpha of -inf and sigma of +inf vanish in every scaling; x is random, so it isn't even plausible
    # data.
    np.testing.assert_allclose(got, dense_answer(process, schedule, x, level, noise), rtol=1e-10, atol=1e-10)


def test_process_levels_of_a_batch_and_edm():
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(6, 0.9), (2, 2, 1), 0.3)
    level = spread(0, 3, 6) * 5
    level[0, 0], level[1, 3], level[2] = np.inf, np.inf, 1.0
    x = noisy(SCHEDULES["edm"], spread(1, 3, 6, 2, 2, 1), level[..., None, None, None])
    got = process.denoiser(SCHEDULES["edm"])(x, level)
    np.testing.assert_allclose(got, dense_answer(process, SCHEDULES["edm"], x, level), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("noise", [None, 0.5 * np.eye(6) + 0.5])
def test_shared_level_and_level_per_frame_agree(noise):
    process = oracles.gaussian_process(oracles.rbf(6, 2.0), covariance(0, 4), 0.5)
    x, level = spread(1, 5, 6, 2, 2, 1), np.array([-12.0, -3.0, 0.0, 4.0, 9.0])
    denoise, score = process.denoiser(VP, noise), process.score(VP, noise)
    per_frame = np.broadcast_to(level[:, None], (5, 6))
    np.testing.assert_allclose(denoise(x, level), denoise(x, per_frame), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(score(x, level), score(x, per_frame), rtol=1e-8)
    np.testing.assert_allclose(denoise(x, level), denoise(x, level.reshape(5, 1, 1, 1, 1)), atol=0)


@pytest.mark.parametrize("noise", [None, 0.7 * np.eye(5) + 0.3])
def test_process_tweedie(noise):
    """x = alpha D - N C N score, row by row: the score comes from R^-1 R^-T, the denoiser from Q and R."""
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(5, 0.9), None, -0.2)
    level = np.array([[-3.0, 0.0, 1.0, 4.0, 8.0]])
    x = spread(0, 3, 5)
    a, n = VP.alpha(level), VP.sigma(level)
    step = n * ((process.score(VP, noise)(x, level) * n) @ (np.eye(5) if noise is None else noise))
    np.testing.assert_allclose(process.denoiser(VP, noise)(x, level), (x + step) / a, rtol=1e-10, atol=1e-10)


def rational_answer(k, alpha, sigma, z):
    """K A (A K A + N^2)^-1 z in exact rational arithmetic on the given doubles."""
    f = len(k)
    fraction = np.vectorize(fractions.Fraction, otypes=[object])
    k, a, n, z = fraction(k), fraction(alpha), fraction(sigma), fraction(z)
    rows = np.concatenate([a[:, None] * k * a + np.diag(n * n), z[:, None]], axis=1)
    for i in range(f):
        rows[i] = rows[i] / rows[i, i]
        for j in range(f):
            if j != i:
                rows[j] = rows[j] - rows[j, i] * rows[i]
    return (k @ (a * rows[:, -1])).astype(float)


def test_nearly_singular_kernels_against_rational_arithmetic():
    """RBF over 10 frames (least eigenvalue 1.5e-8, below what float32 resolves), noise from 1e3 down to 1e-6."""
    k = oracles.rbf(10, 3.0)
    root = np.linalg.cholesky(k)
    denoise = oracles.gaussian_process(k).denoiser(VP)
    for seed in range(4):
        level = np.random.default_rng(seed).uniform(-15, 27, (1, 10))
        a, n = VP.alpha(level)[0], VP.sigma(level)[0]
        z = a * (root @ spread(seed, 10)) + n * spread(seed + 9, 10)
        exact = rational_answer(k, a, n, z)
        np.testing.assert_allclose(denoise(z[None], level)[0], exact, atol=1e-11)
        single = denoise(jnp.asarray(z[None], jnp.float32), jnp.asarray(level, jnp.float32))
        np.testing.assert_allclose(single[0], exact, atol=1e-5)


def test_singular_kernels_with_clean_frames():
    """A still video: any clean frame tells all of them. K has rank 1, and several frames have no noise at
    all.
    """
    process = oracles.gaussian_process(np.ones((4, 4)))
    x = np.array([[0.7, 0.7, -5.0, 3.0]])
    level = np.array([[np.inf, np.inf, -np.inf, 0.0]])
    for xp, tolerance in ((np, 1e-11), (jnp, 1e-5)):
        got = process.denoiser(VP)(xp.asarray(x), xp.asarray(level))
        np.testing.assert_allclose(got, np.full((1, 4), 0.7), atol=tolerance)


def test_clean_frames_come_back_and_noise_frames_are_predicted():
    rho = 0.8
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(4, rho))
    x = spread(0, 3, 4)
    got = process.denoiser(VP)(x, np.array([[np.inf, np.inf, -np.inf, -np.inf]]))
    np.testing.assert_array_equal(got[:, :2], x[:, :2])
    # Markov: the best prediction is rho^lag times the last clean frame.
    np.testing.assert_allclose(got[:, 2:], x[:, 1:2] * rho ** np.array([1, 2]), atol=1e-12)


def test_process_samples_have_its_covariance():
    process = oracles.gaussian_process(oracles.rbf(3, 1.5), [covariance(0, 2), np.eye(1)], 0.25)
    n = 40_000
    samples = np.asarray(process.sample(jax.random.key(1), n), np.float64).reshape(n, -1)
    truth, scale = process.covariance(), np.sqrt(np.diag(process.covariance()))
    assert (np.abs(samples.mean(0) - 0.25) < 5 * scale / np.sqrt(n)).all()
    assert (np.abs(np.cov(samples.T) - truth) < 5 * np.outer(scale, scale) * np.sqrt(2 / n)).all()
    np.testing.assert_allclose(truth, np.kron(oracles.rbf(3, 1.5), covariance(0, 2)), atol=1e-14)


# Exact flows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
def test_probability_flow_equals_the_closed_flow_map(name):
    schedule = SCHEDULES[name]
    process = oracles.gaussian_process(oracles.rbf(4, 2.0), [covariance(3, 2)], 0.5)
    gaussian = oracles.gaussian(spread(0, 3), covariance(1, 3))
    noise = 0.6 * np.eye(4) + 0.4
    cases = [
        (gaussian, gaussian.denoiser(schedule), gaussian.flow_map(schedule), spread(1, 4, 3)),
        (process, process.denoiser(schedule, noise), process.flow_map(schedule, noise), spread(2, 3, 4, 2)),
    ]
    for _, denoise, flow, x in cases:
        for start, end in ((-10.0, 9.0), (-10.0, np.inf), (9.0, -7.0), (-1.0, 2.0)):
            z = schedule.sigma(start) * x + schedule.alpha(start)
            got = oracles.probability_flow(denoise, z, schedule, start, end)
            expected = flow(z, start, end)
            np.testing.assert_allclose(got, expected, atol=1e-8 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", ["vp", "edm", "flow", "sub_vp"])
def test_probability_flow_on_the_line_is_quantile_transport(name):
    """In one dimension the flow keeps the order of points, so the cumulative probability of x is constant."""
    schedule, mix = SCHEDULES[name], oracles.a1d()
    start, end = level_of(157.4), level_of(0.05)

    def cumulative(x, logsnr):
        a, s = schedule.alpha(logsnr), schedule.sigma(logsnr)
        return stats.norm.cdf(x, a * mix.means[:, 0], np.sqrt(a**2 + s**2)) @ np.exp(mix.log_weights)

    x = schedule.sigma(start) * np.linspace(-2.5, 2.5, 11)[:, None]
    for to in (end, np.inf):
        moved = oracles.probability_flow(mix.denoiser(schedule), x, schedule, start, to)
        np.testing.assert_allclose(cumulative(moved, to), cumulative(x, start), rtol=1e-8)


def test_probability_flow_from_pure_noise_and_back():
    mix = oracles.b2d()
    x = spread(0, 6, 2)
    for schedule in (SCHEDULES["vp"], SCHEDULES["flow"]):
        data = oracles.probability_flow(mix.denoiser(schedule), x, schedule, -np.inf, 6.0)
        back = oracles.probability_flow(mix.denoiser(schedule), data, schedule, 6.0, -np.inf)
        np.testing.assert_allclose(back, x, atol=1e-5)
    with pytest.raises(ValueError, match="infinite"):
        oracles.probability_flow(mix.denoiser(SCHEDULES["edm"]), x, SCHEDULES["edm"], -np.inf, 6.0)


def test_probability_flow_with_waiting_and_finished_frames():
    """A frame that is clean already is history: the others end at the flow of the law given it."""
    rho, schedule = 0.8, VP
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(2, rho))
    x = spread(0, 5, 2)
    start, end = np.array([[np.inf, -10.0]]), np.array([[np.inf, np.inf]])
    got = oracles.probability_flow(process.denoiser(schedule), x, schedule, start, end)
    np.testing.assert_array_equal(got[:, 0], x[:, 0])
    for clip, answer in zip(x, got, strict=True):
        given = oracles.gaussian(np.array([rho * clip[0]]), 1 - rho**2)
        expected = given.flow_map(schedule)(clip[None, 1:], -10.0, np.inf)[0, 0]
        np.testing.assert_allclose(answer[1], expected, atol=1e-8)


def test_probability_flow_moves_the_law_of_noise_to_the_law_of_data():
    """As an affine map on a Gaussian process: covariance out is K (x) S."""
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(3, 0.9), [covariance(0, 2) + 0.1 * np.eye(2)], 0.4)
    start = -30.0

    def sampler(x):
        return oracles.probability_flow(process.denoiser(VP), x, VP, start, np.inf)

    matrix, offset = oracles.affine_map(sampler, (3, 2))
    a, s = VP.alpha(start), VP.sigma(start)
    law = matrix @ (a**2 * process.covariance() + s**2 * np.eye(6)) @ matrix.T
    centre = offset + matrix @ np.full(6, a * 0.4)
    assert oracles.wasserstein_gaussian(law, process.covariance(), centre, np.full(6, 0.4)) < 1e-8
    # The map is the symmetric root of the covariance, not its Cholesky factor.
    np.testing.assert_allclose(matrix, linalg.sqrtm(process.covariance()), atol=1e-6)


def test_probability_flow_refuses_a_float32_denoiser():
    denoise = oracles.a1d().denoiser(VP)
    coarse = jax.jit(lambda x, logsnr: denoise(jnp.asarray(x, jnp.float32), jnp.asarray(logsnr, jnp.float32)))
    x = spread(0, 3, 1)
    with pytest.raises(ValueError, match="float32"):
        oracles.probability_flow(coarse, x, VP, -5.0, 2.0)
    got = oracles.probability_flow(coarse, x, VP, -5.0, 2.0, rtol=1e-5)
    np.testing.assert_allclose(got, oracles.probability_flow(denoise, x, VP, -5.0, 2.0), atol=1e-4)


# Distances and maps -----------------------------------------------------------------------------------------


def test_wasserstein_against_the_trace_formula_and_known_cases():
    a, b = covariance(0, 5), covariance(1, 5)
    root = linalg.sqrtm(a)
    trace = np.trace(a) + np.trace(b) - 2 * np.trace(linalg.sqrtm(root @ b @ root).real)
    np.testing.assert_allclose(oracles.wasserstein_gaussian(a, b), np.sqrt(trace), rtol=1e-7)
    # Commuting: the distance of the standard deviations. Means add in squares. Rank deficient is fine.
    got = oracles.wasserstein_gaussian(np.diag([4.0, 0]), np.diag([1.0, 9]), [1.0, 0], [0, 2.0])
    np.testing.assert_allclose(got, np.sqrt(1 + 9 + 5))
    # Nearly equal: the trace formula's rounding alone would be 1e-8.
    near = np.diag(np.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(oracles.wasserstein_gaussian(near, near * (1 + 2e-10)), 1e-10 * np.sqrt(6), rtol=1e-4)
    assert oracles.wasserstein_gaussian(near, near) < 1e-14


def test_affine_map_recovers_the_map():
    matrix, offset = spread(0, 4, 6), spread(1, 4)
    got = oracles.affine_map(lambda x: x.reshape(-1, 6) @ matrix.T + offset, (2, 3))
    np.testing.assert_allclose(got[0], matrix, atol=1e-14)
    np.testing.assert_allclose(got[1], offset, atol=1e-14)


# From an independent implementation: distance of the law of DDIM samples to the data's, 16 frames, plain
# cosine schedule. (kernel, steps, frames' delay in steps, noise, distance)
OU, SMOOTH = oracles.ornstein_uhlenbeck(16, 0.95), oracles.rbf(16, 3.0, nugget=1e-4)
PUBLISHED = [
    (OU, 16, 0, sources.iid(), 0.520), (OU, 64, 0, sources.iid(), 0.136), (SMOOTH, 16, 0, sources.iid(), 0.397),
    (OU, 16, 1, sources.iid(), 0.351), (OU, 16, 4, sources.iid(), 0.322), (OU, 16, 16, sources.iid(), 0.406),
    (SMOOTH, 16, 1, sources.iid(), 0.367), (SMOOTH, 16, 4, sources.iid(), 0.582),
    (SMOOTH, 16, 16, sources.iid(), 1.390),
    (OU, 8, 0, sources.iid(), 0.990), (OU, 8, 0, sources.mixed(1.0), 0.621), (OU, 8, 0, sources.mixed(4.0), 0.801),
    (OU, 8, 0, sources.progressive(0.5), 0.753), (OU, 8, 0, sources.progressive(4.0), 0.580),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "steps", "delay", "source", "distance"), PUBLISHED)
def test_known_distances_of_ddim_on_processes(kernel, steps, delay, source, distance):
    """Full sequence, pyramid and autoregressive order, white and correlated noise: all through the exact
    denoiser.
    """
    schedule = schedules.vp_cosine(logsnr_min=-np.inf, logsnr_max=np.inf)
    grid = np.array([-np.inf, *schedule.logsnr(np.arange(steps - 1, 0, -1) / steps), np.inf])
    rows = np.arange(steps + 15 * delay + 1)[:, None] - delay * np.arange(16)
    levels = grid[np.clip(rows, 0, steps)][:, None]
    law = source.covariance(16)
    denoise = oracles.gaussian_process(kernel).denoiser(schedule, law)

    def sampler(x):
        for here, there in zip(levels[:-1], levels[1:], strict=True):
            denoised, sigma = denoise(x, here), schedule.sigma(here)
            eps = (x - schedule.alpha(here) * denoised) / np.where(sigma == 0, 1, sigma)
            x = np.where(here == there, x, schedule.alpha(there) * denoised + schedule.sigma(there) * eps)
        return x

    matrix, _ = oracles.affine_map(sampler, (16,))
    np.testing.assert_allclose(oracles.wasserstein_gaussian(matrix @ law @ matrix.T, kernel), distance, atol=6e-4)


# JAX --------------------------------------------------------------------------------------------------------


@jax.jit
def call(denoise, x, logsnr):
    return denoise(x, logsnr)


def test_oracles_are_arguments_of_one_compiled_program():
    x = jnp.asarray(spread(0, 4, 2), jnp.float32)
    before = call._cache_size()
    for seed in range(3):
        mix = oracles.gaussian_mixture([1, 2], spread(seed, 2, 2), np.abs(spread(seed + 5, 2)))
        for schedule in (schedules.vp_linear(), schedules.vp_linear()):
            got = call(mix.denoiser(schedule), x, jnp.float32(1.0))
            np.testing.assert_allclose(got, mix.denoiser(schedule)(np.asarray(x), 1.0), rtol=1e-4, atol=1e-5)
    assert call._cache_size() == before + 1


def test_dtypes():
    mix, process = oracles.b2d(), oracles.gaussian_process(oracles.rbf(3, 1.0))
    for oracle, x in ((mix, spread(0, 4, 2)), (process, spread(0, 4, 3))):
        denoise = oracle.denoiser(VP)
        assert denoise(x.astype(np.float32), np.float32(0.5)).dtype == np.float64
        assert isinstance(denoise(x, 0.5), np.ndarray)
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            assert denoise(jnp.asarray(x, dtype), jnp.float32(0.5)).dtype == dtype


FACTORS = oracles.low_rank(spread(0, 4, 2), [1.0, 3.0], 0.01)
CASES = {
    "scalar": (oracles.gaussian_mixture([1, 2], spread(1, 2, 4), [0.04, 1.0]), (4,), False),
    "low_rank": (oracles.gaussian_mixture([1, 2], spread(1, 2, 4), [FACTORS, 0.5]), (4,), False),
    "points": (oracles.empirical(spread(1, 3, 4)), (4,), True),
    "process": (oracles.gaussian_process(oracles.ornstein_uhlenbeck(4, 0.9)), (4,), True),
    "smooth": (oracles.gaussian_process(oracles.rbf(4, 3.0), [oracles.rbf(3, 1.0)]), (4, 3), True),
}
any_level = st.one_of(st.floats(-40, 40, width=32), st.sampled_from([np.inf, -np.inf]))


@pytest.mark.parametrize("case", CASES)
@hypothesis.given(levels=st.lists(any_level, min_size=4, max_size=4), seed=st.integers(0, 99), per=st.booleans())
def test_float32_is_finite_and_close_to_float64_everywhere(case, levels, seed, per):
    oracle, shape, per_frame = CASES[case]
    level = np.array(levels) if not (per and per_frame) else np.array([levels])
    # Plausible noisy data: the truth is then well conditioned at any level.
    x0 = np.asarray(oracle.sample(jax.random.key(seed), 4), np.float64).reshape(4, *shape)
    padded = level.reshape(level.shape + (1,) * (x0.ndim - level.ndim))
    x = np.asarray(noisy(VP, x0, padded, seed), np.float32)
    exact = oracle.denoiser(VP)(x, level)
    got = np.asarray(call(oracle.denoiser(VP), jnp.asarray(x), jnp.asarray(level, jnp.float32)))
    score = np.asarray(call(oracle.score(VP), jnp.asarray(x), jnp.asarray(level, jnp.float32)))
    assert np.isfinite(exact).all() and np.isfinite(got).all()
    # The score of exact points is infinite where there is no noise: there it only has to be a number.
    assert not np.isnan(score).any()
    if case in ("scalar", "low_rank", "process"):
        np.testing.assert_allclose(got, exact, atol=2e-4 * (1 + np.abs(x0).max()))


# Bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: oracles.gaussian_mixture([1, -1], [[0.0], [1.0]], 1.0), "weights above 0"),
        (lambda: oracles.gaussian_mixture([1, 1, 1], [[0.0], [1.0]], 1.0), "weights"),
        (lambda: oracles.gaussian_mixture([1, 1], [[0.0], [1.0]], [1.0]), "one covariance for each of the 2"),
        (lambda: oracles.gaussian_mixture([1], [[0.0, 1.0]], [-1.0]), ">= 0"),
        (lambda: oracles.gaussian_mixture([1], [[0.0, 1.0]], [np.ones(3)]), "mode 0.*shape"),
        (
            lambda: oracles.gaussian_mixture([1], [[0.0, 1.0]], [np.array([[1.0, 2.0], [2.0, 1.0]])]),
            "semidefinite",
        ),
        (
            lambda: oracles.gaussian_mixture([1], [[0.0, 1.0]], [np.array([[1.0, 0.5], [0.0, 1.0]])]),
            "symmetric",
        ),
        (
            lambda: oracles.gaussian_mixture([1], [[0.0, 1.0]], [oracles.low_rank(np.ones((3, 1)), [1.0])]),
            "rows",
        ),
        (lambda: oracles.gaussian_mixture([1], [[np.nan, 1.0]], 1.0), "finite means"),
        (lambda: oracles.low_rank(np.ones((3, 1)), [1.0, 2.0]), "factors"),
        (lambda: oracles.low_rank(np.ones((3, 1)), [-1.0]), "eigenvalues >= 0"),
        (lambda: oracles.empirical(np.zeros((2, 3), np.uint8)), "uint8"),
        (lambda: oracles.b2d().flow_map(VP), "8 modes"),
        (lambda: oracles.b2d().denoiser(VP)(np.zeros((3, 5)), 0.0), "shape"),
        (lambda: oracles.b2d().denoiser(VP)(np.zeros((3, 2)), np.zeros(2)), "level"),
        (
            lambda: CASES["low_rank"][0].denoiser(VP)(np.zeros((3, 4)), np.zeros((3, 4))),
            "one level per sample",
        ),
        (lambda: oracles.gaussian_process(np.ones((2, 3))), "square"),
        (lambda: oracles.gaussian_process(np.array([[1.0, 2], [2, 1]])), "semidefinite"),
        (lambda: oracles.gaussian_process(np.eye(2), (0, 2, 1)), "positive sizes"),
        (lambda: oracles.gaussian_process(np.eye(2), None, np.zeros(2)), "frame shape"),
        (lambda: oracles.gaussian_process(np.eye(2), (2, 2, 1), np.zeros(3)), "broadcast"),
        (lambda: oracles.gaussian_process(np.eye(2)).denoiser(VP, np.ones((2, 2))), "positive definite"),
        (lambda: oracles.gaussian_process(np.eye(2)).denoiser(VP, np.eye(3)), "expected shape"),
        (lambda: oracles.gaussian_process(np.eye(2)).denoiser(VP)(np.zeros((1, 3)), 0.0), "expected"),
        (lambda: oracles.gaussian_process(np.eye(2)).denoiser(VP)(np.zeros((3, 2)), np.zeros(2)), "level"),
        (
            lambda: oracles.gaussian_process(np.eye(2), (2, 1, 1)).denoiser(VP)(
                np.zeros((1, 2, 2, 1, 1)), np.zeros((1, 2, 2))
            ),
            "takes",
        ),
        (
            lambda: oracles.gaussian_process(np.eye(2)).flow_map(VP)(np.zeros((1, 2)), np.zeros((1, 2)), 1.0),
            "shared by all frames",
        ),
        (lambda: oracles.ornstein_uhlenbeck(3, 1.5), "rho"),
        (lambda: oracles.ornstein_uhlenbeck(0, 0.5), "at least one frame"),
        (lambda: oracles.rbf(3, 0.0), "length"),
        (lambda: oracles.rbf(3, 1.0, -1.0), "nugget"),
        (lambda: oracles.wasserstein_gaussian(np.eye(2), np.eye(3)), "shapes"),
    ],
)
def test_bad_input_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@each_schedule
@pytest.mark.parametrize("logsnr", [-5.0, 0.0, 3.0])
def test_compiled_forward_derivatives_are_the_eager_ones(schedule, logsnr):
    """The largest logit has no derivative of its own: compiled, it was 0/0 in one sample of six."""
    mix = oracles.a1d()
    x = schedule.size(logsnr) * jax.random.normal(jax.random.key(0), (4096, 1))
    for function in (mix.denoiser(schedule), mix.score(schedule), mix.log_density(schedule)):

        def slope(x, level, function=function):
            return jax.jvp(lambda point: function(point, level), (x,), (jnp.ones_like(x),))[1]

        eager, compiled = (way(x, jnp.float32(logsnr)) for way in (slope, jax.jit(slope)))
        assert np.isfinite(compiled).all()
        np.testing.assert_allclose(compiled, eager, rtol=1e-3, atol=1e-4 * float(abs(eager).max()))
