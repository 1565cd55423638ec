"""Guidance: wrappers that make one denoiser of others. The scale is always g in u + g (c - u); 1 means none.

Papers that write w with (1 + w) c - w u mean g = 1 + w.

Every wrapper returns a `jax.tree_util.Partial` (x, logsnr, *rest) -> denoised. Scales, interval ends and
thresholds are its leaves, so arguments of the compiled program: another guidance scale compiles nothing.
What follows x and the level (a flow map's target level, a `cond` not yet bound) is handed on, `cond` last.
Wrappers nest; thresholds belong outside:

    denoise = guidance.classifier_free(conditional, unconditional, 3.0, interval=(-2.0, 6.0))
    denoise = guidance.dynamic_threshold(denoise)

NumPy arguments are answered in NumPy, so that guided oracles can be solved on the host in float64; `batched_classifier_free`,
which is for networks, answers in JAX.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from diffusion import predictions
from diffusion.clocks import Levels, namespace
from diffusion.levels import expand
from diffusion.sampling import tree
from diffusion.schedules import Schedule

Denoiser = Callable[..., Any]
Number = Levels
"""A number, or an array shaped as a level is, [], [b], [b|1, f], ...: a guidance scale per clip or frame."""


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Number,
    *,
    interval: tuple[Number, Number] | None = None,
    rescale: Number | None = None,
) -> Partial:
    """denoise(x, logsnr) = u + g (c - u), two network evaluations a call (Ho & Salimans 2022, arXiv
    2207.12598, eq. 6, with g = 1 + w). At g = 1 it is c to the last bit.

    scale: g. 0 is unconditional. At each level the score is that of p(x|c)^g p(x)^(1-g); these are not the
        noisy versions of one law of the data, so the samples follow no such power law exactly.
    interval: (low, high) in log-SNR, outside of which c is used alone (Kynkaanniemi et al. 2024, arXiv
        2404.07724; their sigma/alpha from a to b is (-2 log b, -2 log a)). Where no level lies inside, the
        call of u is skipped by `lax.cond`; with levels per frame it is skipped if no frame needs it, and
        frames outside get c.
    rescale: phi in [0, 1]: the standard deviation of each sample is moved that far back to that of c (Lin et
        al. 2023, arXiv 2305.08891, section 3.4, where phi = .7). They do it to the output of a v network;
        near pure noise, where it matters, that is minus the denoised estimate.

    Raises ValueError for numbers that aren't finite, a falling interval, phi outside [0, 1]. Never vmap a
    guided sampler: `lax.cond` then evaluates both sides.
    """
    tree = _callable("conditional", conditional), _callable("unconditional", unconditional)
    return Partial(_two_calls, *tree, *_numbers(scale, interval, rescale))


def autoguidance(
    denoise: Denoiser,
    weaker: Denoiser,
    scale: Number,
    *,
    interval: tuple[Number, Number] | None = None,
    rescale: Number | None = None,
) -> Partial:
    """`classifier_free` with a weaker model of the same kind, under the same condition, in place of u (Karras
    et al. 2024, arXiv 2406.02507): smaller, or less trained. It needs no label dropout in training.
    """
    return classifier_free(denoise, weaker, scale, interval=interval, rescale=rescale)


def batched_classifier_free(
    denoise: Denoiser,
    cond: Any,
    null: Any,
    scale: Number,
    *,
    interval: tuple[Number, Number] | None = None,
    rescale: Number | None = None,
) -> Partial:
    """As `classifier_free`, in one call on a batch of twice the size: the same evaluations, fewer kernels.

    denoise: (x, logsnr, *rest, cond) -> denoised, for a network made by `conditioned`.
    cond, null: the condition and its "none": two trees of one structure, leaves [b|1, ...] or numbers.

    Raises ValueError as `classifier_free`, and for trees that differ.
    """
    _check_alike(cond, null)
    return Partial(_one_call, _callable("denoise", denoise), cond, null, *_numbers(scale, interval, rescale))


def static_threshold(denoise: Denoiser, limit: Number = 1.0) -> Partial:
    """denoised clipped to [-limit, limit]. For pixels; latents have no bounds to clip to."""
    return Partial(_static_threshold, _callable("denoise", denoise), _number("limit", limit, *POSITIVE))


def dynamic_threshold(denoise: Denoiser, quantile: Number = 0.995, limit: Number = 1.0) -> Partial:
    """denoised clipped to [-s, s] and divided by s / limit, s the `quantile` of its absolute value, or limit
    if that is more (Saharia et al. 2022, arXiv 2205.11487, section 2.3). Pixels only.

    s is one number for a whole clip: one per frame would make the contrast flicker.
    """
    if np.ndim(quantile):
        raise ValueError(f"quantile: expected one number for all clips, got shape {list(np.shape(quantile))}")
    numbers = _number("quantile", quantile, *SHARE), _number("limit", limit, *POSITIVE)
    return Partial(_dynamic_threshold, _callable("denoise", denoise), *numbers)


@dataclasses.dataclass(frozen=True)
class _Conditioned:
    """The static part of `conditioned`, compared by value."""

    apply: Callable[..., Any]
    schedule: Schedule
    prediction: Any

    def __call__(self, params, x, logsnr, *rest):
        *jump, cond = rest
        make = predictions.flow_map if jump else predictions.denoiser
        bound = make(self.apply, params, cond, schedule=self.schedule, prediction=self.prediction)
        return bound(x, logsnr, *jump)


def conditioned(
    apply: Callable[..., Any], params: Any, *, schedule: Schedule, prediction: str | Callable[..., Any] = "v"
) -> Partial:
    """denoise(x, logsnr, cond) of a network: `predictions.denoiser` before its cond is bound."""
    predictions.coefficients(prediction)
    return Partial(_Conditioned(apply, schedule, prediction), params)


# What is called ---------------------------------------------------------------------------------------------


def _two_calls(conditional, unconditional, scale, interval, rescale, x, logsnr, *rest):
    c = _wide(conditional(x, logsnr, *rest))
    inside = _inside(interval, logsnr)
    u = _if_any(inside, lambda: _wide(unconditional(x, logsnr, *rest)).astype(c.dtype), lambda: c)
    return _guided(c, u, scale, inside, rescale)


def _one_call(denoise, cond, null, scale, interval, rescale, x, logsnr, *rest):
    b = x.shape[0]

    def alone():
        c = _wide(denoise(x, logsnr, *rest, cond))
        return c, c

    def both():
        pair = jax.tree.map(lambda c, n: jnp.concatenate([_batch(c, b), _batch(n, b)]), cond, null)
        answer = _wide(denoise(*(_twice(part, b) for part in (x, logsnr, *rest)), pair))
        return answer[:b], answer[b:]

    inside = _inside(interval, logsnr)
    c, u = _if_any(inside, both, alone)
    return _guided(c, u, scale, inside, rescale)


def _guided(c, u, scale, inside, rescale):
    xp = namespace(c)
    # In this form g = 1 gives c itself, however far u is from it.
    guided = c + (_like(scale, c) - 1) * (c - u)
    # Masks broadcast by the rule of levels, which are floats.
    mask = None if inside is None else expand(inside.astype(np.float32), c) > 0
    if rescale is not None:
        phi, axes = _like(rescale, c), tuple(range(1, c.ndim))
        # Of what is guided only. Where nothing is, the ratio meets nothing either.
        seen = True if mask is None else xp.broadcast_to(mask | ~mask.any(axis=axes, keepdims=True), c.shape)
        target, variance = (part.var(axis=axes, keepdims=True, where=seen) for part in (c, guided))
        # A flat clip stays as it is; nor may the root's slope at 0 reach a gradient.
        flat = (target == 0) | (variance == 0)
        ratio = xp.where(flat, 1, target) / xp.where(flat, 1, variance)
        guided = guided * (phi * xp.sqrt(ratio) + (1 - phi))
    return guided if mask is None else xp.where(mask, guided, c)


def _static_threshold(denoise, limit, x, logsnr, *rest):
    denoised = _wide(denoise(x, logsnr, *rest))
    limit = _like(limit, denoised)
    return denoised.clip(-limit, limit)


def _dynamic_threshold(denoise, quantile, limit, x, logsnr, *rest):
    denoised = _wide(denoise(x, logsnr, *rest))
    xp, limit = namespace(denoised), _like(limit, denoised)
    sizes = xp.quantile(abs(denoised).reshape(len(denoised), -1), quantile, axis=1).astype(denoised.dtype)
    size = xp.maximum(expand(sizes, denoised), limit)
    return denoised.clip(-size, size) * (limit / size)


# Parts ------------------------------------------------------------------------------------------------------


def _inside(interval, logsnr):
    """Which levels are guided, of the level's shape; None: all."""
    if interval is None:
        return None
    low, high = interval
    level = logsnr if hasattr(logsnr, "shape") else np.asarray(logsnr, np.float64)
    return (low <= level) & (level <= high)


