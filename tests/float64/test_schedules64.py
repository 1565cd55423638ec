"""Schedules and predictions in float64 JAX: the same numbers as NumPy, derivatives, the flow between two
levels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from diffusion import levels, predictions, schedules

INF = math.inf
SCHEDULES = {
    "vp_linear": schedules.vp_linear(),
    "vp_cosine": schedules.vp_cosine(),
    "plain cosine": schedules.vp_cosine(1.0, -INF, INF),
    "interpolated cosine": schedules.vp_cosine_interpolated(16.0, 0.5),
    "vp_discrete": schedules.vp_discrete(schedules.ddpm_betas()),
    "zero terminal SNR": schedules.vp_discrete(schedules.rescale_zero_terminal_snr(schedules.scaled_linear_betas())),
    "ve": schedules.ve(),
    "edm": schedules.edm(),
    "sub_vp": schedules.sub_vp(),
    "flow": schedules.flow(3.0),
    "sigmoid": schedules.sigmoid(),
    "laplace": schedules.laplace(),
}
each = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


@each
def test_traced_round_trip_is_exact(schedule):
    t = jnp.linspace(0, 1, 2001)
    assert t.dtype == jnp.float64
    there = jax.jit(schedule.logsnr)(t)
    np.testing.assert_allclose(jax.jit(schedule.time)(there), t, atol=1e-12, rtol=0)
    np.testing.assert_allclose(there[1:-1], schedule.logsnr(np.asarray(t))[1:-1], rtol=1e-10, atol=1e-10)


@each
def test_derivatives_of_clock_and_inverse_are_reciprocal(schedule):
    t = jnp.linspace(0.0105, 0.9905, 99)
    slope = jax.vmap(jax.grad(schedule.logsnr))(t)
    back = jax.vmap(jax.grad(schedule.time))(schedule.logsnr(t))
    np.testing.assert_allclose(slope * back, 1, rtol=1e-9)
    numeric = (schedule.logsnr(t + 1e-6) - schedule.logsnr(t - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, numeric, rtol=1e-5)
    density = levels.time_density(schedule)(schedule.logsnr(t))
    width = schedule.time(schedule.logsnr_start) - schedule.time(schedule.logsnr_end)
    np.testing.assert_allclose(density, -back / width, rtol=1e-9)


@pytest.mark.parametrize("scaling", [schedules.VP(), schedules.SubVP(), schedules.Flow(), schedules.VE()], ids=repr)
def test_values_and_gradients_at_infinite_ends(scaling):
    ends = jnp.array([INF, -INF])
    for of, expected in ((scaling.alpha, (1, 0)), (scaling.sigma, (0, 1))):
        if scaling == schedules.VE():
            ends, expected = ends[:1], (1,) if expected == (1, 0) else (0,)
        np.testing.assert_array_equal(of(ends), expected)
        np.testing.assert_array_equal(jax.vmap(jax.grad(of))(ends), 0)


@each
def test_all_pairs_convert_at_twenty(schedule):
    x0, eps = (jax.random.normal(k, (2, 5)) for k in jax.random.split(jax.random.key(0)))
    for level in (-20.0, 20.0):
        x = levels.forward(x0, eps, level, schedule)
        alpha, sigma = schedule.alpha(jnp.asarray(level)), schedule.sigma(jnp.asarray(level))
        right = {
            "x0": x0,
            "eps": eps,
            "v": alpha * eps - sigma * x0,
            "velocity": eps - x0,
            "score": -eps / sigma,
        }
        for source, value in right.items():
            for target, expected in right.items():
                found = predictions.convert(value, x, level, schedule, source, target)
                assert found.dtype == jnp.float64
                # The digits of the small part of x: e^-10 of it.
                np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11 * float(abs(expected).max()))


@pytest.mark.parametrize("name", ["vp_linear", "edm", "sub_vp", "flow"])
def test_only_the_log_snr_matters_to_the_flow(name):
    """The probability-flow ODE of a Gaussian mixture, solved in each scaling's own x with the same denoiser
    of x / alpha, ends at the same x / alpha: dx/dl = alpha' / alpha x + (sigma' - sigma alpha' / alpha) eps,
    primes d/dlogsnr.
    """
    schedule = SCHEDULES[name]
    start, end = -6.0, 6.0
    means, weights, variance = np.array([-2.0, 2.0]), np.array([0.4, 0.6]), 0.3

    def denoise(y, s):
        total = variance + s**2
        logits = np.log(weights) - (y[:, None] - means) ** 2 / (2 * total)
        share = np.exp(logits - logits.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
        return (share * (means + variance / total * (y[:, None] - means))).sum(1)

    alpha_slope, sigma_slope = jax.jit(jax.grad(schedule.alpha)), jax.jit(jax.grad(schedule.sigma))

    def slope(level, x):
        alpha, sigma = float(schedule.alpha(level)), float(schedule.sigma(level))
        x0 = denoise(x / alpha, sigma / alpha)
        eps = np.asarray(predictions.convert(x0, x, level, schedule, "x0", "eps"))
        along = float(alpha_slope(level))
        return along / alpha * x + (float(sigma_slope(level)) - sigma * along / alpha) * eps

    y = math.exp(-start / 2) * np.linspace(-2, 2, 9)
    solve = scipy.integrate.solve_ivp(
        slope, (start, end), schedule.alpha(start) * y, method="DOP853", rtol=1e-11, atol=1e-12
    )
    reference = scipy.integrate.solve_ivp(
        lambda s, y: (y - denoise(y, s)) / s,
        (math.exp(-start / 2), math.exp(-end / 2)),
        y,
        method="DOP853",
        rtol=1e-11,
        atol=1e-12,
    )
    np.testing.assert_allclose(solve.y[:, -1] / schedule.alpha(end), reference.y[:, -1], atol=1e-8)
