"""LADD against its paper's numbers and closed forms: Gaussian clips, features and heads whose answers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.scipy.special import logsumexp

from diffusion import levels, oracles, schedules
from distill import METHODS, Discriminator, Network, fields, sources
from distill.fields import DISTILLATION

SCHEDULES = {"cosine": schedules.vp_cosine(), "edm": schedules.edm(), "flow": schedules.flow()}
COSINE, EDM = SCHEDULES["cosine"], SCHEDULES["edm"]
LEVEL = float(np.log(0.36 / 0.64))
"""alpha = .6, sigma = .8 in VP."""
HYPER = {"learning_rate_scale": jnp.ones(())}
SHAPE = (1, 1, 1, 1)
VIDEO = (6, 2, 2, 1, 1)
FIRST, LATER = [0.0, 0.0, 0.5, 0.5], [0.7, 0.1, 0.1, 0.1]
PAPER = {0: FIRST, 499: FIRST, 500: LATER, 9999: LATER}
"""The student's finished updates -> how often it is asked at t = 1, .75, .5, .25."""

pytestmark = pytest.mark.usefixtures("quick_compilation")


def at(level):
    return lambda key, shape: jnp.full(shape, level)


def network_of(schedule, steps=1, num_classes=0):
    """A line shift + scale x for each of the student's levels."""
    calls = sources.student_levels(schedule, steps)

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        k = jnp.argmin(jnp.abs(calls - logsnr[:, None]), -1)
        return levels.expand(params["shift"][k], x) + levels.expand(params["scale"][k], x) * x

    return Network(apply, schedule, "x0", num_classes)


def lines(shift, scale, steps=1):
    return {"shift": jnp.full(steps, shift, float), "scale": jnp.full(steps, scale, float)}


def given(clips):
    """A student that makes these clips, whatever it sees: the level of its input, say."""
    return lambda params, x, logsnr, cond, *, key=None, train=False: jnp.broadcast_to(clips(logsnr, x), x.shape)


def linear(weights, biases):
    """Heads w (teacher's gain x) + b."""
    return Discriminator(
        lambda teacher, x, logsnr, cond: (teacher["gain"] * x.reshape(len(x), -1),), lambda key: {},
        lambda heads, maps, label, logsnr: maps[0] * jnp.asarray(weights) + jnp.asarray(biases),
    )  # fmt: skip


def bent():
    """Two heads that bend the teacher's features, which bend the clip and know its level."""

    def features(teacher, x, logsnr, cond):
        flat = x.reshape(len(x), -1)
        return (jnp.tanh(teacher["gain"] * flat + levels.expand(logsnr, flat) / 5),)

    def init(key):
        first, second = jax.random.split(key)
        return {"first": jax.random.normal(first, (4, 5)), "second": jax.random.normal(second, (5, 2))}

    def apply(heads, maps, label, logsnr):
        return jnp.tanh(maps[0] @ heads["first"]) @ heads["second"]

    return Discriminator(features, init, apply)


def blind():
    """Heads that say the same of all clips."""
    return linear([0.0], [0.3])


def ladd(network, discriminator, rate=1.0, **options):
    return METHODS["ladd"](network, optimiser=optax.sgd(rate), discriminator=discriminator, ema=0.0, **options)


def started(method, params, step=0, heads=None):
    state = method.init(jax.random.key(0), params)._replace(step=jnp.asarray(step, jnp.int32))
    return state if heads is None else state._replace(critic={"heads": heads})


def gradient(method, params, frozen, video, key=1, state=None, **hyper):
    """(the gradient that the student's phase takes, its metrics)"""
    state = started(method, params) if state is None else state
    new, metrics = method.phases["student"](state, frozen, {"video": video}, jax.random.key(key), HYPER | hyper)
    return {name: np.asarray(params[name] - new.params[name]) for name in params}, metrics


# Where the student learns -------------------------------------------------------------------------------------

BANDS = ("-inf..-6", "-6..-2", "-2..2", "2..6")
"""EDM's levels of four steps, -8.8, -5.7, -1.8 and 3.5, lie in a band of the reports each."""


def check_shares(counts, shares):
    """Counts of independent draws within 4.5 standard deviations; what has no share is never drawn."""
    counts, shares = np.asarray(counts), np.asarray(shares, float)
    bound = 4.5 * np.sqrt(shares * (1 - shares) * counts.sum())
    assert np.all(np.abs(counts - shares * counts.sum()) <= bound), (counts, shares)


