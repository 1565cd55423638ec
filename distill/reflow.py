"""Reflow: rectified flow on pairs that a teacher's own flow makes (Liu et al. 2022, arXiv 2209.03003; InstaFlow, 2309.06380).

A teacher carries each noise to one clip. Trained on the straight lines between the two, a student has fewer crossings to
average over, so its own flow is straighter and takes fewer steps; a second stage, with the first student as teacher, is
2-reflow. The pairs are made inside the step, so nothing is stored and no pair is seen twice.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array

from diffusion import grids, levels, sampling, solvers
from diffusion.levels import expand
from diffusion.solvers import Table
from distill import regression
from distill.inputs import Network, check_range, conditioned
from distill.jumps import guided_teacher
from distill.method import Method, choice, whole_number
from distill.regression import finite

SOLVERS = {"ddim": solvers.ddim, "dpmpp": solvers.dpmpp, "unipc": solvers.unipc}
"""name -> (schedule, grid) -> the deterministic sampler that makes the pairs, one call a step."""


def objective(
    network: Network,
    *,
    law: Callable,
    weight: Callable[[Array], Array],
    table: Table,
    guidance_range: Sequence[float] | None = None,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """Denoising with the teacher's sample as the clean clip and the noise that it came from as the noise.

    frozen["teacher"], guided at hyper["guidance"] or at a g per clip that the student is told, is sampled by `table`, a
    deterministic sampler whose calls are part of every update. Of the batch only shape and labels are used. On straight
    lines x = alpha x0 + sigma eps, and any prediction's error is a weight of that of x0; levels.velocity() is the paper's.

    There is no gap to the teacher to log:
    the student's field is to differ from its teacher's, and the loss in velocity itself is what is left to straighten.
    """
    schedule = network.schedule

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        key_level, key_noise, key_cond = jax.random.split(key, 3)
        shape = batch["video"].shape
        eps = network.noise(key_noise, shape, jnp.result_type(float))
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        teacher = guided_teacher(network, frozen["teacher"], teacher_cond, scale)
        x0, bad = finite(coupled(schedule, teacher, table, eps))
        logsnr = jnp.clip(law(key_level, shape[: 2 if per_frame else 1]), schedule.logsnr_start, schedule.logsnr_end)
        x = levels.forward(x0, eps, logsnr, schedule)

        return regression.Problem(
            x,
            logsnr,
            cond,
            lambda answer: network.denoised(answer, x, logsnr),
            # The student's input had to be finite all the same.
            lambda *_: jnp.where(expand(bad, x0), jnp.nan, x0),
            weight(logsnr),
        )

    return construct


def coupled(schedule, teacher: Callable[[Array, Array], Array], table: Table, eps: Array) -> Array:
    """The clean clip to which the teacher's sampler carries the noise `eps`, of unit variance.

    The table goes from the schedule's noisy end to its clean one. At the first the noisy clip has the variance of the noise
    and of what is left of a clip of variance one; at the last only the scale is undone, as in every sample.
    """
    start, end = schedule.logsnr_start, schedule.logsnr_end
    x = eps * np.asarray(schedule.size(start), eps.dtype)
    return sampling.sample(Partial(teacher), table, x) / np.asarray(schedule.alpha(end), eps.dtype)


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    law: Callable,
    weight: Callable[[Array], Array],
    steps: int = 16,
    solver: str = "dpmpp",
    guidance_range: Sequence[float] | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Reflow as a `Method`: the pair costs `steps` calls of the teacher, on a grid uniform in the schedule's time."""
    check_range(network, guidance_range)
    whole_number("steps", steps)
    build = choice(solver, SOLVERS, "solver")
    table = build(network.schedule, grids.uniform_time(network.schedule, steps))
    target = objective(
        network, law=law, weight=weight, table=table, guidance_range=guidance_range, label_dropout=label_dropout,
        per_frame=per_frame,
    )  # fmt: skip
    return regression.method(network, target, optimiser, ema=ema)
