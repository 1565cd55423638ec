"""What a method's constructor is told reaches its loss: one step of small students against the same sum written by hand.

The clips and their noise are known, most students answer one number, whatever they are shown, and the optimiser is sgd(1): a
weight moves by minus its gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from games_tools import COSINE, HYPER, LEVEL, SCHEDULES, SNR, at, gradient, law_of, line, network_of
from jax.tree_util import Partial

from diffusion import levels
from distill import METHODS, Network
from distill.fields import SCORE

EDM, FLOW = SCHEDULES["edm"], SCHEDULES["flow"]
X0 = np.array([1.0, -1.0, 0.5, 1.0, -1.0, 0.25, 1.0, -1.0]).reshape(8, 1, 1, 1, 1)
EPS = np.array([1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0]).reshape(8, 1, 1, 1, 1)
"""Of square 1, and of mean 0 in either class."""
LABELS = np.arange(8, dtype=np.int32) % 2
BATCH = {"video": jnp.asarray(X0), "label": jnp.asarray(LABELS)}
MANY = {"video": jnp.tile(BATCH["video"], (100, 1, 1, 1, 1)), "label": jnp.tile(BATCH["label"], 100)}
"""Enough for a random choice to have been made in every way."""

pytestmark = pytest.mark.usefixtures("quick_compilation")


def known(key, shape, dtype):
    """EPS again and again as the noise."""
    return jnp.tile(jnp.asarray(EPS, dtype), (shape[0] // 8, 1, 1, 1, 1))


def proportional(schedule, asked=None):
    """A student whose clean estimate is its one weight times what it sees; `asked` collects the levels of its calls."""

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        if asked is not None:
            asked.append(np.ravel(logsnr))
        return params * x

    return Network(apply, schedule, "x0", cond_keys=("logsnr_to",), noise=known)


def constant(schedule):
    """A student whose clean estimate is its one weight."""
    keys = ("label", "logsnr_to", "guidance")
    return Network(lambda params, x, *rest, **told: params + 0 * x, schedule, "x0", 2, keys, noise=known)


def always(value):
    """A teacher that answers one number."""
    return Partial(lambda x, logsnr: jnp.full_like(x, value))


def stepped(name, network, weights, frozen, *, batch=BATCH, hyper=None, step=0, ema=None, **options):
    """(the gradient of the method's one phase, its metrics)"""
    method = METHODS[name](network, optimiser=optax.sgd(1.0), **options)
    weights = jnp.asarray(weights, float)
    state = method.init(jax.random.key(0), weights)._replace(step=jnp.int32(step))
    state = state if ema is None else state._replace(ema=jnp.asarray(ema, float))
    new, metrics = method.phases["train"](state, frozen, batch, jax.random.key(1), HYPER | (hyper or {}))
    return np.asarray(weights - new.params), metrics


# Games --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_regression_of_dmd_is_to_the_guided_teachers_samples(guidance):
    """A teacher that answers .5 and -.25 to the classes and .1 to none lands on u + g (c - u), whatever the noise. With a
    critic that answers the same nothing else moves the student.
    """
    answers, student = np.array([0.5, -0.25, 0.1]), -0.3
    guided = answers[2] + guidance * (answers[:2] - answers[2])

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(params[cond["label"]], x) + 0 * x

    network = Network(apply, COSINE, "x0", 2, ("label",), noise=known)
    method = METHODS["dmd"](network, optimiser=optax.sgd(1.0), regression_weight=0.25, teacher_steps=3)
    state = method.init(jax.random.key(0), jnp.full(3, student))
    state = state._replace(critic={SCORE: jnp.asarray([*guided, 0.0])})
    hyper = HYPER | {"guidance": jnp.float64(guidance)}
    update = jax.jit(method.phases["student"])
    new, metrics = update(state, {"teacher": jnp.asarray(answers)}, BATCH, jax.random.key(1), hyper)
    # Half of the clips are of each class.
    np.testing.assert_allclose((state.params - new.params)[:2], 0.25 * (student - guided), rtol=1e-6)
    np.testing.assert_allclose(metrics["regression_loss"], np.mean((student - guided) ** 2), rtol=1e-6)


@pytest.mark.parametrize("phase, ends", [("student", (0.02, 0.98)), ("critic", (0.0, 1.0))])
@pytest.mark.parametrize("name", ["dmd", "dmd2"])
def test_scores_are_compared_in_the_middle_and_the_critic_learns_everywhere(name, phase, ends):
    """Of 800 clips, uniform in time, some lie near either end and none beyond."""
    asked, network = [], network_of(COSINE)

    def apply(params, x, logsnr, cond, **told):
        asked.append(np.ravel(logsnr))
        return network.apply(params, x, logsnr, cond, **told)

    alone = {"dmd": {"regression_weight": 0.0}, "dmd2": {"adversarial": 0.0, "discriminative": 0.0}}[name]
    method = METHODS[name](network._replace(apply=apply), optimiser=optax.sgd(1.0), **alone)
    frozen = {"teacher": law_of(0.0, 1.0)}
    gradient(method, line(0.0, 1.0), {SCORE: law_of(0.1, 0.9)}, frozen, MANY["video"], phase)
    times = np.asarray(COSINE.time(asked[-1]))  # the critic's call is the last in both phases
    assert times.shape == (800,)
    assert ends[0] - 1e-6 <= times.min() < ends[0] + 0.02 and ends[1] - 0.02 < times.max() <= ends[1] + 1e-6


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    "name, default", [("dmd", SNR), ("dmd2", SNR + 1), ("diff_instruct", SNR + 4), ("sid", SNR + 4)]
)
def test_the_weight_of_the_critics_errors(name, default, told):
    """Of a student that answers .7 and a critic that answers .2, at one level: the error of eps, of v or of EDM's F, or 5."""
    options = {"critic_weight": lambda logsnr: jnp.full_like(logsnr, 5.0)} if told else {}
    options |= {"adversarial": 0.0, "discriminative": 0.0} if name == "dmd2" else {}
    method = METHODS[name](network_of(COSINE), optimiser=optax.sgd(1.0), critic_law=at(LEVEL), **options)
    found, metrics = gradient(method, line(0.7, 0.0), {SCORE: line(0.2, 0.0)}, {}, BATCH["video"], "critic")
    weight = 5.0 if told else default
    np.testing.assert_allclose(metrics["loss"], weight * 0.25, rtol=1e-6)
    np.testing.assert_allclose(found[SCORE]["shift"], weight * -1.0, rtol=1e-6)


