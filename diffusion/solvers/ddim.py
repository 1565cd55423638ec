"""First-order samplers: DDIM with eta, from the deterministic probability flow (0) to ancestral sampling (1)."""

import numpy as np

from diffusion import grids
from diffusion.schedules import Schedule
from diffusion.solvers.table import Row, Table, assemble


def transition(schedule: Schedule, here, there, eta=0.0):
    """Weights (x, denoised, noise) of one DDIM step from log-SNR `here` to `there`, each of the level's shape.

    x_t = A x_s + B denoised + C noise keeps the marginal N(alpha x0, sigma^2) exactly for data that is the single point
    `denoised`: C = eta sigma_t sqrt(1 - exp(l_s - l_t)), the posterior's standard deviation times eta (Song et al. 2020,
    eq. 16, written in log-SNR, so it holds for skipped steps and in any scaling), A = sqrt(sigma_t^2 - C^2) / sigma_s,
    B = alpha_t - A alpha_s. Where `here` equals `there` (a frame that waits) it is the identity. l_s = -inf and l_t = +inf
    are legal.
    """
    here, there = np.broadcast_arrays(np.asarray(here, np.float64), np.asarray(there, np.float64))
    waits = here == there
    safe = np.where(waits, 0.0, here)  # a waiting frame may stand at an infinite level
    towards = np.where(waits, 1.0, there)
    noise = eta * schedule.sigma(towards) * np.sqrt(-np.expm1(safe - towards))
    x = np.sqrt(np.maximum(schedule.sigma(towards) ** 2 - noise**2, 0.0)) / schedule.sigma(safe)
    denoised = schedule.alpha(towards) - x * schedule.alpha(safe)
    return np.where(waits, 1.0, x), np.where(waits, 0.0, denoised), np.where(waits, 0.0, noise)


def ddim(schedule: Schedule, grid, eta: float = 0.0) -> Table:
    """DDIM (Song et al. 2020, eq. 12 and 16) over a rising grid [N+1, *level] of log-SNR; N calls.

    eta: 0 is the deterministic sampler, 1 has DDPM's lower posterior variance. Raises ValueError outside [0, 1].
    """
    grid = grids.validate(grid)
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"ddim: eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    steps = [transition(schedule, s, t, eta) for s, t in zip(grid[:-1], grid[1:], strict=True)]
    starts = [(1.0, 0.0, 0.0), *steps]
    rows = [
        Row(logsnr, anchor=x, history=(denoised,), noise=noise)
        for logsnr, (x, denoised, noise) in zip(grid[:-1], starts[:-1], strict=True)
    ]
    x, denoised, noise = starts[-1]
    return assemble(rows, Row(grid[-1], anchor=x, history=(denoised,), noise=noise))
