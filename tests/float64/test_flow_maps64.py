"""Flow maps against closed forms: on Gaussian data the denoiser and the flow between any two levels are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from diffusion import grids, levels, oracles, predictions, sampling, schedules, solvers
from distill import Network, flow_maps, guided, jumps, mean_flow, reflow, regression

SCHEDULES = {"cosine": schedules.vp_cosine(), "edm": schedules.edm(), "flow": schedules.flow()}
STD = 0.7
HYPER = {"guidance": 1.0}
SHAPE = (256, 3, 1, 2, 1)
every_schedule = pytest.mark.parametrize("name", SCHEDULES)
per_frame = pytest.mark.parametrize("frames", [False, True])


def gaussian(seed=0):
    return {"video": STD * jax.random.normal(jax.random.key(seed), SHAPE)}


def state(params=()):
    return regression.RegressionState(params, params, (), jnp.asarray(0))


def law(low=-8.0, high=8.0):
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float64, low, high)


def flow_time(logsnr):
    return jax.nn.sigmoid(-logsnr / 2)


def exact_velocity(schedule, x, here, there):
    """u* = z (1 - sqrt(V(r)/V(t))) / (t - r), V(t) = (1-t)^2 s^2 + t^2; at r = t its limit z V'(t) / (2 V(t))."""
    t, r = flow_time(here), flow_time(there)
    z = x / levels.expand(schedule.alpha(here) + schedule.sigma(here), x)
    variance = [(1 - q) ** 2 * STD**2 + q**2 for q in (t, r)]
    same = t == r
    average = (1 - jnp.sqrt(variance[1] / variance[0])) / jnp.where(same, 1.0, t - r)
    instant = (t - (1 - t) * STD**2) / variance[0]
    return levels.expand(jnp.where(same, instant, average), x) * z


