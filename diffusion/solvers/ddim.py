"""First-order samplers: DDIM with eta, from the deterministic probability flow (0) to ancestral sampling (1)."""

from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.clocks import namespace
from diffusion.schedules import Schedule
from diffusion.solvers.steps import steps_of
from diffusion.solvers.table import Row, Table, assemble


def transition(schedule: Schedule, here: Any, there: Any, eta: Any = 0.0) -> tuple[Any, Any, Any]:
    """Weights (x, denoised, noise) of one DDIM step from log-SNR `here` to `there`, each of the level's shape.

    x_t = A x_s + B denoised + C noise keeps the marginal N(alpha x0, sigma^2) exactly for data that is the single point
    `denoised`: C = eta sigma_t sqrt(1 - exp(l_s - l_t)), the posterior's standard deviation times eta (Song et al. 2020,
    eq. 16, written in log-SNR, so it holds for skipped steps and in any scaling), A = sqrt(sigma_t^2 - C^2) / sigma_s,
    B = alpha_t - A alpha_s. Where `here` equals `there` (a frame that waits) it is the identity. l_s = -inf and l_t = +inf
    are legal. Works in the namespace of the levels.
    """
    xp = namespace(here)
    waits = here == there
    safe = xp.where(waits, 0.0, here)  # a waiting frame may stand at an infinite level
    towards = xp.where(waits, 1.0, there)
    sigma = schedule.sigma(towards)
    noise = eta * sigma * xp.sqrt(-xp.expm1(safe - towards))
    # sigma_t^2 - C^2 = sigma_t^2 (1 - eta^2 + eta^2 exp(l_s - l_t)): a sum, so no digits are lost.
    kept = sigma * xp.sqrt(1.0 - eta**2 + eta**2 * xp.exp(safe - towards))
    x = kept / schedule.sigma(safe)
    denoised = schedule.alpha(towards) - x * schedule.alpha(safe)
    return xp.where(waits, 1.0, x), xp.where(waits, 0.0, denoised), xp.where(waits, 0.0, noise)


def one_step(grid: Any, weights: tuple[Any, Any, Any], target: Any = None) -> Table:
    """The table of a sampler whose step i is x_t = weights[0][i] x_s + weights[1][i] denoised + weights[2][i] noise.

    target: the levels to which the network is asked to jump, of one that is told.
    """
    x, denoised, noise = weights
    steps: list[dict[str, Any]] = [dict(anchor=x[i], history=(denoised[i],), noise=noise[i]) for i in range(len(x))]
    targets = [None] * len(x) if target is None else target
    starts = [dict(anchor=1.0), *steps[:-1]]
    rows = [Row(level, target=to, **step) for level, to, step in zip(grid[:-1], targets, starts, strict=True)]
    return assemble(rows, Row(grid[-1], **steps[-1]))


def ddim(schedule: Schedule, grid: Float[ArrayLike, "points ..."], eta: float = 0.0) -> Table:
    """DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16) over a rising grid [N+1, *level] of log-SNR; N calls.

    eta: 0 is the deterministic sampler, 1 has DDPM's lower posterior variance. Raises ValueError outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"ddim: eta must lie between 0 (deterministic) and 1 (ancestral), got {eta}")
    grid = steps_of("ddim", schedule, grid).grid
    return one_step(grid, transition(schedule, grid[:-1], grid[1:], np.float64(eta)))
