"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512): one step of the student matches two of the teacher."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion import levels
from distill import regression
from distill.inputs import Network, check_range, clean, conditioned
from distill.jumps import ddim_step, estimate, guided_teacher, inverse_ddim, uniform_clock
from distill.method import Method
from distill.pairs import whole


def objective(
    network: Network,
    *,
    weight: Callable,
    guidance_range: Sequence[float] | None = None,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """Algorithm 2. hyper["steps"] is the student's number of steps N and hyper["guidance"] the teacher's scale g, traced
    numbers []; frozen["teacher"] holds the teacher's weights.

    i ~ U{0..N-1}, t = (i+1)/N; the teacher makes DDIM steps t -> t - 1/(2N) -> t - 1/N, and the target is the x0 that
    takes the student there in one. per_frame: every frame has an i of its own.

    guidance_range: the second stage of Meng et al. 2022 (arXiv 2210.03142). Teacher and student are both told g as
    cond["guidance"], drawn per clip; the teacher is a student of `guided`, and no call is made twice.

    Logged: `gap` by level, the squared distance from the target without the weight.
    """
    schedule, clock = network.schedule, uniform_clock(network.schedule)

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        del state
        key_step, key_noise, key_cond = jax.random.split(key, 3)
        x0 = clean(batch)
        steps = jnp.asarray(hyper["steps"], x0.dtype)
        time = (whole(key_step, x0.shape[: 2 if per_frame else 1], steps) + 1.0) / steps
        here, middle, there = (clock(time - k / (2.0 * steps)) for k in (0, 1, 2))
        eps = network.noise(key_noise, x0.shape, x0.dtype)
        x = levels.forward(x0, eps, here, schedule)
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        if guidance_range is None:
            teacher = guided_teacher(network, frozen["teacher"], teacher_cond, scale)
        else:
            teacher = estimate(network, frozen["teacher"], cond)
        x_middle = ddim_step(schedule, x, teacher(x, here), here, middle)
        x_there = ddim_step(schedule, x_middle, teacher(x_middle, middle), middle, there)
        goal = inverse_ddim(schedule, x, x_there, here, there)

        def report(primal: Array, tangent: Array | None) -> regression.Report:
            return {"gap": ((primal - goal) ** 2, None)}

        return regression.Problem(
            x,
            here,
            cond,
            lambda answer: network.denoised(answer, x, here),
            lambda *_: goal,
            weight(here),
            report=report,
        )

    return construct


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    weight: Callable,
    guidance_range: Sequence[float] | None = None,
    ema: float = 0.0,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Progressive distillation as a `Method`: `next` makes the student the teacher and halves the steps.

    hyper["guidance"] acts in the first round only: from then on the teacher is a student that has it built in. With
    guidance_range it is an input of teacher and student in every round.

    Teacher, N and the learning-rate scale are arguments of the compiled phase, so all halvings share one program. The
    optimiser starts afresh in each round, as in the paper.
    """
    target = objective(
        network, weight=weight, guidance_range=check_range(network, guidance_range), label_dropout=label_dropout,
        per_frame=per_frame,
    )  # fmt: skip
    one = regression.method(network, target, optimiser, ema=ema)

    def following(state: regression.RegressionState, frozen, hyper):
        if hyper["steps"] % 2:
            raise ValueError(f"progressive: no round follows that of {hyper['steps']:g} steps, which can't be halved")
        state, teacher = regression.succeed(one.init, state)
        return state, {**frozen, "teacher": teacher}, {**hyper, "steps": hyper["steps"] / 2, "guidance": 1.0}

    return one._replace(next=following)
