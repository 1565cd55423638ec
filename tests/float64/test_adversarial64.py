"""Adversaries and adversarial distillation against closed forms: discriminators whose optimum, slope and ratio are known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from games_tools import (
    COSINE,
    HYPER,
    LEVEL,
    SCHEDULES,
    SHAPE,
    TEACHER,
    VIDEO,
    at,
    begin,
    game,
    gaussian_teacher,
    given,
    gradient,
    law_of,
    line,
    network_of,
    posterior,
    scene_of,
    small_judge,
)
from jax.scipy.special import ndtri

from diffusion import levels, predictions
from distill import Discriminator, adversarial, fields, games
from distill.fields import SCORE

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Adversaries --------------------------------------------------------------------------------------------------


def adversaries(seed=0):
    judge = small_judge()
    return judge, {SCORE: law_of(0.1, 0.8), "heads": judge.init(jax.random.key(seed))}


@pytest.mark.parametrize(
    "loss, whose, share", itertools.product(adversarial.LOSSES, ("critic", "teacher", "frozen"), (1.0, 0.3))
)
def test_deception_is_the_mean_of_the_generators_loss(loss, whose, share, noises):
    """The student's gradient against jax.grad of weight x the mean over the batch of the loss, heads summed."""
    judge, critic = adversaries()
    network = network_of(COSINE)
    x, eps = (jax.random.normal(jax.random.key(k), VIDEO) for k in (2, 3))
    weights = {"critic": critic[SCORE], "teacher": law_of(0.3, 0.5), "frozen": law_of(-0.2, 0.6)}
    frozen = {"teacher": weights["teacher"], "features": weights["frozen"]}
    field = adversarial.deception(network, judge, law=at(LEVEL), loss=loss, whose=whose)
    method = games.method(
        network, source=given(x), fields={"adversarial": (share, field)}, critic={SCORE: games.copied}, critic_terms={},
        optimiser=optax.sgd(1.0), critic_optimiser=None, order=games.turns(1, True), ema=0.0,
    )  # fmt: skip
    noises(eps)
    found, metrics = gradient(method, line(0.3, 0.8), critic, frozen, x)

    def direct(params):
        clips = params["shift"] + params["scale"] * x
        maps = judge.features(weights[whose], 0.6 * clips + 0.8 * eps, jnp.full(len(x), LEVEL), {})
        logit = judge.apply(critic["heads"], maps, None, None)
        each = jnp.log1p(jnp.exp(-logit)) if loss == "softplus" else -logit
        return jnp.mean(jnp.sum(each, -1))

    expected = jax.grad(direct)(line(0.3, 0.8))
    for name in found:
        np.testing.assert_allclose(found[name], share * expected[name], rtol=1e-9)
    np.testing.assert_allclose(metrics["deception"], direct(line(0.3, 0.8)), rtol=1e-9)


def test_without_a_law_the_discriminator_sees_clips_as_they_are():
    """At the clean end's level."""
    judge, critic = adversaries()
    clips = jax.random.normal(jax.random.key(0), VIDEO)
    seen = []
    spy = judge._replace(features=lambda *given: seen.append(given) or judge.features(*given))
    field = adversarial.deception(network_of(COSINE), spy, law=None, loss="hinge", whose="critic")
    jax.eval_shape(lambda clips: field(scene_of(clips, critic, None), jax.random.key(0))[0], clips)
    term = adversarial.discrimination(network_of(COSINE), spy, law=None, loss="hinge", whose="critic")
    seen.clear()
    term(critic, scene_of(clips, critic, None, real=2 * clips), jax.random.key(0))
    for (_, x, logsnr, _), expected in zip(seen, (2 * clips, clips), strict=True):
        np.testing.assert_array_equal(x, expected)
        np.testing.assert_allclose(logsnr, COSINE.logsnr_end)


@pytest.mark.parametrize("paired", [True, False])
def test_pairs_share_level_and_noise(paired):
    """Real and fake clips alike: what the discriminator sees of both is the same only where they are paired."""
    judge, critic = adversaries()
    clips, seen = jnp.zeros(VIDEO), []
    spy = judge._replace(features=lambda *given: seen.append(given[1:3]) or judge.features(*given))
    law = levels.uniform_logsnr(COSINE, -3.0, 3.0)
    term = adversarial.discrimination(network_of(COSINE), spy, law=law, loss="softplus", whose="critic", paired=paired)
    term(critic, scene_of(clips, critic, None), jax.random.key(0))
    for real, fake in zip(*seen, strict=True):
        assert np.array_equal(real, fake) == paired


