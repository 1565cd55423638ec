"""Where sampling puts its steps: log-SNR grids [N+1] from noise to data, strictly rising, float64 NumPy.

A grid takes (schedule, num_steps, start=None, end=None, ...) with the ends as log-SNR, the schedule's own unless told
otherwise, and has them exactly; levels of a discrete chain, and a grid that asks the denoiser, say what they take. Most
are uniform in some coordinate of the log-SNR (or a warp of it), and that is how they are written. s = sigma/alpha =
exp(-logsnr / 2) throughout, whatever the scaling.

Infinite ends. Where the coordinate reaches the infinite end (time on a schedule that gets there, u = s / (s +
a)), the formula is used as it stands. Where it does not (log-SNR itself, Karras, ...), the grid runs between
the schedule's finite ends with one interval less, and the last (or first) interval goes to infinity: EDM's
"and then 0".

Raises ValueError for num_steps below 1, ends that do not rise or are not numbers.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion import clocks
from diffusion.names import choice
from diffusion.schedules import Schedule

Grid = Float[np.ndarray, " levels"]
Coordinate = Callable[[np.ndarray], np.ndarray]


def validate(grid: Float[ArrayLike, "..."] | Sequence) -> Float[np.ndarray, "levels ..."]:
    """The grid as float64, or a ValueError: at least two rows, no NaN, rising.

    A grid [N+1] must rise strictly, so infinity can stand only at its ends. In a grid [N+1, *level] single
    entries may wait (a frame that has not started or is finished), but no row may repeat the one before.
    """
    grid = np.asarray(grid, np.float64)
    if grid.ndim < 1 or grid.shape[0] < 2:
        raise ValueError(f"a grid is [N+1, *level] with N of at least 1, got shape {list(grid.shape)}")
    if np.isnan(grid).any():
        rows = np.unique(np.nonzero(np.isnan(grid))[0]).tolist()
        raise ValueError(f"a grid of log-SNR must not hold NaN; it does in rows {rows}")
    before, after = grid[:-1].reshape(len(grid) - 1, -1), grid[1:].reshape(len(grid) - 1, -1)
    falling = (after < before).any(1)
    if falling.any():
        row = int(np.argmax(falling))
        raise ValueError(
            f"a grid of log-SNR runs from noise to data and must rise, but it falls from row {row} to"
            f" {row + 1} (from {before[row].max():.6g}); reverse a grid that runs from data to noise"
        )
    still = ~(after > before).any(1)
    if still.any():
        row = int(np.argmax(still))
        raise ValueError(f"rows {row} and {row + 1} of the grid are equal: that step would have no length")
    return grid


# Uniform in a coordinate ------------------------------------------------------------------------------------


def uniform_time(schedule: Schedule, num_steps: int, start: float | None = None, end: float | None = None) -> Grid:
    """Uniform in the schedule's time."""
    return _in_time(schedule, num_steps, start, end, schedule.clock, lambda p: p)


def quadratic_time(schedule: Schedule, num_steps: int, start: float | None = None, end: float | None = None) -> Grid:
    """Uniform in the square root of time (Song et al. 2020, arXiv 2010.02502, appendix D.2)."""
    steps, start, end = _checked(schedule, num_steps, start, end)
    return _uniform_in(
        lambda l: np.sqrt(np.maximum(schedule.time(l), 0)),
        lambda q: schedule.logsnr(q**2),
        schedule,
        steps,
        start,
        end,
        reaches=_reaches(schedule.clock, start, end),
    )


def uniform_logsnr(schedule: Schedule, num_steps: int, start: float | None = None, end: float | None = None) -> Grid:
    """Uniform in log-SNR (Lu et al. 2022, arXiv 2206.00927)."""
    return exponential(schedule, num_steps, start, end)


def exponential(
    schedule: Schedule, num_steps: int, start: float | None = None, end: float | None = None, rho: float = 1.0
) -> Grid:
    """log s by the rho-th power of a ramp: `uniform_logsnr` for rho = 1, else k-diffusion's polyexponential."""
    _positive("exponential", rho=rho)
    steps, start, end = _checked(schedule, num_steps, start, end)
    return _spread(lambda p, a, b: b + (1 - p) ** rho * (a - b), schedule, steps, start, end)


def karras(
    schedule: Schedule, num_steps: int, start: float | None = None, end: float | None = None, rho: float = 7.0
) -> Grid:
    """Uniform in s^(1/rho) (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    rho = 1 is uniform in s, rho to infinity is uniform in log-SNR.
    """
    _positive("karras", rho=rho)
    steps, start, end = _checked(schedule, num_steps, start, end)
    return _uniform_in(lambda l: np.exp(-l / (2 * rho)), lambda q: -2 * rho * np.log(q), schedule, steps, start, end)


