"""Adaptive solves and likelihoods against closed forms, and the host's solver where there is none."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from diffusion import levels, ode, oracles, predictions, schedules

SCHEDULES = {
    "vp": schedules.vp_cosine(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "sub_vp": schedules.sub_vp(),
}
VP = SCHEDULES["vp"]
RING = oracles.eight_mode_ring()
VIDEO = oracles.gaussian_process(oracles.rbf(5, 2.0, 0.1), (2, 1, 1))


def noisy(data, schedule, level, n=32):
    x0 = data.sample(jax.random.key(0), n, jnp.float64)
    return levels.forward(x0, jax.random.normal(jax.random.key(1), x0.shape, jnp.float64), level, schedule)


# Solutions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_solution_is_the_closed_form_to_its_tolerance(schedule):
    x = noisy(VIDEO, schedule, -6.0)
    exact = VIDEO.flow_map(schedule)(x, -6.0, 5.0)
    coarse, fine = (ode.solve(VIDEO.denoiser(schedule), schedule, x, -6.0, 5.0, rtol=rtol) for rtol in (1e-4, 1e-8))
    errors = [float(abs(one.x - exact).max() / schedule.size(5.0)) for one in (coarse, fine)]
    assert errors[0] < 2e-3 and errors[1] < 2e-7
    assert coarse.calls < fine.calls


def test_clips_and_frames_move_between_levels_of_their_own_and_wait():
    start = np.array([[-4.0, -4.0, 2.0, 0.0, -1.0], [-3.0, -2.0, -1.0, 0.0, 1.0]])
    end = np.array([[4.0, 6.0, 2.0, 5.0, -1.0], [5.0, 4.0, 3.0, 0.0, 1.5]])
    x = noisy(VIDEO, VP, start, n=2)
    solution = ode.solve(VIDEO.denoiser(VP), VP, x, start, end, rtol=1e-9)
    exact = oracles.probability_flow(VIDEO.denoiser(VP), x, VP, start, end)
    np.testing.assert_allclose(solution.x, exact, rtol=0, atol=1e-7)
    np.testing.assert_allclose(solution.x[start == end], x[start == end], rtol=1e-12)


def test_the_way_back_ends_where_the_way_began():
    x = noisy(RING, VP, -8.0)
    there = ode.solve(RING.denoiser(VP), VP, x, -8.0, 6.0, rtol=1e-10)
    back = ode.solve(RING.denoiser(VP), VP, there.x, 6.0, -8.0, rtol=1e-10)
    np.testing.assert_allclose(back.x, x, rtol=0, atol=1e-6)


def test_the_ends_are_the_schedules_own():
    schedule = schedules.flow()
    x = noisy(VIDEO, schedule, schedule.logsnr_start)
    whole = ode.solve(VIDEO.denoiser(schedule), schedule, x)
    asked = ode.solve(VIDEO.denoiser(schedule), schedule, x, schedule.logsnr_start, schedule.logsnr_end)
    np.testing.assert_array_equal(whole.x, asked.x)


def test_a_clip_does_not_depend_on_those_beside_it():
    """By more than the tolerance: the steps are those of the clip that needs most."""
    x = noisy(RING, VP, -8.0)
    together = ode.solve(RING.denoiser(VP), VP, x, -8.0, 6.0, rtol=1e-7).x
    alone = ode.solve(RING.denoiser(VP), VP, x[:1], -8.0, 6.0, rtol=1e-7).x
    np.testing.assert_allclose(together[:1], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_the_calls_that_are_told_are_the_calls_that_were_made(rtol):
    seen = []

    def denoise(x, logsnr):
        told = io_callback(
            lambda level: seen.append(float(level)) or np.float64(0), jax.ShapeDtypeStruct((), float), logsnr
        )
        return RING.denoiser(VP)(x, logsnr) + told

    solution = ode.solve(denoise, VP, noisy(RING, VP, -8.0), -8.0, 6.0, rtol=rtol)
    jax.block_until_ready(solution.x)
    assert solution.calls == len(seen)


def test_other_weights_and_tolerances_compile_nothing():
    def apply(params, x, logsnr, cond):
        return params * x

    x = noisy(RING, VP, -2.0)
    for i, (weight, rtol) in enumerate(((0.5, 1e-3), (0.7, 1e-4))):
        ode.solve(
            predictions.denoiser(apply, jnp.asarray(weight), schedule=VP, prediction="x0"), VP, x, -2.0, 2.0, rtol=rtol
        )
        if i == 0:
            compiled = ode._adaptive._cache_size()
    assert ode._adaptive._cache_size() == compiled


# Likelihoods ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_likelihood_is_the_laws_own(schedule):
    x = noisy(RING, schedule, 6.0)
    likelihood = ode.log_density(RING.denoiser(schedule), schedule, x, logsnr=6.0, start=-16.0, rtol=1e-7)
    # At -16 the ring's radius of 2 is 6.7e-4 still, whose square is what is missed: its mean is 0.
    np.testing.assert_allclose(likelihood.log_density, RING.log_density(schedule)(x, 6.0), rtol=0, atol=1e-5)
    again = ode.solve(RING.denoiser(schedule), schedule, x, 6.0, -16.0, rtol=1e-7)
    np.testing.assert_allclose(likelihood.x, again.x, rtol=0, atol=1e-4 * schedule.size(-16.0))


def test_an_estimated_trace_has_no_bias_and_less_noise_with_more_probes():
    denoise, x = RING.denoiser(VP), noisy(RING, VP, 2.0, n=4)
    exact = ode.log_density(denoise, VP, x, logsnr=2.0, start=-12.0).log_density

    def errors(probes, repeats):
        keys = jax.random.split(jax.random.key(2), repeats)
        found = [
            ode.log_density(denoise, VP, x, key, logsnr=2.0, start=-12.0, probes=probes).log_density for key in keys
        ]
        return np.stack(found) - exact

    one, many = errors(1, 100), errors(64, 20)
    assert (one.std(0) > 0.01).all()
    assert (abs(one.mean(0)) < 4 * one.std(0) / np.sqrt(100) + 1e-3).all()
    np.testing.assert_allclose(many.std(0) / one.std(0), 1 / 8, rtol=0.5)


def test_frames_that_wait_are_what_the_others_are_given():
    """Gaussian: the conditional law of noisy frames, given noisy frames, by its own formula."""
    known = np.array([True, True, False, False, False])
    x = noisy(VIDEO, VP, np.array([[8.0, 8.0, 5.0, 5.0, 4.0]]))
    level = np.array([[8.0, 8.0, 5.0, 5.0, 4.0]])
    start = np.where(known, level, -40.0)
    found = ode.log_density(VIDEO.denoiser(VP), VP, x, logsnr=level, start=start, rtol=1e-8)
    alpha, sigma = VP.alpha(level[0]), VP.sigma(level[0])
    covariance = alpha[:, None] * oracles.rbf(5, 2.0, 0.1) * alpha + np.diag(sigma**2)
    gain = covariance[~known][:, known] @ np.linalg.inv(covariance[known][:, known])
    rest = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
    flat = np.asarray(x).reshape(32, 5, 2)
    off = flat[:, ~known] - np.einsum("ij,bjp->bip", gain, flat[:, known])
    squares = np.einsum("bip,ij,bjp->b", off, np.linalg.inv(rest), off)
    exact = -squares / 2 - (2 * np.linalg.slogdet(2 * np.pi * rest)[1]) / 2
    np.testing.assert_allclose(found.log_density, exact, rtol=0, atol=1e-5)


# Refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(start=-np.inf), "solve: expected finite levels, got -inf"),
        (dict(end=np.zeros(3)), r"a level of shape \[3\] does not fit data of shape \[32, 2\]"),
        (dict(rtol=0.0), "solve: expected rtol from 2.2e-15, of float64, to 1, got 0.0"),
        (
            dict(x=np.zeros((4, 2), int)),
            r"solve: expected floating-point clips \[b, ...\], got int64 of shape \[4, 2\]",
        ),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    arguments = dict(x=noisy(RING, VP, -6.0), start=-6.0, end=5.0) | change
    with pytest.raises(ValueError, match=message):
        ode.solve(RING.denoiser(VP), VP, **arguments)


def test_probes_need_a_key():
    with pytest.raises(ValueError, match="expected probes=1 without a key, from 1 up with one; got 8, key=None"):
        ode.log_density(RING.denoiser(VP), VP, noisy(RING, VP, 5.0), logsnr=5.0, probes=8)


@pytest.mark.parametrize("factor", [1.0, np.nan])
def test_too_few_steps_and_nan_are_told(factor):
    with pytest.raises(RuntimeError, match="solve: 5 steps were not enough for rtol 1e-08"):
        ode.solve(lambda x, logsnr: factor * x, VP, noisy(RING, VP, -6.0), -6.0, 5.0, rtol=1e-8, max_steps=5)


def test_without_diffrax_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"solve is a solve by diffrax: install the extra 'fewstep\[ode\]'"):
        ode.solve(RING.denoiser(VP), VP, noisy(RING, VP, -6.0))


def test_single_precision_stays_single_where_double_is_on():
    x = jnp.ones((3, 1), jnp.float32)
    denoise = oracles.a1d().denoiser(VP)
    assert ode.solve(denoise, VP, x, -3.0, 3.0).x.dtype == jnp.float32
    found = ode.log_density(denoise, VP, x, jax.random.key(0), logsnr=3.0)
    wide = ode.log_density(denoise, VP, x.astype(jnp.float64), jax.random.key(0), logsnr=3.0)
    np.testing.assert_allclose(*(getattr(one, "log_density", one) for one in (found, wide)), rtol=1e-3)