def test_r1_is_the_squared_slope_by_the_features():
    """Against central differences of each head's logit by every number of both maps, at real clips."""
    judge, critic = adversaries()
    real = jax.random.normal(jax.random.key(1), VIDEO)
    scene = scene_of(jnp.zeros(VIDEO), critic, None, real=real)
    term = adversarial.discrimination(network_of(COSINE), judge, law=None, loss="hinge", whose="critic", r1=0.7)
    value, metrics = term(critic, scene, jax.random.key(0))
    maps = [np.asarray(m) for m in judge.features(critic[SCORE], real, jnp.full(len(real), COSINE.logsnr_end), {})]
    total = 0.0
    for part, index in ((p, i) for p in (0, 1) for i in range(4)):
        moved = [[m.copy() for m in maps] for _ in range(2)]
        for sign, copy in zip((1, -1), moved, strict=True):
            copy[part][:, index] += sign * 1e-5
        up, down = (judge.apply(critic["heads"], tuple(m), None, None) for m in moved)
        total += np.mean(np.sum(((up - down) / 2e-5) ** 2, -1))
    np.testing.assert_allclose(metrics["penalty"], 0.7 * total, rtol=1e-7)
    np.testing.assert_allclose(value, metrics["discrimination"] + metrics["penalty"], rtol=1e-12)


def test_approximate_r1_tends_to_the_squared_slope_by_the_clips(noises):
    """penalty / perturbation^2 -> E|grad D|^2, its error of first order or better; noises sqrt(d) e_i have covariance 1."""
    judge = small_judge(heads=1)
    critic = {SCORE: law_of(0.1, 0.8), "heads": judge.init(jax.random.key(0))}
    clip = jax.random.normal(jax.random.key(1), VIDEO[1:])
    real = jnp.tile(clip, (4, 1, 1, 1, 1))
    near = jnp.asarray(2 * np.eye(4)).reshape(4, *VIDEO[1:])

    def logit(x):
        maps = judge.features(critic[SCORE], x[None], jnp.full(1, COSINE.logsnr_end), {})
        return judge.apply(critic["heads"], maps, None, None)[0, 0]

    exact, errors = float(jnp.sum(jax.grad(logit)(clip) ** 2)), []
    for size in (1e-2, 1e-3, 1e-4):
        noises(near)
        term = adversarial.discrimination(
            network_of(COSINE), judge, law=None, loss="hinge", whose="critic", approximate_r1=0.5, perturbation=size
        )
        _, metrics = term(critic, scene_of(real, critic, None, real=real), jax.random.key(0))
        errors.append(abs(float(metrics["penalty"]) / (0.5 * size**2 * exact) - 1))
    assert errors[2] < 1e-3 and errors[1] < 0.2 * errors[0] and errors[2] < 0.2 * errors[1]


REAL, FAKE = np.array([0] * 6 + [1] * 3 + [2] * 1), np.array([0] * 2 + [1] * 3 + [2] * 5)


@pytest.mark.parametrize("loss, optimum", [("softplus", np.log([6 / 2, 3 / 3, 1 / 5])), ("hinge", [1.0, None, -1.0])])
def test_the_discriminators_optimum(loss, optimum):
    """A free logit for each of three clips: the log ratio of their numbers, or its sign; and how often it is right."""
    judge = Discriminator(
        lambda params, x, logsnr, cond: (x.reshape(-1).astype(int),),
        lambda key: {},
        lambda table, maps, label, logsnr: table[maps[0]][:, None],
    )
    real, fake = (jnp.asarray(part, float).reshape(-1, *SHAPE) for part in (REAL, FAKE))
    told = adversarial.discrimination(network_of(COSINE), judge, law=None, loss=loss, whose="critic")
    method = game(network_of(COSINE), given(fake), terms={"discrimination": told}, rate=0.3)
    critic = {SCORE: {}, "heads": jnp.array([0.1, 0.2, -0.1])}

    def step(state, _):
        return method.phases["critic"](state, {}, {"video": real}, jax.random.key(0), HYPER)

    end, metrics = jax.lax.scan(step, begin(method, line(0.0, 1.0), critic, 0.3), None, 1000)
    for found, expected in zip(end.critic["heads"], optimum, strict=True):
        assert expected is None or abs(found - expected) < (1e-5 if loss == "softplus" else 0.2)
    # At first: 6 + 3 of the real clips and 5 of the fake ones.
    np.testing.assert_allclose(metrics["accuracy"][0], (0.9 + 0.5) / 2)