def flow_shift(
    schedule: Schedule,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    shift: float = 1.0,
) -> Grid:
    """Uniform in flow time before it is shifted by t' = a t / (1 + (a - 1) t), that is in s / (s + a).

    Esser et al. 2024, arXiv 2403.03206, eq. 23. Both infinite ends are on it.
    """
    _positive("flow_shift", shift=shift)
    clock = clocks.Shifted(clocks.Rectified(), -2 * math.log(shift))
    return _in_time(schedule, num_steps, start, end, clock, lambda p: p)


def two_parameter(
    schedule: Schedule,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    c: float = 1.0,
    rho: float = 2.0,
) -> Grid:
    """Uniform in q = r / (1 + r), r = (s / c)^(1/rho).

    Like `karras` where s is well below c, and mirrored above. rho = 1 is `flow_shift`, rho to infinity is
    uniform in log-SNR. Both infinite ends are on it.
    """
    _positive("two_parameter", c=c, rho=rho)
    steps, start, end = _checked(schedule, num_steps, start, end)
    # 1 - 2q is a tanh, odd about c: both ends keep the same digits.
    middle = 2 * math.log(c)
    return _uniform_in(
        lambda l: np.tanh((l + middle) / (4 * rho)),
        lambda q: 4 * rho * np.arctanh(q) - middle,
        schedule,
        steps,
        start,
        end,
        reaches=(True, True),
    )


# Warped time ------------------------------------------------------------------------------------------------


def beta_quantiles(
    schedule: Schedule,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    a: float = 0.6,
    b: float = 0.6,
) -> Grid:
    """Times at uniform quantiles of a Beta(a, b) law: dense at both ends for a, b < 1.

    Lee et al. 2024, arXiv 2407.12173. The law is placed on time, not on sigma.
    """
    from scipy.special import betaincinv

    _positive("beta_quantiles", a=a, b=b)
    return _in_time(schedule, num_steps, start, end, schedule.clock, lambda p: 1 - betaincinv(a, b, 1 - p))


def linear_quadratic(
    schedule: Schedule,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    threshold: float = 0.025,
) -> Grid:
    """Half of the steps linear in time over its first `threshold`, the rest quadratic with the same slope
    there.

    Mochi 1's sampling times (Genmo 2024). Made for flow time: give it a flow schedule.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"linear_quadratic: expected a threshold in (0, 1), got {threshold}")

    def progress(p):
        steps = len(p) - 1
        linear = steps // 2
        if not linear:
            return p
        past = np.maximum(np.arange(steps + 1) - linear, 0)
        slope, rest = threshold / linear, steps - linear
        curve = (1 - threshold - slope * rest) / rest**2
        return threshold * np.minimum(np.arange(steps + 1) / linear, 1) + slope * past + curve * past**2

    return _in_time(schedule, num_steps, start, end, schedule.clock, progress)


ALIGN_YOUR_STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Optimised s of ten steps (Sabour et al. 2024, arXiv 2404.14507, table 3)."""


def align_your_steps(
    schedule: Schedule,
    num_steps: int,
    start: float | None = None,
    end: float | None = None,
    model: str = "svd",
) -> Grid:
    """A published ten-step list, log s interpolated linearly to other N (the paper's rule), stretched to the
    ends.

    The lists were optimised for one model each; with other ends only their shape is kept. At N = 10 and the
    list's own ends it is the list.
    """
    log_s = np.log(choice(model, ALIGN_YOUR_STEPS, "align_your_steps: model", KeyError))
    steps, start, end = _checked(schedule, num_steps, start, end)
    share = (log_s[0] - log_s) / (log_s[0] - log_s[-1])

    def formula(p, a, b):
        return a + np.interp(p, np.linspace(0, 1, len(share)), share) * (b - a)

    return _spread(formula, schedule, steps, start, end)


# For one denoiser -------------------------------------------------------------------------------------------


def optimised(
    schedule: Schedule,
    num_steps: int,
    denoise: Callable,
    start: float | None = None,
    end: float | None = None,
    **options: Any,
) -> Grid:
    """The grid on which a solver's own local errors for `denoise` add up to least, by dynamic programming.

    Needs shape= (of one sample) and key=; the other options, order= above all, are those of `diffusion.optimised`.
    """
    from diffusion import optimised as search  # which imports this file

    return search.optimised(schedule, num_steps, denoise, start, end, **options)


# Discrete chains --------------------------------------------------------------------------------------------


