"""Games: a student against a critic that keeps moving. One state, two phases, and the seams that all methods share.

A **field** says how the student's clips are to move: it is the gradient, in the space of clips, of what the method minimises
over them. A step makes clips, moves them against the field and takes one step of regression towards where they ended, which
is the chain rule: distribution matching, score identity, moments, an adversary all differ in their fields only, and the
gradients of several add up. A **critic's term** is what the critic learns from the same clips. Where the student's input comes
from is a third choice (`sources`), and who moves when a fourth (`turns`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from distill.inputs import Network, clean, condition
from distill.jumps import guided_teacher
from distill.method import Loss, Method, Metrics, Phase, Term, descend, descent
from distill.regression import by_level, diversity, finite
from distill.sources import Source, Start

STUDENT, CRITIC = "student", "critic"


class GameState(NamedTuple):
    """params, ema, opt, step: the student's weights, their average, its optimiser's state, its finished updates, [].

    critic: name -> weights ("score", the denoiser of the student's clips; "heads", of a discriminator); critic_opt: of its
    optimiser. It has no average.
    """

    params: PyTree
    ema: PyTree
    opt: Any
    step: Array
    critic: dict[str, PyTree]
    critic_opt: Any


class Scene(NamedTuple):
    """One step as fields and critics see it.

    fake: the student's clips, without a gradient, made of `start`; real: the batch's clips; cond: the conditioning of both.
    critic: as in the state. teacher: (x, logsnr) -> denoised, guided. frozen: as it is given to the phase. told: what the
    critic is conditioned on.
    """

    fake: Array
    start: Start
    real: Array
    cond: Mapping[str, Array]
    critic: Mapping[str, PyTree]
    teacher: Callable[[Array, Array], Array]
    frozen: PyTree

    @property
    def told(self) -> Mapping[str, Array]:
        return {**self.cond, **self.start.told}


Field = Callable[[Scene, Array], tuple[Array, Metrics]]
"""(scene, key) -> (the move of the clips, of their shape; metrics). The student's loss is half its mean square: where the
field is the gradient of a sum over all numbers, that is the gradient of their mean."""
Scale = float | Callable[[Array], Array]
"""How much a field weighs, always or after so many of the student's updates."""
CriticTerm = Callable[[Mapping[str, PyTree], Scene, Array], tuple[Array, Metrics]]
"""(the critic's weights, scene, key) -> (loss, metrics)"""


def absent(x: Array, logsnr: Array) -> Array:
    raise KeyError("a field or a critic of this game asks the teacher: frozen['teacher'] is missing")


def play(network: Network, source: Source, label_dropout: float) -> Callable[..., tuple[Callable, Callable]]:
    """What both phases begin with: (state, frozen, batch, key, hyper) -> (weights -> clips, clips -> scene)."""

    def begin(state: GameState, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree):
        key_cond, key_source, key_dropout = jax.random.split(key, 3)
        real = clean(batch)
        cond = condition(network, batch, key_cond, label_dropout)
        start = source(network, state.params, cond, real, key_source, {**hyper, "step": state.step})
        teacher = absent
        if "teacher" in frozen:
            teacher = guided_teacher(network, frozen["teacher"], cond, hyper.get("guidance", 1.0))

        def clips(params: PyTree) -> Array:
            prediction = network.apply(params, start.x, start.logsnr, dict(start.cond), key=key_dropout, train=True)
            return start.clips(network.denoised(prediction, start.x, start.logsnr))

        def scene(made: Array) -> Scene:
            return Scene(jax.lax.stop_gradient(made), start, real, cond, state.critic, teacher, frozen)

        return clips, scene

    return begin


def student_term(
    network: Network, source: Source, fields: Mapping[str, tuple[Scale, Field]], *, label_dropout: float = 0.0
) -> Term:
    """The student moves its clips against the weighted sum of the fields.

    Metrics: `non_finite`, the clips that a field would have moved to nowhere (they stay); `diversity`, the variance of the
    student's clips in units of that of the batch's, and by the level of their input; `loss_by_level`; the fields' own.
    """
    begin = play(network, source, label_dropout)

    def pose(state: GameState, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree) -> Loss:
        key_play, *keys = jax.random.split(key, 1 + len(fields))
        clips, scene = begin(state, frozen, batch, key_play, hyper)

        def loss(params: PyTree) -> tuple[Array, Metrics]:
            made = clips(params)
            here = scene(made)
            move, metrics = jnp.zeros_like(here.fake), {}
            for (weight, field), field_key in zip(fields.values(), keys, strict=True):
                part, reported = field(here, field_key)
                move += (weight(state.step) if callable(weight) else weight) * part
                metrics |= reported
            move, bad = finite(jax.lax.stop_gradient(move))
            error = 0.5 * jnp.square(made - (here.fake - move))
            spread, comparable = diversity(here.fake, here.real)
            metrics["non_finite"] = jnp.sum(bad)
            metrics["diversity"] = (jnp.where(comparable[0], jnp.mean(spread), 0.0), 1.0 * comparable[0])
            metrics |= by_level("loss", jax.lax.stop_gradient(error), here.start.level, ~bad)
            metrics |= by_level("diversity", spread, here.start.level, comparable)
            return jnp.mean(error), metrics

        return loss

    return pose


def critic_phase(
    network: Network,
    source: Source,
    terms: Mapping[str, tuple[float, CriticTerm]],
    optimiser: optax.GradientTransformation,
    *,
    label_dropout: float = 0.0,
) -> Phase:
    """The critic learns from clips that the student makes, without a gradient in it."""
    begin = play(network, source, label_dropout)

    def pose(state: GameState, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree) -> Loss:
        key_play, *keys = jax.random.split(key, 1 + len(terms))
        clips, scene = begin(state, frozen, batch, key_play, hyper)
        here = scene(clips(state.params))

        def loss(critic: PyTree) -> tuple[Array, Metrics]:
            value, metrics = jnp.zeros(()), {}
            for (weight, term), term_key in zip(terms.values(), keys, strict=True):
                part, reported = term(critic, here, term_key)
                value += weight * part
                metrics |= reported
            return value, metrics

        return loss

    def move(state: GameState, gradient: PyTree, hyper: PyTree) -> GameState:
        critic, opt = descend(optimiser, gradient, state.critic, state.critic_opt, hyper["learning_rate_scale"])
        return state._replace(critic=critic, critic_opt=opt)

    return Phase(pose, lambda state: state.critic, move)


def turns(
    ratio: int, critic_in_student_steps: bool, head_start: int = 0, alone: int = 0
) -> Callable[[int], tuple[str, ...]]:
    """Two time scales: the student moves in the last of every `ratio` steps, after the critic or instead of it.

    The first is the original of DMD2; public re-implementations do the second (FastGen, rCM), where the critic moves
    `ratio` - 1 times for each move of the student. In the first `alone` steps the student moves alone, in the `head_start`
    after them the critic.
    """
    if head_start < 0 or head_start != int(head_start):
        raise ValueError(
            f"head_start: expected a whole number of the critic's first updates, from 0 up, got {head_start}"
        )
    if ratio < 1 or ratio != int(ratio) or (ratio == 1 and not critic_in_student_steps):
        raise ValueError(
            f"ratio: expected a whole number of the critic's updates for each of the student's, from 1 up (from 2 where"
            f" critic_in_student_steps is False: the critic would never move), got {ratio}"
        )

    def order(step: int) -> tuple[str, ...]:
        if step < alone:
            return (STUDENT,)
        step -= alone
        if step < head_start or (step - head_start) % ratio != ratio - 1:
            return (CRITIC,)
        return (CRITIC, STUDENT) if critic_in_student_steps else (STUDENT,)

    return order


COLLAPSE = 0.1
"""Diversity below which a student has collapsed: of eight modes on a ring two neighbours keep .15, one alone next to none."""
ESCAPE = 100.0
"""Diversity above which a student has left the data, for places of which its critic knows nothing."""
PATIENCE = 20
"""Reports after which a student that has never left the mean, where one of a single call begins, is said to have collapsed."""


def alarm(history: Sequence[Mapping[str, float]]) -> str | None:
    """One line where the student's clips have lost their variance, or the data: its loss may look well, since its critic
    follows it.
    """
    seen = [metrics[name] for metrics in history if (name := f"{STUDENT}/diversity") in metrics]
    if seen and seen[-1] > ESCAPE:
        return f"the student has left the data: its clips have {seen[-1]:.2g} times the variance of theirs"
    if not seen or seen[-1] >= COLLAPSE or (max(seen) < 2 * COLLAPSE and len(seen) < PATIENCE):
        return None
    return f"the student has collapsed: its clips have {seen[-1]:.2g} of the variance of the data's"


def method(
    network: Network,
    *,
    source: Source,
    fields: Mapping[str, tuple[Scale, Field]],
    critic: Mapping[str, Callable[[Array, PyTree], PyTree]],
    critic_terms: Mapping[str, tuple[float, CriticTerm]],
    optimiser: optax.GradientTransformation,
    critic_optimiser: optax.GradientTransformation | None,
    order: Callable[[int], tuple[str, ...]],
    ema: float,
    label_dropout: float = 0.0,
    further: Mapping[str, tuple[float, Term]] | None = None,
) -> Method:
    """A game as a `Method` with the phases `critic` and `student`.

    critic: name -> (key, the weights of a denoiser) -> the first weights of a part. critic_optimiser: None is the student's
    rule. further: terms of the student's loss beside the game.

    Its init takes the denoiser that the critic begins as, a teacher's weights, as a third argument; without it that is the
    student.
    """
    critic_optimiser = optimiser if critic_optimiser is None else critic_optimiser
    terms = {"": (1.0, student_term(network, source, fields, label_dropout=label_dropout)), **(further or {})}
    phases = {
        CRITIC: critic_phase(network, source, critic_terms, critic_optimiser, label_dropout=label_dropout),
        STUDENT: descent(terms, optimiser, ema=ema),
    }

    def init(key: Array, params: PyTree, denoiser: PyTree | None = None) -> GameState:
        keys = jax.random.split(key, max(1, len(critic)))[: len(critic)]
        denoiser = params if denoiser is None else denoiser
        parts = {name: make(part_key, denoiser) for (name, make), part_key in zip(critic.items(), keys, strict=True)}
        # A copy: the state is donated whole, so no two of its trees may share a buffer.
        ema_params = jax.tree.map(jnp.copy, params)
        return GameState(
            params, ema_params, optimiser.init(params), jnp.zeros((), jnp.int32), parts, critic_optimiser.init(parts)
        )

    return Method(init, phases, order, alarm=alarm)


def copied(key: Array, denoiser: PyTree) -> PyTree:
    """A critic that begins as a denoiser that there is."""
    del key
    return jax.tree.map(jnp.copy, denoiser)


def per_clip(numbers: Array) -> Array:
    """[b], the mean over each clip."""
    return jnp.mean(numbers, tuple(range(1, numbers.ndim)))