def test_a_logistic_head_learns_the_log_density_ratio():
    """Of N(.5, 1.2^2) to a student's N(-.3, .8^2), on their quantiles: a quadratic, of which the three numbers are known."""
    nodes = ndtri((jnp.arange(2000) + 0.5) / 2000).reshape(-1, *SHAPE)
    judge = Discriminator(
        lambda params, x, logsnr, cond: (x.reshape(-1),), lambda key: {},
        lambda heads, maps, label, logsnr: jnp.polyval(heads, maps[0])[:, None],
    )  # fmt: skip
    told = adversarial.discrimination(network_of(COSINE), judge, law=None, loss="softplus", whose="critic")
    method = game(network_of(COSINE), given(nodes), terms={"discrimination": told}, rate=0.5)

    def step(state, _):
        return method.phases["critic"](state, {}, {"video": 0.5 + 1.2 * nodes}, jax.random.key(0), HYPER)[0], None

    first = begin(method, line(-0.3, 0.8), {SCORE: {}, "heads": jnp.zeros(3)}, 0.5)
    end, _ = jax.lax.scan(step, first, None, 1500)
    fake, real = (
        np.array([-0.5 / s**2, m / s**2, -0.5 * (m / s) ** 2 - np.log(s)]) for m, s in ((-0.3, 0.8), (0.5, 1.2))
    )
    np.testing.assert_allclose(end.critic["heads"], real - fake, atol=0.02)


# Heads that judge every place ---------------------------------------------------------------------------------


def by_place(weights, gain=lambda x: x):
    """Heads with a map of logits each: gain(w x) at every number of the clip."""
    return Discriminator(
        lambda params, x, logsnr, cond: (x,), lambda key: jnp.asarray(weights),
        lambda heads, maps, label, logsnr: tuple(gain(w * maps[0]) for w in heads),
    )  # fmt: skip


def test_heads_of_one_place_are_heads_of_a_clip():
    """All that is made of their logits: moves, losses, gradients, penalties, accuracy, density ratio, number by number."""
    judge, critic = adversaries()
    apart = judge._replace(apply=lambda *told: tuple(jnp.moveaxis(judge.apply(*told), -1, 0)[..., None]))
    network, real = network_of(COSINE), jax.random.normal(jax.random.key(1), VIDEO)
    scene = scene_of(jax.random.normal(jax.random.key(2), VIDEO), critic, None, real=real)
    common = dict(law=at(LEVEL), whose="critic")

    def everything(judge, loss):
        term = adversarial.discrimination(network, judge, loss=loss, r1=0.7, approximate_r1=30.0, **common)
        learnt = jax.value_and_grad(
            lambda heads: term({**critic, "heads": heads}, scene, jax.random.key(0)), has_aux=True
        )
        moved = adversarial.deception(network, judge, loss=loss, **common)(scene, jax.random.key(0))
        ratio = adversarial.density_ratio(judge, divergence="forward_kl", whose="critic")
        return learnt(critic["heads"]), moved, ratio(scene, real, jnp.full(len(real), LEVEL))

    for loss in adversarial.LOSSES:
        whole, placed = everything(judge, loss), everything(apart, loss)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), whole, placed)


def test_the_hinge_of_a_place_is_its_own(noises):
    """Real logits 3, 3, 3 and -1, and 0 of the student's clip: the loss is 2 / 4 + 1, where that of their mean, 2, would be 1;
    its slope in w is what the one wrong place says. Three of eight places are on the right side of 0.
    """
    real = jnp.array([3.0, 3.0, 3.0, -1.0]).reshape(1, 4, 1, 1, 1)
    judge, heads = by_place([1.0]), {"heads": jnp.ones(1)}
    term = adversarial.discrimination(network_of(COSINE), judge, law=None, loss="hinge", whose="frozen")
    scene = scene_of(0 * real, heads, None, real=real, frozen={"features": {}})
    (value, metrics), slope = jax.value_and_grad(term, has_aux=True)(heads, scene, jax.random.key(0))
    np.testing.assert_allclose([value, slope["heads"][0], metrics["accuracy"]], [2 / 4 + 1, 1 / 4, 3 / 8], rtol=1e-12)