def exact_map(schedule, prediction="velocity"):
    """The exact flow map of N(0, STD^2) data as a network."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        here = jnp.broadcast_to(logsnr, jnp.shape(cond.get("logsnr_to", logsnr)))
        u = exact_velocity(schedule, x, here, cond.get("logsnr_to", here))
        return predictions.convert(u, x, here, schedule, "velocity", prediction)

    return Network(apply, schedule, prediction, cond_keys=("logsnr_to",))


def exact_teacher(schedule):
    def denoise(x, logsnr):
        alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
        return levels.expand(alpha * STD**2 / (alpha**2 * STD**2 + sigma**2), x) * x

    return Partial(denoise)


def truth(schedule, x, here, there):
    """Along the exact flow x keeps its quantile: it grows as its standard deviation."""
    here, there = (schedule.alpha(l) ** 2 * STD**2 + schedule.sigma(l) ** 2 for l in (here, there))
    return levels.expand(jnp.sqrt(there / here), x) * x


def select(which, x, yes, no):
    """`yes` for the clips of which it holds, [b]."""
    return jnp.where(which.reshape(-1, *(1,) * (x.ndim - 1)), yes, no)


def residual(network, problem, params=()):
    """(the student's answer minus its target, the target), with the tangent if the problem has one."""

    def student(x, logsnr, cond):
        return problem.output(network.apply(params, x, logsnr, cond))

    inputs = (problem.x, problem.logsnr, problem.cond)
    primal, slope = student(*inputs), None
    if problem.tangents is not None:
        primal, slope = jax.jvp(student, inputs, problem.tangents)
    target = problem.target(primal, slope)
    return primal - target, target


def curved(schedule, prediction):
    """A smooth network that is no flow map of anything: for identities that hold whatever the network says."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        there = cond.get("logsnr_to", logsnr)
        return jnp.sin(x + levels.expand(logsnr / 7, x)) + jnp.cos(x * levels.expand(jnp.tanh(there / 5), x))

    return Network(apply, schedule, prediction, cond_keys=("logsnr_to",))


@every_schedule
@pytest.mark.parametrize("prediction", predictions.PREDICTIONS)
def test_a_jump_of_no_length_is_no_jump_and_its_estimate_the_denoiser(name, prediction):
    schedule = SCHEDULES[name]
    network = curved(schedule, prediction)
    here = jnp.linspace(schedule.logsnr_start, schedule.logsnr_end, 256)
    x = jax.random.normal(jax.random.key(0), SHAPE)
    np.testing.assert_array_equal(flow_maps.flow_map(network, (), {})(x, here, here), x)
    denoise = predictions.denoiser(network.apply, (), {}, schedule=schedule, prediction=prediction)
    np.testing.assert_array_equal(flow_maps.estimator(network, (), {})(x, here, here), denoise(x, here))


@every_schedule
@pytest.mark.parametrize("prediction", ["x0", "v", "velocity", "F"])
@pytest.mark.parametrize("calls", [1, 3])
def test_the_table_with_an_exact_map_lands_on_the_truth(name, prediction, calls):
    schedule = SCHEDULES[name]
    network = exact_map(schedule, prediction)
    grid = grids.uniform_time(schedule, calls)
    x = jax.random.normal(jax.random.key(0), SHAPE) * float(schedule.sigma(grid[0]))
    jump = predictions.flow_map(network.apply, (), schedule=schedule, prediction=prediction)
    landed = sampling.sample(jump, solvers.flow_map(schedule, grid), x)
    here, there = jnp.asarray(grid[0]), jnp.asarray(grid[-1])
    np.testing.assert_allclose(landed, truth(schedule, x, here, there), atol=1e-7)
    np.testing.assert_allclose(flow_maps.flow_map(network, (), {})(x, here, there), landed, atol=1e-7)


# MeanFlow -----------------------------------------------------------------------------------------------------


@every_schedule
@per_frame
@pytest.mark.parametrize("prediction", ["velocity", "x0"])
def test_the_exact_map_is_a_fixed_point_of_mean_flow(name, frames, prediction):
    schedule = SCHEDULES[name]
    network = exact_map(schedule, prediction).predicting("velocity")
    for wide in (False, True):
        ends = (schedule.logsnr_start, schedule.logsnr_end) if wide else (-8.0, 8.0)
        construct = mean_flow.objective(network, law=law(*ends), share=0.75, per_frame=frames)
        problem = construct(state(), {"teacher": exact_teacher(schedule)}, gaussian(), jax.random.key(1), HYPER)
        assert problem.logsnr.shape == SHAPE[: 2 if frames else 1]
        moved = problem.cond["logsnr_to"] > problem.logsnr
        assert (
            np.all(problem.cond["logsnr_to"] >= problem.logsnr) and np.mean(np.all(moved.reshape(256, -1), 1)) == 0.75
        )
        error, target = residual(network, problem)
        # At log-SNR 20 the velocity is read off x0 divided by 5e-5: four digits less.
        np.testing.assert_allclose(error, 0, atol=1e-6 if prediction != "x0" or not wide else 1e-5)
        assert np.abs(target).max() > 0.5


def test_without_a_teacher_the_exact_map_is_a_fixed_point_in_the_mean():
    """The clip's own velocity has the flow's as its mean given x: the residual is uncorrelated with anything made of x."""
    schedule = SCHEDULES["flow"]
    network = exact_map(schedule)
    construct = mean_flow.objective(network, law=law(-2.0, 2.0), share=1.0)
    total = []
    for seed in range(20):
        problem = construct(state(), {}, gaussian(seed), jax.random.key(seed), HYPER)
        error, target = residual(network, problem)
        total.append([jnp.mean(error * f) for f in (problem.x, jnp.sin(problem.x), error + target)])
    mean, spread = np.mean(total, 0), np.std(total, 0) / np.sqrt(20)
    assert np.all(np.abs(mean) < 4 * spread) and np.all(spread < 0.02)


def test_the_length_of_a_jump_is_that_in_flow_time_and_exact_at_both_ends():
    here, there = jnp.array([-20.0, -20.0, -3.0, 19.0, 4.0]), jnp.array([20.0, -19.9, 2.0, 20.0, 4.0])
    t, r = flow_time(here), flow_time(there)
    length = -mean_flow.average_velocity(jnp.zeros(5), jnp.ones(5), here, there)
    np.testing.assert_allclose(length * t * (1 - t), t - r, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("kappa", [0.0, 0.5, 0.9])
def test_guidance_in_the_loop_has_the_guided_field_as_its_fixed_point(kappa):
    """With v the conditional field and c the model's own guided answer, the mix is u + g (c - u) again, for any kappa."""

    c, u, x = jnp.array([0.3, -0.4]), 0.9, jax.random.normal(jax.random.key(0), (6, 1, 1, 1, 1))
    cond = {"label": jnp.array([0, 1, 2, 0, 1, 2])}
    for scale in (1.0, 2.5, jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])):
        g = jnp.broadcast_to(scale, (6,))
        conditional = jnp.append(c, u)[cond["label"]]
        wanted = levels.expand(u + g * (conditional - u), x) * x
        velocity = levels.expand(conditional, x) * x
        answers = select(cond["label"] == 2, x, u * x, wanted)

        def fixed_point(params, x, logsnr, cond, answers=answers):
            """Guided with a class, plain without."""
            return select(cond["label"] == 2, x, u * x, answers)

        network = Network(fixed_point, SCHEDULES["flow"], "velocity", 2, ("label", "logsnr_to"))
        mixed = mean_flow.guided_velocity(network, (), cond, x, jnp.zeros(6), velocity, scale, kappa)
        np.testing.assert_allclose(mixed, wanted, atol=1e-12)


