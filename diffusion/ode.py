"""Adaptive solves of the probability-flow ODE, and the likelihoods that follow from it, by diffrax (the extra `ode`).

A table takes the steps that it was given, `solve` as many as a tolerance needs. It is no fast sampler, but one to hold fast
ones against where no exact solution is known. `log_density` tells how likely a network takes a clip to be.

Both move x in the scaling alpha^2 + sigma^2 = 1, where it keeps the size of the data (Song et al. 2021, arXiv 2011.13456,
eq. 13; docs/mathematics.md, section 4):

    dx / dlogsnr = (alpha denoised - alpha^2 x) / 2

Levels are finite. One per frame moves along the straight line in log-SNR, and a frame whose two levels are equal waits.
"""

import importlib.util
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Shaped

from diffusion.clocks import Levels
from diffusion.levels import expand
from diffusion.sampling import tree
from diffusion.schedules import Schedule

AT_ONCE = 32
"""Derivatives of an exact trace that are taken side by side."""
STAGES = 6
"""Calls in a step, rejected or not, after one at the start: where a step ends, the next begins."""
FIRST = 0.01
"""The first step tried, as a part of the way."""


class Solution(NamedTuple):
    """x: [b, ...], where the solve ended, in the schedule's scale. calls: of denoise."""

    x: Float[Array, "b ..."]
    calls: int


class Likelihood(NamedTuple):
    """log_density: [b], in nats. x: [b, ...], the noise that the clips come from, in the schedule's scale. calls: of denoise,
    with its derivatives.
    """

    log_density: Float[Array, " b"]
    x: Float[Array, "b ..."]
    calls: int


def solve(
    denoise: Callable[..., Array],
    schedule: Schedule,
    x: Shaped[ArrayLike, "b ..."],
    start: Levels | None = None,
    end: Levels | None = None,
    *,
    rtol: float = 1e-4,
    max_steps: int = 1000,
) -> Solution:
    """The probability-flow ODE from x at log-SNR `start` to log-SNR `end`, by Tsitouras' method of order 5 (2011).

    denoise: (x, logsnr) -> the estimate of the clean data; a `jax.tree_util.Partial` is an argument of the compiled program.
    x: [b, ...] in the schedule's scale; noise is of the size `schedule.size(start)`.
    start, end: [], [b], [b|1, f], ..., either way round; the schedule's ends by default. What noise is left, one more call of
        denoise takes away.
    rtol: the error of a step, relative to x or to 1: the root of its mean square over the clip that needs it most.

    Raises ImportError without diffrax; ValueError for levels that aren't finite or don't fit x, and for a tolerance finer than
    x's type or not below 1; RuntimeError where max_steps were not enough, as where denoise answers nan.
    """
    start = schedule.logsnr_start if start is None else start
    end = schedule.logsnr_end if end is None else end
    path = _path("solve", schedule, x, start, end, rtol)
    unit, _, calls = _moved("solve", denoise, schedule, path, _no_trace, None, rtol, max_steps)
    return Solution(unit * _size(schedule, path, 1), calls)


def log_density(
    denoise: Callable[..., Array],
    schedule: Schedule,
    x: Shaped[ArrayLike, "b ..."],
    key: Array | None = None,
    *,
    logsnr: Levels | None = None,
    start: Levels | None = None,
    probes: int = 1,
    rtol: float = 1e-4,
    max_steps: int = 1000,
) -> Likelihood:
    """The log density of clips under the law that the probability flow makes of unit noise (Song et al. 2021, arXiv 2011.13456,
    eq. 39): that of the noise they come from, and the trace of the velocity's derivative along the way.

    x: [b, ...] in the schedule's scale, as noisy as `logsnr` says: `levels.forward(x0, eps, logsnr, schedule)`. The density is
        that of clips with this noise.
    key: draws the probes that estimate the trace, without bias, by one derivative backwards for each (Hutchinson 1990; numbers
        of 1 and -1). Without a key the trace is exact, by a derivative for each number of a clip.
    logsnr: the level of x; the schedule's end by default. start: where clips are taken for unit noise; the schedule's start by
        default. Frames at which the two are equal wait: the density is then that of the others, given these.

    Of clips made of bytes, byte / 127.5 - 1 and uniform noise of a byte's width, the bits per number are
    log2(127.5) - log_density / (d log 2), d the numbers of a clip.

    Raises as `solve` does, and ValueError for fewer than 1 probe, or several without a key.
    """
    if probes < 1 or (key is None and probes > 1):
        raise ValueError(f"log_density: expected probes=1 without a key, from 1 up with one; got {probes}, key={key}")
    logsnr = schedule.logsnr_end if logsnr is None else logsnr
    start = schedule.logsnr_start if start is None else start
    path = _path("log_density", schedule, x, logsnr, start, rtol)
    drawn = None if key is None else jax.random.rademacher(key, (probes, *path.unit.shape), path.unit.dtype)
    trace = _exact_trace if key is None else _estimated_trace
    unit, change, calls = _moved("log_density", denoise, schedule, path, trace, drawn, rtol, max_steps)
    # x is `size` times what moves, and its density is as many times thinner in every number.
    each = -(unit**2 + math.log(2 * math.pi)) / 2 - jnp.log(_size(schedule, path, 0))
    moves = expand(path.span, unit) != 0
    density = jnp.where(moves, each, 0).reshape(len(unit), -1).sum(1) + change
    return Likelihood(density, unit * _size(schedule, path, 1), calls)


