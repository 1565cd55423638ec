"""Guidance against closed forms: mixtures whose conditional and marginal denoisers are both known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.tree_util import Partial

from diffusion import grids, guidance, oracles, predictions, sampling, schedules, solvers
from diffusion.levels import expand

SCHEDULES = {"vp": schedules.vp_linear(), "edm": schedules.edm(), "flow": schedules.flow()}
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
VP = SCHEDULES["vp"]

# Two classes of two modes each: p(x|c) is a mixture, p(x) the mixture of all four.
WEIGHTS, MEANS = np.array([0.1, 0.3, 0.4, 0.2]), np.array([[-2.0, 0.0], [0.0, 2.0], [2.0, 0.5], [0.5, -2.0]])
VARIANCES = [0.3, 0.5, 0.2, 0.4]
MARGINAL = oracles.gaussian_mixture(WEIGHTS, MEANS, VARIANCES)
CLASS = oracles.gaussian_mixture(WEIGHTS[:2], MEANS[:2], VARIANCES[:2])


def points(schedule, logsnr, n=16, seed=0):
    """Noisy data at that level."""
    x0, eps = np.random.default_rng(seed).normal(size=(2, n, 2))
    return jnp.asarray(schedule.alpha(logsnr) * x0 + schedule.sigma(logsnr) * eps, jnp.float32)


def both(schedule):
    return CLASS.denoiser(schedule), MARGINAL.denoiser(schedule)


# What guidance means ----------------------------------------------------------------------------------------


@each_schedule
def test_one_is_conditional_and_zero_unconditional(schedule):
    c, u = both(schedule)
    for logsnr in (-6.0, 0.0, 4.0):
        x = np.asarray(points(schedule, logsnr), np.float64)
        one, zero = (guidance.classifier_free(c, u, scale)(x, logsnr) for scale in (1.0, 0.0))
        np.testing.assert_array_equal(one, c(x, logsnr))
        np.testing.assert_allclose(zero, u(x, logsnr), rtol=1e-6, atol=1e-6)


def test_one_is_exact_even_where_the_other_model_is_far_off():
    huge = Partial(lambda x, logsnr: 1e30 * np.ones_like(x))
    x = np.asarray(points(VP, 0.0))
    denoise = CLASS.denoiser(VP)
    np.testing.assert_array_equal(guidance.autoguidance(denoise, huge, 1.0)(x, 0.0), denoise(x, 0.0))


@each_schedule
@pytest.mark.parametrize("scale", [-0.5, 0.6, 2.5])
def test_the_guided_score_is_that_of_the_tilted_density(schedule, scale):
    """grad log p(x|c)^g p(x)^(1-g), differentiated; the denoised estimate is (x + sigma^2 score) / alpha."""
    guided = guidance.classifier_free(*both(schedule), scale)

    def log_density(x, logsnr):
        of_class, marginal = (mix.log_density(schedule)(x, logsnr) for mix in (CLASS, MARGINAL))
        return (scale * of_class + (1 - scale) * marginal).sum()

    differentiate = jax.jit(jax.grad(log_density))
    for logsnr in (-4.0, 0.0, 2.0):
        x = points(schedule, logsnr)
        score = differentiate(x, logsnr)
        expected = (x + schedule.sigma(logsnr) ** 2 * score) / schedule.alpha(logsnr)
        found = jax.jit(guided)(x, logsnr)
        np.testing.assert_allclose(found, expected, atol=2e-4 * max(1, np.exp(-logsnr / 2)))


@given(st.floats(-3.0, 20.0), st.integers(0, 1000))
def test_both_conventions(scale, seed):
    """u + g (c - u) is (1 + w) c - w u with w = g - 1."""
    c, u = np.random.default_rng(seed).normal(size=(2, 3, 4))
    guided = guidance.classifier_free(lambda x, l: c, lambda x, l: u, scale)(c, 0.0)
    extra = scale - 1
    np.testing.assert_allclose(guided, (1 + extra) * c - extra * u, atol=1e-12)
    np.testing.assert_allclose(guided, u + scale * (c - u), atol=1e-12)


def test_a_scale_per_clip_and_per_frame():
    c, u = (Partial(lambda x, l, a=a: a * x) for a in (2.0, 1.0))
    x = jnp.ones((3, 2, 4))
    per_clip = guidance.classifier_free(c, u, jnp.array([0.0, 1.0, 3.0]))(x, 0.0)
    np.testing.assert_allclose(per_clip[:, 0, 0], [1, 2, 4])
    per_frame = guidance.classifier_free(c, u, jnp.array([[0.0, 3.0]]))(x, 0.0)
    np.testing.assert_allclose(per_frame[1, :, 0], [1, 4])
    with pytest.raises(ValueError, match="does not fit data of shape"):
        guidance.classifier_free(c, u, jnp.array([1.0, 2.0]))(x, 0.0)


def test_on_the_host_in_float64():
    """NumPy in, NumPy out: the exact guided trajectory by the reference solver."""
    c, u = both(VP)
    x = np.random.default_rng(0).normal(size=(4, 2))
    solve = lambda denoise: oracles.probability_flow(denoise, x, VP, -3.0, 0.0, rtol=1e-6)  # noqa: E731
    plain, guided = solve(c), solve(guidance.classifier_free(c, u, 2.0))
    outside = solve(guidance.classifier_free(c, u, 2.0, interval=(1.0, 9.0), rescale=0.7))
    assert guided.dtype == np.float64
    np.testing.assert_array_equal(outside, plain)
    assert np.abs(guided - plain).max() > 0.1


# Interval ---------------------------------------------------------------------------------------------------


class Counted:
    """An identity of value `gain` that counts, at run time, the calls and the clips it is given."""

    def __init__(self, gain):
        self.gain, self.sizes, self.traces = gain, [], 0

    def __call__(self, x, logsnr, *cond):
        self.traces += 1
        jax.debug.callback(lambda: self.sizes.append(x.shape[0]))
        gain = self.gain if not cond else cond[0]["gain"].reshape(-1, *[1] * (x.ndim - 1))
        return gain * x


def drained(counted):
    jax.effects_barrier()
    sizes, counted.sizes = counted.sizes, []
    return sizes


def test_interval_skips_the_call_in_a_compiled_sampler():
    c, u = Counted(1.0), Counted(0.5)
    table = solvers.ddim(VP, grids.uniform_logsnr(VP, 10))
    interval = (-4.0, 4.0)
    guided = guidance.classifier_free(Partial(c), Partial(u), 2.0, interval=interval)
    x = jnp.ones((3, 2))
    found = sampling.sample(guided, table, x)
    inside = (table.logsnr >= interval[0]) & (table.logsnr <= interval[1])
    assert 0 < inside.sum() < table.nfe
    assert len(drained(c)) == table.nfe and len(drained(u)) == inside.sum()

    gains = np.where(inside, 0.5 + 2.0 * 0.5, 1.0)  # Both at once: u + g (c - u) inside, c outside.
    exact = sampling.sample(Partial(lambda x, l: jnp.interp(l, table.logsnr, gains) * x), table, x)
    np.testing.assert_allclose(found, exact, rtol=1e-5)

    # Another interval is another argument: the same program, and no call of u in one that misses every level.
    before = u.traces
    sampling.sample(guidance.classifier_free(Partial(c), Partial(u), 3.0, interval=(90.0, 99.0)), table, x)
    assert drained(u) == [] and u.traces == before


def test_interval_with_levels_per_frame():
    """A mask for the frames; the call is made if any frame needs it, and skipped if none does."""
    u = Counted(0.0)
    c = Partial(lambda x, l: jnp.ones_like(x))
    run = jax.jit(lambda d, x, l: d(x, l))
    guided = guidance.classifier_free(c, Partial(u), 3.0, interval=(0.0, 5.0), rescale=0.0)
    x = jnp.ones((2, 3, 4))
    mixed = run(guided, x, jnp.array([[-1.0, 2.0, jnp.inf]]))
    np.testing.assert_array_equal(mixed, np.broadcast_to(np.array([1.0, 3.0, 1.0])[None, :, None], x.shape))
    assert drained(u) == [2]
    np.testing.assert_array_equal(run(guided, x, jnp.array([[-1.0, -jnp.inf, 9.0]])), jnp.ones_like(x))
    assert drained(u) == []


def test_what_is_thrown_away_outside_the_interval_has_no_say_in_the_rescaling():
    """Inside both estimates agree: guidance changes nothing there, however far apart they are elsewhere."""
    x, level = jax.random.normal(jax.random.key(0), (1, 2, 8, 8, 1)), jnp.asarray([[0.0, -10.0]])
    far = jnp.asarray([1.0, -1.0]).reshape(1, 2, 1, 1, 1)
    for scale in (3.0, 7.0):
        guided = guidance.classifier_free(
            lambda x, l: x, lambda x, l: x * far, scale, interval=(-2.0, 6.0), rescale=1.0
        )(x, level)
        np.testing.assert_allclose(guided, x, rtol=1e-5)


def test_rescale_leaves_frames_outside_the_interval_alone():
    c, u = Partial(lambda x, l: x), Partial(lambda x, l: 0.5 * x)
    x = np.random.default_rng(0).normal(size=(2, 3, 8))
    level = np.array([[-1.0, 2.0, 3.0]])
    guided = guidance.classifier_free(c, u, 4.0, interval=(0.0, 5.0), rescale=1.0)(x, level)
    np.testing.assert_array_equal(guided[:, 0], x[:, 0])
    # Here guidance is a factor, and full rescaling takes it out again.
    np.testing.assert_allclose(guided, x, rtol=1e-5)


# One call of twice the batch --------------------------------------------------------------------------------


def network(params, x, logsnr, cond):
    """A small network of every kind of input: weights, level, label, and a table of numbers per clip."""
    label = params["embedding"][cond["label"]].reshape(-1, *[1] * (x.ndim - 1))
    return jnp.tanh(params["gain"] * x + 0.1 * expand(logsnr, x) + label) + expand(cond["offset"], x)


PARAMS = {"embedding": jnp.array([-1.0, 0.5, 2.0, 0.0]), "gain": jnp.float32(0.8)}


def conditions(b):
    cond = {"label": jnp.arange(b) % 3, "offset": jnp.linspace(0.0, 1.0, b)}
    return cond, {"label": jnp.array([3]), "offset": jnp.float32(0.2)[None]}


def pair_of_forms(b, **options):
    """The same guided network in two calls and in one, compiled."""
    cond, null = conditions(b)
    of = lambda cond: predictions.denoiser(network, PARAMS, cond, schedule=VP)  # noqa: E731
    conditioned = guidance.conditioned(network, PARAMS, schedule=VP)
    two = guidance.classifier_free(of(cond), of(null), 3.0, **options)
    one = guidance.batched_classifier_free(conditioned, cond, null, 3.0, **options)
    return jax.jit(lambda x, level: (one(x, level), two(x, level)))


@pytest.mark.parametrize("b", [1, 3])
def test_batched_equals_two_calls(b):
    run, x = pair_of_forms(b), jax.random.normal(jax.random.key(1), (b, 2, 3))
    for level in (0.5, jnp.linspace(-3.0, 1.0, b), jnp.array([[0.5, 3.0]]), jnp.full((b, 2), 0.3)):
        np.testing.assert_allclose(*run(x, level), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("options", [{"rescale": 0.7}, {"interval": (0.6, 4.0), "rescale": 0.3}])
def test_batched_equals_two_calls_with_options(options):
    run, x = pair_of_forms(3, **options), jax.random.normal(jax.random.key(1), (3, 2, 3))
    for level in (0.5, jnp.array([[0.5, 3.0]])):
        np.testing.assert_allclose(*run(x, level), rtol=2e-6, atol=2e-6)


def test_batched_makes_one_call_of_twice_the_size():
    u = Counted(None)
    guided = guidance.batched_classifier_free(
        Partial(u), {"gain": jnp.full(3, 2.0)}, {"gain": jnp.ones(1)}, 2.0, interval=(0.0, 1.0)
    )
    run = jax.jit(lambda d, x, l: d(x, l))
    x = jnp.ones((3, 2))
    np.testing.assert_allclose(run(guided, x, 0.5), 3.0)
    assert drained(u) == [6]
    np.testing.assert_allclose(run(guided, x, 1.5), 2.0)
    assert drained(u) == [3]


def test_flow_maps_are_guided_too():
    """The target level travels before cond: (x, logsnr, logsnr_to, cond)."""

    def jump(params, x, logsnr, cond):
        return params * x + 0.1 * expand(cond["logsnr_to"], x) + expand(cond["offset"], x)

    cond, null = {"offset": jnp.arange(2.0)}, {"offset": jnp.zeros(2)}
    x, here, there = jnp.ones((2, 3)), jnp.zeros(2), jnp.array([1.0, 2.0])
    conditioned = guidance.conditioned(jump, 0.3, schedule=VP, prediction="x0")
    one = guidance.batched_classifier_free(conditioned, cond, null, 2.0)
    of = lambda cond: predictions.flow_map(jump, 0.3, cond, schedule=VP, prediction="x0")  # noqa: E731
    two = guidance.classifier_free(of(cond), of(null), 2.0)
    np.testing.assert_allclose(one(x, here, there), two(x, here, there), rtol=1e-6)
    np.testing.assert_allclose(one(x, here, there)[:, 0], [0.4, 2.5], rtol=1e-6)


# Rescale and thresholds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.4, 1.0])
def test_rescale_matches_the_standard_deviation(phi):
    c, u = np.random.default_rng(2).normal(size=(2, 3, 2, 50)) * np.array([1.0, 0.3]).reshape(2, 1, 1, 1)
    as_is = lambda value: Partial(lambda value, x, l: value, value)  # noqa: E731
    free = guidance.classifier_free(as_is(c), as_is(u), 5.0)(c, 0.0)
    found = guidance.classifier_free(as_is(c), as_is(u), 5.0, rescale=phi)(c, 0.0)
    spread = lambda a: np.std(a.reshape(3, -1), axis=1)  # noqa: E731
    np.testing.assert_allclose(spread(found), phi * spread(c) + (1 - phi) * spread(free), rtol=1e-5)
    ratio = found / free
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1], ratio.shape), rtol=1e-5)


def test_rescale_of_a_flat_clip_is_finite_with_its_gradient():
    flat = Partial(lambda x, l: 0 * x)
    guided = guidance.classifier_free(flat, flat, 3.0, rescale=0.7)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: guided(x, 0.0).sum()))(jnp.ones((2, 3)))
    assert value == 0
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_static_threshold():
    x = jnp.array([[-3.0, -0.5, 0.2, 1.7]])
    identity = Partial(lambda x, l: x)
    np.testing.assert_allclose(guidance.static_threshold(identity)(x, 0.0), [[-1.0, -0.5, 0.2, 1.0]])
    np.testing.assert_allclose(guidance.static_threshold(identity, 2.0)(x, 0.0), [[-2.0, -0.5, 0.2, 1.7]])


@given(st.floats(0.05, 8.0), st.floats(0.5, 1.0), st.integers(0, 100))
def test_dynamic_threshold(size, quantile, seed):
    """Bounded; untouched where already inside, or scaled so that the quantile is the bound."""
    x = (size * np.random.default_rng(seed).normal(size=(2, 3, 7))).astype(np.float32)
    found = guidance.dynamic_threshold(lambda x, l: x, quantile)(x, 0.0)
    assert isinstance(found, np.ndarray) and np.abs(found).max() <= 1 + 1e-6
    for clip, answer in zip(x, found, strict=True):
        reached = np.quantile(np.abs(clip), quantile)
        if reached <= 1:
            np.testing.assert_array_equal(answer, np.clip(clip, -1, 1))
        else:
            inside = np.abs(clip) <= reached
            np.testing.assert_allclose(answer[inside], clip[inside] / reached, rtol=1e-5)
            np.testing.assert_allclose(np.abs(answer[~inside]), 1.0, rtol=1e-6)


def test_thresholds_in_jax_equal_numpy():
    x = 3 * np.random.default_rng(1).normal(size=(2, 3, 7)).astype(np.float32)
    identity = Partial(lambda x, l: x)
    for wrapper in (guidance.dynamic_threshold(identity, 0.9), guidance.static_threshold(identity)):
        np.testing.assert_allclose(jax.jit(wrapper)(jnp.asarray(x), 0.0), wrapper(x, 0.0), rtol=1e-5)


# Programs and errors ----------------------------------------------------------------------------------------


def test_other_numbers_compile_nothing():
    c, u = Counted(1.0), Counted(0.5)
    table = solvers.ddim(VP, grids.uniform_logsnr(VP, 3))
    x = jnp.ones((2, 2))

    def run(scale, low, phi, quantile):
        guided = guidance.classifier_free(Partial(c), Partial(u), scale, interval=(low, 9.0), rescale=phi)
        return sampling.sample(guidance.dynamic_threshold(guided, quantile), table, x)

    run(2.0, -5.0, 0.7, 0.99)
    once = c.traces, u.traces
    for numbers in ((3, 0, 0, 0.5), (np.float64(0.5), -np.inf, 1.0, 1.0)):
        run(*numbers)
    assert (c.traces, u.traces) == once
    jax.effects_barrier()


def test_numbers_may_be_traced():
    c, u = both(VP)
    x = points(VP, 0.0)

    def run(g, low, phi):
        return guidance.classifier_free(c, u, g, interval=(low, 5.0), rescale=phi)(x, 0.0)

    host = np.asarray(x, np.float64)
    expected = guidance.classifier_free(c, u, 3.0, interval=(-1.0, 5.0), rescale=0.5)(host, 0.0)
    np.testing.assert_allclose(jax.jit(run)(3.0, -1.0, 0.5), expected, rtol=1e-4, atol=1e-5)
    slope = jax.jit(jax.grad(lambda g: guidance.classifier_free(c, u, g)(x, 0.0).sum()))(2.0)
    np.testing.assert_allclose(slope, (c(host, 0.0) - u(host, 0.0)).sum(), rtol=1e-4)


free = guidance.classifier_free
batched = guidance.batched_classifier_free


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda f: free(f, f, np.nan), "scale must be finite, got nan"),
        (lambda f: free(f, f, np.array([1.0, np.inf])), "scale must be finite"),
        (lambda f: free(f, f, 1.0, interval=(2.0, -2.0)), "interval must rise in log-SNR"),
        (lambda f: free(f, f, 1.0, rescale=1.5), "rescale must be between 0 and 1, got 1.5"),
        (lambda f: guidance.autoguidance(f, f, 1.0, interval=(1.0, 1.0)), "interval must rise in log-SNR"),
        (lambda f: guidance.autoguidance(f, f, 1.0, interval=(np.nan, 1.0)), "interval must be a log-SNR"),
        (lambda f: guidance.dynamic_threshold(f, 99.5), "quantile must be between 0 and 1, got 99.5"),
        (lambda f: guidance.dynamic_threshold(f, np.array([0.5, 0.9])), r"one number for all clips, got shape \[2\]"),
        (lambda f: guidance.dynamic_threshold(f, limit=0.0), "limit must be above 0, got 0"),
        (lambda f: guidance.static_threshold(f, -1.0), "limit must be above 0, got -1"),
        (lambda f: batched(f, {"label": 0}, {"lable": 0}, 1.0), "same keys"),
        (lambda f: batched(f, np.ones((2, 3)), np.ones((1, 4)), 1.0), "same keys and shapes"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Partial(lambda x, l: x))


def test_a_condition_of_another_batch_is_refused():
    guided = guidance.batched_classifier_free(Partial(lambda x, l, cond: x), jnp.ones(2), jnp.ones(1), 2.0)
    with pytest.raises(ValueError, match=r"batch axis of 1 or 3, got shape \[2\]"):
        guided(jnp.ones((3, 2)), 0.0)
    with pytest.raises(KeyError, match="nearest: 'velocity'"):
        guidance.conditioned(network, PARAMS, schedule=VP, prediction="velocty")
