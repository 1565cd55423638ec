"""Where a student's input comes from: against plain Python loops over the sampler's steps, and in law."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion import grids, levels, sampling, schedules, solvers
from distill import Network, adversarial_methods, fields, game_methods, games, jumps, sources

COSINE, EDM, FLOW = schedules.vp_cosine(), schedules.edm(), schedules.flow()
SCHEDULES = {"cosine": COSINE, "edm": EDM, "flow": FLOW}
LEVELS = jnp.array([-6.0, -2.0, 0.5, 3.0])
BIG = (50_000, 1, 1, 1, 1)


def bent(params, x, logsnr, cond, *, key=None, train=False):
    """Neither linear nor blind to its level: an estimate of the clip."""
    return params["a"] * jnp.tanh(x) + params["b"] * levels.expand(logsnr, x) / 6


PARAMS = {"a": jnp.float32(0.8), "b": jnp.float32(0.3)}


def network_of(schedule, apply=bent):
    return Network(apply, schedule, "x0")


def clips(shape=BIG, seed=9):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture
def one_noise(monkeypatch):
    """Every draw of jax.random.normal gives the same numbers, so that a loop without keys can follow."""

    def fix(pattern):
        def normal(key, shape=(), dtype=float):
            assert tuple(shape) == pattern.shape
            return pattern

        monkeypatch.setattr(jax.random, "normal", normal)

    return fix


def moments(x):
    """Mean, standard deviation and the fourth root of the fourth moment over a batch."""
    x = np.ravel(x)
    return np.array([x.mean(), x.std(), np.mean(x**4) ** 0.25])


# Noise, noised clips ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("level", [-7.0, 0.4])
def test_noise(name, level):
    """Noise alone, at one level, of the variance alpha^2 + sigma^2 that a noisy clip of unit variance has."""
    schedule = SCHEDULES[name]
    real = clips()
    start = sources.noise(level)(network_of(schedule), PARAMS, {}, real, jax.random.key(0), {})
    size = np.hypot(float(schedule.alpha(level)), float(schedule.sigma(level)))
    np.testing.assert_allclose(moments(start.x) / size, [0, 1, 3**0.25], atol=0.02)
    assert abs(np.corrcoef(np.ravel(start.x), np.ravel(real))[0, 1]) < 0.02
    np.testing.assert_allclose(start.logsnr, [level], rtol=1e-6)
    np.testing.assert_allclose(start.level, [level], rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noised(name):
    """A level for each clip, each as often; x = alpha x0 + sigma eps of the batch's own clips; hyper fixes the exit."""
    schedule, real = SCHEDULES[name], clips()
    source = sources.noised(LEVELS)
    start = source(network_of(schedule), PARAMS, {}, real, jax.random.key(0), {})
    assert start.logsnr.shape == (len(real),)
    for level in LEVELS:
        here = np.asarray(start.logsnr == level)
        assert abs(here.mean() - 0.25) < 0.01
        eps = np.ravel((start.x - schedule.alpha(level) * real) / schedule.sigma(level))[here]
        np.testing.assert_allclose(moments(eps), [0, 1, 3**0.25], atol=0.04)
        assert abs(np.corrcoef(eps, np.ravel(real)[here])[0, 1]) < 0.04
    fixed = source(network_of(schedule), PARAMS, {}, real, jax.random.key(0), {"exit": jnp.float32(2)})
    np.testing.assert_array_equal(fixed.logsnr, np.full(len(real), LEVELS[2]))


