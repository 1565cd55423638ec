"""What a training method is: four pure functions over explicit state.

A method knows networks only as functions. Everything that may change between two calls without a new program
(weights of a teacher, number of steps, guidance, learning-rate scale) is an argument: `frozen` for trees of weights
that are not trained here, `hyper` for traced scalars.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

State = Any
Metrics = dict[str, Array | tuple[Array, Array]]
"""name -> a number, or a pair (sum, count) where a mean over a step's own count would be wrong."""


class Method(NamedTuple):
    """A training method as data.

    init(key, params) -> state: a NamedTuple with at least `params`, `ema` and `step`; donated and checkpointed whole.
    phases: name -> phase(state, frozen, batch, key, hyper) -> (state, metrics). Each is compiled once. `frozen` holds
        teachers and feature networks (never donated), `hyper` traced scalars.
    order(step) -> names of the phases of this step, in order.
    next(state, frozen, hyper) -> the same for the next round, or None where a method has a single round.
    """

    init: Callable[[Array, PyTree], State]
    phases: Mapping[str, Callable[..., tuple[State, Metrics]]]
    order: Callable[[int], tuple[str, ...]]
    next: Callable[..., tuple[State, PyTree, dict[str, Array]]] | None = None


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
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Adam(W) with gradient clipping and a learning rate that is constant, or falls to 0 linearly or as a cosine.

    A phase sees the global batch, so the clip acts after the global mean. The schedule's count lives in the optimiser
    state: a fresh state starts a fresh schedule (each halving of progressive distillation does that).
    """
    shapes = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, max(steps, 1)),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, max(steps, 1)),
    }
    if decay not in shapes:
        raise ValueError(f"optimiser decay {decay!r} is not known; choose one of {sorted(shapes)}")
    schedule = shapes[decay]()
    if warmup:
        main = schedule

        def schedule(count):
            return main(count) * jnp.minimum(1.0, (count + 1) / warmup)

    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.adamw(schedule, b1=betas[0], b2=betas[1], weight_decay=weight_decay),
    )