def by_student(method, step, clips=40_000, **hyper):
    """How many clips the student's phase learns from at each level."""
    state = started(method, lines(0.0, 1.0, 4), step)
    batch = {"video": jnp.zeros((clips, *SHAPE))}
    _, metrics = method.phases["student"](state, {"teacher": {"gain": 1.0}}, batch, jax.random.key(step), HYPER | hyper)
    assert sum(metrics[f"loss_by_level/{band}"][1] for band in BANDS) == clips
    return [metrics[f"loss_by_level/{band}"][1] for band in BANDS]


@pytest.mark.parametrize("step", PAPER)
def test_the_students_levels_are_drawn_as_in_the_paper(step):
    """By the count of the student's phase, before and after 500 of its updates: 40,000 draws. And of the source itself."""
    check_shares(by_student(ladd(network_of(EDM, 4), blind()), step), PAPER[step])
    calls = sources.student_levels(COSINE, 4)
    source = sources.noised(calls, lambda step: jnp.where(step < 500, jnp.array(FIRST), jnp.array(LATER)))
    hyper = {"step": jnp.asarray(step)}
    start = source(network_of(COSINE), {}, {}, jnp.zeros((40_000, *SHAPE)), jax.random.key(step), hyper)
    check_shares([np.sum(np.asarray(start.logsnr) == level) for level in calls], PAPER[step])


@pytest.mark.parametrize("step", PAPER)
def test_the_critic_learns_from_clips_of_the_same_levels(step):
    """Its phase goes by the student's updates too: here the student's clips are the levels of their inputs."""
    calls, seen = np.asarray(sources.student_levels(EDM, 4)), []
    judge = blind()
    spy = judge._replace(features=lambda *told: seen.append(told[1]) or judge.features(*told))
    network = Network(given(lambda logsnr, x: levels.expand(logsnr, x)), EDM, "x0")
    method = ladd(network, spy, critic_law=at(EDM.logsnr_end))  # sigma = .002
    batch = {"video": jnp.zeros((10_000, *SHAPE))}
    method.phases["critic"](
        started(method, {}, step, {}), {"teacher": {"gain": 1.0}}, batch, jax.random.key(step), HYPER
    )
    real, fake = (np.ravel(x) for x in seen)
    assert np.abs(real).max() < 0.02
    apart = np.abs(fake[:, None] - calls)
    assert apart.min(-1).max() < 0.02
    check_shares(np.bincount(apart.argmin(-1), minlength=4), PAPER[step])


def test_an_exit_that_is_asked_for_wins():
    """Even where it has no share."""
    method = ladd(network_of(EDM, 4), blind())
    for step in (0, 500):
        for exit_ in range(4):
            counts = by_student(method, step, 100, exit=jnp.float32(exit_))
            assert counts == [100 * (k == exit_) for k in range(4)]


def test_shares_and_warmup_are_options():
    """Shares of any sum, each in its time."""
    method = ladd(network_of(EDM, 4), blind(), shares=(1.0, 0.0, 0.0, 3.0), first_shares=(0.0, 5.0, 5.0, 0.0), warmup=7)
    for step, shares in {0: [0, 0.5, 0.5, 0], 6: [0, 0.5, 0.5, 0], 7: [0.25, 0, 0, 0.75]}.items():
        check_shares(by_student(method, step), shares)
    check_shares(by_student(ladd(network_of(EDM, 4), blind(), warmup=0), 0), LATER)


@pytest.mark.parametrize(
    "steps, first, later",
    [
        (1, [1], [1]),
        (2, [0, 1], [0.7, 0.3]),
        (3, [0, 0.5, 0.5], [0.7, 0.15, 0.15]),
        (4, FIRST, LATER),
        (8, [0] * 4 + [0.25] * 4, [0.7] + [0.3 / 7] * 7),
    ],
)
def test_the_default_shares_of_other_steps(steps, first, later, monkeypatch):
    """.7 at noise and the rest alike; before, the cleaner half alike, the middle one of an odd number included. Sum 1."""
    told, noised = {}, sources.noised
    monkeypatch.setattr(sources, "noised", lambda *arguments: told.update(source=arguments) or noised(*arguments))
    ladd(network_of(COSINE, steps), blind(), steps=steps)
    calls, shares = told["source"]
    np.testing.assert_array_equal(calls, sources.student_levels(COSINE, steps))
    for step, expected in {0: first, 499: first, 500: later}.items():
        found = shares(jnp.asarray(step))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        np.testing.assert_allclose(np.sum(found), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["shares", "first_shares"])
