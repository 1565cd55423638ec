"""What a training method is: four pure functions over explicit state.

A method knows networks only as functions. Everything that may change between two calls without a new program
(weights of a teacher, number of steps, guidance, learning-rate scale) is an argument: `frozen` for trees of weights
that are not trained here, `hyper` for traced scalars.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from diffusion.names import choice

State = Any
Metrics = dict[str, Array | tuple[Array, Array]]
"""name -> a number, or a pair (sum, count) where a mean over a step's own count would be wrong."""
Loss = Callable[[PyTree], tuple[Array, Metrics]]
"""weights -> (loss, metrics)"""
Term = Callable[..., Loss]
"""(state, frozen, batch, key, hyper) -> the Loss of this step; what needs no gradient is done outside of it."""


class Method(NamedTuple):
    """A training method as data.

    init(key, params) -> state: a NamedTuple with at least `params`, `ema` and `step`; donated and checkpointed whole.
    phases: name -> phase(state, frozen, batch, key, hyper) -> (state, metrics), see `Phase`. Each is compiled once. `frozen`
        holds teachers and feature networks (never donated), `hyper` traced scalars.
    order(step) -> names of the phases of this step, in order.
    next(state, frozen, hyper) -> the same for the next round, or None where a method has a single round.
    alarm(the metrics of all reports) -> a line about a run that has gone wrong without a NaN, or None.
    """

    init: Callable[[Array, PyTree], State]
    phases: Mapping[str, Callable[..., tuple[State, Metrics]]]
    order: Callable[[int], tuple[str, ...]]
    next: Callable[..., tuple[State, PyTree, dict[str, Array]]] | None = None
    alarm: Callable[[Sequence[Mapping[str, float]]], str | None] = lambda history: None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase as data: (state, frozen, batch, key, hyper) -> (state, metrics with `loss` and `grad_norm`).

    pose: the loss of a batch. weights: state -> the tree that moves. move: (state, gradient of weights(state), hyper) ->
    state, one update of the optimiser.
    parts: of how many microbatches the gradient is the mean, one after another, each with a key of its own: the memory is
    that of one. What a loss measures over its batch (a normaliser, a mean density ratio) is then measured over a microbatch.
    """

    pose: Term
    weights: Callable[[State], PyTree]
    move: Callable[[State, PyTree, PyTree], State]
    parts: int = 1

    def __call__(self, state: State, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree) -> tuple[State, Metrics]:
        weights = self.weights(state)

        def slope(batch: PyTree, key: Array) -> tuple[PyTree, Metrics]:
            loss = self.pose(state, frozen, batch, key, hyper)
            (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
            return gradient, {"loss": value, **metrics}

        gradient, metrics = slope(batch, key) if self.parts == 1 else mean_slope(slope, weights, batch, key, self.parts)
        return self.move(state, gradient, hyper), {**metrics, "grad_norm": optax.global_norm(gradient)}


def mean_slope(
    slope: Callable[[PyTree, Array], tuple[PyTree, Metrics]], weights: PyTree, batch: PyTree, key: Array, parts: int
) -> tuple[PyTree, Metrics]:
    """The mean of a batch's `parts` gradients, and its metrics: numbers are averaged, whole numbers and pairs are added up.

    Part i has the rows i, i + parts, ... and fold_in(key, i): of a batch in pieces on many devices each has its share of every
    part, and no row travels. Raises ValueError for a batch that `parts` does not divide.
    """
    size = len(jax.tree.leaves(batch)[0])
    if size % parts:
        raise ValueError(f"a batch of {size} is not divisible into {parts} microbatches")
    pieces = jax.tree.map(lambda rows: jnp.moveaxis(rows.reshape(-1, parts, *rows.shape[1:]), 1, 0), batch)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(parts))

    def add(total: PyTree, piece: tuple[PyTree, Array]) -> tuple[PyTree, Metrics]:
        gradient, metrics = slope(*piece)
        return jax.tree.map(jnp.add, total, gradient), metrics

    total, seen = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), (pieces, keys))

    def one(rows: Array | tuple[Array, Array]) -> Array | tuple[Array, Array]:
        if isinstance(rows, tuple):
            return jnp.sum(rows[0], 0), jnp.sum(rows[1], 0)
        return jnp.sum(rows, 0) if jnp.issubdtype(rows.dtype, jnp.integer) else jnp.mean(rows, 0)

    return jax.tree.map(lambda g: g / parts, total), {name: one(rows) for name, rows in seen.items()}


def accumulating(method: Method, parts: int) -> Method:
    """The same method with every gradient of its phases made of `parts` microbatches."""
    if parts == 1:
        return method
    return method._replace(
        phases={name: dataclasses.replace(phase, parts=parts) for name, phase in method.phases.items()}
    )


def descend(
    optimiser: optax.GradientTransformation, gradient: PyTree, params: PyTree, opt: Any, scale: Array | float
) -> tuple[PyTree, Any]:
    """One update: (params, the optimiser's state). scale: [], of the learning rate."""
    update, opt = optimiser.update(gradient, opt, params)
    update = jax.tree.map(lambda u: u * scale, update)
    return optax.apply_updates(params, update), opt


def descent(terms: Mapping[str, tuple[float, Term]], optimiser: optax.GradientTransformation, *, ema: float) -> Phase:
    """The step of a student: down the weighted sum of its terms, then the average of its weights.

    terms: name -> (weight, term); a term's metrics stand under `name_`, those of the one named "" as they are. The state is
    any NamedTuple with params, ema, opt and step, the finished updates. hyper["learning_rate_scale"], [], scales the update.
    ema: the decay of the average, from 0 up to 1, without 1.
    """
    number("ema", ema, 0.0, 1.0)

    def pose(state: State, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree) -> Loss:
        keys = jax.random.split(key, len(terms)) if len(terms) > 1 else [key]
        losses = {
            name: (weight, term(state, frozen, batch, key, hyper))
            for (name, (weight, term)), key in zip(terms.items(), keys, strict=True)
        }

        def total(params: PyTree) -> tuple[Array, Metrics]:
            value, metrics = jnp.zeros(()), {}
            for name, (weight, loss) in losses.items():
                part, reported = loss(params)
                value += weight * part
                metrics |= {f"{name}_{k}" if name else k: v for k, v in reported.items()}
                if len(losses) > 1:
                    metrics[f"{name}_loss" if name else "own_loss"] = part
            return value, metrics

        return total

    def move(state: State, gradient: PyTree, hyper: PyTree) -> State:
        params, opt = descend(optimiser, gradient, state.params, state.opt, hyper["learning_rate_scale"])
        averaged = exponential_moving_average(state.ema, params, state.step, ema)
        return state._replace(params=params, ema=averaged, opt=opt, step=state.step + 1)

    return Phase(pose, lambda state: state.params, move)


def exponential_moving_average(ema: PyTree, params: PyTree, step: Array, decay: float) -> PyTree:
    """EMA of the weights with a ramp: the decay is min(decay, (1 + step) / (10 + step)).

    The ramp keeps the random initial weights out of the average of a short run; it is the warm-up of TensorFlow's
    ExponentialMovingAverage (`num_updates`). `step` counts finished updates, [].
    """
    beta = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: e + (1.0 - beta) * (p - e), ema, params)