# Composition --------------------------------------------------------------------------------------------------


def test_in_flow_time_the_shortcut_target_is_the_mean_of_two_velocities():
    schedule, finest = SCHEDULES["flow"], 16
    network = curved(schedule, "x0")
    draw, compose = flow_maps.halves(network, finest)
    construct = flow_maps.composed(network, draw=draw, compose=compose, law=law(), weight=levels.velocity(), share=1.0)
    problem = construct(state(), {}, gaussian(), jax.random.key(3), HYPER)
    x, here, there = problem.x, problem.logsnr, problem.cond["logsnr_to"]
    t, r = flow_time(here), flow_time(there)
    d = levels.expand(t - r, x)
    lengths = np.asarray((t - r) / (flow_time(schedule.logsnr_start) - flow_time(schedule.logsnr_end)))
    np.testing.assert_allclose(np.unique(lengths.round(9)), [1 / 8, 1 / 4, 1 / 2, 1], atol=1e-6)

    def velocity(x, t, to):
        level = lambda q: -2 * jnp.log(q / (1 - q))  # noqa: E731
        return (x - network.apply((), x, level(t), {"logsnr_to": level(to)})) / levels.expand(t, x)

    middle = (t + r) / 2
    shortest = lengths < 1.5 / 8
    first = velocity(x, t, jnp.where(shortest, t, middle))
    second = velocity(x - d / 2 * first, middle, jnp.where(shortest, middle, r))
    _, target = residual(network, problem)
    np.testing.assert_allclose((x - target) / levels.expand(t, x), (first + second) / 2, atol=1e-11)


@every_schedule
@per_frame
def test_the_exact_map_is_a_fixed_point_of_shortcut_models(name, frames):
    """But for the shortest jump, which is two Euler steps of the denoiser, off by their error."""
    schedule, finest = SCHEDULES[name], 64
    network = exact_map(schedule)
    draw, compose = flow_maps.halves(network, finest)
    construct = flow_maps.composed(
        network, draw=draw, compose=compose, law=law(), weight=levels.uniform(), share=0.5, per_frame=frames
    )
    frozen = {"teacher": exact_teacher(schedule)}
    problem = construct(state(), frozen, gaussian(), jax.random.key(1), HYPER)
    error = np.abs(residual(network, problem)[0]).max(axis=(2, 3, 4))
    time = [schedule.time(problem.cond["logsnr_to"]), schedule.time(problem.logsnr)]
    shortest = np.broadcast_to(np.abs((time[1] - time[0]).reshape(256, -1) * 32 - 1) < 0.01, error.shape)
    np.testing.assert_allclose(error[~shortest], 0, atol=1e-7)
    assert 1e-7 < error[shortest].max() < 0.1
    still = problem.cond["logsnr_to"] == problem.logsnr
    assert np.mean(still) == 0.5
    gap, known = problem.report(problem.target(problem.x, None), None)["gap"]
    assert gap[known].max() < 1e-20 and known.sum() == 128, "clips that don't jump learn the teacher's denoiser"
    np.testing.assert_array_equal(known, ~problem.jumps)