@pytest.mark.parametrize(
    "wrong",
    [
        [0.5, 0.5],
        [0.2] * 5,
        [],
        [1.0, -0.1, 0.1, 0.0],
        [0.0] * 4,
        [float("nan"), 1.0, 1.0, 1.0],
        [float("inf"), 1.0, 1.0, 1.0],
    ],
)
def test_shares_that_are_none_are_refused(name, wrong):
    """Of another number than the steps, below 0, all 0, no number."""
    with pytest.raises(ValueError, match=rf"^{name}: expected 4 numbers from 0 up, not all 0, got \["):
        ladd(network_of(COSINE), blind(), **{name: wrong})


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps: expected a whole number from 1 up, got 0"),
        (dict(steps=2, shares=FIRST), "shares: expected 2 numbers"),
        (dict(weighting="exponentiel"), "weighting 'exponentiel' .* nearest: 'exponential'"),
        (dict(loss="hing"), "loss 'hing' .* nearest: 'hinge'"),
        (dict(discriminator=None), "needs a discriminator"),
        (dict(ratio=1, critic_in_student_steps=False), "ratio: expected"),
        (dict(head_start=-1), "head_start: expected"),
    ],
)
def test_options_that_make_no_game_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        METHODS["ladd"](network_of(COSINE), **{"optimiser": optax.sgd(1.0), "discriminator": blind(), **options})


def test_it_is_one_update_each():
    assert [ladd(network_of(COSINE), blind()).order(step) for step in range(3)] == [("critic", "student")] * 3


# The student's gradient ---------------------------------------------------------------------------------------

DATA, LINE, GAIN = (0.4, 0.7), (0.2, 0.6), 1.4
WEIGHTS, BIASES = (0.9, -0.3), (0.2, -0.5)
HALFWAY = {
    "cosine": (0.5**0.5, 0.5**0.5),
    "flow": (0.5, 0.5),
    "edm": (1, (0.5 * (80 ** (1 / 7) + 0.002 ** (1 / 7))) ** 7),
}
"""alpha and sigma at half the time, the third of four steps."""


def coefficients(name, n):
    """alpha, sigma at sigma / alpha = exp(n), by hand."""
    if name == "edm":
        n = np.clip(n, np.log(0.002), np.log(80.0))
    ratio = np.exp(n)
    alpha = {"cosine": 1 / np.sqrt(1 + ratio**2), "flow": 1 / (1 + ratio), "edm": np.ones_like(n)}[name]
    return alpha, alpha * ratio


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("loss", ["hinge", "softplus"])
def test_the_students_gradient_through_the_teachers_features(name, loss):
    """Linear features, heads and student: by the student's clip, -(sum of w) gain alpha for the hinge, for softplus each
    head's times sigmoid(-logit); the mean over n ~ N(1, 1), sigma / alpha = exp(n), by a fine sum over n and over the logit.
    """
    z = np.linspace(-8, 8, 1001)
    dz = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) * (z[1] - z[0])
    alpha, sigma = coefficients(name, 1 + z[:, None])
    start_alpha, start_sigma = HALFWAY[name]
    x_mean, x_variance = start_alpha * DATA[0], (start_alpha * DATA[1]) ** 2 + start_sigma**2
    expected, scale = np.zeros(2), sum(np.abs(WEIGHTS)) * GAIN
    for w, b in zip(WEIGHTS, BIASES, strict=True):
        slope = w * GAIN
        mean = slope * alpha * (LINE[0] + LINE[1] * x_mean) + b
        std = abs(slope) * np.sqrt((alpha * LINE[1]) ** 2 * x_variance + sigma**2)
        # The student's input given the logit mean + std z.
        x = x_mean + slope * alpha * LINE[1] * x_variance / std * z
        pull = 1.0 if loss == "hinge" else 1 / (1 + np.exp(np.clip(mean + std * z, -500, 500)))
        expected -= [np.sum(dz[:, None] * dz * slope * alpha * pull * by) for by in (1.0, x)]
    clips = DATA[0] + DATA[1] * jax.random.normal(jax.random.key(7), (2**19, *SHAPE))
    method = ladd(network_of(SCHEDULES[name], 4), linear(WEIGHTS, BIASES), loss=loss)
    frozen = {"teacher": {"gain": jnp.asarray(GAIN)}}
    moved, metrics = gradient(method, lines(*LINE, 4), frozen, clips, exit=jnp.float32(2))
    # 4.5 standard deviations of a mean, of numbers that are no larger than (sum of |w|) gain alpha, times x.
    bound = 4.5 * scale * np.sqrt(np.sum(dz * alpha[:, 0] ** 2) / len(clips))
    assert bound < 0.06 * abs(expected[0])
    assert abs(moved["shift"][2] - expected[0]) < bound
    assert abs(moved["scale"][2] - expected[1]) < bound * np.sqrt(x_mean**2 + x_variance)
    for part in moved.values():
        np.testing.assert_array_equal(part[[0, 1, 3]], 0)
    assert metrics["non_finite"] == 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("loss", ["hinge", "softplus"])
