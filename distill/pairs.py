"""Pairs of neighbouring noise levels for consistency models, and the curricula that bring them closer.

`Pairs` are functions of the number of finished updates, which is traced: a curriculum is one program.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from diffusion import levels
from diffusion.clocks import namespace
from diffusion.schedules import Schedule

APART = 0.01
"""How far pairs without a grid stay from the boundary, in log-SNR."""


class Pair(NamedTuple):
    """Log-SNR of the student's point, of the cleaner target's, and of the boundary that both are mapped to, [b] or [b, f]."""

    here: Array
    there: Array
    boundary: Array


Pairs = Callable[[Array, tuple[int, ...], Array, Mapping[str, Array]], Pair]
"""(key, shape of the level, finished updates, hyper) -> Pair."""


def noise_ratio(logsnr):
    """s = sigma / alpha of a log-SNR, the level of EDM and of the papers on consistency models."""
    return namespace(logsnr).exp(-logsnr / 2)


def neighbours(
    clock: Callable[[Array], Array],
    intervals: Callable[[Array, Mapping[str, Array]], Any],
    segments: Callable[[Array, Mapping[str, Array]], Any] = lambda step, hyper: 1,
) -> Pairs:
    """Neighbours on the grid clock(i / N), drawn uniformly; the boundary is the clean end of their segment of the grid.

    clock: time in [0, 1] -> log-SNR. intervals(step, hyper): how many a segment has. Both counts may be traced, so a
    curriculum compiles once. One segment gives an ordinary consistency model, one interval a segment DDIM's own steps.
    """

    def pairs(key, shape, step, hyper) -> Pair:
        per_segment = jnp.asarray(intervals(step, hyper), jnp.float32)
        count = jnp.asarray(segments(step, hyper), jnp.float32)
        key_segment, key_index = jax.random.split(key)
        first = whole(key_segment, shape, count) * per_segment
        index = whole(key_index, shape, per_segment)
        return Pair(*(clock((first + i) / (count * per_segment)) for i in (index + 1, index, 0)))

    return pairs


def whole(key: Array, shape: tuple[int, ...], count: Array | float) -> Array:
    """Uniform on {0, .., count - 1}; count may be traced. Rounding may lift uniform * count up to count itself."""
    return jnp.minimum(jnp.floor(jax.random.uniform(key, shape) * count), count - 1)


def ict(intervals: Callable, boundary: float, start: float, mean: float = -1.1, std: float = 2.0) -> Pairs:
    """Neighbours on Karras' grid from `start` to `boundary`, the interval drawn by a discretised log-normal
    (`levels.ict_pairs`).
    """
    s_min, s_max = noise_ratio(boundary), noise_ratio(start)

    def pairs(key, shape, step, hyper) -> Pair:
        here, there = levels.ict_pairs(intervals(step, hyper) + 1, mean, std, s_min, s_max)(key, shape)
        return Pair(here, there, jnp.full_like(there, boundary))

    return pairs


def easy_map(
    s: Array, stage: Array | float | int, q: float = 2.0, k: float = 8.0, b: float = 1.0, limit: float = 1.0
) -> Array:
    """r(s) = s (1 - q^-(stage + 1) (1 + k sigmoid(-b s))), not below 0 (Geng et al. 2024, arXiv 2406.14548).

    limit: an upper bound of 1 - q^-(stage + 1).
    """
    gap = jnp.maximum(jnp.asarray(q, jnp.float32) ** -(stage + 1.0), 1.0 - limit)
    return s * jnp.maximum(1.0 - gap * (1.0 + k * jax.nn.sigmoid(-b * s)), 0.0)


def easy(schedule: Schedule, law: Callable, stage: Callable, boundary: float, **options: float) -> Pairs:
    """A level by `law`, and easy_map(s, stage(step)) below it. Where that is cleaner than the boundary it is the boundary,
    whose target is the data: stage 0 is nearly denoising. The options are those of `easy_map`.
    """

    def pairs(key, shape, step, hyper) -> Pair:
        # So that no weight 1 / (s - r) is infinite.
        here = jnp.clip(law(key, shape), schedule.logsnr_start, boundary - APART)
        there = jnp.minimum(-2.0 * jnp.log(easy_map(noise_ratio(here), stage(step), **options)), boundary)
        return Pair(here, there, jnp.full_like(here, boundary))

    return pairs


LARGEST_DF = 0.02
"""Of `truncated_law`; the paper has .01."""


def truncated_law(schedule: Schedule, cut: float, scale: float = 0.2, df: float = 0.01, probability: float = 0.25):
    """log s = log s(cut) + |y|, y Student-t, cut off at the noisy end; with the given probability the cut itself.

    For df below LARGEST_DF the density's exponent (df + 1) / 2 is 1/2 but for a per cent, and y is sqrt(df) scale sinh of a
    uniform variable, which needs no table.
    """
    width = scale * math.sqrt(df)
    longest = math.asinh((cut - schedule.logsnr_start) / 2.0 / width)

    def law(key, shape):
        key_which, key_level = jax.random.split(key)
        excess = width * jnp.sinh(jax.random.uniform(key_level, shape) * longest)
        return jnp.where(jax.random.bernoulli(key_which, probability, shape), cut, cut - 2.0 * excess)

    return law


# Curricula: how many intervals the grid has after so many updates ---------------------------------------------


def ct_intervals(step: Array, total_steps: int, s0: int = 2, s1: int = 150) -> Array:
    """N(k) - 1 with N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 (Song et al. 2023, appendix C)."""
    share = jnp.minimum(step / total_steps, 1.0)
    # In float32 a whole number may come out a little above itself, and ceil would add one.
    return jnp.ceil(jnp.sqrt(share * ((s1 + 1.0) ** 2 - s0**2) + s0**2) - 1.0 - 1e-4)


def ict_intervals(step: Array, total_steps: int, s0: int = 10, s1: int = 1280) -> Array:
    """N(k) - 1 = min(s0 2^floor(k/K'), s1), K' = floor(K / (log2 floor(s1/s0) + 1)) (Song & Dhariwal 2023, section 3.4)."""
    each = max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))
    return jnp.minimum(s0 * jnp.exp2(jnp.minimum(step // each, 30).astype(jnp.float32)), float(s1))


def annealed_steps(step: Array, anneal_steps: int, first: int = 64, last: int = 1280) -> Array:
    """T(i) from `first` to `last`, geometric (Heek et al. 2024, arXiv 2403.06807, appendix A.1)."""
    share = jnp.minimum(step / max(anneal_steps, 1), 1.0)
    return jnp.exp(math.log(first) + share * (math.log(last) - math.log(first)))
