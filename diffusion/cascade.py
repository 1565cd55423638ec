"""Cascades: a clip at a low resolution, and denoisers that make a larger one of it, in space or in time (Ho et al. 2021,
arXiv 2106.15282; video: Ho et al. 2022, Imagen Video, arXiv 2210.02303).

A cascade is a list of stages over `sampling.sample`, each with its own denoiser, schedule and table. From the second on a stage
is given `low`, the clip of the one before, noised to a level that it is told and then repeated up to its own size: a network
that has seen noise in it forgives the faults of samples (noise conditioning augmentation, Ho et al. 2021, section 4.2).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from diffusion import levels, sampling
from diffusion.schedules import Schedule
from diffusion.solvers import Table

Clip = Float[Array, "b f h w c"]
Low = Float[Array, "b g y x c"]


class Stage(NamedTuple):
    """A stage of a cascade.

    denoise: cond -> (x, logsnr) -> denoised; cond holds `low` and `aug_logsnr`, and nothing in the first stage.
    table, schedule: its sampler. shape: (frames, height, width, channels) of its clips.
    aug_logsnr: log-SNR of the noise in `low`; inf is none.
    """

    denoise: Callable[[dict[str, Array]], Callable[[Array, Array], Array]]
    table: Table
    schedule: Schedule
    shape: tuple[int, int, int, int]
    aug_logsnr: float = math.inf


def factors(low: Sequence[int], shape: Sequence[int]) -> list[int]:
    """How many times the frames, rows and columns of a clip of `low` go into `shape`; ValueError where they don't divide."""
    for name, small, large in zip(("frames", "rows", "columns"), low, shape, strict=False):
        if large % small:
            near = max(1, round(large / small)) * small
            raise ValueError(f"{large} {name} can't be made of {small}: no whole factor; nearest: {near}")
    return [large // small for small, large in zip(low[:3], shape[:3], strict=True)]


def upsample(low: Low, shape: Sequence[int]) -> Clip:
    """Every pixel and every frame repeated, up to (frames, height, width) of `shape`."""
    for axis, count in enumerate(factors(low.shape[1:4], shape), 1):
        low = low if count == 1 else jnp.repeat(low, count, axis)
    return low


def conditioning(
    low: Low, aug_logsnr: Any, shape: Sequence[int], schedule: Schedule, key: PRNGKeyArray
) -> dict[str, Array]:
    """What a stage is given of the clips before it: `low`, alpha low + sigma eps at the level, upsampled to `shape`, and
    `aug_logsnr`, the level as [b]. Noise is that of the small clip: repeated, a frame or a pixel gives it away no sooner.

    aug_logsnr: [] or [b].
    """
    level = jnp.broadcast_to(jnp.asarray(aug_logsnr, low.dtype), low.shape[:1])
    noised = levels.forward(low, jax.random.normal(key, low.shape, low.dtype), level, schedule)
    return {"low": upsample(noised, shape), "aug_logsnr": level}


def sample(stages: Sequence[Stage], key: PRNGKeyArray, n: int) -> list[Clip]:
    """n clips of every stage, each made of those of the stage before. ValueError, before any is made, where a stage's size is
    no multiple of the one before.
    """
    made: list[Clip] = []
    for before, after in itertools.pairwise(stages):
        factors(before.shape, after.shape)
    for index, stage in enumerate(stages):
        key_noise, key_low, key_run = jax.random.split(jax.random.fold_in(key, index), 3)
        cond = conditioning(made[-1], stage.aug_logsnr, stage.shape, stage.schedule, key_low) if made else {}
        noise = sampling.normal(key_noise, (n, *stage.shape), "float32")
        x = noise * jnp.float32(sampling.starting(stage.table, stage.schedule, noise.shape))
        made.append(sampling.sample(stage.denoise(cond), stage.table, x, key_run))
    return made