def test_the_gradient_is_that_of_the_mean_loss(name, loss, noises):
    """Bent features and heads, clips of several numbers: against jax.grad of the loss written out, heads summed."""
    schedule, judge = SCHEDULES[name], bent()
    frozen = {"teacher": {"gain": jnp.asarray(GAIN)}}
    video, first, second = (jax.random.normal(jax.random.key(k), VIDEO) for k in range(3))
    method = ladd(network_of(schedule, 4), judge, loss=loss, critic_law=at(LEVEL))
    state = started(method, lines(*LINE, 4))
    heads = state.critic["heads"]
    noises(first, second)
    moved, metrics = gradient(method, lines(*LINE, 4), frozen, video, state=state, exit=jnp.float32(2))

    def direct(params):
        x = HALFWAY[name][0] * video + HALFWAY[name][1] * first
        clips = params["shift"] + params["scale"] * x
        noisy = schedule.alpha(LEVEL) * clips + schedule.sigma(LEVEL) * second
        logit = judge.apply(heads, (jnp.tanh(GAIN * noisy.reshape(6, -1) + LEVEL / 5),), None, None)
        return jnp.mean(jnp.sum(-logit if loss == "hinge" else jnp.log1p(jnp.exp(-logit)), -1))

    value, expected = jax.value_and_grad(direct)({"shift": LINE[0], "scale": LINE[1]})
    for part in moved:
        np.testing.assert_allclose(moved[part][2], expected[part], rtol=1e-5)  # the student's levels are float32
    np.testing.assert_allclose(metrics["deception"], value, rtol=1e-5)


# What learns, and from what -----------------------------------------------------------------------------------


