"""What a training method is: four pure functions over explicit state.

A method knows networks only as functions. Everything that may change between two calls without a new program
(weights of a teacher, number of steps, guidance, learning-rate scale) is an argument: `frozen` for trees of weights
that are not trained here, `hyper` for traced scalars.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

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
    phases: name -> phase(state, frozen, batch, key, hyper) -> (state, metrics). Each is compiled once. `frozen` holds
        teachers and feature networks (never donated), `hyper` traced scalars.
    order(step) -> names of the phases of this step, in order.
    next(state, frozen, hyper) -> the same for the next round, or None where a method has a single round.
    alarm(the metrics of all reports) -> a line about a run that has gone wrong without a NaN, or None.
    """

    init: Callable[[Array, PyTree], State]
    phases: Mapping[str, Callable[..., tuple[State, Metrics]]]
    order: Callable[[int], tuple[str, ...]]
    next: Callable[..., tuple[State, PyTree, dict[str, Array]]] | None = None
    alarm: Callable[[Sequence[Mapping[str, float]]], str | None] = lambda history: None


def descend(
    optimiser: optax.GradientTransformation, loss: Loss, params: PyTree, opt: Any, scale: Array | float
) -> tuple[PyTree, Any, Metrics]:
    """One update: (params, the optimiser's state, metrics with `loss` and `grad_norm`). scale: [], of the learning rate."""
    (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    update, opt = optimiser.update(gradient, opt, params)
    update = jax.tree.map(lambda u: u * scale, update)
    params = optax.apply_updates(params, update)
    return params, opt, {"loss": value, "grad_norm": optax.global_norm(gradient), **metrics}


def descent(
    terms: Mapping[str, tuple[float, Term]], optimiser: optax.GradientTransformation, *, ema: float
) -> Callable[..., tuple[State, Metrics]]:
    """The step of a student: down the weighted sum of its terms, then the average of its weights.

    terms: name -> (weight, term); a term's metrics stand under `name_`, those of the one named "" as they are. The state is
    any NamedTuple with params, ema, opt and step, the finished updates. hyper["learning_rate_scale"], [], scales the update.
    """

    def step(state: State, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree):
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

        params, opt, metrics = descend(optimiser, total, state.params, state.opt, hyper["learning_rate_scale"])
        averaged = exponential_moving_average(state.ema, params, state.step, ema)
        return state._replace(params=params, ema=averaged, opt=opt, step=state.step + 1), metrics

    return step


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


def choice(name: str, choices: Mapping[str, Any], what: str) -> Any:
    """choices[name], or a ValueError with the nearest name."""
    if name not in choices:
        near = difflib.get_close_matches(str(name), choices, 1, 0)[0]
        raise ValueError(f"{what} {name!r} is not known: expected one of {', '.join(choices)}; nearest: {near!r}")
    return choices[name]
