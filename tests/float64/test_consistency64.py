"""Consistency models against closed forms: on Gaussian data the denoiser, the flow and the consistency function are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from diffusion import clocks, grids, levels, oracles, predictions, sampling, schedules, solvers
from distill import Network, consistency, jumps, pairs, regression, tract

SCHEDULES = {
    "cosine": schedules.vp_cosine(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
}
FRAMES, RHO = 4, 0.8
VIDEO = oracles.gaussian_process(oracles.ornstein_uhlenbeck(FRAMES, RHO), (1, 1, 1))
STD = 0.7
HYPER = {"guidance": 1.0}


pytestmark = pytest.mark.usefixtures("quick_compilation")


def gain(schedule, logsnr, variance=STD**2):
    """D(x) = k x is the exact denoiser of N(0, variance) data."""
    alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
    return alpha * variance / (alpha**2 * variance + sigma**2)


def flow_gain(schedule, here, there, variance=STD**2):
    """Along the exact flow of N(0, variance) data x keeps its quantile: it grows as its standard deviation."""
    here, there = (schedule.alpha(l) ** 2 * variance + schedule.sigma(l) ** 2 for l in (here, there))
    return jnp.sqrt(there / here)


def student_gain(schedule, logsnr, boundary, variance=STD**2):
    """The x0 whose DDIM step to the boundary is the exact flow: the prediction of the exact consistency model."""
    x, boundary = jnp.ones_like(logsnr), jnp.full_like(logsnr, boundary)
    return jumps.inverse_ddim(schedule, x, flow_gain(schedule, logsnr, boundary, variance), logsnr, boundary)


def state(params=(), ema=(), step=0):
    return regression.RegressionState(params, ema, (), jnp.asarray(step))


def fixed(here, there, boundary):
    return lambda key, shape, step, hyper: pairs.Pair(
        *(jnp.broadcast_to(jnp.asarray(l, jnp.float64), shape) for l in (here, there, boundary))
    )


def gaussian(key, shape):
    return {"video": STD * jax.random.normal(jax.random.key(key), shape)}


def exact_student(schedule, boundary):
    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(student_gain(schedule, logsnr, boundary), x) * x

    return Network(apply, schedule, "x0")


def exact_teacher(schedule):
    return Partial(lambda x, logsnr: levels.expand(gain(schedule, logsnr), x) * x)


def residual(problem, network):
    output = problem.output(network.apply((), problem.x, problem.logsnr, problem.cond))
    return output - problem.target(output, None)


@pytest.mark.parametrize("prediction", [*predictions.PREDICTIONS, predictions.F(1.3)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_boundary_holds_by_construction(name, prediction):
    """f(x) = x at any boundary whatever the network says; and f is c_skip x + c_out F with the general coefficients."""
    schedule = SCHEDULES[name]
    x = jax.random.normal(jax.random.key(0), (5, 3, 1, 1, 1))
    network = Network(lambda params, x, logsnr, cond, **options: jnp.sin(3 * x) + params, schedule, prediction)
    f = consistency.consistency_function(network, 0.3, {})
    for boundary in (schedule.logsnr_end, 2.0, -1.0, jnp.inf):
        level = jnp.full((5, 3), boundary)
        np.testing.assert_array_equal(f(x, level, level), x)
    if isinstance(prediction, predictions.F):
        here, boundary = jnp.linspace(-6.0, 1.0, 5), jnp.full(5, 2.0)
        skip, out, _ = predictions.boundary_coefficients(here, boundary, schedule, prediction.sigma_data)
        expected = levels.expand(skip, x) * x + levels.expand(out, x) * (jnp.sin(3 * x) + 0.3)
        np.testing.assert_allclose(f(x, here, boundary), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_c_skip_leaves_has_the_variance_c_out_squared(name):
    """For data of variance sd^2 the network's target has unit variance at every boundary: in moments, without sampling."""
    schedule, sd = SCHEDULES[name], STD
    for here, boundary in ((-6.0, 1.0), (-2.0, -1.0), (0.0, schedule.logsnr_end)):
        skip, out, _ = predictions.boundary_coefficients(here, boundary, schedule, sd)
        alpha, sigma, to_alpha, to_sigma = (p(l) for l in (here, boundary) for p in (schedule.alpha, schedule.sigma))
        left = (to_alpha - skip * alpha) ** 2 * sd**2 + (to_sigma - skip * sigma) ** 2
        np.testing.assert_allclose(left, out**2, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_function_is_a_fixed_point_of_an_exact_teacher_step(name):
    """With the teacher's step replaced by the exact flow the residual is nil, at any pair, boundary and target space."""
    schedule = SCHEDULES[name]

    def exact(schedule, denoise, x, x0, here, there):
        return levels.expand(flow_gain(schedule, here, there), x) * x, denoise(x, here)

    boundary = 3.0
    network = exact_student(schedule, boundary)
    for here, there in ((-4.0, -3.0), (0.0, 2.9), (2.0, 3.0)):
        for denoised in (False, True):
            objective = consistency.objective(
                network, pairs=fixed(here, there, boundary), solver=exact, compare_denoised=denoised
            )
            problem = objective(
                state(), {"teacher": exact_teacher(schedule)}, gaussian(1, (32, 2, 1, 1, 1)), jax.random.key(2), HYPER
            )
            np.testing.assert_allclose(residual(problem, network), 0, atol=1e-8)


@pytest.mark.parametrize("solver, order", [(consistency.euler, 2), (consistency.heun, 3)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_residual_has_the_order_of_the_teachers_step(name, solver, order):
    """A step's local error is O(h^2) for Euler and O(h^3) for Heun, so that of the residual at f* is, too."""
    schedule, boundary = SCHEDULES[name], 3.0
    network = exact_student(schedule, boundary)
    errors = []
    steps = 0.2 * 0.5 ** np.arange(4)
    for h in steps:
        objective = consistency.objective(network, pairs=fixed(-1.0, -1.0 + h, boundary), solver=solver)
        problem = objective(
            state(), {"teacher": exact_teacher(schedule)}, gaussian(1, (32, 1, 1, 1, 1)), jax.random.key(2), HYPER
        )
        errors.append(float(jnp.abs(residual(problem, network)).max()))
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15, (slope, errors)


@pytest.mark.parametrize("name", SCHEDULES)
def test_teacher_steps_are_the_samplers(name):
    """Euler and Heun against one step of the samplers' tables, on a denoiser that isn't linear."""
    schedule = SCHEDULES[name]
    denoise = Partial(lambda x, logsnr: jnp.tanh(x) * jax.nn.sigmoid(levels.expand(logsnr, x)))
    x = jax.random.normal(jax.random.key(0), (6, 1, 1, 1, 1))
    grid = np.array([-1.0, 0.5])
    here, there = (jnp.full(6, level) for level in grid)
    for solver, table in ((consistency.euler, solvers.euler), (consistency.heun, solvers.heun)):
        point, estimate = solver(schedule, denoise, x, None, here, there)
        expected = sampling.sample(denoise, table(schedule, grid), x)
        np.testing.assert_allclose(point, expected, rtol=1e-10)
        np.testing.assert_allclose(estimate, denoise(x, here))


@pytest.mark.parametrize("name", SCHEDULES)
def test_training_pairs_share_their_noise_and_are_right_in_the_mean(name):
    """CT's point is the forward process with the same noise; given x its mean is the exact Euler step, so f* stays where
    it is in expectation, up to the step's order. Each clip's own residual is not nil.
    """
    schedule, boundary, here, there = SCHEDULES[name], 3.0, -1.0, -0.9
    network = exact_student(schedule, boundary)
    objective = consistency.objective(network, pairs=fixed(here, there, boundary), solver=None)
    batch = gaussian(1, (20_000, 1, 1, 1, 1))
    problem = objective(state(), {}, batch, jax.random.key(2), HYPER)
    x, x0 = problem.x, batch["video"]
    eps = (x - schedule.alpha(here) * x0) / schedule.sigma(here)
    point = schedule.alpha(there) * x0 + schedule.sigma(there) * eps
    level = jnp.full(len(x), there)
    f = consistency.consistency_function(network, (), {})
    goal = problem.target(jnp.zeros_like(x), None)
    np.testing.assert_allclose(goal, f(point, level, jnp.full(len(x), boundary)), rtol=1e-6)
    gap = np.ravel(residual(problem, network))
    # E[residual x] is what moves a linear student; in closed form: f's gain times (exact flow's - Euler's) gain.
    k = jnp.asarray(gain(schedule, here))
    euler = jumps.ddim_step(schedule, jnp.ones(()), k, jnp.asarray(here), jnp.asarray(there))
    bias = flow_gain(schedule, there, boundary) * (euler - flow_gain(schedule, here, there))
    flat = np.ravel(x)
    slope, spread = np.mean(gap * flat) / np.mean(flat**2), np.std(gap * flat) / np.mean(flat**2)
    assert abs(slope - bias) < 4 * spread / math.sqrt(len(flat))
    assert np.std(gap) > 10 * abs(float(bias)) * np.std(flat)


@pytest.mark.parametrize("name", SCHEDULES)
def test_per_frame_levels_on_correlated_frames(name):
    """AR(1) video, a level per frame. The exact flow moves all frames' levels by equal steps and the frames stay tied."""
    schedule = SCHEDULES[name]
    denoise, flow = VIDEO.denoiser(schedule), VIDEO.flow_map(schedule)

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        shared = logsnr[:, 0]
        end = jnp.full_like(shared, 3.0)
        there = flow(x, shared, end)
        return jumps.inverse_ddim(schedule, x, there, logsnr, jnp.broadcast_to(end[:, None], logsnr.shape))

    network = Network(apply, schedule, "x0")
    steps, errors = 0.2 * 0.5 ** np.arange(3), []
    video = VIDEO.sample(jax.random.key(0), 64, jnp.float64)
    for h in steps:
        objective = consistency.objective(
            network, pairs=fixed(-1.0, -1.0 + h, 3.0), solver=consistency.heun, per_frame=True
        )
        problem = objective(state(), {"teacher": Partial(denoise)}, {"video": video}, jax.random.key(2), HYPER)
        assert problem.logsnr.shape == (64, FRAMES)
        errors.append(float(jnp.abs(residual(problem, network)).max()))
    assert abs(np.polyfit(np.log(steps), np.log(errors), 1)[0] - 3) < 0.2, errors


@pytest.mark.parametrize("solver, order", [(consistency.euler, 2), (consistency.heun, 3)])
def test_different_levels_per_frame(solver, order):
    """Independent frames at different levels: every frame has its own pair, boundary and residual."""
    schedule = SCHEDULES["cosine"]
    boundary = jnp.asarray([1.0, 2.0, 3.0, 4.0])

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(student_gain(schedule, logsnr, boundary), x) * x

    network = Network(apply, schedule, "x0")
    steps, errors = 0.2 * 0.5 ** np.arange(4), []
    for h in steps:
        here = jnp.asarray([-3.0, -1.0, 0.0, 1.0])
        objective = consistency.objective(network, pairs=fixed(here, here + h, boundary), solver=solver, per_frame=True)
        problem = objective(
            state(), {"teacher": exact_teacher(schedule)}, gaussian(1, (32, 4, 2, 1, 1)), jax.random.key(2), HYPER
        )
        errors.append(np.abs(residual(problem, network)).max((0, 2, 3, 4)))
    slopes = np.polyfit(np.log(steps), np.log(np.array(errors)), 1)[0]
    np.testing.assert_allclose(slopes, order, atol=0.2)


# Pairs and curricula --------------------------------------------------------------------------------------------


def test_easy_map_is_the_papers():
    """Values of Geng et al.'s map: s = 1 gives 0, .803, .988 and s = 10 gives 5.0, 9.37, 9.96 at stages 0, 3, 7."""
    table = np.array([[pairs.easy_map(jnp.asarray(s), stage) for stage in (0, 3, 7)] for s in (1.0, 10.0)])
    np.testing.assert_allclose(table[0], [0, 0.803, 0.988], atol=5e-4)
    np.testing.assert_allclose(table[1], [5.0, 9.37, 9.96], atol=5e-3)
    s = jnp.geomspace(1e-3, 1e3, 50)
    maps = np.array([pairs.easy_map(s, stage) for stage in range(8)])
    assert np.all(maps < s) and np.all(maps >= 0) and np.all(np.diff(maps, axis=0) >= 0)
    np.testing.assert_allclose(
        pairs.easy_map(s, math.inf, limit=0.999), s * (1 - 1e-3 * (1 + 8 * jax.nn.sigmoid(-s))), rtol=1e-5
    )


def test_improved_curriculum():
    """N = 11, 21, .., 1281: eight stages of 50 thousand in 400 thousand updates, and the last one stays."""
    steps = jnp.arange(8) * 50_000
    expected = [10 * 2**k for k in range(8)]
    np.testing.assert_array_equal(pairs.ict_intervals(steps, 400_000), expected)
    np.testing.assert_array_equal(pairs.ict_intervals(steps + 49_999, 400_000), expected)
    assert pairs.ict_intervals(jnp.asarray(10**7), 400_000) == 1280


@pytest.mark.parametrize("s0, s1, total", [(2, 150, 800_000), (2, 200, 600_000), (10, 1280, 1000)])
def test_consistency_training_curriculum(s0, s1, total):
    """N(0) = s0 and N(K) = s1 + 1, growing; also in float32."""
    step = jnp.linspace(0, total, 5001, dtype=jnp.float32)
    levels_of = np.asarray(pairs.ct_intervals(step, total, s0, s1)) + 1
    assert levels_of[0] == s0 and levels_of[-1] == s1 + 1
    assert np.all(np.diff(levels_of) >= 0) and np.all(levels_of == np.round(levels_of))


def test_annealed_steps_and_segments():
    np.testing.assert_allclose(pairs.annealed_steps(jnp.asarray([0, 50_000, 100_000, 300_000]), 100_000),
                               [64, math.sqrt(64 * 1280), 1280, 1280], rtol=1e-6)  # fmt: skip
    schedule = SCHEDULES["cosine"]
    clock = jumps.uniform_clock(schedule, schedule.logsnr_end)
    draw = pairs.neighbours(clock, lambda step, hyper: hyper["n"], lambda step, hyper: hyper["k"])
    for n, k in ((16, 4), (1, 8), (64, 1)):
        here, there, boundary = draw(jax.random.key(0), (5000,), 0, {"n": n, "k": k})
        grid = np.asarray(clock(jnp.arange(n * k + 1) / (n * k)))
        index = [np.argmin(np.abs(grid[None] - np.asarray(l)[:, None]), 1) for l in (here, there, boundary)]
        np.testing.assert_allclose(grid[index[0]], here, atol=1e-4)
        np.testing.assert_array_equal(index[0], index[1] + 1)
        np.testing.assert_array_equal(index[2], index[1] // n * n)
        counts = np.bincount(index[1], minlength=n * k)
        assert len(counts) == n * k and np.all(np.abs(counts - 5000 / (n * k)) < 6 * np.sqrt(5000 / (n * k)))
        if n == 1:
            np.testing.assert_array_equal(there, boundary)


@pytest.mark.parametrize("count", [2, 18, 151])
def test_karras_pairs(count):
    """Against the grid of the sampler's module, at a traced count: here and there are neighbours on it."""
    schedule = SCHEDULES["edm"]
    clock = clocks.Karras(0.002, 80.0, 7.0)
    draw = jax.jit(lambda key, n: pairs.neighbours(clock.logsnr, lambda step, hyper: n)(key, (400,), 0, {}))
    here, there, boundary = draw(jax.random.key(0), count - 1)
    grid = grids.karras(schedule, count - 1)[::-1]  # from the data up
    index = np.argmin(np.abs(grid[None] - np.asarray(there)[:, None]), 1)
    np.testing.assert_allclose(grid[index], there, atol=1e-4)
    np.testing.assert_allclose(grid[index + 1], here, atol=1e-4)
    np.testing.assert_allclose(boundary, schedule.logsnr_end, atol=1e-4)


def test_easy_pairs_and_the_truncated_law():
    """Levels stay inside; there is above here and at the boundary in stage 0 at low noise; the cut is drawn at its rate."""
    for schedule in SCHEDULES.values():
        for boundary in (schedule.logsnr_end, jnp.inf):
            for stage in (0, 7):
                draw = pairs.easy(schedule, levels.edm_lognormal(-1.1, 2.0), lambda step, n=stage: n, boundary)
                here, there, end = draw(jax.random.key(0), (4000,), 0, {})
                assert np.all(here >= schedule.logsnr_start) and np.all(here < there) and np.all(there <= end)
                if stage == 0:
                    assert np.all(np.asarray(there)[np.exp(-np.asarray(here) / 2) < 1] == boundary)
                assert np.all(np.isfinite(consistency.inverse_gap(here, there)))
    schedule, cut = SCHEDULES["edm"], 0.0
    drawn = np.asarray(pairs.truncated_law(schedule, cut)(jax.random.key(0), (40_000,)))
    assert abs(np.mean(drawn == cut) - 0.25) < 0.01
    drawn = -drawn[drawn < cut] / 2  # log s above the cut
    assert drawn.min() > 0 and drawn.max() <= math.log(80) + 1e-5
    # Against the density of Student's t, (1 + y^2/df)^-(df + 1)/2, integrated numerically.
    y = np.geomspace(1e-6, math.log(80), 20_001)
    density = (1 + (y / 0.2) ** 2 / 0.01) ** (-(0.01 + 1) / 2)
    mass = np.concatenate([[y[0]], y[0] + np.cumsum(np.diff(y) * (density[1:] + density[:-1]) / 2)])
    for share in (0.1, 0.5, 0.9):
        quantile = np.interp(share * mass[-1], mass, y)
        assert abs(np.mean(drawn < quantile) - share) < 0.02


# Multistep, aDDIM, TRACT ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_multistep_with_one_interval_a_segment_is_the_teachers_ddim(name):
    """There is then no f in the target: it is the teacher's x0 (distilled) or the clip (training), whatever the student."""
    schedule = SCHEDULES[name]
    wild = Network(lambda params, x, *rest, **options: jnp.sin(x) / 0.0, schedule, "x0")
    clock = jumps.uniform_clock(schedule, schedule.logsnr_end)
    draw = pairs.neighbours(clock, lambda step, hyper: 1, lambda step, hyper: 8)
    batch, teacher = gaussian(3, (64, 1, 1, 1, 1)), exact_teacher(schedule)
    for solver, goal in ((consistency.euler, None), (None, batch["video"])):
        objective = consistency.objective(wild, pairs=draw, solver=solver, compare_denoised=True)
        problem = objective(state(), {"teacher": teacher}, batch, jax.random.key(1), HYPER)
        goal = teacher(problem.x, problem.logsnr) if goal is None else goal
        scale = 1 + np.exp(-np.asarray(problem.logsnr) / 2).reshape(-1, 1, 1, 1, 1)
        found = problem.target(jnp.zeros_like(goal), None)
        np.testing.assert_allclose((found - goal) / scale, 0, atol=1e-6)


def addim_chain(schedule, steps, solver):
    """The standard deviation at the clean end of unit Gaussian data, through `steps` steps from the noisy end.

    The closed-form variance doesn't depend on x, so the chain is linear up to |e|^2, taken over many equal dimensions.
    """
    clock = jumps.uniform_clock(schedule, schedule.logsnr_end)
    grid = clock(jnp.arange(steps, -1, -1) / steps)
    denoise = lambda x, logsnr: gain(schedule, logsnr, 1.0)[:, None] * x  # noqa: E731
    key_data, key_noise = jax.random.split(jax.random.key(0))
    shape = (1, 50_000)
    x = jax.random.normal(key_noise, shape)

    def step(x, ends):
        here, there = (end[None] for end in ends)
        # x0 that goes with x: a draw of the posterior, whose spread is what eta's variance measures.
        k = gain(schedule, here, 1.0)[:, None]
        spread = jnp.sqrt(1 - k * schedule.alpha(here)[:, None])
        x0 = k * x + spread * jax.random.normal(key_data, shape)
        return solver(schedule, denoise, x, x0, here, there)[0], None

    x, _ = jax.lax.scan(step, x, (grid[:-1], grid[1:]))
    return float(jnp.std(x))


@pytest.mark.parametrize(
    "solver, expected",
    [
        (consistency.euler, (0.93, 0.98, 1.00)),
        (consistency.addim(0.75), (1.23, 1.13, 1.07)),
        (consistency.addim(), (0.99, 1.01, 1.01)),
    ],
)
def test_addim_on_unit_gaussian_data(solver, expected):
    """Known figures, 16, 64 and 256 steps, cosine schedule. On Gaussians eta = .75 overshoots: D and e are parallel."""
    found = [addim_chain(schedules.vp_cosine(), steps, solver) for steps in (16, 64, 256)]
    np.testing.assert_allclose(found, expected, atol=0.011)


def test_addim_raises_the_noise_by_the_stated_variance():
    """Orthogonal D and e, where the premise holds: E|x_s|^2 = a_s^2 |D|^2 + s_s^2 |e|^2 + (..)^2 d var."""
    schedule, d = SCHEDULES["cosine"], 1000
    denoised, eps = np.zeros((2, 1, d))
    denoised[0, : d // 2], eps[0, d // 2 :] = 1.3, np.sqrt(2.0)  # |e|^2 = d
    here, there = jnp.asarray([-1.0]), jnp.asarray([0.5])
    alpha, sigma, to_alpha, to_sigma = (float(p(l)[0]) for l in (here, there) for p in (schedule.alpha, schedule.sigma))
    x, x0 = alpha * denoised + sigma * eps, denoised + 0.2
    change = (to_alpha - alpha * to_sigma / sigma) ** 2
    for eta, variance in ((0.75, 0.75 * 0.04), (None, 0.1 / (2 + (alpha / sigma) ** 2))):
        point, _ = consistency.addim(eta)(schedule, lambda *_: jnp.asarray(denoised), jnp.asarray(x), x0, here, there)
        expected = to_alpha**2 * np.sum(denoised**2) + to_sigma**2 * d + change * d * variance
        np.testing.assert_allclose(jnp.sum(point**2), expected, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_tract_reproduces_the_chain(name):
    """A student that makes the teacher's whole chain of each segment in one DDIM step is a fixed point; and one DDIM step
    with the target is that chain, run by the sampler.
    """
    schedule, rounds = SCHEDULES[name], (12, 3, 1)
    clock = jumps.uniform_clock(schedule, schedule.logsnr_end)
    for student, teacher in ((3, 12), (1, 3)):
        grid = np.asarray(clock(jnp.arange(teacher + 1) / teacher))
        ratio = teacher // student

        def chain(start, grid=grid, ratio=ratio):
            """Gain of DDIM from grid[start] to its segment's clean end, by a table."""
            end = (start - 1) // ratio * ratio
            one = jnp.ones((1, 1))
            denoise = Partial(lambda x, logsnr: gain(schedule, logsnr) * x)
            table = solvers.ddim(schedule, grid[end : start + 1][::-1])
            return float(sampling.sample(denoise, table, one)[0, 0]), grid[end]

        ends = [chain(i) for i in range(1, teacher + 1)]
        gains, ends = jnp.asarray([g for g, _ in ends]), jnp.asarray([e for _, e in ends])

        def apply(params, x, logsnr, cond, *, key=None, train=False, grid=grid, gains=gains, ends=ends):
            nearest = jnp.argmin(jnp.abs(jnp.asarray(grid[1:])[None] - logsnr[:, None]), 1)
            point = levels.expand(gains[nearest], x) * x
            return jumps.inverse_ddim(schedule, x, point, logsnr, ends[nearest])

        network = Network(apply, schedule, "x0")
        objective = tract.objective(network, rounds=rounds, weight=levels.uniform())
        hyper = {"steps": jnp.asarray(float(student)), "guidance": 1.0}
        problem = objective(
            state(), {"teacher": exact_teacher(schedule)}, gaussian(1, (256, 1, 1, 1, 1)), jax.random.key(0), hyper
        )
        scale = 1 + np.exp(-np.asarray(problem.logsnr) / 2).reshape(-1, 1, 1, 1, 1)
        # hyper and times are float32 in the program: the levels agree to its precision.
        np.testing.assert_allclose(residual(problem, network) / scale, 0, atol=2e-4)
        drawn = np.argmin(np.abs(grid[None] - np.asarray(problem.logsnr)[:, None]), 1)
        assert set(drawn) == set(range(1, teacher + 1))


# Guidance, truncation, masking ----------------------------------------------------------------------------------------


def test_guidance_is_g_and_the_student_is_told():
    """u + g (c - u) = c + (g - 1)(c - u): the papers' w is g - 1. Drawn per clip, it is in cond; fixed, it isn't."""
    schedule = SCHEDULES["cosine"]
    gains = jnp.array([0.1, 0.4, 0.7, 0.25])

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(gains[cond["label"]], x) * x

    network = Network(apply, schedule, "x0", 3, ("label", "guidance"))
    batch = gaussian(1, (9, 1, 2, 1, 1)) | {"label": jnp.arange(9) % 3}
    here, there = -1.0, 0.0
    for chosen in (None, (3.0, 15.0)):
        objective = consistency.objective(
            network, pairs=fixed(here, there, there), solver=consistency.euler, guidance_range=chosen
        )
        problem = objective(state(), {"teacher": ()}, batch, jax.random.key(1), {"guidance": 4.0})
        g = problem.cond.get("guidance", jnp.full(9, 4.0))
        assert ("guidance" in problem.cond) == (chosen is not None)
        if chosen:
            assert np.all((g >= 3) & (g <= 15)) and len(set(np.asarray(g))) == 9
        c, u = gains[batch["label"]], gains[3]
        w = g - 1
        mixed = levels.expand((1 + w) * c - w * u, problem.x) * problem.x
        expected = jumps.ddim_step(schedule, problem.x, mixed, *(jnp.full(9, l) for l in (here, there)))
        np.testing.assert_allclose(problem.target(0.0, None), expected, rtol=1e-6)


def test_truncated_targets_come_from_the_frozen_model_below_the_cut():
    schedule = SCHEDULES["edm"]
    network = Network(lambda params, x, *rest, **options: params * x, schedule, "x0")
    there = jnp.linspace(-3.0, 3.0, 9)
    objective = consistency.objective(network, pairs=fixed(there - 0.5, there, 8.0), solver=None, cut=0.1)
    batch = gaussian(1, (9, 1, 1, 1, 1))
    problem = objective(state(params=0.3), {"previous": 0.9}, batch, jax.random.key(1), {})
    eps = (problem.x - batch["video"]) / levels.expand(schedule.sigma(there - 0.5), problem.x)
    point = batch["video"] + levels.expand(schedule.sigma(there), problem.x) * eps
    who = levels.expand(jnp.where(there > 0.1, 0.9, 0.3), point)
    expected = jumps.ddim_step(schedule, point, who * point, there, jnp.full(9, 8.0))
    np.testing.assert_allclose(problem.target(0.0, None), expected, rtol=1e-9)


@pytest.mark.parametrize("target", ["student", "ema"])
def test_the_target_network_is_the_one_asked_for(target):
    schedule = SCHEDULES["flow"]
    network = Network(lambda params, x, *rest, **options: params * x, schedule, "x0")
    objective = consistency.objective(
        network, pairs=fixed(-1.0, 0.0, 4.0), solver=None, target=consistency.TARGETS[target]
    )
    batch = gaussian(1, (3, 1, 1, 1, 1))
    both = [objective(state(*p), {}, batch, jax.random.key(1), {}).target(0.0, None) for p in ((0.2, 0.2), (0.2, 0.8))]
    assert np.allclose(*both) == (target == "student")


def test_a_clip_without_a_finite_target_teaches_nothing_and_is_counted():
    schedule = SCHEDULES["cosine"]
    network = Network(lambda params, x, *rest, **options: params * x, schedule, "x0")

    def broken(schedule, denoise, x, x0, here, there):
        point, estimate = consistency.euler(schedule, denoise, x, x0, here, there)
        return point.at[1, 0, 0].set(jnp.nan).at[2].set(jnp.inf), estimate

    objective = consistency.objective(network, pairs=fixed(-1.0, 0.0, 4.0), solver=broken)
    for metric in (regression.squared_error, consistency.pseudo_huber(0.0), consistency.pseudo_huber()):
        step = regression.method(network, objective, optax.sgd(1.0), ema=0.0, metric=metric).phases["train"]
        full = gaussian(1, (4, 1, 2, 1, 1))
        first = regression.init(optax.sgd(1.0))(jax.random.key(0), jnp.asarray(0.3))
        frozen = {"teacher": exact_teacher(schedule)}
        new, metrics = step(first, frozen, full, jax.random.key(0), {"learning_rate_scale": 1.0})
        assert metrics["non_finite"] == 2 and np.isfinite(metrics["loss"])
        # The gradient is that of the two good clips: the same program with them alone in the loss.
        problem = objective(first, frozen, full, jax.random.split(jax.random.key(0))[0], HYPER)
        rows = jnp.array([0, 3])

        def loss(a, problem=problem, metric=metric, rows=rows):
            output = problem.output(a * problem.x)
            target = problem.target(jax.lax.stop_gradient(output), None)
            error = metric(output[rows], target[rows])
            return jnp.sum(error) / (error.size * 2)

        np.testing.assert_allclose(first.params - new.params, jax.grad(loss)(jnp.asarray(0.3)), rtol=1e-6)


def test_pseudo_huber():
    """Near 0 it is |u|^2 / 2c, far away |u| - c; c = 0 is the norm, also where the error is nil."""
    u = jax.random.normal(jax.random.key(0), (3, 4, 5, 5, 2))
    size = np.sqrt(np.sum(np.asarray(u) ** 2, (1, 2, 3, 4), keepdims=True))
    zero = jnp.zeros_like(u)
    np.testing.assert_allclose(consistency.pseudo_huber(0.0)(u, zero), size)
    c = 0.00054 * math.sqrt(4 * 5 * 5 * 2)
    np.testing.assert_allclose(consistency.pseudo_huber()(u, zero), np.sqrt(size**2 + c**2) - c, rtol=1e-10)
    np.testing.assert_allclose(consistency.pseudo_huber(1e3)(u, zero), size**2 / 2e3, rtol=1e-3)
    assert consistency.pseudo_huber(axes=2)(u, zero).shape == (3, 4, 1, 1, 1)
    np.testing.assert_allclose(consistency.pseudo_huber(0.0, axes=None)(u, zero), np.abs(u))
    assert not np.any(jax.grad(lambda u: jnp.sum(consistency.pseudo_huber(0.0)(u, zero)))(zero))