def trajectory_problem(schedule, network, intervals, substeps, solver, **options):
    draw, compose = flow_maps.trajectories(network, intervals, substeps, solver)
    construct = flow_maps.composed(network, draw=draw, compose=compose, law=law(), weight=levels.uniform(), **options)
    frozen = {"teacher": exact_teacher(schedule)}
    return construct(state(), frozen, gaussian(), jax.random.key(5), HYPER)


@every_schedule
@per_frame
@pytest.mark.parametrize("substeps", [1, 3])
def test_with_an_exact_solver_the_exact_map_is_a_fixed_point_of_consistency_trajectories(name, frames, substeps):
    schedule = SCHEDULES[name]
    network = exact_map(schedule)

    def exact(schedule, denoise, x, x0, here, there):
        return truth(schedule, x, here, there), denoise(x, here)

    problem = trajectory_problem(schedule, network, 12, substeps, exact, share=0.75, per_frame=frames)
    error, target = residual(network, problem)
    np.testing.assert_allclose(error, 0, atol=1e-7)
    index = [np.asarray(schedule.time(l)) for l in (problem.logsnr, problem.cond["logsnr_to"])]
    jumping = np.unique(np.flatnonzero((index[0] > index[1]).reshape(256, -1).all(1)))
    assert len(jumping) == 192 and np.abs(target).max() > 0.1


@pytest.mark.parametrize("solver, order", [("ddim", 2), ("heun", 3), ("exponential_heun", 3)])
def test_the_teachers_steps_leave_their_solvers_error(solver, order):
    """One step's error of the point: h^2 for Euler, h^3 for both of Heun's kind; better is no mistake."""
    schedule = SCHEDULES["flow"]
    network = exact_map(schedule)
    errors, counts = [], (32, 64, 128)
    for intervals in counts:
        problem = trajectory_problem(schedule, network, intervals, 1, flow_maps.SOLVERS[solver], share=1.0)
        error, _ = residual(network, problem)
        zero, there = jnp.zeros_like(error), problem.cond["logsnr_to"]
        errors.append(jnp.sqrt(jnp.mean(jumps.ddim_step(schedule, zero, error, problem.logsnr, there) ** 2)))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope < 0.25 - order


def test_one_step_out_of_pure_noise_is_no_leap():
    """From log-SNR -20 Heun in sigma/alpha is off by many times the data; the mean of the estimates is not."""
    schedule = SCHEDULES["cosine"]
    x = jax.random.normal(jax.random.key(0), SHAPE)
    here, there = jnp.full(256, -20.0), jnp.full(256, -5.0)
    off = {
        name: np.abs(
            solve(schedule, exact_teacher(schedule), x, None, here, there)[0] - truth(schedule, x, here, there)
        ).max()
        for name, solve in flow_maps.SOLVERS.items()
    }
    assert off["exponential_heun"] < off["ddim"] < 0.02 < 1 < off["heun"]


