"""Euler and Heun in s = sigma/alpha on y = x/alpha, with churn (Karras et al. 2022, arXiv 2206.00364)."""

import math
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.schedules import Schedule
from diffusion.solvers.singlestep import Levels, Scheme, Stage, basis, eps, singlestep
from diffusion.solvers.steps import steps_of
from diffusion.solvers.table import Table


def euler_scheme(schedule: Schedule, here: Levels, there: Levels) -> Scheme:
    """y' = y + (s_t - s) eps, a DDIM step."""
    x, (d0,), _ = basis(1, here)
    s, t = np.exp(-here / 2), np.exp(-there / 2)
    end = schedule.alpha(there) * (x / schedule.alpha(here) + (t - s) * eps(schedule, here, x, d0))
    return Scheme([], end)


def heun_scheme(schedule: Schedule, here: Levels, there: Levels) -> Scheme:
    """Algorithm 2, lines 7 to 11: dy/ds = eps, the trapezoidal rule with an Euler predictor."""
    x, (d0, d1), _ = basis(2, here)
    s, t = np.exp(-here / 2), np.exp(-there / 2)
    slope = eps(schedule, here, x, d0)
    y = x / schedule.alpha(here)
    point = schedule.alpha(there) * (y + (t - s) * slope)
    new = eps(schedule, there, point, d1)
    return Scheme([Stage(there, point)], schedule.alpha(there) * (y + (t - s) * (slope + new) / 2))


def churned(name: str, grid: Any, churn: float, s_min: float, s_max: float, s_noise: float) -> Any:
    """The levels that Algorithm 2 raises the points of a grid to: s (1 + gamma), gamma = min(churn / N, sqrt 2 - 1) where
    s_min <= s <= s_max, else 0. Raises ValueError for numbers out of range.
    """
    numbers = dict(churn=churn, s_min=s_min, s_noise=s_noise)
    for key, value in numbers.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: {key} must be finite and not below 0, got {value}")
    if not s_min <= s_max:
        raise ValueError(f"{name}: expected s_min <= s_max (noise levels sigma/alpha), got {s_min} and {s_max}")
    steps = (grid[1:] > grid[:-1]).sum(0)
    gamma = np.minimum(churn / np.maximum(steps, 1), math.sqrt(2) - 1)
    s = np.exp(-grid[:-1] / 2)
    inside = (s_min <= s) & (s <= s_max) & np.isfinite(grid[:-1]) & (grid[1:] > grid[:-1])
    return grid[:-1] - 2 * np.log1p(np.where(inside, gamma, 0.0))


def euler(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    churn: float = 0.0,
    *,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Table:
    """EDM's stochastic sampler without its second-order correction (algorithm 2, lines 4 to 8); N calls.

    The arguments are those of `heun`. Without churn it is DDIM.
    """
    grid = steps_of("euler", schedule, grid).grid
    here = churned("euler", grid, churn, s_min, s_max, s_noise)
    scheme = lambda s, t: euler_scheme(schedule, s, t)  # noqa: E731
    return singlestep(schedule, grid[:-1], here, grid[1:], scheme, s_noise=s_noise)


def heun(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    churn: float = 0.0,
    *,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Table:
    """EDM's sampler (algorithm 2); without churn its algorithm 1. 2N calls, one fewer for a step from or to infinity, or that
    `leaps` from where nothing is left of a clip.

    Made for steps whose noise levels have small ratios, as Karras' grid has: a step from s to t weighs how the denoised
    estimate changes over it by s / 2t. Begun at log-SNR -6 to -9, say, few steps uniform in a cosine's time are worse than
    DDIM's; from below -9, where the first is of first order, better.

    churn, s_min, s_max, s_noise: S_churn, S_tmin, S_tmax, S_noise of the paper, levels as s = sigma/alpha, N the steps of
    the grid. Noise is added by the forward process, so in any scaling the marginals stay those of the data (s_noise = 1).
    """
    grid = steps_of("heun", schedule, grid).grid
    here = churned("heun", grid, churn, s_min, s_max, s_noise)
    scheme = lambda s, t: heun_scheme(schedule, s, t)  # noqa: E731
    return singlestep(schedule, grid[:-1], here, grid[1:], scheme, s_noise=s_noise, careful=True)