def test_noised_by_chunk():
    """A level for every chunk of frames, each as often, drawn apart; and none where the chunks don't fill a clip."""
    real = clips((20_000, 6, 1, 1, 1))
    start = sources.SOURCES["noised_by_chunk"](LEVELS, 2)(network_of(COSINE), PARAMS, {}, real, jax.random.key(0), {})
    level = np.asarray(start.logsnr)
    assert level.shape == (20_000, 6) and (level[:, ::2] == level[:, 1::2]).all()
    drawn = np.searchsorted(LEVELS, level[:, ::2])
    assert abs(np.mean(drawn == 2) - 0.25) < 0.01 and np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.03
    eps = (start.x - levels.expand(COSINE.alpha(level), real) * real) / levels.expand(COSINE.sigma(level), real)
    np.testing.assert_allclose(moments(eps), [0, 1, 3**0.25], atol=0.02)
    np.testing.assert_array_equal(start.level, level)
    with pytest.raises(ValueError, match="a divisor of the clip's 6 frames, got 4"):
        sources.SOURCES["noised_by_chunk"](LEVELS, 4)(network_of(COSINE), PARAMS, {}, real, jax.random.key(0), {})


@pytest.mark.parametrize("steps", [1, 4])
def test_intervals(steps):
    """s uniform in time, 0 <= t - s <= 1 / steps and t <= 1, t uniform beyond s unless cut at 1; the clips lie at t."""
    real = clips()
    start = sources.intervals(steps)(network_of(COSINE), PARAMS, {}, real, jax.random.key(0), {})
    assert start.logsnr_to is not None and start.logsnr.shape == start.logsnr_to.shape == (len(real),)
    assert np.all(start.logsnr <= start.logsnr_to)
    assert start.logsnr.min() >= COSINE.logsnr_start and start.logsnr_to.max() <= COSINE.logsnr_end
    # The schedule's ends cut off a ten-thousandth of its clock.
    t, s = (np.asarray(COSINE.time(part)) for part in (start.logsnr, start.logsnr_to))
    assert t.max() <= 1 and np.all(t - s < 1 / steps + 1e-3)
    np.testing.assert_allclose(np.quantile(s, np.linspace(0.1, 0.9, 9)), np.linspace(0.1, 0.9, 9), atol=0.01)
    free = s < 1 - 1 / steps
    if steps > 1:
        quarters = np.array([0.25, 0.5, 0.75])
        np.testing.assert_allclose(np.quantile((t - s)[free], quarters), quarters / steps, atol=0.004)
    else:
        np.testing.assert_allclose(np.mean(t == t.max()), 0.5, atol=0.01)  # s + d > 1
    eps = np.ravel(start.x) - np.asarray(COSINE.alpha(start.logsnr)) * np.ravel(real)
    np.testing.assert_allclose(moments(eps / np.asarray(COSINE.sigma(start.logsnr))), [0, 1, 3**0.25], atol=0.02)
    # s and d are drawn apart from each other and from the clips.
    for one, other in ((s[free], (t - s)[free]), (s, np.ravel(real))):
        assert len(one) == 0 or abs(np.corrcoef(one, other)[0, 1]) < 0.02