class _Path(NamedTuple):
    """unit: [b, ...], where alpha^2 + sigma^2 = 1. first, span: levels as arrays."""

    unit: Array
    first: Array
    span: Array

    def level(self, tau: Array | int) -> Array:
        return self.first + tau * self.span


def _path(name: str, schedule: Schedule, x: ArrayLike, first: Levels, last: Levels, rtol: float) -> _Path:
    if importlib.util.find_spec("diffrax") is None:
        raise ImportError(f"{name} is a solve by diffrax: install the extra 'fewstep[ode]'")
    x = jnp.asarray(x)
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating-point clips [b, ...], got {x.dtype} of shape {list(x.shape)}")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    finest = 10 * float(jnp.finfo(x.dtype).eps)
    if not finest <= rtol < 1:
        raise ValueError(f"{name}: expected rtol from {finest:.1e}, of {x.dtype}, to 1, got {rtol}")
    ends = [np.asarray(level, np.float64) for level in (first, last)]
    for level in ends:
        expand(level, x)
        if not np.isfinite(level).all():
            raise ValueError(f"{name}: expected finite levels, got {level.tolist()}")
    rank = max(level.ndim for level in ends)
    start, end = (level.reshape(level.shape + (1,) * (rank - level.ndim)) for level in ends)
    path = _Path(x, jnp.asarray(start, x.dtype), jnp.asarray(end - start, x.dtype))
    return path._replace(unit=x / _size(schedule, path, 0))


def _size(schedule: Schedule, path: _Path, tau: Array | int) -> Array:
    return expand(schedule.size(path.level(tau)), path.unit)


def _moved(name, denoise, schedule, path, trace, probes, rtol, max_steps) -> tuple[Array, Array, int]:
    """The end of the path, the trace's integral over it [b], and how often denoise was called."""
    unit, change, steps, done = _adaptive(tree(denoise), schedule, path, trace, probes, rtol, max_steps)
    if not done:
        raise RuntimeError(
            f"{name}: {max_steps} steps were not enough for rtol {rtol:g}; ask for less or give more, and see that denoise"
            " answers no nan"
        )
    return unit, change, 1 + STAGES * int(steps)


@partial(jax.jit, static_argnames=("schedule", "trace", "max_steps"))
def _adaptive(denoise, schedule, path, trace, probes, rtol, max_steps):
    import diffrax

    def field(tau, state, probes):
        logsnr = path.level(tau)
        alpha = expand(jnp.exp(-jnp.logaddexp(0, -logsnr) / 2), path.unit)

        def velocity(unit):
            answer = denoise(unit * _size(schedule, path, tau), logsnr)
            return expand(path.span, unit) / 2 * alpha * (answer - alpha * unit)

        moved, change = trace(velocity, state[0], probes)
        # In each number, so that the same tolerance fits.
        return moved, change / numbers

    def norm(errors):
        return jnp.stack([jnp.sqrt((leaf**2).reshape(len(leaf), -1).mean(1)).max() for leaf in errors]).max()

    numbers = path.unit[0].size
    begin = path.unit, jnp.zeros(len(path.unit), path.unit.dtype)
    # The state is taken to the type of the times.
    times = (jnp.asarray(time, path.unit.dtype) for time in (0.0, 1.0, FIRST))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field), diffrax.Tsit5(), *times, begin, probes,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol, norm=norm), max_steps=max_steps, throw=False,
    )  # fmt: skip
    unit, change = jax.tree.map(lambda leaf: leaf[-1], solution.ys)
    done = solution.result == diffrax.RESULTS.successful
    return unit, change * numbers, solution.stats["num_steps"], done


def _no_trace(velocity, unit, probes):
    return velocity(unit), jnp.zeros(len(unit), unit.dtype)


def _estimated_trace(velocity, unit, probes):
    moved, back = jax.vjp(velocity, unit)
    products = jax.vmap(lambda probe: probe * back(probe)[0])(probes)
    return moved, products.mean(0).reshape(len(unit), -1).sum(1)


def _exact_trace(velocity, unit, probes):
    moved, back = jax.vjp(velocity, unit)

    def entry(i):
        one = jnp.zeros(unit[0].size, unit.dtype).at[i].set(1)
        return back(jnp.broadcast_to(one.reshape(unit.shape[1:]), unit.shape))[0].reshape(len(unit), -1)[:, i]

    return moved, jax.lax.map(entry, jnp.arange(unit[0].size), batch_size=AT_ONCE).sum(0)
