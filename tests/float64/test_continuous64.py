"""Continuous-time consistency against closed forms: the exact function is a fixed point, the tangent is its derivative."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from diffusion import levels, oracles, predictions, schedules
from distill import Network, continuous, jumps, regression

SCHEDULES = {
    "cosine": schedules.vp_cosine(),
    "edm": schedules.edm(),
    "flow": schedules.flow(),
}
STD = 0.7
HYPER = {"guidance": 1.0}
SIGMA_DATA = (1.0, 0.5)
FRAMES = 4
VIDEO = oracles.gaussian_process(oracles.ornstein_uhlenbeck(FRAMES, 0.8), (1, 1, 1))


pytestmark = pytest.mark.usefixtures("quick_compilation")


def variance(schedule, logsnr):
    return schedule.alpha(logsnr) ** 2 * STD**2 + schedule.sigma(logsnr) ** 2


def exact_consistency(schedule):
    """f*(x) = s x / sqrt(V): x keeps its quantile down to the clean end. As an x0 prediction with boundary at t = 0."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(STD / jnp.sqrt(variance(schedule, logsnr)), x) * x

    return Network(apply, schedule, "x0")


def exact_teacher(schedule):
    return Partial(lambda x, l: levels.expand(schedule.alpha(l) * STD**2 / variance(schedule, l), x) * x)


