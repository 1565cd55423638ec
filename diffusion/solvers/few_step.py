"""Sampling from distilled networks: consistency models (denoise, renoise, denoise), flow maps (jump), steps that overshoot."""

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.schedules import Schedule
from diffusion.solvers.ddim import one_step, transition
from diffusion.solvers.singlestep import renoise
from diffusion.solvers.steps import steps_of
from diffusion.solvers.table import Table


def consistency(schedule: Schedule, grid: Float[ArrayLike, "points ..."], *, end: float | None = None) -> Table:
    """Multistep consistency sampling (Song et al. 2023, arXiv 2303.01469, algorithm 1; LCM): each call's clean estimate is
    noised anew to the next level, x_t = alpha_t D + sigma_t z; N calls.

    The last step adds nothing fresh: to the clean end it is D, to a finite end DDIM's step. A grid for few calls should
    end at log-SNR = inf. So with one call the table is deterministic. Waiting frames are left alone.

    end: the level at which a frame is finished, of a matrix that leaves some on their way (`frames.rolling`, `rolling_start`);
    None: where its column ends.
    """
    grid = steps_of("consistency", schedule, grid).grid
    moves = grid[1:] > grid[:-1]
    last = _last(grid, end)
    x, denoised, _ = transition(schedule, grid[:-1], grid[1:])
    anew = moves & ~last
    level = np.where(anew, grid[1:], 0.0)
    weights = (
        np.where(anew, 0.0, x),
        np.where(anew, schedule.alpha(level), denoised),
        np.where(anew, schedule.sigma(level), 0.0),
    )
    return one_step(grid, weights)


def overshoot(schedule: Schedule, grid: Float[ArrayLike, "points ..."]) -> Table:
    """DDIM steps of twice the length, each followed by noise back up to the next level; N calls.

    The stochastic sampler of guided students (Meng et al. 2022, arXiv 2210.03142): from t to k = t - 2/N, then by the forward
    process to s = t - 1/N, z_s = (alpha_s/alpha_k) z_k + sigma_s sqrt(1 - exp(l_s - l_k)) eps. The last step has no room to
    overshoot and is DDIM's, also that of a matrix that leaves frames on their way. A frame that waits is left alone.
    """
    grid = steps_of("overshoot", schedule, grid).grid
    here, there, beyond = grid[:-1], grid[1:], np.concatenate([grid[2:], grid[-1:]])
    target = np.where(there > here, beyond, there)
    x, denoised, _ = transition(schedule, here, target)
    scale, noise = renoise(schedule, target, there)
    return one_step(grid, (scale * x, scale * denoised, noise))


def flow_map(
    schedule: Schedule, grid: Float[ArrayLike, "points ..."], gamma: float = 0.0, *, end: float | None = None
) -> Table:
    """Jumps of a network that is called with the level to go to, denoise(x, logsnr, logsnr_to); N calls.

    Its answer is the clean estimate with which a DDIM step lands on its point (`predictions.flow_map`). gamma: 0 jumps
    from level to level; above 0 is gamma-sampling (Kim et al. 2023, arXiv 2310.02279, algorithm 3): jump to the lower
    level s' = sqrt(1 - gamma^2) s_t and put noise gamma s_t on top; 1 is consistency sampling. The last jump goes straight
    to the end. A frame that waits has its own level as target and is left alone. end: see `consistency`.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"flow_map: gamma must lie between 0 (jumps) and 1 (consistency sampling), got {gamma}")
    grid = steps_of("flow_map", schedule, grid).grid
    here, there = grid[:-1], grid[1:]
    moves = there > here
    last = _last(grid, end)
    with np.errstate(divide="ignore", invalid="ignore"):
        target = np.where(moves & ~last, there - np.log1p(-(gamma**2)), there)
    x, denoised, _ = transition(schedule, here, target)
    scale, noise = renoise(schedule, target, there)
    return one_step(grid, (scale * x, scale * denoised, noise), target)


def _last(grid: np.ndarray, end: float | None) -> np.ndarray:
    """Whether a step is the last that its level makes, and so ends it."""
    moves = grid[1:] > grid[:-1]
    last = moves & (np.cumsum(moves[::-1], axis=0)[::-1] == 1)
    return last if end is None else last & (grid[1:] >= end)