def test_neither_phase_moves_or_differentiates_the_teacher_and_the_critic_holds_heads_only():
    """No denoiser among the critics, though one is given to begin with; all leaves of the heads move, in their own phase."""
    judge, params = bent(), lines(*LINE, 4)
    method = METHODS["ladd"](network_of(COSINE, 4), optimiser=optax.adam(1e-2), discriminator=judge, ema=0.9)
    state = method.init(jax.random.key(0), params, lines(0.1, 0.2, 4))
    frozen = {"teacher": {"gain": jnp.asarray(GAIN)}}
    assert set(state.critic) == {"heads"} and set(state.critic["heads"]) == {"first", "second"}
    sizes = [leaf.size for leaf in jax.tree.leaves(state.critic_opt)]
    assert sorted(sizes) == [1, 10, 10, 20, 20]  # Adam's count, and two moments for 5 x 2 and 4 x 5 numbers
    batch = {"video": jax.random.normal(jax.random.key(5), VIDEO)}
    phases = {name: jax.jit(phase, donate_argnums=0) for name, phase in method.phases.items()}
    theirs = {"student": {"params", "ema", "opt", "step"}, "critic": {"critic", "critic_opt"}}
    for turn, name in enumerate(("critic", "student") * 2):
        before = jax.tree.map(np.asarray, state)._asdict()
        state, _ = phases[name](state, frozen, batch, jax.random.key(turn), HYPER)
        assert {part for part in before if not same(before[part], state._asdict()[part])} == theirs[name]
        if name == "critic":
            assert not any(np.array_equal(before["critic"]["heads"][k], v) for k, v in state.critic["heads"].items())
    assert frozen["teacher"]["gain"] == GAIN and state.step == 2
    # What the student sees depends on the teacher, what it minimises is blind to that.
    report = lambda frozen, name: method.phases["student"](state, frozen, batch, jax.random.key(0), HYPER)[1][name]  # noqa: E731
    assert jax.grad(report)(frozen, "loss")["teacher"]["gain"] == 0
    assert abs(jax.grad(report)(frozen, "deception")["teacher"]["gain"]) > 1e-3


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("loss", ["hinge", "softplus"])
def test_the_heads_gradient(loss, noises):
    """Against jax.grad of the loss written out: of real clips and of the student's, noised, at the teacher's features."""
    judge, params = bent(), lines(*LINE, 4)
    method = ladd(network_of(COSINE, 4), judge, loss=loss, critic_law=at(LEVEL))
    state, frozen = started(method, params), {"teacher": {"gain": jnp.asarray(GAIN)}}
    video, *eps = (jax.random.normal(jax.random.key(k), VIDEO) for k in range(4))
    noises(*eps)
    new, metrics = method.phases["critic"](
        state, frozen, {"video": video}, jax.random.key(1), HYPER | {"exit": jnp.float32(2)}
    )

    def direct(heads):
        fake = LINE[0] + LINE[1] * (video + eps[0]) / 2**0.5
        noisy = (0.6 * clips + 0.8 * e for clips, e in ((video, eps[1]), (fake, eps[2])))
        real, fake = (judge.apply(heads, (jnp.tanh(GAIN * x.reshape(6, -1) + LEVEL / 5),), None, None) for x in noisy)
        if loss == "hinge":
            each = jnp.maximum(1 - real, 0) + jnp.maximum(1 + fake, 0)
        else:
            each = -jnp.log(1 / (1 + jnp.exp(-real))) - jnp.log(1 - 1 / (1 + jnp.exp(-fake)))
        return jnp.mean(jnp.sum(each, -1))

    value, expected = jax.value_and_grad(direct)(state.critic["heads"])
    for name, leaf in expected.items():
        np.testing.assert_allclose(state.critic["heads"][name] - new.critic["heads"][name], leaf, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["discrimination"], value, rtol=1e-6)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("classes, dropped", [(3, 0.0), (3, 1.0), (0, 0.0)])
def test_what_features_and_heads_are_told(paired, classes, dropped):
    """The teacher's weights, clips noised anew at a level each, that level and the label, dropped for both alike; without
    classes None. Guidance is not for features. Pairs share level and noise.
    """
    seen, network = [], Network(given(lambda logsnr, x: x[:, :1] * 0), COSINE, "x0", classes)

    def features(teacher, x, logsnr, cond):
        seen.append((teacher["gain"], x, logsnr, cond.get("label")))
        return (x.reshape(len(x), -1),)

    def apply(heads, maps, label, logsnr):
        seen.append((heads, maps[0].reshape(VIDEO), logsnr, label))
        return heads["w"] * maps[0]

    judge = Discriminator(features, lambda key: {"w": jnp.ones(())}, apply)
    method = ladd(network, judge, paired=paired, label_dropout=dropped)
    batch = {"video": jnp.zeros(VIDEO)} | ({"label": jnp.array([0, 1, 2, 2, 1, 0])} if classes else {})
    frozen, state = {"teacher": {"gain": 3.0}}, started(method, {})
    method.phases["critic"](state, frozen, batch, jax.random.key(0), HYPER | {"guidance": jnp.asarray(5.0)})
    (gain, real, at_real, label), (_, _, at_heads, of_heads), (_, fake, at_fake, other), _ = seen
    assert gain == 3.0 and at_real.shape == (6,) and len(np.unique(at_real)) == 6
    np.testing.assert_array_equal(at_heads, at_real)
    # Clips of zeros: what is left is sigma eps.
    assert np.array_equal(real, fake) == np.array_equal(at_real, at_fake) == paired
    if not classes:
        assert label is None and of_heads is None
    else:
        expected = np.full(6, 3) if dropped else batch["label"]
        for told in (label, of_heads, other):
            np.testing.assert_array_equal(told, expected)


# Fixed points -------------------------------------------------------------------------------------------------

REAL, FAKE = np.array([0] * 6 + [1] * 3 + [2] * 1), np.array([0] * 2 + [1] * 3 + [2] * 5)


