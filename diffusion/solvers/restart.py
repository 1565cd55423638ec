"""Restart sampling (Xu et al. 2023, arXiv 2306.14878): go back up with fresh noise, and down again, a few times."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion import grids
from diffusion.schedules import Schedule
from diffusion.solvers.edm import heun_scheme
from diffusion.solvers.singlestep import singlestep
from diffusion.solvers.steps import steps_of
from diffusion.solvers.table import Table


class Interval(NamedTuple):
    """Once the sampler stands at log-SNR `clean`, it goes up to `noisy` and back in `steps` steps, `repeats` times."""

    noisy: float
    clean: float
    steps: int
    repeats: int


def restart(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    intervals: Sequence[Interval | Sequence[float | int]],
    *,
    rho: float = 7.0,
    s_noise: float = 1.0,
) -> Table:
    """Heun over the grid, and at each interval's clean end K rounds of restart (algorithm 1 of the paper).

    A round adds noise by the forward process from `clean` to `noisy` and integrates back with Heun on `steps` steps,
    uniform in s^(1/rho). An interval starts at the grid's point nearest to its `clean` (the paper's own rule), which has
    to lie strictly inside the grid or be its finite end. The grid is [N+1]: a restart is one for all frames.
    Raises ValueError for intervals that don't fit.
    """
    grid = steps_of("restart", schedule, grid).grid
    if grid.ndim != 1:
        raise ValueError(
            f"restart: a restart is one for all frames, so the grid is [N+1]; got shape {list(grid.shape)}"
        )
    if not intervals:
        raise ValueError("restart: expected at least one Interval(noisy, clean, steps, repeats); got none")
    rounds: dict[int, list[Interval]] = {}
    for interval in intervals:
        if len(interval) != 4:
            raise ValueError(f"restart: an interval is (noisy, clean, steps, repeats), got {interval!r}")
        noisy, clean, steps, repeats = interval
        inside = np.isfinite(grid) & (np.arange(len(grid)) > 0)
        place = int(np.argmin(np.where(inside, np.abs(np.where(inside, grid, 0.0) - clean), np.inf)))
        fits = inside[place] and -np.inf < noisy < grid[place]
        if not fits or steps < 1 or repeats < 0 or steps != int(steps) or repeats != int(repeats):
            raise ValueError(
                f"restart: interval {tuple(interval)} needs a finite noisy level below its clean end, here the grid's point"
                f" {grid[place]:.6g}, at least one step and no negative number of repeats, both whole"
            )
        rounds.setdefault(place, []).append(Interval(float(noisy), float(grid[place]), int(steps), int(repeats)))
    legs = []
    for i in range(len(grid) - 1):
        legs.append((grid[i], grid[i], grid[i + 1]))
        for interval in rounds.get(i + 1, ()):
            down = grids.karras(schedule, interval.steps, interval.noisy, interval.clean, rho=rho)
            for _ in range(interval.repeats):
                befores = [interval.clean, *down[1:-1]]
                legs += list(zip(befores, down[:-1], down[1:], strict=True))
    before, here, there = np.array(legs).T
    return singlestep(
        schedule, before, here, there, lambda s, t: heun_scheme(schedule, s, t), s_noise=s_noise, careful=True
    )