def _if_any(inside, yes, no):
    """yes() if any level is inside, else no(): only one of them runs."""
    if inside is None:
        return yes()
    if isinstance(inside, np.ndarray | np.bool_):
        return yes() if inside.any() else no()
    return jax.lax.cond(inside.any(), yes, no)


def _like(number, data):
    """A number or a level as an array that broadcasts against the data, in its type."""
    xp = jnp if isinstance(number, jax.Array) else namespace(data)
    return xp.asarray(expand(number, data), dtype=data.dtype)


def _wide(data):
    """At least float32."""
    return data.astype(namespace(data).promote_types(data.dtype, np.float32))


def _twice(part, b):
    """Two copies along the batch axis; what has none, or one of length 1, serves both as it is."""
    shared = np.ndim(part) == 0 or (np.shape(part)[0] == 1 and b != 1)
    return part if shared else jnp.concatenate([part, part])


def _batch(leaf, b):
    """A leaf of cond with the whole batch axis."""
    leaf = jnp.asarray(leaf)
    if leaf.shape[:1] not in ((), (1,), (b,)):
        raise ValueError(f"cond: expected leaves with a batch axis of 1 or {b}, got shape {list(leaf.shape)}")
    return jnp.broadcast_to(leaf, (b, *leaf.shape[1:]))