@pytest.mark.parametrize("weight", [None, levels.sigmoid()], ids=["none", "sigmoid"])
def test_moment_matching_weighs_critic_and_student_alike(weight):
    """Student .7, critic .2, teacher -.4: the critic is .5 below the clips and .6 above the teacher, which pull it together;
    the student's clips are pulled by the .6. Each clip counts as w of the level that it goes to.
    """
    asked = []

    def teacher(x, logsnr):
        asked.append(logsnr)
        return jnp.full_like(x, -0.4)

    method = METHODS["moment_matching"](network_of(COSINE), optimiser=optax.sgd(1.0), critic_weight=weight)
    for phase, slope in (("critic", 2 * (0.6 - 0.5)), ("student", 0.6)):
        found, _ = gradient(
            method, line(0.7, 0.0), {SCORE: line(0.2, 0.0)}, {"teacher": Partial(teacher)}, BATCH["video"], phase
        )
        found = found[SCORE] if phase == "critic" else found
        mean = 1.0 if weight is None else np.mean(weight(asked[-1]))
        np.testing.assert_allclose(found["shift"], slope * mean, rtol=1e-9)


# Consistency --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step, stage", [(0, 0), (9, 0), (10, 1), (25, 2), (39, 3), (1000, 3)])
def test_easy_consistency_closes_up_stage_by_stage(step, stage):
    """In EDM's scaling a student a x is off by a (s - r) eps, where s - r is s q^-(stage + 1): squared and divided by s - r
    that is a^2 (s - r), and as a norm a, at any stage.
    """
    a, s, q = 0.7, np.exp(-1.1), 3.0
    for metric, expected in (("squared", a**2 * s * q ** -(stage + 1)), ("norm", a)):
        _, metrics = stepped(
            "easy_consistency", proportional(EDM), a, {}, step=step, total_steps=40, stages=4, q=q, k=0.0, mean=-1.1,
            std=1e-9, boundary=np.inf, metric=metric,
        )  # fmt: skip
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)  # r / s is made in float32


@pytest.mark.parametrize("step, fine", [(0, 4), (5, 8), (10, 16), (19, 16)])
def test_the_grid_of_multistep_consistency_is_fine_at_half_time(step, fine):
    """From 4 steps to 16 in 10 of 20 updates: of 800 clips some lie at each."""
    asked = []
    stepped(
        "multistep_consistency", proportional(COSINE, asked), 0.5, {}, batch=MANY, step=step, weight=levels.v(),
        segments=2, total_steps=20, first=4, last=16, solver="data",
    )  # fmt: skip
    assert len(np.unique(asked[-1].round(4))) == fine


@pytest.mark.parametrize("weight", [levels.uniform(), levels.v()], ids=["uniform", "v"])
def test_multistep_consistency_weighs_the_error_of_the_clip(weight):
    """With one step a segment the target is the clip: a student that answers 0 is off by it."""
    asked = []
    _, metrics = stepped(
        "multistep_consistency", proportional(COSINE, asked), 0.0, {}, weight=weight, segments=4, total_steps=8, first=4,
        last=4, solver="data", huber=0.0,
    )  # fmt: skip
    here = asked[-1]
    assert len(np.unique(here)) > 1
    np.testing.assert_allclose(metrics["loss"], np.mean(weight(here) * np.abs(np.ravel(X0))), rtol=1e-6)


