"""Frames that are known while others are sampled: replacement, reconstruction guidance, history guidance.

All wrap a denoiser, as `guidance` does, and show it the known frames at levels of their own choosing; with levels per frame
the plain way is no wrapper at all: a column of one level in the schedule matrix (`frames.known`), exact for a network that was
trained with independent levels. What these are for: networks that know only one level for all frames (`replacement`,
`reconstruction`), and the strength of the history's hold (`guided`).

known: the clean frames [b|1, f, ...], anything where they are not known. where: [f], which frames are. eps: the noise that
known frames are shown with, [b|1, f, ...], the same at every call, so that a deterministic sampler stays one.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from diffusion import levels, sampling
from diffusion.schedules import Schedule

Denoiser = Callable[..., Array]
Clip = Float[Array, "b f ..."] | Float[np.ndarray, "b f ..."]
Where = np.ndarray


def replacement(denoise: Denoiser, schedule: Schedule, known: Clip, where: Where, eps: Clip) -> Partial:
    """Known frames are put in place of what the sampler has there, noised to its level (Ho et al. 2022, Video Diffusion
    Models, arXiv 2204.03458, section 3.1, eq. 7 without the guidance).

    Not conditioning: the network is shown a joint sample whose known part was drawn without regard to the rest. The samples'
    mean is off at any number of steps.
    """
    return Partial(_Replacement(schedule), sampling.tree(denoise), known, _mask(where, known), eps)


def reconstruction(
    denoise: Denoiser, schedule: Schedule, known: Clip, where: Where, eps: Clip, weight: float | int = 2.0
) -> Partial:
    """`replacement`, and what is estimated moves along the gradient of the error that it makes on the known frames:
    denoised + weight alpha J^T (known - denoised known), J the derivative of the estimate by the noisy frames (Ho et al. 2022,
    arXiv 2204.03458, eq. 7: from q(known | x) taken as N(its estimate, sigma^2 / alpha^2), weight 1).

    One derivative backwards for each call. The weight that fits depends on the data; none makes it exact.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"reconstruction: expected a weight from 0 up, got {weight}")
    return Partial(_Reconstruction(schedule), sampling.tree(denoise), known, _mask(where, known), eps, float(weight))


def guided(
    denoise: Denoiser,
    schedule: Schedule,
    known: Clip,
    where: Where,
    eps: Clip,
    parts: Sequence[tuple[float, Any]],
) -> Partial:
    """History guidance: sum_i w_i denoised(with the known frames at level_i), for parts (w_i, level_i) whose weights sum to 1.

    One network evaluation a part, of a network with levels per frame (Song et al. 2025, arXiv 2502.06764, section 5). A level
    is a log-SNR for all known frames or [f], one for each: +inf shows them clean, -inf hides them. `vanilla`, `fractional`
    and `temporal` make the parts.
    """
    total = sum(weight for weight, _ in parts)
    if not abs(total - 1) < 1e-6:
        raise ValueError(
            f"guided: the weights of the parts must sum to 1, got {[w for w, _ in parts]}, {total:.6g} in all"
        )
    frames = known.shape[1]
    shown = []
    for _, level in parts:
        if np.shape(level) not in ((), (frames,)):
            raise ValueError(f"guided: a part's level is one log-SNR or [{frames}], got shape {np.shape(level)}")
        if not np.isfinite(schedule.sigma(np.asarray(level, np.float64))).all():
            raise ValueError(
                f"guided: at level {level} this schedule's noise is infinite, which no network can be shown; hide history at a"
                f" finite level, as hidden={schedule.logsnr_start:g}"
            )
        shown.append(np.broadcast_to(np.asarray(level, np.float64), (frames,)))
    weights = tuple(float(weight) for weight, _ in parts)
    return Partial(_Guided(schedule), sampling.tree(denoise), known, _mask(where, known), eps, weights, np.stack(shown))


def within(
    way: Callable[..., Partial], denoise: Denoiser, schedule: Schedule, history: int, eps: Clip, **options: Any
) -> Partial:
    """`way` (`replacement`, `reconstruction` or `guided`, with its options) for a window that rolls on (`frames.roll_out`):
    known is what stands, clean, in the window's first `history` frames at each call.

    Replacement and reconstruction, for networks of one level, tell the network that of the window's last frame for all.
    """
    if history < 1:
        raise ValueError(f"within: expected at least one known frame, got history {history}")
    made = way(denoise, schedule, eps, np.arange(eps.shape[1]) < history, eps, **options)
    denoise, _, mask, eps, *numbers = made.args
    return Partial(_Within(made.func), denoise, mask, eps, tuple(numbers))


