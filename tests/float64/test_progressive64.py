"""Progressive distillation against closed forms: what the target means, and where its fixed point is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import grids, levels, oracles, sampling, schedules, solvers
from distill import Network, jumps, progressive

SCHEDULES = {
    "cosine": schedules.vp_cosine(),
    "linear": schedules.vp_linear(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
    "sub_vp": schedules.sub_vp(),
}
VARIANCE = 0.6


def gain(schedule, logsnr):
    """D(x) = k x is the exact denoiser of N(0, VARIANCE) data."""
    alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
    return alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)


def exact(schedule):
    """The exact denoiser as a network that predicts x0."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(gain(schedule, logsnr), x) * x

    return Network(apply, schedule, "x0")


@pytest.mark.parametrize("name", SCHEDULES)
def test_inverse_of_a_step_of_any_length(name):
    schedule = SCHEDULES[name]
    key = jax.random.key(0)
    x, x0 = jax.random.normal(key, (2, 5, 3))
    here = jnp.linspace(schedule.logsnr_start, schedule.logsnr_end - 1, 5)
    there = here + jnp.linspace(0.3, 1.0, 5)
    for end in (there, jnp.full(5, jnp.inf)):
        moved = jumps.ddim_step(schedule, x, x0, here, end)
        back = jumps.inverse_ddim(schedule, x, moved, here, end)
        # Recovering x0 from noise of scale s loses log10(s) digits and no more.
        scale = 1 + np.exp(-np.asarray(here) / 2)[:, None]
        np.testing.assert_allclose((back - x0) / scale, 0, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 16])
def test_one_step_with_the_target_is_two_steps_of_the_teacher(name, steps):
    """Runs the *sampler* (a table of 2 N steps, built in NumPy) beside the objective: their levels and steps must agree."""
    schedule = SCHEDULES[name]
    network = exact(schedule)
    objective = progressive.objective(network, weight=levels.v())
    batch = {"video": jax.random.normal(jax.random.key(1), (64, 2, 2, 2, 1))}
    problem = objective(None, {"teacher": ()}, batch, jax.random.key(2), {"steps": jnp.float64(steps), "guidance": 1.0})
    fine = grids.uniform_time(schedule, 2 * steps)
    index = np.argmin(np.abs(fine[None, :-1] - np.asarray(problem.logsnr)[:, None]), axis=1)
    np.testing.assert_allclose(fine[index], problem.logsnr, rtol=1e-9, atol=1e-9)
    assert set(index) <= set(range(0, 2 * steps, 2))
    if steps <= 2:
        assert set(index) == set(range(0, 2 * steps, 2)), "every step of the student must be drawn"
    target = problem.target(problem.x, None)
    for i in range(0, 2 * steps, 2):
        rows = np.flatnonzero(index == i)
        if not len(rows):
            continue
        x = problem.x[rows]
        denoise = jax.tree_util.Partial(lambda x, l: gain(schedule, l) * x)
        two = sampling.sample(denoise, solvers.ddim(schedule, fine[i : i + 3]), x)
        one = jumps.ddim_step(schedule, x, target[rows], jnp.asarray(fine[i]), jnp.asarray(fine[i + 2]))
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6 * float(jnp.abs(two).max()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_frames_of_different_levels_step_together(name):
    """AR(1) video, whose exact denoiser ties the frames: the sampler takes each clip's frames from their own levels."""
    schedule, steps, frames = SCHEDULES[name], 4, 3
    video = oracles.gaussian_process(oracles.ornstein_uhlenbeck(frames, 0.8), (1, 1, 1))
    denoise = video.denoiser(schedule)

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return denoise(x, logsnr)

    objective = progressive.objective(Network(apply, schedule, "x0"), weight=levels.uniform(), per_frame=True)
    batch = {"video": video.sample(jax.random.key(1), 8)}
    problem = objective(None, {"teacher": ()}, batch, jax.random.key(2), {"steps": jnp.float64(steps), "guidance": 1.0})
    target = problem.target(problem.x, None)
    fine = grids.uniform_time(schedule, 2 * steps)
    starts = np.argmin(np.abs(fine[:, None, None] - np.asarray(problem.logsnr)), axis=0)
    assert len({tuple(row) for row in starts}) > 1 and any(len(set(row)) > 1 for row in starts)
    for x, x0, start in zip(problem.x, target, starts, strict=True):
        here, middle, there = (jnp.asarray(fine[start + k])[None] for k in range(3))
        grid = np.stack([here, middle, there])
        two = sampling.sample(denoise, solvers.ddim(schedule, grid), x[None])
        one = jumps.ddim_step(schedule, x[None], x0[None], here, there)
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6 * float(jnp.abs(two).max()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_student_that_is_the_teachers_two_steps_has_no_residual(name):
    """On Gaussian data both are gains; the student's must be (G - r) / (a'' - r a) with G the product of the two steps."""
    schedule = SCHEDULES[name]
    steps = 4

    def product_gain(logsnr):
        time = jnp.round((schedule.time(logsnr) - schedule.time(schedule.logsnr_end)) / span * 2 * steps) / (2 * steps)
        here, middle, there = (jumps.uniform_clock(schedule)(time - k / (2 * steps)) for k in (0, 1, 2))

        def one(a, b):
            r = schedule.sigma(b) / schedule.sigma(a)
            return r + (schedule.alpha(b) - r * schedule.alpha(a)) * gain(schedule, a)

        r = schedule.sigma(there) / schedule.sigma(here)
        return (one(here, middle) * one(middle, there) - r) / (schedule.alpha(there) - r * schedule.alpha(here))

    span = float(schedule.time(schedule.logsnr_start)) - float(schedule.time(schedule.logsnr_end))

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(jnp.where(params["student"], product_gain(logsnr), gain(schedule, logsnr)), x) * x

    network = Network(apply, schedule, "x0")
    objective = progressive.objective(network, weight=levels.uniform())
    batch = {"video": np.sqrt(VARIANCE) * jax.random.normal(jax.random.key(1), (256, 1, 1, 1, 1))}
    teacher_params, student = {"student": jnp.array(False)}, {"student": jnp.array(True)}
    problem = objective(
        None, {"teacher": teacher_params}, batch, jax.random.key(2), {"steps": jnp.float64(steps), "guidance": 1.0}
    )
    output = problem.output(apply(student, problem.x, problem.logsnr, {}))
    residual = output - problem.target(output, None)
    # Recovering x0 from noise of scale s loses log10(s) digits: EDM begins at 80.
    np.testing.assert_allclose(residual, 0, atol=1e-9)
