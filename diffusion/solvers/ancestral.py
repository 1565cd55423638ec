"""Ancestral sampling of DDPM, with either of its two posterior variances."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.names import choice
from diffusion.schedules import Schedule
from diffusion.solvers.ddim import one_step, transition
from diffusion.solvers.steps import steps_of
from diffusion.solvers.table import Table


def _lower(schedule: Schedule, here: Any, there: Any) -> Any:
    """sigma_t^2 (1 - e^{l_s - l_t}): the variance of q(x_t | x_s, x0), right for data that is one point."""
    return transition(schedule, here, there, np.float64(1.0))[2] ** 2


def _upper(schedule: Schedule, here: Any, there: Any) -> Any:
    """The variance of q(x_t | x_s) for data N(0, I): in the VP scaling DDPM's beta = 1 - alpha_s^2 / alpha_t^2.

    In any scaling v_t (sigma_s^2 - (alpha_s/alpha_t)^2 sigma_t^2) / v_s with v = alpha^2 + sigma^2. No noise in a step to
    sigma = 0 (Ho et al., algorithm 2).
    """
    moves = (there > here) & np.isfinite(there)
    s, t = np.where(moves, here, 0.0), np.where(moves, there, 1.0)
    variance = [schedule.alpha(level) ** 2 + schedule.sigma(level) ** 2 for level in (s, t)]
    forward = schedule.sigma(s) ** 2 * -np.expm1(s - t)
    return np.where(moves, variance[1] * forward / variance[0], 0.0)


VARIANCES: dict[str, Callable[[Schedule, Any, Any], Any]] = {"lower": _lower, "upper": _upper}


def ddpm(schedule: Schedule, grid: Float[ArrayLike, "points ..."], variance: str = "lower") -> Table:
    """Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, eq. 6-7 and algorithm 2) over any rising grid; N calls.

    variance: "lower" (DDIM with eta = 1, the posterior for given x0) or "upper" (exact for N(0, I) data; in the VP scaling
    beta of the skipped step). The mean is that of the posterior for both.
    """
    of = choice(variance, VARIANCES, "ddpm: variance")
    grid = steps_of("ddpm", schedule, grid).grid
    here, there = grid[:-1], grid[1:]
    x, denoised, _ = transition(schedule, here, there, np.float64(1.0))
    return one_step(grid, (x, denoised, np.sqrt(of(schedule, here, there))))