def vanilla(scale: float, clean: float = math.inf, hidden: float = -math.inf) -> list[tuple[float, float]]:
    """g in u + g (c - u): history shown clean, against none (HG-v)."""
    return [(1.0, clean)] if scale == 1.0 else [(scale, clean), (1.0 - scale, hidden)]


def fractional(
    scale: float, partly: float, clean: float = math.inf, hidden: float = -math.inf
) -> list[tuple[float, float]]:
    """c + (g - 1) (history at the level `partly` - none): guided by its low frequencies only, which keeps motion (HG-f)."""
    return [(1.0, clean)] if scale == 1.0 else [(1.0, clean), (scale - 1.0, partly), (1.0 - scale, hidden)]


def temporal(
    histories: Sequence[tuple[float, Where]], clean: float = math.inf, hidden: float = -math.inf
) -> list[tuple[float, Any]]:
    """u + sum_i w_i (c_i - u), c_i with only the frames where_i [f] of the history shown: short memories together (HG-t)."""
    parts: list[tuple[float, Any]] = [(float(w), np.where(where, clean, hidden)) for w, where in histories]
    rest = 1.0 - sum(weight for weight, _ in parts)
    return parts if abs(rest) < 1e-9 else [*parts, (rest, hidden)]


# What is called ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Shown:
    """The static part of a wrapper, compared by value."""

    schedule: Schedule

    def show(self, known, mask, eps, x, level):
        """x with the known frames at `level` in place of its own."""
        known, eps = (jnp.broadcast_to(part, x.shape) for part in (known, eps))
        noisy = levels.forward(known, eps, level, self.schedule).astype(x.dtype)
        return jnp.where(levels.expand(mask, x) > 0, noisy, x)


class _Replacement(_Shown):
    def __call__(self, denoise, known, mask, eps, x, logsnr, *rest):
        return _put(mask, known, denoise(self.show(known, mask, eps, x, logsnr), logsnr, *rest))


class _Reconstruction(_Shown):
    def __call__(self, denoise, known, mask, eps, weight, x, logsnr, *rest):
        shown = self.show(known, mask, eps, x, logsnr)
        denoised, backwards = jax.vjp(lambda x: denoise(x, logsnr, *rest), shown)
        error = jnp.where(levels.expand(mask, x) > 0, known.astype(denoised.dtype) - denoised, 0)
        alpha = jnp.asarray(levels.expand(self.schedule.alpha(jnp.asarray(logsnr, x.dtype)), x))
        return _put(mask, known, denoised + weight * alpha * backwards(error)[0])


class _Guided(_Shown):
    def __call__(self, denoise, known, mask, eps, weights, shown, x, logsnr, *rest):
        own = jnp.asarray(logsnr, x.dtype)
        own = own.reshape(own.shape + (1,) * (2 - own.ndim))
        total = jnp.zeros_like(x)
        for weight, level in zip(weights, shown, strict=True):
            level = jnp.asarray(level, x.dtype)[None]
            at = (part.reshape(part.shape + (1,) * (own.ndim - 2)) for part in (mask > 0, level))  # own may be a map
            seen = self.show(known, mask, eps, x, level), jnp.where(*at, own)
            total = total + weight * denoise(*seen, *rest)
        return _put(mask, known, total)


@dataclasses.dataclass(frozen=True)
class _Within:
    """The static part of `within`, compared by value."""

    way: Callable[..., Array]

    def __call__(self, denoise, mask, eps, numbers, x, logsnr, *rest):
        if not isinstance(self.way, _Guided):
            logsnr = jnp.asarray(logsnr)
            logsnr = logsnr[:, -1:] if logsnr.ndim > 1 else logsnr
        eps = jnp.broadcast_to(eps, x.shape).astype(x.dtype)
        return self.way(denoise, x, mask, eps, *numbers, x, logsnr, *rest)


def _put(mask, known, denoised):
    return jnp.where(levels.expand(mask, denoised) > 0, known.astype(denoised.dtype), denoised)


def _mask(where: Where, known: Clip) -> Float[Array, "1 f"]:
    where = np.asarray(where)
    if where.dtype != bool or where.shape != known.shape[1:2]:
        raise ValueError(
            f"where: expected a truth value for each of the {known.shape[1]} frames, got {where.dtype} of shape {where.shape}"
        )
    return jnp.asarray(where[None], jnp.float32)