def leading(schedule: Schedule, num_steps: int, end: float = math.inf, offset: int = 0) -> Grid:
    """Every (T // N)-th level of a discrete chain from level `offset` up, then `end`, clean by default.

    DDIM's and Stable Diffusion's (offset 1) spacing. It starts below pure noise, at level T - T/N.
    """
    steps, length = _chain(schedule, num_steps)
    if not 0 <= offset <= length - 1 - (length // steps) * (steps - 1):
        raise ValueError(f"leading: no level {offset} + {(length // steps) * (steps - 1)} in a chain of {length}")
    return _levels(schedule, (length // steps) * np.arange(steps)[::-1] + offset, length, end)


def linspace(schedule: Schedule, num_steps: int, end: float = math.inf) -> Grid:
    """N levels of a discrete chain from the last, T-1, to the first, rounded, then `end`, clean by default.

    One step starts at the last level.
    """
    steps, length = _chain(schedule, num_steps)
    return _levels(schedule, np.round(np.linspace(length - 1, 0, steps)), length, end)


def trailing(schedule: Schedule, num_steps: int, end: float = math.inf) -> Grid:
    """Levels round(T - k T/N) - 1 of a discrete chain, then `end`, clean by default.

    It starts at the last level for every N (Lin et al. 2023, arXiv 2305.08891, table 2): at -inf where the
    chain has zero terminal SNR.
    """
    steps, length = _chain(schedule, num_steps)
    return _levels(schedule, np.round(length - np.arange(steps) * length / steps) - 1, length, end)


def _chain(schedule, num_steps):
    """The number of steps, and of levels: the chain's own, 1000 for a clock without betas."""
    clock = schedule.clock.clock if isinstance(schedule.clock, clocks.Shifted) else schedule.clock
    length = len(clock.betas) if isinstance(clock, clocks.Discrete) else 1000
    steps = _count(num_steps)
    if steps > length:
        raise ValueError(f"num_steps: a chain of {length} levels has no {steps} steps")
    return steps, length


def _levels(schedule, indices, length, end):
    return validate(np.append(schedule.logsnr((np.asarray(indices) + 1) / length), _number(end, "end")))


# How they are made ------------------------------------------------------------------------------------------


def _count(num_steps):
    try:
        steps = operator.index(num_steps)
    except TypeError:
        raise ValueError(f"num_steps: expected a whole number of at least 1, got {num_steps!r}") from None
    if steps < 1 or isinstance(num_steps, bool):
        raise ValueError(f"num_steps: expected a whole number of at least 1, got {num_steps!r}")
    return steps


def _number(value, name):
    value = float(value)
    if math.isnan(value):
        raise ValueError(f"{name}: expected a log-SNR, got NaN")
    return value


def _checked(schedule, num_steps, start, end):
    start = _number(schedule.logsnr_start if start is None else start, "start")
    end = _number(schedule.logsnr_end if end is None else end, "end")
    if not start < end:
        raise ValueError(
            "a grid rises from start (noise) to end (data), both as log-SNR: expected start < end, got"
            f" {start} and {end}"
        )
    return _count(num_steps), start, end


def _positive(what, **values):
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{what}: expected {name} above 0, got {value}")


def _spread(formula, schedule, steps, start, end, reaches=(False, False)):
    """The grid of formula(progress [n+1] from 0 to 1, start, end).

    Infinite ends that the formula does not reach are put on as intervals of their own.
    """
    before, after = (math.isinf(e) and not r for e, r in zip((start, end), reaches, strict=True))
    low = schedule.logsnr_start if before else start
    high = schedule.logsnr_end if after else end
    inner = steps - before - after
    if inner >= 1 and not low < high:
        raise ValueError(
            "a grid with an infinite end needs its other end inside the schedule's"
            f" [{schedule.logsnr_start:.6g}, {schedule.logsnr_end:.6g}]; got {start} and {end}"
        )
    if inner >= 1:
        points = formula(np.arange(inner + 1) / inner, low, high)
        points[0], points[-1] = low, high
    elif before and after:
        # Two steps from end to end leave the middle of the formula, one step leaves nothing.
        points = formula(np.array([0.0, 0.5, 1.0]), low, high)[1:2] if inner == 0 else np.empty(0)
    else:
        points = np.array([high if before else low])
    return validate(np.concatenate([[start] * before, points, [end] * after]))


def _uniform_in(to: Coordinate, back: Coordinate, schedule, steps, start, end, reaches=(False, False)):
    """Uniform in the coordinate to(logsnr), of which `back` is the inverse."""
    return _spread(_between(to, back, lambda p: p), schedule, steps, start, end, reaches)


def _in_time(schedule, num_steps, start, end, clock, progress):
    """At times first + progress(p) (last - first) of a clock."""
    steps, start, end = _checked(schedule, num_steps, start, end)
    reaches = _reaches(clock, start, end)
    return _spread(_between(clock.time, clock.logsnr, progress), schedule, steps, start, end, reaches)


def _between(to, back, progress):
    def formula(p, a, b):
        first, last = float(to(np.float64(a))), float(to(np.float64(b)))
        inside = back(first + (last - first) * progress(p)[1:-1])
        return np.concatenate([[a], inside, [b]])

    return formula


def _reaches(clock, start, end):
    """Whether the clock's own range [0, 1] gets to each infinite end, to within a thousandth of it."""
    times = [float(clock.time(e)) if math.isinf(e) else math.nan for e in (start, end)]
    return tuple(-1e-3 <= t <= 1 + 1e-3 for t in times)
