"""What teachers and students of every method share: DDIM's jump between two levels, its inverse, a guided teacher."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion import guidance, predictions
from diffusion.levels import expand
from diffusion.schedules import Schedule
from distill.inputs import Network


def ddim_step(schedule, x: Array, denoised: Array, logsnr: Array, logsnr_to: Array) -> Array:
    """One deterministic DDIM step (Salimans & Ho, eq. 8): sigma_t/sigma_s x + (alpha_t - sigma_t/sigma_s alpha_s) x0."""
    ratio = schedule.sigma(logsnr_to) / schedule.sigma(logsnr)
    return expand(ratio, x) * x + expand(schedule.alpha(logsnr_to) - ratio * schedule.alpha(logsnr), x) * denoised


def inverse_ddim(schedule, x: Array, x_to: Array, logsnr: Array, logsnr_to: Array) -> Array:
    """The x0 with which one DDIM step from x lands on x_to (Appendix G): (z'' - r z) / (a'' - r a), r = sigma''/sigma.

    At a clean end (sigma'' = 0) it is x_to / alpha'' itself, so the last step needs no case of its own.
    """
    ratio = schedule.sigma(logsnr_to) / schedule.sigma(logsnr)
    return (x_to - expand(ratio, x) * x) / expand(schedule.alpha(logsnr_to) - ratio * schedule.alpha(logsnr), x)


def ancestral_step(schedule, x: Array, denoised: Array, logsnr: Array, logsnr_to: Array, eps: Array) -> Array:
    """A draw of q(x_s | x_t, x0), which keeps the marginals if x0 has the law of the data given x (Ho et al. 2020, eq. 6-7).

    With r = SNR_t / SNR_s: sqrt(r) sigma_s/sigma_t x_t + (1 - r) alpha_s x0 + sigma_s sqrt(1 - r) eps, in any scaling.
    """
    # Rounding may put levels that are one ulp apart in the wrong order.
    ratio = jnp.exp(jnp.minimum(logsnr - logsnr_to, 0.0))
    alpha, sigma = schedule.alpha(logsnr_to), schedule.sigma(logsnr_to)
    kept = expand(jnp.sqrt(ratio) * sigma / schedule.sigma(logsnr), x) * x
    return kept + expand((1 - ratio) * alpha, x) * denoised + expand(sigma * jnp.sqrt(1 - ratio), x) * eps


def estimate(network: Network, params, cond: Mapping[str, Array]) -> Callable[[Array, Array], Array]:
    """A network's denoiser as it is, (x, logsnr) -> denoised."""
    return predictions.denoiser(
        network.apply, params, dict(cond), schedule=network.schedule, prediction=network.prediction
    )


def guided_teacher(
    network: Network, params, cond: Mapping[str, Array], scale: float | Array
) -> Callable[[Array, Array], Array]:
    """The teacher's denoiser with classifier-free guidance u + g (c - u); at g = 1 the call for u is not made.

    A student of a guided teacher needs no guidance of its own (Meng et al. 2023, with one g for all). network: the student's,
    which says what the teacher's is; a history is for those that take one. `params` may also be a denoiser itself,
    (x, logsnr) -> denoised as a `jax.tree_util.Partial`: an exact teacher, which has no guidance.
    """
    if callable(params):
        return params
    judge = network.judge
    cond = {name: value for name, value in cond.items() if name != "history" or judge.forced}
    conditional = estimate(judge, params, cond)
    if not judge.num_classes:
        return conditional
    unconditional = estimate(judge, params, {**cond, "label": jnp.full_like(cond["label"], judge.num_classes)})

    def denoise(x: Array, logsnr: Array) -> Array:
        # Once for both branches: a network is a large part of a program, and of the time that it takes to compile.
        told = conditional(x, logsnr)
        guided = guidance.classifier_free(lambda *_: told, unconditional, scale)
        return jax.lax.cond(jnp.all(scale == 1.0), lambda *_: told, guided, x, logsnr)

    return denoise


def uniform_clock(schedule: Schedule, boundary: float | None = None) -> Callable[[Array], Array]:
    """Time in [0, 1] -> log-SNR, as grids.uniform_time steps: the schedule's own time, stretched from the boundary (0; the
    schedule's clean end by default) to its noisy end (1).
    """
    boundary = schedule.logsnr_end if boundary is None else boundary
    first, last = float(schedule.time(schedule.logsnr_start)), float(schedule.time(boundary))

    def clock(time: Array) -> Array:
        level = schedule.logsnr(last + jnp.clip(time, 0.0, 1.0) * (first - last))
        return jnp.clip(level, schedule.logsnr_start, boundary)

    return clock