def optimiser(
    learning_rate: float,
    *,
    steps: int = 0,
    warmup: int = 0,
    decay: str = "constant",
    clip: float = 1.0,
    betas: Sequence[float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam(W) with gradient clipping and a learning rate that is constant, or falls to 0 linearly or as a cosine.

    A phase sees the global batch, so the clip acts after the global mean. The schedule's count lives in the optimiser
    state: a fresh state starts a fresh schedule (each halving of progressive distillation does that).

    clip: of the gradient's norm, 0 for none. Raises ValueError for a number that can't be right.
    """
    number("learning_rate", learning_rate, 0.0, open_=True)
    for name, value in (("steps", steps), ("warmup", warmup), ("clip", clip), ("weight_decay", weight_decay)):
        number(name, value, 0.0)
    if not isinstance(betas, Sequence) or len(betas) != 2:
        raise ValueError(f"betas: expected two numbers, as (0.9, 0.99), got {betas!r}")
    for value in betas:
        number("betas", value, 0.0, 1.0)
    shapes = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, max(steps, 1)),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, max(steps, 1)),
    }
    schedule = choice(decay, shapes, "optimiser decay")()
    if warmup:
        main = schedule

        def schedule(count):
            return main(count) * jnp.minimum(1.0, (count + 1) / warmup)

    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(schedule, b1=betas[0], b2=betas[1], weight_decay=weight_decay),
    )


def number(name: str, value: Any, least: float, below: float = math.inf, *, open_: bool = False) -> None:
    """A ValueError unless `value` is a number from `least` (if `open_`, above it) up to `below`, without it."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not least <= value < below or (open_ and value == least):
        start = f"above {least:g}" if open_ else f"from {least:g} up"
        end = "" if below == math.inf else f", below {below:g}"
        raise ValueError(f"{name}: expected a number {start}{end}, got {value!r}")


def whole_number(name: str, value: Any, least: int = 1) -> None:
    """A ValueError unless `value` is a whole number from `least` up."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"{name}: expected a whole number from {least} up, got {value!r}")