def other(schedule):
    """A student that is neither linear nor right."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return jnp.sin(1.3 * x) + 0.3 * jnp.cos(levels.expand(logsnr, x) / 3 + x)

    return Network(apply, schedule, "v")


def drawn(key, shape):
    """Levels at which float64 measures 1e-6 in every scaling."""
    return jax.random.uniform(key, shape, jnp.float64, -6.0, 6.0)


def state(step=10**6):
    return regression.RegressionState((), (), (), jnp.asarray(step))


def raw_tangent(network, sigma_data, teacher, batch, *, per_frame=False, step=10**6, warmup=10_000, law=drawn):
    """(problem, F, g as the objective has it, cos, sin); what regression.term does, without the step."""
    trig = network.predicting(continuous.TrigFlow(sigma_data))
    objective = continuous.objective(
        trig,
        law=law,
        distilled=teacher is not None,
        warmup=warmup,
        normalise=continuous.NORMALISE["none"],
        per_frame=per_frame,
    )
    problem = objective(state(step), {"teacher": teacher}, batch, jax.random.key(3), HYPER)
    value, slope = jax.jvp(
        lambda x, l: problem.output(trig.apply((), x, l, problem.cond)),
        (problem.x, problem.logsnr),
        problem.tangents[:2],
    )
    cos, sin = (levels.expand(part, problem.x) for part in continuous.angle(problem.logsnr, sigma_data))
    return problem, value, problem.target(value, slope) - value, cos, sin


def gaussian(shape):
    return {"video": STD * jax.random.normal(jax.random.key(1), shape)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_trigflow_is_every_schedule_rescaled(name):
    """D = cos(t) x - sin(t) sd F in TrigFlow's x, and tan(t) = sigma / (alpha sd)."""
    schedule, sd = SCHEDULES[name], 0.6
    network = other(schedule).predicting(continuous.TrigFlow(sd))
    x, level = jax.random.normal(jax.random.key(0), (7, 3)), jnp.linspace(-5.0, 5.0, 7)
    cos, sin = continuous.angle(level, sd)
    np.testing.assert_allclose(sin / cos, schedule.sigma(level) / schedule.alpha(level) / sd, rtol=1e-9)
    np.testing.assert_allclose(cos**2 + sin**2, 1, rtol=1e-12)
    value = other(schedule).apply((), x, level, {})
    denoised = predictions.denoised("v", value, x, level, schedule)
    trig = x * (cos / schedule.alpha(level))[:, None]
    expected = cos[:, None] * trig - sin[:, None] * sd * network.apply((), x, level, {})
    np.testing.assert_allclose(denoised, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name, sigma_data, per_frame", [*itertools.product(SCHEDULES, SIGMA_DATA, (False, True))])
def test_the_tangent_vanishes_at_the_exact_consistency_function(name, sigma_data, per_frame):
    """With the exact teacher, g = 0 for every clip, in every scaling and with a level per frame (independent frames)."""
    schedule = SCHEDULES[name]
    _, _, g, *_ = raw_tangent(
        exact_consistency(schedule),
        sigma_data,
        exact_teacher(schedule),
        gaussian((64, 4, 2, 1, 1)),
        per_frame=per_frame,
    )
    np.testing.assert_allclose(g, 0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_correlated_frames_at_levels_of_their_own(name):
    """AR(1) video, a level per frame l_f. The clean end of its flow isn't a closed form, but its derivative is: for any f,
    the tangent is that of f along the flow whose slope is each frame's own. At f = D* it is known by finite differences.
    """
    schedule = SCHEDULES[name]
    denoise = VIDEO.denoiser(schedule)
    network = Network(lambda params, x, l, cond, **options: denoise(x, l), schedule, "x0")
    video = VIDEO.sample(jax.random.key(0), 8, jnp.float64)
    problem, value, g, cos, _ = raw_tangent(network, 1.0, Partial(denoise), {"video": video}, per_frame=True)
    assert problem.logsnr.shape == (8, FRAMES)
    moved = finite_difference(schedule, denoise, denoise, problem.x, problem.logsnr)
    # cos df/dt = cos (-2 / (cos sin)) df/dl
    _, sin = (levels.expand(part, problem.x) for part in continuous.angle(problem.logsnr))
    np.testing.assert_allclose(g, -2 / sin * moved, atol=1e-6)


def finite_difference(schedule, denoise, f, x, logsnr, h=1e-4):
    """df/dlogsnr along the flow, central: all levels move by h. One Heun step each way, its own error is O(h^2)."""

    def step(h):
        def slope(x, l):
            d = denoise(x, l)
            eps = (x - levels.expand(schedule.alpha(l), x) * d) / levels.expand(schedule.sigma(l), x)
            prime = [(part(l + 1e-5) - part(l - 1e-5)) / 2e-5 for part in (schedule.alpha, schedule.sigma)]
            return levels.expand(prime[0], x) * d + levels.expand(prime[1], x) * eps

        first = slope(x, logsnr)
        there = x + h * (first + slope(x + h * first, logsnr + h)) / 2
        return f(there, logsnr + h)

    return (step(h) - step(-h)) / (2 * h)


@pytest.mark.parametrize("sigma_data", SIGMA_DATA)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_tangent_is_cos_t_df_dt(name, sigma_data):
    """At r = 1, for a student that is neither linear nor right, against finite differences of f along the flow."""
    schedule, network = SCHEDULES[name], other(SCHEDULES[name])
    teacher = exact_teacher(schedule)
    law = lambda key, shape: jax.random.uniform(key, shape, jnp.float64, -4.0, 4.0)  # noqa: E731
    problem, _, g, _, sin = raw_tangent(network, sigma_data, teacher, gaussian((32, 2, 1, 1, 1)), law=law)

    def f(x, l):
        return predictions.denoised("v", network.apply((), x, l, {}), x, l, schedule)

    slope = finite_difference(schedule, teacher, f, problem.x, problem.logsnr)
    expected = -2 / sin * slope  # cos(t) d/dt = (1 / sin t) cos sin d/dt
    np.testing.assert_allclose(g, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up(name):
    """r = 0: g = -cos^2 (sd F - dx/dt), the velocity's error; r grows linearly; from `warmup` updates on it is 1."""
    schedule, network, teacher = SCHEDULES[name], other(SCHEDULES[name]), exact_teacher(SCHEDULES[name])
    batch = gaussian((16, 2, 1, 1, 1))
    at = {n: raw_tangent(network, 1.0, teacher, batch, step=n, warmup=100) for n in (0, 25, 100, 500)}
    problem, value, g, cos, sin = at[0]
    trig = problem.x * cos / levels.expand(schedule.alpha(problem.logsnr), problem.x)
    velocity = (cos * trig - teacher(problem.x, problem.logsnr)) / sin
    np.testing.assert_allclose(g, -(cos**2) * (value - velocity), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(at[25][2], g + 0.25 * (at[100][2] - g), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(at[500][2], at[100][2])
    np.testing.assert_allclose(raw_tangent(network, 1.0, teacher, batch, step=0, warmup=0)[2], at[100][2])


@pytest.mark.parametrize("name", SCHEDULES)
def test_training_tangent_is_right_in_the_mean(name):
    """sCT: at f* the tangent of one clip isn't nil, its mean given x is: a linear student isn't moved."""
    schedule = SCHEDULES[name]
    law = lambda key, shape: jnp.full(shape, -1.0)  # noqa: E731
    batch = gaussian((40_000, 1, 1, 1, 1))
    problem, _, g, *_ = raw_tangent(exact_consistency(schedule), 1.0, None, batch, law=law)
    push = np.ravel(g * problem.x)
    assert abs(push.mean()) < 4 * push.std() / np.sqrt(push.size)
    assert push.std() > 0.01
    # And for any student: averaged over clips with weight x it is the teacher's tangent.
    for network in (exact_consistency(schedule), other(schedule)):
        problem, _, taught, *_ = raw_tangent(network, 1.0, exact_teacher(schedule), batch, law=law)
        _, _, trained, *_ = raw_tangent(network, 1.0, None, batch, law=law)
        gap = np.ravel((taught - trained) * problem.x)
        assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_discrete_tangent_tends_to_it_at_first_order(name):
    """dsCM: (f(x_t, t) - f(x_t', t')) / sin(t - t'), x_t' one DDIM step of the teacher, times cos t (appendix E)."""
    schedule, network, teacher = SCHEDULES[name], other(SCHEDULES[name]), exact_teacher(SCHEDULES[name])
    law = lambda key, shape: jnp.linspace(-3.0, 3.0, shape[0])  # noqa: E731
    problem, _, g, cos, _ = raw_tangent(network, 1.0, teacher, gaussian((9, 2, 1, 1, 1)), law=law)
    x, here = problem.x, problem.logsnr
    t = jnp.arctan(jnp.exp(-here / 2))

    def f(x, l):
        return predictions.denoised("v", network.apply((), x, l, {}), x, l, schedule)

    steps, errors = 0.02 * 0.5 ** np.arange(4), []
    for h in steps:
        there = -2 * jnp.log(jnp.tan(t - h))
        x_there = jumps.ddim_step(schedule, x, teacher(x, here), here, there)
        errors.append(float(jnp.abs(cos * (f(x, here) - f(x_there, there)) / np.sin(h) - g).max()))
    assert abs(np.polyfit(np.log(steps), np.log(errors), 1)[0] - 1) < 0.1, errors


def test_normalisation():
    """|g| / (|g| + c) by sample or frame; "rms" makes steps larger by sqrt(D) and c smaller; "clip" bounds each number."""
    g = 3 * jax.random.normal(jax.random.key(0), (5, 4, 3, 3, 2))
    size = np.sqrt(np.sum(np.square(g), (1, 2, 3, 4), keepdims=True))
    np.testing.assert_allclose(continuous.NORMALISE["norm"](g, 1, 0.1), g / (size + 0.1), rtol=1e-12)
    root = np.sqrt(4 * 3 * 3 * 2)
    np.testing.assert_allclose(continuous.NORMALISE["rms"](g, 1, 0.1), root * g / (size + 0.1 * root), rtol=1e-12)
    assert np.abs(continuous.NORMALISE["clip"](g, 1, 0.1)).max() == 1
    frames = continuous.NORMALISE["norm"](g, 2, 0.0)
    np.testing.assert_allclose(np.sum(np.square(frames), (2, 3, 4)), 1)
    np.testing.assert_array_equal(continuous.NORMALISE["none"](g, 1, 0.1), g)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_linear_student_finds_the_consistency_function(name):
    """Through the shared step: students (s / sqrt(V))^p x, all right at the clean end, are f* at p = 1. There the step is nil,
    away from it the step goes back.
    """
    schedule = SCHEDULES[name]

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand((STD / jnp.sqrt(variance(schedule, logsnr))) ** params, x) * x

    network = Network(apply, schedule, "x0").predicting(continuous.TrigFlow(1.0))
    objective = continuous.objective(network, law=drawn, distilled=True, warmup=0)
    step = regression.method(network, objective, optax.sgd(1.0), ema=0.0).phases["train"]
    moved = []
    for power in (1.0, 1.2, 0.8):
        first = regression.init(optax.sgd(1.0))(jax.random.key(0), jnp.asarray(power))
        new, metrics = step(
            first, {"teacher": exact_teacher(schedule)}, gaussian((256, 1, 1, 1, 1)), jax.random.key(1),
            HYPER | {"learning_rate_scale": 1.0},
        )  # fmt: skip
        moved.append(float(new.params - power))
        norms = [total / count for k, (total, count) in bands(metrics, "tangent") if count]
        assert metrics["non_finite"] == 0 and len(list(bands(metrics, "gap"))) == 5
        assert (max(norms) < 1e-6) == (power == 1.0)
    assert abs(moved[0]) < 1e-6 and moved[1] < -1e-4 and moved[2] > 1e-4


def bands(metrics, name):
    return [(k, v) for k, v in metrics.items() if k.startswith(f"{name}_by_level/")]