@pytest.mark.parametrize("frames", [1, 6])
def test_a_field_and_its_penalties_do_not_grow_with_the_places(frames):
    """Two heads of slopes 3 and -2: each clip is moved by -(3 - 2) / n in every place, R1 is 3^2 + 2^2 and the other one as
    much times a perturbation's mean square, however many places there are.
    """
    clips = jax.random.normal(jax.random.key(1), (5, frames, 2, 2, 1))
    judge, critic = by_place([3.0, -2.0]), {"heads": jnp.array([3.0, -2.0])}
    scene = scene_of(clips, critic, None, frozen={"features": {}})
    common = dict(law=None, loss="hinge", whose="frozen")
    move, _ = adversarial.deception(network_of(COSINE), judge, **common)(scene, jax.random.key(0))
    # Fields are in units of the mean over all numbers.
    np.testing.assert_allclose(move * len(clips) / clips.size, -1 / (4 * frames) * jnp.ones(clips.shape), rtol=1e-12)
    term = adversarial.discrimination(network_of(COSINE), judge, r1=0.5, **common)
    np.testing.assert_allclose(term(critic, scene, jax.random.key(0))[1]["penalty"], 0.5 * 13, rtol=1e-12)
    near = adversarial.discrimination(network_of(COSINE), judge, approximate_r1=2.0, perturbation=0.1, **common)
    noise = jax.random.normal(jax.random.split(jax.random.key(0), 3)[2], clips.shape)
    expected = 2.0 * 13 * 0.01 * float(jnp.mean(noise**2))
    np.testing.assert_allclose(near(critic, scene, jax.random.key(0))[1]["penalty"], expected, rtol=1e-12)


def test_the_optimum_of_a_place_is_its_own_log_ratio():
    """A free logit for either value of each of three places: of ten real clips 5, 9 and 5 have a 1 there, of the student's 5, 2
    and 5. Where the laws agree nothing is said, whatever the other place says.
    """
    ones = lambda *counts: jnp.stack([jnp.arange(10) < n for n in counts], -1).astype(float)[..., None, None, None]  # noqa: E731
    real, fake = ones(5, 9, 5), ones(5, 2, 5)
    judge = Discriminator(
        lambda params, x, logsnr, cond: (x.reshape(10, 3).astype(int),), lambda key: {},
        lambda table, maps, label, logsnr: (table[jnp.arange(3), maps[0]],),
    )  # fmt: skip
    told = adversarial.discrimination(network_of(COSINE), judge, law=None, loss="softplus", whose="critic")
    method = game(network_of(COSINE), given(fake), terms={"discrimination": told}, rate=2.0)

    def step(state, _):
        return method.phases["critic"](state, {}, {"video": real}, jax.random.key(0), HYPER)[0], None

    first = begin(method, line(0.0, 1.0), {SCORE: {}, "heads": 0.3 * jnp.ones((3, 2))}, 2.0)
    end, _ = jax.lax.scan(step, first, None, 500)
    expected = [[0, 0], [np.log(1 / 8), np.log(9 / 2)], [0, 0]]
    np.testing.assert_allclose(end.critic["heads"], expected, atol=1e-6)


# Adversarial diffusion distillation ---------------------------------------------------------------------------


@pytest.mark.parametrize("name, weighting", itertools.product(SCHEDULES, fields.DISTILLATION))
def test_distillation_field(name, weighting, noises):
    """Against jax.grad of c(t) |x0 - sg D_real|^2 on the same draw; with "score" it is eps_real - eps."""
    schedule = SCHEDULES[name]
    clips, eps = (jax.random.normal(jax.random.key(k), VIDEO) for k in (0, 1))
    teacher = gaussian_teacher(schedule, *TEACHER, VIDEO[1:])
    field = fields.distillation(network_of(schedule), law=at(LEVEL), weighting=weighting)
    noises(eps)
    move, _ = field(scene_of(clips, {}, teacher), jax.random.key(0))
    alpha, sigma = float(schedule.alpha(LEVEL)), float(schedule.sigma(LEVEL))
    c = {"exponential": alpha, "score": alpha / (2 * sigma)}[weighting]

    def value(clips):
        goal = jax.lax.stop_gradient(posterior(schedule, *TEACHER, alpha * clips + sigma * eps, jnp.asarray(LEVEL)))
        return jnp.sum(c * (clips - goal) ** 2)

    np.testing.assert_allclose(move, jax.grad(value)(clips), rtol=1e-9, atol=1e-12)
    x = alpha * clips + sigma * eps
    eps_real = predictions.convert(teacher(x, jnp.asarray(LEVEL)), x, jnp.asarray(LEVEL), schedule, "x0", "eps")
    assert np.allclose(move, eps_real - eps, rtol=1e-8, atol=1e-10) == (weighting == "score")
