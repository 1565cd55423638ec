"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): one step of the student matches two of the teacher."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion import levels, predictions
from distill import regression
from distill.inputs import Network, clean, condition
from distill.jumps import ddim_step, guided_teacher, inverse_ddim, time_to_level
from distill.method import Method


def objective(network: Network, *, weight: Callable, label_dropout: float = 0.0) -> Callable[..., regression.Problem]:
    """Algorithm 2. hyper["steps"] is the student's number of steps N and hyper["guidance"] the teacher's scale g, traced
    numbers []; frozen["teacher"] holds the teacher's weights.

    i ~ U{0..N-1}, t = (i+1)/N; the teacher makes DDIM steps t -> t - 1/(2N) -> t - 1/N, and the target is the x0 that
    takes the student there in one.
    """
    schedule = network.schedule

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        del state
        key_step, key_noise, key_label = jax.random.split(key, 3)
        x0 = clean(batch)
        steps = jnp.asarray(hyper["steps"], jnp.float32)
        index = jnp.floor(jax.random.uniform(key_step, x0.shape[:1]) * steps)
        # Rounding may lift uniform * N up to N itself.
        time = (jnp.minimum(index, steps - 1.0) + 1.0) / steps
        here, middle, there = (time_to_level(schedule, time - k / (2.0 * steps)) for k in (0, 1, 2))
        eps = jax.random.normal(key_noise, x0.shape, x0.dtype)
        x = levels.forward(x0, eps, here, schedule)
        cond = condition(network, batch, key_label, label_dropout)
        teacher = guided_teacher(network, frozen["teacher"], cond, hyper["guidance"])
        x_middle = ddim_step(schedule, x, teacher(x, here), here, middle)
        x_there = ddim_step(schedule, x_middle, teacher(x_middle, middle), middle, there)
        target = inverse_ddim(schedule, x, x_there, here, there)

        def output(prediction: Array) -> Array:
            return predictions.denoised(network.prediction, prediction, x, here, schedule)

        return regression.Problem(x, here, cond, output, lambda *_: target, weight(here))

    return construct


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    weight: Callable,
    ema: float = 0.0,
    label_dropout: float = 0.0,
) -> Method:
    """Progressive distillation as a `Method`: `next` makes the student the teacher and halves the steps.

    Guidance acts in the first round only: from then on the teacher is a student that has it built in.

    Teacher, N and the learning-rate scale are arguments of the compiled phase, so all halvings share one program. The
    optimiser starts afresh in each round, as in the paper.
    """
    target = objective(network, weight=weight, label_dropout=label_dropout)
    train = regression.phase(network, target, optimiser, ema=ema)
    initial = regression.init(optimiser)

    def following(state: regression.RegressionState, frozen, hyper):
        student = state.ema
        state = initial(jax.random.key(0), student)
        teacher = jax.tree.map(jnp.copy, student)  # the state is donated: the teacher must not share its buffers
        return state, {**frozen, "teacher": teacher}, {**hyper, "steps": hyper["steps"] / 2, "guidance": 1.0}

    return Method(initial, {"train": train}, lambda step: ("train",), following)