# Backward simulation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("exit_", range(4))
def test_simulated_against_a_loop(name, exit_, one_noise):
    """With every noise the same: x = size eps, then x = alpha D(x) + sigma eps at each next level up to the exit."""
    schedule, pattern = SCHEDULES[name], clips((5, 1, 2, 1, 1), 0)
    one_noise(pattern)
    start = sources.simulated(LEVELS)(
        network_of(schedule), PARAMS, {}, pattern, jax.random.key(0), {"exit": jnp.float32(exit_)}
    )
    x = np.hypot(schedule.alpha(LEVELS[0]), schedule.sigma(LEVELS[0])) * pattern
    for k in range(exit_):
        denoised = bent(PARAMS, x, LEVELS[k], {})
        x = schedule.alpha(LEVELS[k + 1]) * denoised + schedule.sigma(LEVELS[k + 1]) * pattern
    np.testing.assert_allclose(start.x, x, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(start.logsnr, LEVELS[exit_ : exit_ + 1])
    np.testing.assert_array_equal(start.level, start.logsnr)


@pytest.mark.parametrize("exit_", range(4))
def test_simulated_in_law(exit_):
    """The student's clips at exit e have the law of the samples of `solvers.consistency` with e + 1 calls. With a gain of 1
    the variance shows that the noises are drawn apart: a noise drawn twice would add up.
    """
    real = clips()
    hyper = {"exit": jnp.float32(exit_)}
    start = sources.simulated(LEVELS)(network_of(COSINE), PARAMS, {}, real, jax.random.key(0), hyper)
    made = bent(PARAMS, start.x, start.logsnr, {})
    table = solvers.consistency(COSINE, np.array([*LEVELS[: exit_ + 1], np.inf]))
    denoise = jumps.estimate(network_of(COSINE), PARAMS, {})
    expected = sampling.sample(denoise, table, clips(seed=8), jax.random.key(3))
    np.testing.assert_allclose(moments(made), moments(expected), atol=0.02)
    plain = network_of(COSINE, lambda params, x, logsnr, cond, **options: x)
    start = sources.simulated(LEVELS)(plain, PARAMS, {}, real, jax.random.key(0), hyper)
    variance = 1.0
    for level in LEVELS[1 : exit_ + 1]:
        variance = float(COSINE.alpha(level)) ** 2 * variance + float(COSINE.sigma(level)) ** 2
    np.testing.assert_allclose(np.var(start.x), variance, rtol=0.03)


def counting(calls):
    def apply(params, x, logsnr, cond, *, key=None, train=False):
        jax.debug.callback(lambda: calls.append(1))
        return bent(params, x, logsnr, cond)

    return network_of(COSINE, apply)


@pytest.mark.parametrize("exit_", range(4))
def test_an_exit_costs_its_calls_and_no_more(exit_):
    """In one compiled program with a traced exit: e calls of the network for exit e, none for 0; a chunk's own for each."""
    calls, real = [], clips((2, 4, 1, 1, 1))
    for source, expected in ((sources.simulated(LEVELS), exit_), (sources.rolled_out(LEVELS, 2), 2 * (exit_ + 1))):
        calls.clear()
        run = jax.jit(
            lambda hyper, source=source: source(counting(calls), PARAMS, {}, real, jax.random.key(0), hyper).x
        )
        run({"exit": jnp.float32(exit_)}).block_until_ready()
        jax.effects_barrier()
        assert len(calls) == expected


@pytest.mark.parametrize("make", [sources.simulated, lambda levels: sources.rolled_out(levels, 1)])
def test_the_exit_is_uniform_and_shared(make):
    """One exit for all clips of a step; over steps each as often: 1000 draws of four, within 4 standard deviations."""
    real = clips((2, 1, 1, 1, 1))
    source = make(LEVELS)
    run = jax.jit(jax.vmap(lambda key: source(network_of(COSINE), PARAMS, {}, real, key, {}).level))
    drawn = run(jax.random.split(jax.random.key(0), 1000))
    assert drawn.shape == (1000, 1)
    for level in LEVELS:
        assert abs(np.mean(np.asarray(drawn) == level) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


@pytest.mark.parametrize("make", [sources.simulated, lambda levels: sources.rolled_out(levels, 1)])
def test_no_gradient_flows_through_earlier_calls(make):
    """The gradient of the inputs by the weights is nil, though they depend on them."""
    real, source = clips((2, 2, 1, 1, 1)), make(LEVELS)

    def inputs(params):
        start = source(network_of(COSINE), params, {}, real, jax.random.key(0), {"exit": jnp.float32(2)})
        return jnp.sum(start.x**2)

    assert abs(inputs(PARAMS) - inputs({**PARAMS, "a": jnp.float32(0.3)})) > 0.1
    np.testing.assert_array_equal([*jax.grad(lambda p: inputs(p))(PARAMS).values()], 0)


# Self-rollout -------------------------------------------------------------------------------------------------


def seeing(params, x, logsnr, cond, *, key=None, train=False):
    """Every frame looks at itself, at its level, at the mean of the frames before it and, a little, at those after it."""
    frames = x.shape[1]
    before = jnp.tril(jnp.ones((frames, frames)), -1)
    before = before / jnp.maximum(before.sum(1, keepdims=True), 1)
    after = jnp.triu(jnp.ones((frames, frames)), 1)
    past = jnp.einsum("fg,bghwc->bfhwc", before, x)
    future = jnp.einsum("fg,bghwc->bfhwc", after, x)
    level = levels.expand(logsnr, x) / 10
    mixed = jnp.tanh(params["a"] * x + params["b"] * past + 0.05 * future + 0.1 * level)
    return mixed + levels.expand(params["label"][cond["label"]], x)


SEEING = {"a": jnp.float32(0.8), "b": jnp.float32(0.6), "label": jnp.array([0.2, -0.4, 0.1])}
LABEL = {"label": jnp.array([0, 1, 1, 2, 0])}


def rolled_by_hand(schedule, params, pattern, chunk, exit_, detached=False):
    """(the student's inputs, chunk after chunk; the clip): each chunk goes from noise to the exit and then clean, after its
    past. detached: the frames before a chunk carry no gradient, nor do the calls before the exit.
    """
    frames = pattern.shape[1]
    size = jnp.hypot(schedule.alpha(LEVELS[0]), schedule.sigma(LEVELS[0]))
    x, inputs, made = size * pattern, [], []
    stop = jax.lax.stop_gradient if detached else lambda x: x

    def level_of(first, now):
        row = [schedule.logsnr_end] * first + [float(now)] * chunk + [float(LEVELS[0])] * (frames - first - chunk)
        return jnp.array([row], jnp.float32)

    for first in range(0, frames, chunk):
        here = slice(first, first + chunk)
        for k in range(exit_):
            denoised = seeing(params, x, level_of(first, LEVELS[k]), LABEL)[:, here]
            to = LEVELS[k + 1]
            x = stop(x.at[:, here].set(schedule.alpha(to) * denoised + schedule.sigma(to) * pattern[:, here]))
        inputs.append(x)
        denoised = seeing(params, x, level_of(first, LEVELS[exit_]), LABEL)[:, here]
        made.append(denoised)
        x = stop(x.at[:, here].set(schedule.alpha(schedule.logsnr_end) * denoised))
    return jnp.concatenate(inputs), jnp.concatenate(made, 1)


def rolled(schedule, params, real, chunk, exit_):
    """(the start, the clip that the student makes of it), as a game's phases have it."""
    network = Network(seeing, schedule, "x0", 3)
    source = sources.rolled_out(LEVELS, chunk)
    state = games.GameState(params, params, (), jnp.zeros(()), {}, ())
    batch = {"video": real, **LABEL}
    begin = games.play(network, source, 0.0)
    make, scene = begin(state, {}, batch, jax.random.key(0), {"exit": jnp.float32(exit_)})
    return make, scene


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("chunk, exit_", [(1, 0), (1, 3), (2, 2), (3, 1), (6, 3)])
def test_rolled_out_against_a_loop(name, chunk, exit_, one_noise):
    """Inputs, levels and clip of a student that looks at all frames and at labels, noises all the same; and the gradient,
    the sum over chunks of those with their history detached.
    """
    schedule, pattern = SCHEDULES[name], clips((5, 6, 2, 1, 1), 0)
    one_noise(pattern)
    make, scene = rolled(schedule, SEEING, pattern, chunk, exit_)
    inputs, expected = rolled_by_hand(schedule, SEEING, pattern, chunk, exit_)
    made = make(SEEING)
    start = scene(made).start
    tolerance = 1e-5 * float(jnp.abs(inputs).max())
    np.testing.assert_allclose(start.x, inputs, atol=tolerance)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    rows = np.asarray(start.logsnr).reshape(6 // chunk, 5, 6)
    for c, row in enumerate(rows[:, 0]):
        np.testing.assert_array_equal(rows[c], np.tile(row, (5, 1)))
        assert np.all(row[: c * chunk] == np.float32(schedule.logsnr_end)) and np.all(
            row[(c + 1) * chunk :] == LEVELS[0]
        )
        assert np.all(row[c * chunk : (c + 1) * chunk] == LEVELS[exit_])
    np.testing.assert_array_equal(start.level, LEVELS[exit_ : exit_ + 1])
    weight = jnp.cos(jnp.arange(pattern.size).reshape(pattern.shape))
    found = jax.grad(lambda p: jnp.sum(weight * make(p)))(SEEING)
    by_hand = jax.grad(lambda p: jnp.sum(weight * rolled_by_hand(schedule, p, pattern, chunk, exit_, True)[1]))(SEEING)
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(by_hand), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-3)


def test_rolled_out_draws_every_noise_anew():
    """For a student that answers 0, x at each exit is sigma eps: no two chunks, exits or clips share a noise."""
    real, chunk = clips((2, 4, 24, 24, 1)), 2
    network = network_of(COSINE, lambda params, x, logsnr, cond, **options: 0 * x)
    seen = []
    for exit_ in range(3):
        start = sources.rolled_out(LEVELS, chunk)(
            network, PARAMS, {}, real, jax.random.key(0), {"exit": jnp.float32(exit_)}
        )
        stack = np.asarray(start.x).reshape(2, 2, 2, chunk, -1)
        for c in range(2):
            seen += [frame / float(COSINE.sigma(LEVELS[exit_])) for frame in stack[c, :, c].reshape(-1, 24 * 24)]
    close = np.corrcoef(seen) - np.eye(len(seen))
    assert np.abs(close).max() < 5 / 24
    # At the exit 0 alpha is not nil, the noise has the size of a noisy clip.
    np.testing.assert_allclose(np.std(seen, 1), 1, atol=0.15)


@pytest.mark.parametrize("chunk", [4, 7])
def test_a_chunk_that_leaves_a_rest(chunk):
    with pytest.raises(ValueError, match=f"chunk: expected a divisor of the clip's 6 frames, got {chunk}"):
        rolled(COSINE, SEEING, clips((5, 6, 2, 1, 1)), chunk, 0)


# The student's steps ------------------------------------------------------------------------------------------


def test_student_levels_are_the_samplers():
    """The calls of a table on the same grid."""
    for schedule in SCHEDULES.values():
        table = solvers.consistency(schedule, grids.uniform_time(schedule, 4))
        np.testing.assert_allclose(sources.student_levels(schedule, 4), table.logsnr, rtol=1e-6)


def test_phases_compile_once_for_all_exits():
    """The exit is a traced scalar: three of them, one program, whose only call in training mode is the one that learns."""
    traces = []

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        traces.append(train)
        return bent(params, x, logsnr, cond)

    field = lambda scene, key: (scene.fake - scene.real, {})  # noqa: E731
    method = games.method(
        network_of(COSINE, apply), source=sources.simulated(LEVELS), fields={"near": (1.0, field)},
        critic={"score": games.copied}, critic_terms={}, optimiser=optax.sgd(0.1), critic_optimiser=None,
        order=games.turns(1, True), ema=0.9,
    )  # fmt: skip
    state = method.init(jax.random.key(0), PARAMS)
    step = jax.jit(method.phases["student"])
    batch, losses = {"video": clips((8, 1, 1, 1, 1))}, []
    for exit_ in range(3):
        hyper = {"learning_rate_scale": jnp.float32(1), "exit": jnp.float32(exit_)}
        state, metrics = step(state, {}, batch, jax.random.key(1), hyper)
        losses.append(float(metrics["loss"]))
    assert step._cache_size() == 1 and np.isfinite(losses).all() and len(set(losses)) == 3
    assert sum(traces) == 1


# What a critic is told ----------------------------------------------------------------------------------------

MEAN, SPREAD, SIDES = 0.3, (1 - 0.3**2) ** 0.5, jnp.array([-2.0, 1.0])


def two_sided(level_of_clip):
    """A student of two calls whose clips lie at -MEAN and +MEAN of N(0, 1), their mixture of the right variance."""

    def source(network, params, cond, real, key, hyper):
        z = jax.random.normal(key, real.shape)
        at = jnp.full((len(real),), level_of_clip)
        return sources.Start(jnp.where(level_of_clip == SIDES[1], MEAN, -MEAN) + SPREAD * z, at, cond, at)

    return source


def side_denoiser(x, alpha, sigma, mean):
    variance = (alpha * SPREAD) ** 2 + sigma**2
    return mean + alpha * SPREAD**2 / variance * (x - alpha * mean), -0.5 * (x - alpha * mean) ** 2 / variance


def known(params, x, logsnr, cond, *, key=None, train=False):
    """The student is the identity, the teacher N(0, 1)'s denoiser, the critic that of the side it is told, or of both."""
    alpha, sigma = (levels.expand(f(logsnr), x) for f in (COSINE.alpha, COSINE.sigma))
    both = [side_denoiser(x, alpha, sigma, mean) for mean in (-MEAN, MEAN)]
    share = jax.nn.sigmoid(both[1][1] - both[0][1])
    if "logsnr_to" in cond:
        share = 1.0 * (levels.expand(cond["logsnr_to"], x) == SIDES[1])
    critic = (1 - share) * both[0][0] + share * both[1][0]
    return jnp.select([params["who"] == 0, params["who"] == 1], [x, alpha * x], critic)


@pytest.mark.parametrize("told", [True, False])
def test_a_critic_that_is_told_the_exit_brings_each_call_back(told):
    """At a level the mean field of a side at m is sigma^2 m; that of the mixture, by quadrature, is all but nothing."""
    level = 0.0
    network = Network(known, COSINE, "x0", 0, ("logsnr_to",))
    source = two_sided(float(SIDES[1]))
    source = sources.exit_told(source) if told else source
    matching = fields.distribution_matching(
        network, law=lambda key, shape: jnp.full(shape, level), weighting="one", normaliser="none"
    )
    start = source(network, {}, {}, jnp.zeros((400_000, 1, 1, 1, 1)), jax.random.key(0), {})
    assert start.told == {} or start.told.keys() == {"logsnr_to"}
    teacher = jumps.estimate(network, {"who": 1}, {})
    scene = games.Scene(start.x, start, start.x, {}, {"score": {"who": 2}}, teacher, {})
    move = float(jnp.mean(matching(scene, jax.random.key(1))[0]))
    alpha, sigma = float(COSINE.alpha(level)), float(COSINE.sigma(level))
    x = np.linspace(-8, 8, 20_001)
    width = np.hypot(alpha * SPREAD, sigma)
    densities = [np.exp(-0.5 * ((x - alpha * m) / width) ** 2) for m in (-MEAN, MEAN)]
    slopes = [m + alpha * SPREAD**2 / width**2 * (x - alpha * m) for m in (-MEAN, MEAN)]
    mixture = np.average(slopes, axis=0, weights=densities)
    expected = sigma**2 * MEAN if told else np.average(mixture - alpha * x, weights=densities[1])
    np.testing.assert_allclose(move, expected, atol=3e-3)
    assert (move > 0.14) if told else (abs(move) < 0.02)


def test_a_critic_can_be_told_only_what_its_network_takes():
    with pytest.raises(ValueError, match="cond 'logsnr_to', which the network doesn't take"):
        game_methods.dmd2(
            network_of(COSINE), optimiser=optax.sgd(1.0), adversarial=0.0, discriminative=0.0, exit_told=True
        )


@pytest.mark.parametrize(
    "make, options, message",
    [
        (game_methods.dmd2, dict(source="rolled_out", chunk=0), "chunk: expected a whole number from 1 up, got 0"),
        (game_methods.dmd2, dict(chunk=2), "chunk: source 'simulated' has none, .* noised_by_chunk, rolled_out, got 2"),
        (game_methods.sid, dict(alpha=float("nan")), "alpha: expected a number from 0 up, got nan"),
        (adversarial_methods.add, dict(adversarial=0.0, distillation_weight=0.0), "nothing moves the student"),
        (adversarial_methods.ladd, dict(warmup=-5), "warmup: expected a whole number from 0 up, got -5"),
    ],
)
def test_options_that_make_no_game_are_refused(make, options, message):
    none = (
        {} if make in (adversarial_methods.add, adversarial_methods.ladd) else dict(adversarial=0.0, discriminative=0.0)
    )
    with pytest.raises(ValueError, match=message):
        make(network_of(COSINE), optimiser=optax.sgd(1.0), **none, **options)