# Checks, before anything is traced --------------------------------------------------------------------------


def _callable(name, denoise):
    """The denoiser as a pytree; a bare function is static by identity."""
    if not callable(denoise):
        kind = type(denoise).__name__
        raise ValueError(f"guidance: {name} must be a denoiser (x, logsnr) -> denoised, got {kind}")
    return tree(denoise)


# What a number must be, in words and as a test of an array.
FINITE = "finite", np.isfinite
POSITIVE = "above 0", lambda n: np.isfinite(n) & (n > 0)
SHARE = "between 0 and 1", lambda n: (n >= 0) & (n <= 1)
LEVEL = "a log-SNR, one number", lambda n: ~np.isnan(n) & (n.ndim == 0)


def _numbers(scale, interval, rescale):
    """(scale, interval, rescale), checked where they are known on the host."""
    if interval is not None:
        if not isinstance(interval, tuple | list) or len(interval) != 2:
            raise ValueError(f"guidance: interval must be (low, high) in log-SNR, got {interval!r}")
        low, high = interval = tuple(_number("each end of interval", end, *LEVEL) for end in interval)
        if not any(isinstance(end, jax.core.Tracer) for end in interval) and not low < high:
            raise ValueError(
                f"guidance: interval must rise in log-SNR, low < high, got ({low}, {high}); log-SNR falls"
                " where sigma/alpha rises"
            )
    phi = None if rescale is None else _number("rescale", rescale, *SHARE)
    return _number("scale", scale, *FINITE), interval, phi


def _number(name, value, expected, valid):
    """A Python number as a float (so that 2 and 2.0 are one program), an array as it is."""
    if isinstance(value, jax.core.Tracer):
        return value
    array = np.asarray(value, np.float64)
    if not np.all(valid(array)):
        raise ValueError(f"guidance: {name} must be {expected}, got {value}")
    return value if isinstance(value, jax.Array) or array.ndim else float(array)


def _check_alike(cond, null):
    """Both conditions have the same keys and the same shapes behind the batch axis."""

    def described(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): np.shape(leaf)[1:] for path, leaf in leaves}

    shapes = described(cond), described(null)
    if shapes[0] != shapes[1] or jax.tree.structure(cond) != jax.tree.structure(null):
        raise ValueError(
            "guidance: cond and null must have the same keys and shapes behind the batch axis, got"
            f" {shapes[0]} and {shapes[1]}"
        )
