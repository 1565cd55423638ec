"""Guidance distilled: one call for what takes a guided teacher two, with the scale as an input (Meng et al. 2022, 2210.03142).

The first of their two stages. The second is progressive distillation of this student.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion import levels
from distill import regression
from distill.inputs import Network, check_range, clean, conditioned
from distill.jumps import guided_teacher
from distill.method import Method


def objective(
    network: Network,
    *,
    law: Callable,
    weight: Callable[[Array], Array],
    guidance_range: Sequence[float],
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """Their eq. 4: the student, told g, is to give u + g (c - u) of frozen["teacher"], g uniform in the range, one per clip.

    Their weight is levels.truncated_snr(); their scale w is g - 1, from 0 to 4 for pixels. hyper needs nothing. Where a
    label is dropped the answer is u for every g, so the student keeps the unconditional model.

    Logged: `gap` by level, the squared distance from the guided teacher without the weight.
    """
    schedule = network.schedule

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        del state
        key_level, key_noise, key_cond = jax.random.split(key, 3)
        x0 = clean(batch)
        logsnr = law(key_level, x0.shape[:2] if per_frame else x0.shape[:1])
        logsnr = jnp.clip(logsnr, schedule.logsnr_start, schedule.logsnr_end)
        x = levels.forward(x0, network.noise(key_noise, x0.shape, x0.dtype), logsnr, schedule)
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        goal = guided_teacher(network, frozen["teacher"], teacher_cond, scale)(x, logsnr)

        def report(primal: Array, tangent: Array | None) -> regression.Report:
            return {"gap": ((primal - goal) ** 2, None)}

        return regression.Problem(
            x,
            logsnr,
            cond,
            lambda answer: network.denoised(answer, x, logsnr),
            lambda *_: goal,
            weight(logsnr),
            report=report,
        )

    return construct


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    law: Callable,
    weight: Callable[[Array], Array],
    guidance_range: Sequence[float] = (1.0, 5.0),
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """Guidance distillation as a `Method`; the student's network takes "guidance"."""
    target = objective(
        network, law=law, weight=weight, guidance_range=check_range(network, tuple(guidance_range)),
        label_dropout=label_dropout, per_frame=per_frame,
    )  # fmt: skip
    return regression.method(network, target, optimiser, ema=ema)