@pytest.mark.parametrize(
    "loss, optimum", [("hinge", [1, 1, -1, -1]), ("softplus", np.log([6 / 2, 9 / 5, 4 / 8, 1 / 5]))]
)
def test_the_discriminators_optimum(loss, optimum, noises):
    """A free logit for each clip as it is seen: .6 c + .8 e of clips c = 0, 8/3, 16/3 and noises e = -1, 1 is one of four
    points. Real clips lie there 6, 9, 4, 1 times of 20, the student's 2, 5, 8, 5: the log ratio, or its sign.
    """
    real, fake = (jnp.repeat(jnp.asarray(part, float), 2).reshape(-1, *SHAPE) * 8 / 3 for part in (REAL, FAKE))
    eps = jnp.tile(jnp.array([-1.0, 1.0]), 10).reshape(-1, *SHAPE)
    judge = Discriminator(
        lambda teacher, x, logsnr, cond: (jnp.round((x.reshape(-1) + 0.8) / 1.6).astype(int),), lambda key: {},
        lambda table, maps, label, logsnr: table[maps[0]][:, None],
    )  # fmt: skip
    network = Network(given(lambda logsnr, x: fake), COSINE, "x0")
    method = ladd(network, judge, rate=0.3, loss=loss, critic_law=at(LEVEL))
    first = started(method, {}, heads=jnp.array([0.1, -0.2, 0.3, 0.1]))
    noises(eps, eps, eps)

    def step(state, _):
        return method.phases["critic"](state, {"teacher": {}}, {"video": real}, jax.random.key(0), HYPER)

    end, metrics = jax.lax.scan(step, first._replace(critic_opt=optax.sgd(0.3).init(first.critic)), None, 1500)
    np.testing.assert_allclose(end.critic["heads"], optimum, atol=0.1 if loss == "hinge" else 1e-5)
    # The right side of 0 is 15 of 20 real clips and 13 of the student's; at first, with + - + +, 11 and 5.
    np.testing.assert_allclose([metrics["accuracy"][i] for i in (0, -1)], [16 / 40, 28 / 40])


def exact_judge(schedule, mean, std):
    """The log density ratio of noisy data N(mean, std^2) to the student's noisy clips, a mixture of Gaussians that the heads
    hold, at each level.
    """

    def apply(heads, maps, label, logsnr):
        x, level = maps[0][:, None], logsnr[:, None]
        alpha, sigma = schedule.alpha(level), schedule.sigma(level)

        def log_density(mean, std):
            variance = (alpha * std) ** 2 + sigma**2
            return -0.5 * (x - alpha * mean) ** 2 / variance - 0.5 * jnp.log(variance)

        fake = logsumexp(log_density(heads["mean"], heads["std"]), -1, b=heads["share"], keepdims=True)
        return log_density(mean, std) - fake

    return Discriminator(lambda teacher, x, logsnr, cond: (x.reshape(-1),), lambda key: {}, apply)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("start", [(-0.8, 1.4), (1.1, 0.05)])
def test_the_students_fixed_point_is_the_datas_law(name, start):
    """Against the discriminator's optimum, kept exact while the student moves, the mixture of all levels' clips gets the
    mean and spread of N(.4, .7^2): from elsewhere at twice the width, and from a collapsed student; own shares and warm-up.
    Heads that aren't told the level know no more than the mixture: single levels may stay on one side.
    """
    schedule, steps, warmup = SCHEDULES[name], 800, 200
    method = METHODS["ladd"](
        network_of(schedule, 4), optimiser=optax.adam(optax.cosine_decay_schedule(0.03, steps)), loss="softplus",
        discriminator=exact_judge(schedule, *DATA), warmup=warmup, ema=0.0,
    )  # fmt: skip
    calls = sources.student_levels(schedule, 4)
    mean, std = schedule.alpha(calls) * DATA[0], jnp.hypot(schedule.alpha(calls) * DATA[1], schedule.sigma(calls))

    def law(params):
        return params["shift"] + params["scale"] * mean, jnp.abs(params["scale"]) * std

    def followed(state):
        share = jnp.where(state.step < warmup, jnp.array(FIRST), jnp.array(LATER))
        of_clips = law(state.params)
        return state._replace(critic={"heads": {"mean": of_clips[0], "std": of_clips[1], "share": share}})

    def step(state, key):
        key_clips, key_step = jax.random.split(key)
        batch = {"video": DATA[0] + DATA[1] * jax.random.normal(key_clips, (512, *SHAPE))}
        return followed(method.phases["student"](state, {"teacher": {}}, batch, key_step, HYPER)[0]), None

    params = {"scale": start[1] / std, "shift": start[0] - start[1] / std * mean}
    np.testing.assert_allclose(law(params), np.tile(np.array(start)[:, None], 4), atol=1e-6)
    keys = jax.random.split(jax.random.key(1), steps)
    end = jax.jit(lambda state: jax.lax.scan(step, state, keys)[0])(followed(method.init(jax.random.key(0), params)))
    found = np.array(law(end.params))
    mean_of_all = LATER @ found[0]
    std_of_all = np.sqrt(LATER @ (found[0] ** 2 + found[1] ** 2) - mean_of_all**2)
    np.testing.assert_allclose([mean_of_all, std_of_all], DATA, atol=0.03)