@pytest.mark.parametrize("probability, at_cut", [(0.25, 0.1), (0.5, 2.0)])
def test_truncated_consistency_ties_clips_at_the_cut_by_their_mean_error(probability, at_cut):
    """In EDM's scaling every clip of a student a x, and of a previous one that is the same, has the norm a (s - r), divided by
    s - r; of b clips b p are at the cut in the mean.
    """
    a, asked = 0.7, []
    _, metrics = stepped(
        "truncated_consistency", proportional(EDM, asked), a, {"previous": jnp.float64(a)}, batch=MANY,
        probability=probability, at_cut=at_cut, boundary=np.inf,
    )  # fmt: skip
    cut = np.mean(asked[-1] == 0.0) / probability
    others = np.mean(asked[-1] != 0.0) / (1 - probability)
    assert cut > 0 and others > 0
    np.testing.assert_allclose(metrics["loss"], a * (1 - probability) * (others + at_cut * cut), rtol=1e-6)


@pytest.mark.parametrize(
    "name, default, options",
    [
        ("consistency_distillation", "student", {}),
        ("consistency_training", "student", {"total_steps": 8, "s0": 4}),
        ("latent_consistency", "ema", {"guidance_range": None}),
        ("consistency_trajectory", "ema", {"law": at(LEVEL), "weight": levels.uniform()}),
        ("shortcut", "ema", {"law": at(LEVEL), "weight": levels.uniform()}),
    ],
)
def test_the_target_is_that_of_the_weights_asked_for(name, default, options):
    """Other averaged weights are another loss where they give the target, and the same one else."""
    for target in (None, "student", "ema"):
        told = options | ({} if target is None else {"target": target})
        losses = [
            stepped(name, proportional(COSINE), 0.3, {"teacher": always(0.5)}, ema=ema, **told)[1]["loss"]
            for ema in (0.3, 0.8)
        ]
        assert (losses[0] == losses[1]) == ((target or default) == "student")


# Flow maps ----------------------------------------------------------------------------------------------------

CLIP, TEACHER = X0, np.full_like(X0, -0.4)
ALL, HALF = np.arange(8), np.arange(1, 8, 2)


def five(logsnr):
    """A weight of 5 at LEVEL: jumps, which begin on a grid beside it, have none."""
    return jnp.where(jnp.abs(logsnr - LEVEL) < 1e-6, 5.0, 0.0)


@pytest.mark.parametrize(
    "name, frozen, options, goal, rows",
    [
        ("consistency_trajectory", {"teacher": always(-0.4)}, {"share": 0.5, "data": True}, CLIP, HALF),
        ("consistency_trajectory", {"teacher": always(-0.4)}, {"share": 0.5, "data": False}, TEACHER, HALF),
        ("shortcut", {}, {"share": 0.5}, CLIP, HALF),
        ("shortcut", {"teacher": always(-0.4)}, {"share": 0.5}, TEACHER, HALF),
        ("reflow", {"teacher": always(-0.4)}, {"steps": 3}, TEACHER, ALL),
        ("guided", {"teacher": always(-0.4)}, {}, TEACHER, ALL),
    ],
    ids=["trajectory, data", "trajectory, taught", "shortcut, data", "shortcut, taught", "reflow", "guided"],
)
def test_the_denoiser_is_learnt_from_clips_or_teacher_at_the_weight_of_its_level(name, frozen, options, goal, rows):
    """A student that answers .7, whose clips that don't jump are all at one level. In reflow the clip is the teacher's."""
    found, metrics = stepped(name, constant(COSINE), 0.7, frozen, law=at(LEVEL), weight=five, **options)
    error = 0.7 - goal[rows]
    np.testing.assert_allclose(found, np.sum(5 * 2 * error) / 8, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], np.sum(5 * error**2) / 8, rtol=1e-6)


@pytest.mark.parametrize("kappa", [0.0, 0.3, 0.8])
def test_mean_flow_mixes_kappa_of_its_own_answer_into_its_target(kappa):
    """At r = t: the rest is v = eps - x0 guided at 3 by the student's answer without a class, u. Squared errors (p = 0), and
    the gradient of every class's own gain.
    """
    gains = np.array([0.3, -0.4, 0.9])

    def apply(params, x, logsnr, cond, *, key=None, train=False):
        return levels.expand(params[cond["label"]], x) * x

    network = Network(apply, FLOW, "velocity", 2, ("label", "logsnr_to"), noise=known)
    found, metrics = stepped(
        "mean_flow", network, gains, {}, hyper={"guidance": jnp.float64(3.0)}, law=at(LEVEL), kappa=kappa, p=0.0,
        label_dropout=0.0,
    )  # fmt: skip
    x = float(FLOW.alpha(LEVEL)) * X0 + float(FLOW.sigma(LEVEL)) * EPS
    own, none = gains[LABELS].reshape(X0.shape) * x, gains[2] * x
    goal = kappa * own + (1 - kappa) * (none + 3.0 * (EPS - X0 - none))
    slope = np.ravel(2 * (own - goal) * x) / 8
    np.testing.assert_allclose(found, [slope[LABELS == 0].sum(), slope[LABELS == 1].sum(), 0.0], rtol=1e-9)
    np.testing.assert_allclose(metrics["loss"], np.mean((own - goal) ** 2), rtol=1e-9)
