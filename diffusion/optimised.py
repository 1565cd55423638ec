"""Where to put the steps of a given solver for a given denoiser: dynamic programming on the solver's own local error.

The probability flow is solved once on a fine grid of M points, for a few noises. For every choice of the next point the error
of one step of the solver, from the exact solution and with exact history, follows without another call: all of it is a
linear combination of states and denoised estimates that are already there. The sum of these errors over a path through the
fine grid is then minimised exactly. A two-step solver's error depends on the point before, too, so the program runs over
pairs of points. (GITS, Chen et al. 2024, arXiv 2405.11326, runs it over points with Euler's error, whatever the solver.)

With A and B the weights of DDIM's step and w those of `warped_adams` (`exponential_adams` in log-SNR), sum w = 1, the error
of a step is

    e = |A x_i + B (w_0 D_i + w_1 D_k) - x_j|     k the point before i.

An error at level j counts at the end as the flow carries it there. How much it grows is measured along the same paths, by
moving the noise a little; the median over noises is taken, as a few paths near a watershed would hide the rest. It is the
predictor's error also where the solver has a corrector: a corrected step looks much better from an exact new estimate than
it is from the predicted one, and paths chosen by it step too far.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffusion import grids, sampling
from diffusion.schedules import Schedule
from diffusion.solvers.best import (
    Coordinate,
    checked,
    checked_probe,
    mean_powers,
    noise,
    two_parameter_coordinate,
    warped_adams,
)
from diffusion.solvers.ddim import transition
from diffusion.solvers.steps import EXTREME, FEW

MIDDLE, RHO, SUBSTEPS = 1.0, 3.0, 4
"""c and rho of the fine grid, and how many steps of the fine solve lie between two of its points."""

MOVE = 1e-3
"""How far the noise is moved, in units of its standard deviation, to measure how errors grow."""


class Costs(NamedTuple):
    """What steps between the points 0..M of the fine grid cost; infinite where there is no such step.

    first: [M+1] from point 0 to point j. inner: [M+1, M+1, M+1] from point i to j after a step from k, [k, i, j].
    last: [M+1, M+1] from point i to the end after a step from k, [k, i].
    """

    first: Float[np.ndarray, " points"]
    inner: Float[np.ndarray, "points points points"]
    last: Float[np.ndarray, "points points"]


def optimised(
    schedule: Schedule,
    num_steps: int,
    denoise: Any,
    start: float | None = None,
    end: float | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    key: Array | None = None,
    order: int = 2,
    coordinate: Coordinate | None = None,
    num_noises: int = 32,
    num_points: int = 96,
) -> grids.Grid:
    """The grid [num_steps + 1] of log-SNR on which exponential Adams makes the smallest sum of local errors.

    shape: of one sample; key: for the noises. order (1 or 2): of the solver that the grid is for; 2 also suits higher ones.
    coordinate: its polynomial's variable, the log-SNR unless given (see `warped_adams`). num_points: steps of the fine grid
    through which the path goes, at least num_steps; the fine solve takes four calls for each, on twice num_noises states.

    Raises ValueError for a bad num_steps, ends that don't rise, shape or key missing.
    """
    steps, start, end = checked("optimised", schedule, num_steps, start, end)
    shape = checked_probe("optimised", denoise, shape, key)
    if order not in (1, 2):
        raise ValueError(f"optimised: order must be 1 or 2, got {order!r}")
    if num_points < steps:
        raise ValueError(f"optimised: num_points must be at least num_steps = {steps}, got {num_points!r}")
    grid, states, estimates, growth = _solve(denoise, schedule, start, end, shape, key, num_noises, num_points)
    coordinate = coordinate or (lambda logsnr: logsnr)
    lower = order == 1 or steps < FEW
    table = costs(schedule, grid, states, estimates, growth, coordinate, order, lower)
    return grids.validate(grid[shortest(table, steps)])


# The fine solve ---------------------------------------------------------------------------------------------


def _solve(denoise, schedule, start, end, shape, key, num_noises, num_points):
    """The fine grid [M+1], states [M+1, n, d], denoised estimates [M, n, d] and growth [M+1] to the end."""
    fine = grids.two_parameter(schedule, num_points * SUBSTEPS, start, end, c=MIDDLE, rho=RHO)
    table = warped_adams(schedule, fine, two_parameter_coordinate(MIDDLE, RHO), 3, nodes=4)
    at_rest, direction = (noise(schedule, start, part, (num_noises, *shape)) for part in jax.random.split(key))
    x = jnp.concatenate([at_rest, at_rest + MOVE * direction])
    denoise = sampling.tree(denoise)
    points, estimates, final = _trajectory(denoise, jax.tree.map(lambda a: jnp.asarray(a, x.dtype), table), x)
    states = np.concatenate([np.asarray(points), np.asarray(final)[None]]).astype(np.float64)
    states = states.reshape(len(states), 2, num_noises, -1)
    if not np.isfinite(states).all():
        raise ValueError(f"optimised: the denoiser's samples with {len(fine) - 1} steps are not finite")
    moved = np.linalg.norm(states[:, 1] - states[:, 0], axis=-1)
    growth = np.median(moved[-1] / np.maximum(moved, np.finfo(np.float32).tiny), axis=1)
    estimates = np.asarray(estimates, np.float64).reshape(num_points, 2, num_noises, -1)[:, 0]
    return fine[::SUBSTEPS], states[:, 0], estimates, growth


@jax.jit
def _trajectory(denoise, table, x):
    """The state and the estimate at the first of every SUBSTEPS rows, and the sample."""
    groups = jax.tree.map(lambda a: a.reshape(-1, SUBSTEPS, *a.shape[1:]), sampling.rows(table))

    def group(carry, rows):
        carry, seen = jax.lax.scan(lambda carry, row: sampling.step(denoise, carry, row, None), carry, rows)
        return carry, jax.tree.map(lambda a: a[0], seen)

    carry, (points, estimates) = jax.lax.scan(group, sampling.start(table, x), groups)
    return points, estimates, sampling.predict(table.final, carry, None)


# What a step costs ------------------------------------------------------------------------------------------


def costs(
    schedule: Schedule,
    grid: Float[np.ndarray, " points"],
    states: Float[np.ndarray, "points n d"],
    estimates: Float[np.ndarray, "steps n d"],
    growth: Float[np.ndarray, " points"],
    coordinate: Coordinate,
    order: int,
    lower_order_final: bool,
) -> Costs:
    """The mean over noises of every step's error times the growth of errors from its end.

    The last step is first order where lower_order_final says so, steps from or to infinity and those after them are anyway.
    """
    count, finite = len(grid), np.abs(grid) < EXTREME
    products = _products(states, estimates)
    where = coordinate(np.where(finite, grid, 0.0))

    def cost(i, j, k, order):
        """[k, j], of steps from i to the points j after a step from the points k."""
        j, k = np.asarray(j)[None, :], np.asarray(k)[:, None]
        anchor, total, _ = transition(schedule, np.full(j.shape, grid[i]), grid[j])
        extrapolated = 0.0
        if order > 1:
            moment = mean_powers(np.full(j.shape, grid[i]), grid[j], coordinate, 2)[1]
            extrapolated = moment * (where[j] - where[i]) / (where[i] - where[k])
        here = np.array([[i]])
        terms = [(here, anchor), (j, -np.ones(j.shape)), (count + here, total * (1 + extrapolated))]
        terms += [(count + k, -total * extrapolated)] * (order > 1)
        square = sum(a * b * products[:, p, q] for p, a in terms for q, b in terms)
        return growth[j] * np.mean(np.sqrt(np.maximum(square, 0)), axis=0)

    last = count - 1
    table = Costs(np.full(count, np.inf), np.full((count,) * 3, np.inf), np.full((count, count), np.inf))
    table.first[1:] = cost(0, np.arange(1, count), [0], 1)[0]
    for i in range(1, last):
        later = np.arange(i + 1, last)
        for known in (True, False):
            k = np.flatnonzero(finite[:i] == known)
            depth = order if known else 1
            table.inner[k[:, None], i, later[None]] = cost(i, later, k, depth)
            table.last[k, i] = cost(i, [last], k, 1 if lower_order_final or not finite[-1] else depth)[:, 0]
    return table


def _products(states, estimates):
    """Inner products of all states and estimates, for every noise: [n, 2M+1, 2M+1]."""
    vectors = [np.concatenate([states[:, n], estimates[:, n]]) for n in range(states.shape[1])]
    return np.stack([v @ v.T for v in vectors])


# The path ---------------------------------------------------------------------------------------------------


def shortest(table: Costs, num_steps: int) -> Int[np.ndarray, " path"]:
    """The cheapest path of num_steps steps, exactly: value[k, i] is the cheapest way to i with k before it."""
    end = len(table.first) - 1
    if num_steps == 1:
        return np.array([0, end])
    value = np.full(table.last.shape, np.inf)
    value[0] = table.first
    value[0, end] = np.inf
    before = []
    for _ in range(num_steps - 2):
        through = value[:, :, None] + table.inner
        before.append(np.argmin(through, axis=0))
        value = np.min(through, axis=0)
    k, i = np.unravel_index(np.argmin(value + table.last), value.shape)
    path = [end, i, k]
    for choice in reversed(before):
        i, k = k, choice[k, i]
        path.append(k)
    return np.array(path[::-1])
