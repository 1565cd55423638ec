"""Oracles in JAX at float64: derivatives of the densities, agreement with NumPy, derivatives at infinite levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import oracles, schedules

SCHEDULES = {
    "vp": schedules.vp_linear(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "sub_vp": schedules.sub_vp(),
}
VP = SCHEDULES["vp"]


def spread(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def covariance(seed, d):
    root = spread(seed, d, d)
    return root @ root.T / d


@jax.jit
def call(denoise, *arguments):
    return denoise(*arguments)


@jax.jit
def derivative(denoise, points, tangents):
    return jax.jvp(denoise, points, tangents)[1]


@jax.jit
def gradient_of_square(denoise, x, level):
    return jax.grad(lambda x: (denoise(x, level) ** 2).sum())(x)


MIXTURES = {
    "a1d": oracles.a1d(),
    "b2d": oracles.b2d(),
    "full": oracles.gaussian_mixture([1, 2, 3], spread(0, 3, 3), [covariance(i, 3) for i in (1, 2, 3)]),
    "low_rank": oracles.gaussian_mixture(
        [1, 2], spread(1, 2, 6), [oracles.low_rank(spread(2, 6, 2), [1.0, 2.0], 0.1), 0.3]
    ),
}


@pytest.mark.parametrize(("name", "schedule"), zip(MIXTURES, SCHEDULES, strict=True))
def test_tweedie_with_the_score_by_differentiation(name, schedule):
    mix, schedule = MIXTURES[name], SCHEDULES[schedule]
    logsnr = np.repeat([-18.0, -4.0, 0.0, 3.0, 10.0, 18.0], 8)
    x0 = mix.means[np.arange(len(logsnr)) % len(mix.means)] + 0.3 * spread(4, len(logsnr), mix.means.shape[1])
    alpha, sigma = schedule.alpha(logsnr)[:, None], schedule.sigma(logsnr)[:, None]
    x = jnp.asarray(alpha * x0 + sigma * spread(3, *x0.shape))

    @jax.jit
    def answers(x, logsnr):
        by_hand = mix.score(schedule)(x, logsnr), mix.denoiser(schedule)(x, logsnr)
        return jax.grad(lambda x: mix.log_density(schedule)(x, logsnr).sum())(x), *by_hand

    gradient, score, denoised = answers(x, jnp.asarray(logsnr))
    np.testing.assert_allclose(score * sigma, gradient * sigma, rtol=1e-9, atol=1e-9)
    # x and sigma^2 score nearly cancel at low log-SNR: what is left of 1 / alpha digits.
    error = np.abs(denoised - (x + sigma**2 * gradient) / alpha)
    assert (error < 1e-12 * (1 + sigma / alpha * (1 + sigma / alpha / 100))).all(), (error / (1 + sigma / alpha)).max()


@pytest.mark.parametrize("noise", [None, 0.4 + 0.6 * np.eye(5)])
def test_process_score_is_the_gradient_of_the_normal_density(noise):
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(5, 0.9), None, 0.3)
    level = np.array([[-6.0, -1.0, 0.5, 3.0, 7.0]])
    for schedule in (VP, SCHEDULES["edm"]):
        a, s = schedule.alpha(level)[0], schedule.sigma(level)[0]
        marginal = a[:, None] * process.temporal * a + s[:, None] * (np.eye(5) if noise is None else noise) * s
        x = spread(0, 5) * np.sqrt(np.diag(marginal))
        expected = jax.jit(jax.grad(jax.scipy.stats.multivariate_normal.logpdf))(x, 0.3 * a, marginal)
        np.testing.assert_allclose(process.score(schedule, noise)(x[None], level)[0], expected, rtol=1e-9)


ORACLES = {
    **{name: (mix, mix.means.shape[1:]) for name, mix in MIXTURES.items()},
    "empirical": (oracles.empirical(spread(0, 4, 3)), (3,)),
    "process": (oracles.gaussian_process(oracles.rbf(4, 2.0), covariance(1, 3), 0.1), (4, 3)),
}


@pytest.mark.parametrize("name", ORACLES)
def test_jax_equals_numpy(name):
    oracle, shape = ORACLES[name]
    x, logsnr = spread(4, 8, *shape), np.array([-np.inf, -30.0, -5.0, 0.0, 2.0, 8.0, 25.0, np.inf])
    levels = [logsnr]
    if name in ("process", "empirical"):
        levels.append(np.random.default_rng(0).choice(logsnr, (8, shape[0])))
    for level in levels:
        denoise = oracle.denoiser(SCHEDULES["flow"])
        exact = denoise(x, level)
        got = call(denoise, jnp.asarray(x), jnp.asarray(level))
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-10 * np.abs(exact).max())


@pytest.mark.parametrize("name", ORACLES)
def test_derivatives_agree_with_differences(name):
    """Flow-map objectives differentiate a denoiser in x and in the level."""
    oracle, shape = ORACLES[name]
    x, direction = spread(5, 2, *shape), spread(6, 2, *shape)
    level = np.array([0.5, 2.0])
    levels = [(level, np.array([1.0, -0.7]))]
    if name in ("process", "empirical"):
        levels.append((spread(7, 2, shape[0]), spread(8, 2, shape[0])))
    for at, along in levels:
        denoise = oracle.denoiser(VP)
        tangent = derivative(denoise, (jnp.asarray(x), jnp.asarray(at)), (jnp.asarray(direction), jnp.asarray(along)))
        h = 1e-5
        difference = (denoise(x + h * direction, at + h * along) - denoise(x - h * direction, at - h * along)) / (2 * h)
        np.testing.assert_allclose(tangent, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("logsnr", [-np.inf, -45.0, 45.0, np.inf])
def test_derivatives_in_x_are_finite_at_extreme_levels(name, logsnr):
    oracle, shape = ORACLES[name]
    x = jnp.asarray(spread(5, 2, *shape))
    levels = [logsnr, np.full((1, shape[0]), logsnr)] if name == "process" else [logsnr]
    for level in levels:
        gradient = gradient_of_square(oracle.denoiser(VP), x, jnp.asarray(level))
        assert np.isfinite(gradient).all()
        if logsnr == np.inf:
            np.testing.assert_allclose(gradient, 2 * x)
        if logsnr == -np.inf:
            np.testing.assert_allclose(gradient, jnp.zeros_like(x), atol=1e-12)


@pytest.mark.parametrize("schedule", ["edm", "flow"])
@pytest.mark.parametrize(
    "oracle",
    [oracles.gaussian(spread(1, 4), covariance(0, 4)), oracles.gaussian_process(covariance(0, 4), None, 0.2)],
    ids=["gaussian", "process"],
)
def test_flow_map_composes_and_its_slope_is_the_probability_flow(oracle, schedule):
    schedule = SCHEDULES[schedule]
    flow, denoise = oracle.flow_map(schedule), oracle.denoiser(schedule)

    @jax.jit
    def answers(x, here, between, there):
        # dx = d(alpha) x0hat + d(sigma) epshat at the start of the flow.
        _, slope = jax.jvp(lambda to: flow(x, here, to), (here,), (jnp.ones_like(here),))
        (alpha, dalpha), (sigma, dsigma) = (jax.value_and_grad(f)(here) for f in (schedule.alpha, schedule.sigma))
        denoised = denoise(x, here)
        velocity = dalpha * denoised + dsigma * (x - alpha * denoised) / sigma
        return flow(flow(x, here, between), between, there), flow(x, here, there), slope, velocity

    twice, once, slope, velocity = answers(spread(2, 3, 4), -2.0, 0.7, np.inf)
    np.testing.assert_allclose(twice, once, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slope, velocity, rtol=1e-10, atol=1e-12)


def test_ddim_on_a_process_approaches_its_law_at_first_order():
    """A whole use: a sampler is an affine map on Gaussian data, the error of its law is exact, without samples."""
    process = oracles.gaussian_process(oracles.ornstein_uhlenbeck(8, 0.95))
    schedule = schedules.vp_cosine()
    denoise = process.denoiser(schedule)
    errors = []
    for steps in (32, 64, 128):
        grid = schedule.logsnr(np.linspace(0.999, 0.001, steps + 1))

        def sampler(x, grid=grid):
            for here, there in zip(grid[:-1], grid[1:], strict=True):
                denoised = denoise(x, here)
                eps = (x - schedule.alpha(here) * denoised) / schedule.sigma(here)
                x = schedule.alpha(there) * denoised + schedule.sigma(there) * eps
            return denoise(x, grid[-1])

        matrix, _ = oracles.affine_map(sampler, (8,))
        law = schedule.alpha(grid[0]) ** 2 * process.temporal + schedule.sigma(grid[0]) ** 2 * np.eye(8)
        errors.append(oracles.wasserstein_gaussian(matrix @ law @ matrix.T, process.temporal))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, 1, atol=0.15)