# Distillation on real clips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", DISTILLATION)
def test_a_distillation_weight_adds_adds_field(weighting, noises):
    """The student's gradient less that without it is `add`'s without an adversary, on the same draws, and that of
    c(t) |x0 - sg D_real|^2.
    """
    judge, network, params, share = bent(), network_of(COSINE, 4), lines(*LINE, 4), 1.7
    video, first, seen, eps = (jax.random.normal(jax.random.key(k), VIDEO) for k in range(4))
    teacher = oracles.gaussian(np.full(VIDEO[1:], DATA[0]), DATA[1] ** 2).denoiser(COSINE)
    judge = judge._replace(features=lambda teacher, x, logsnr, cond: (jnp.tanh(x.reshape(len(x), -1)),))
    options = dict(weighting=weighting, law=at(LEVEL))
    whole, plain = (
        ladd(network, judge, distillation_weight=weight, critic_law=at(-1.0), **options) for weight in (share, 0.0)
    )
    alone = METHODS["add"](
        network,
        optimiser=optax.sgd(1.0),
        distillation_weight=share,
        adversarial=0.0,
        ema=0.0,
        **options,
    )
    found = []
    states = [started(method, params) for method in (whole, plain, alone)]
    for method, state, queue in zip(
        (whole, plain, alone), states, ((first, seen, eps), (first, seen), (first, eps)), strict=True
    ):
        noises(*queue)
        new, metrics = method.phases["student"](
            state, {"teacher": teacher}, {"video": video}, jax.random.key(1), HYPER | {"exit": jnp.float32(2)}
        )
        assert any(key.startswith("teacher_error") for key in metrics) == (method is not plain)
        found.append({name: params[name] - new.params[name] for name in params})

    def value(line):
        clips = line["shift"] + line["scale"] * (video + first) / 2**0.5
        x = 0.6 * clips + 0.8 * eps
        gain = 0.6 * DATA[1] ** 2 / (0.36 * DATA[1] ** 2 + 0.64)
        goal = jax.lax.stop_gradient(DATA[0] + gain * (x - 0.6 * DATA[0]))
        return share * {"exponential": 0.6, "score": 0.6 / 1.6}[weighting] * jnp.mean((clips - goal) ** 2)

    expected = jax.grad(value)({"shift": LINE[0], "scale": LINE[1]})
    for name in params:
        np.testing.assert_allclose(found[0][name] - found[1][name], found[2][name], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found[2][name][2], expected[name], rtol=1e-5)
        assert abs(found[1][name][2]) > 1e-3


def test_distillation_is_asked_for_where_add_asks_for_it(monkeypatch):
    """Without a law of its own: levels uniform in time."""
    laws = []
    real = fields.distillation

    def spied(network, *, law, weighting):
        laws.append((law, weighting))
        return real(network, law=law, weighting=weighting)

    monkeypatch.setattr(fields, "distillation", spied)
    ladd(network_of(COSINE), blind(), distillation_weight=1.0)
    METHODS["add"](network_of(COSINE), optimiser=optax.sgd(1.0), adversarial=0.0)
    drawn = [(law(jax.random.key(0), (100,)), weighting) for law, weighting in laws]
    np.testing.assert_array_equal(*(levels for levels, _ in drawn))
    assert drawn[0][1] == drawn[1][1]