def test_a_correlated_video_has_its_joint_flow_as_fixed_point():
    """AR(1) frames at one level for the clip: the map is the symmetric root of the covariance, not frame by frame."""
    schedule = SCHEDULES["cosine"]
    video = oracles.gaussian_process(oracles.ornstein_uhlenbeck(3, 0.8), (1, 2, 1))
    flow, denoise = video.flow_map(schedule), video.denoiser(schedule)

    def estimate(x, here, there):
        same = here == there
        there = jnp.where(same, here + 1.0, there)
        jumped = jumps.inverse_ddim(schedule, x, flow(x, here, there), here, there)
        return select(same, x, denoise(x, here), jumped)

    def exact(schedule, teacher, x, x0, here, there):
        moved = flow(x, here, jnp.where(here == there, here + 1.0, there))
        return select(here == there, x, x, moved), teacher(x, here)

    network = Network(
        lambda params, x, l, cond, **kw: estimate(x, l, cond["logsnr_to"]), schedule, "x0", 0, ("logsnr_to",)
    )
    draw, compose = flow_maps.trajectories(network, 8, 2, exact)
    construct = flow_maps.composed(
        network, draw=draw, compose=compose, law=law(), weight=levels.uniform(), share=0.75, data=False
    )
    problem = construct(state(), {"teacher": denoise}, gaussian(), jax.random.key(1), HYPER)
    np.testing.assert_allclose(residual(network, problem)[0], 0, atol=1e-7)


# Reflow and guidance ------------------------------------------------------------------------------------------


@every_schedule
def test_reflow_of_a_gaussian_teacher_has_a_known_straight_flow(name):
    """The coupling is x0 = k eps, so on the line x = (alpha k + sigma) eps and the student's answer is k x / (..)."""
    schedule = SCHEDULES[name]
    teacher = exact_teacher(schedule)
    start, end = schedule.logsnr_start, schedule.logsnr_end
    x = jnp.array([np.hypot(schedule.alpha(start), schedule.sigma(start))])
    exact = truth(schedule, x, jnp.array(start), jnp.array(end))[0] / schedule.alpha(end)
    tables = [solvers.dpmpp(schedule, grids.uniform_time(schedule, n)) for n in (64, 256)]
    gains = [float(reflow.coupled(schedule, teacher, t, jnp.ones((1, 1, 1, 1, 1))).ravel()[0]) for t in tables]
    off = np.abs(np.array(gains) - exact)
    assert off[0] < 0.02 and off[1] < off[0] / 4
    table, k = tables[0], gains[0]

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(k / (schedule.alpha(logsnr) * k + schedule.sigma(logsnr)), x) * x

    network = Network(apply, schedule, "x0")
    construct = reflow.objective(network, law=law(), weight=levels.velocity(), table=table)
    problem = construct(state(), {"teacher": teacher}, gaussian(), jax.random.key(2), HYPER)
    error, target = residual(network, problem)
    np.testing.assert_allclose(error, 0, atol=1e-10)
    # The straight flow takes one step: DDIM from the noise lands on the teacher's clip.
    noise = target / k
    one = solvers.ddim(schedule, np.array([start, np.inf]))
    denoise = predictions.denoiser(apply, (), schedule=schedule, prediction="x0")
    x = schedule.alpha(start) * target + schedule.sigma(start) * noise
    np.testing.assert_allclose(sampling.sample(denoise, one, x), target, atol=1e-10)


@every_schedule
@per_frame
def test_the_guided_teacher_is_the_fixed_point_of_guidance_distillation(name, frames):
    schedule = SCHEDULES[name]

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        own, none = (levels.expand(params[label], x) * x for label in (cond["label"], jnp.full(len(x), 2)))
        return none + levels.expand(cond.get("guidance", jnp.ones(len(x))), x) * (own - none)

    network = Network(apply, schedule, "x0", 2, ("label", "guidance"))
    params = jnp.array([0.2, 0.7, 0.4])
    construct = guided.objective(
        network,
        law=law(),
        weight=levels.truncated_snr(),
        guidance_range=(1.0, 6.0),
        label_dropout=0.2,
        per_frame=frames,
    )
    batch = {**gaussian(), "label": jnp.arange(256) % 2}
    problem = construct(state(params), {"teacher": params}, batch, jax.random.key(1), {})
    scale = problem.cond["guidance"]
    assert scale.shape == (256,) and 1 <= scale.min() < 1.2 and 5.8 < scale.max() <= 6
    error, target = residual(network, problem, params)
    np.testing.assert_allclose(error, 0, atol=1e-12)
    dropped = np.asarray(problem.cond["label"] == 2)
    assert 0.1 < dropped.mean() < 0.3
    np.testing.assert_allclose(target[dropped], 0.4 * problem.x[dropped], atol=1e-12)
