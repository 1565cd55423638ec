"""The default sampler: exponential Adams whose polynomial runs in the coordinate in which its grid is uniform.

Over a step the probability flow is y_t = s_t/s_s y_s + s_t int D d(1/s) with y = x/alpha, s = sigma/alpha. Multistep samplers
put a polynomial for D; DPM-Solver++ and UniPC take it in log-SNR, where D ends in exponentials: for Gaussian data of
standard deviation c, D is proportional to 1 / sqrt(1 + (s/c)^2) along the path. In q = r / (1 + r), r = (s/c)^(1/rho), the
coordinate of `grids.two_parameter`, it is a smooth function down to s = 0 and up to s = inf. So here the polynomial is taken
in q, and the steps too are equal in q. Chosen by probing, its error on eight exactly solvable problems was 1.1 to 1.8 times
smaller than that of such samplers in log-SNR on the same grids, 1.4 times on average.

`best` chooses c, rho, the order and the corrector for one denoiser, by trying a fixed list of candidates on a few noises.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from diffusion import grids, sampling
from diffusion.clocks import namespace
from diffusion.schedules import Schedule
from diffusion.solvers import multistep
from diffusion.solvers.exponential import data_anchor
from diffusion.solvers.steps import Steps, gauss_legendre, steps_of
from diffusion.solvers.table import Table

_POINTS, _WEIGHTS = gauss_legendre(64)

Coordinate = Callable[[Any], Any]
"""A strictly rising function of the log-SNR."""


def two_parameter_coordinate(c: float, rho: float) -> Coordinate:
    """1 - 2q, q = r / (1 + r), r = (s/c)^(1/rho): from -1 at s = inf to 1 at s = 0; `grids.two_parameter` is uniform in it."""
    return lambda logsnr: namespace(logsnr).tanh((logsnr + 2 * math.log(c)) / (4 * rho))


def warped_adams(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    coordinate: Coordinate,
    order: int = 2,
    *,
    nodes: int = 0,
    lower_order_final: bool | None = None,
) -> Table:
    """Exponential Adams on the denoised estimate, a polynomial in `coordinate` through its last `order` values; N calls.

    order: 1 (DDIM) to 4. nodes: 0, or 2 to 5, the values through which the corrector's polynomial goes, the new one
    included; it costs no call. lower_order_final: the last steps of lower order; None means with fewer than 50 steps, or where
    some level waits while others move. With `coordinate` the log-SNR, and as many steps of lower order, this is
    `exponential_adams`.
    Source: exponential Adams methods (Hochbruck & Ostermann 2010, section 2.5) on the flow of Lu et al. 2022, arXiv
    2211.01095, prop. 4.1, after a change of the interpolation's variable.
    """
    if nodes not in (0, 2, 3, 4, 5):
        raise ValueError(f"warped_adams: nodes must be 0 (no corrector) or from 2 to 5, got {nodes!r}")
    name, short = "warped_adams", lower_order_final is None and len(np.asarray(grid)) <= 50
    steps = steps_of(name, schedule, grid, order, lower_order_final=True if short else lower_order_final)
    where = coordinate(steps.points)
    anchor, moments = data_anchor(steps), _moments(steps, coordinate, max(order, nodes))
    predict = multistep.predictor(steps, where, anchor, moments)
    correct = None
    if nodes:
        count = steps_of(name, schedule, grid, nodes - 1, lower_order_final=False).order + 1
        correct = multistep.corrector(steps, where, anchor, moments, order=count)
    return multistep.table(steps, multistep.data_form(schedule), predict, correct)


def _moments(steps: Steps, coordinate: Coordinate, count: int) -> list[Any]:
    """M_j = sigma_t int u^j d(1/s), u the coordinate in units of the step; M_0 = alpha_t - sigma_t alpha_s / sigma_s."""
    total = -steps.schedule.alpha(steps.there) * np.expm1(-steps.h)
    return [total * moment for moment in mean_powers(steps.here, steps.there, coordinate, count)]


def mean_powers(here: Any, there: Any, coordinate: Coordinate, count: int) -> list[Any]:
    """The means of u^j, j < count, under d(1/s) from level `here` to `there`, u the coordinate in units of the step.

    By Gauss-Legendre quadrature in log-SNR; the mean of u^0 is 1 exactly, so that a constant D stays exact.
    """
    begin, end, length = coordinate(here), coordinate(there), there - here
    density = [weight * np.exp((point - 1) * length / 2) for point, weight in zip(_POINTS, _WEIGHTS, strict=True)]
    us = [(coordinate(here + point * length) - begin) / (end - begin) for point in _POINTS]
    total = sum(density)
    return [sum(d * u**j for d, u in zip(density, us, strict=True)) / total for j in range(count)]


# Choosing ---------------------------------------------------------------------------------------------------


class Candidate(NamedTuple):
    """A sampler of the family: c in units of the data's standard deviation, rho; order, the corrector's nodes (0: none) and
    whether the last steps are of lower order.
    """

    c: float
    rho: float
    order: int
    nodes: int
    lower_order_final: bool | None = None

    def table(self, schedule: Schedule, nfe: int, start: float, end: float, scale: float) -> Table:
        """Its table for data of standard deviation `scale` (about its mean, per number)."""
        c = self.c * scale
        grid = grids.two_parameter(schedule, nfe, start, end, c=c, rho=self.rho)
        coordinate, lower = two_parameter_coordinate(c, self.rho), self.lower_order_final
        return warped_adams(schedule, grid, coordinate, self.order, nodes=self.nodes, lower_order_final=lower)


CANDIDATES = tuple(
    Candidate(c, rho, *method)
    for c in (0.2, 0.3, 0.5, 0.7, 1.0)
    for rho in (1.0, 1.25, 1.5)
    for method in ((2, 0), (2, 2), (2, 3), (3, 3), (3, 3, False))
)
"""What `best` tries. Chosen on eight mixtures (1 to 64 numbers a sample), two intervals and 5 to 20 calls."""

NUM_NOISES, REFERENCE_STEPS = 64, 300


def rule(nfe: int) -> Candidate:
    """The candidate that did best on average with this many calls, for want of a denoiser to ask."""
    if nfe <= 5:
        return Candidate(0.7, 1.25, 2, 0)
    return Candidate(0.6, 1.0, 2, 2) if nfe <= 8 else Candidate(0.45, 1.25, 3, 3)


def best(
    schedule: Schedule,
    denoise: Callable[..., Array] | None,
    nfe: int,
    start: float | None = None,
    end: float | None = None,
    shape: tuple[int, ...] | None = None,
    key: Array | None = None,
    *,
    num_noises: int = NUM_NOISES,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """The sampler to use when nothing is known about the denoiser but the denoiser itself; nfe calls.

    With `shape` (of one sample) and `key` every candidate is run on `num_noises` noises (at most 64) and held against a fine
    solve with a sampler of the same family: 300 + 75 nfe calls in two compiled programs, one for all candidates. The
    smallest mean square root of the samples' errors wins: between the median, which lone trajectories that land in another
    mode don't touch, and the RMSE, which they rule. Without, by a rule of the NFE, for data of standard deviation near 1.
    start, end: log-SNR, the schedule's own unless given; infinite ends are legal. progress: called with (candidates done, all).

    Raises ValueError for a bad nfe, ends that don't rise, one of shape and key without the other, a denoiser whose samples
    are not finite.
    """
    nfe, start, end = checked("best", schedule, nfe, start, end)
    if shape is None and key is None:
        return rule(nfe).table(schedule, nfe, start, end, 1.0)
    shape = checked_probe("best", denoise, shape, key)
    if not 1 <= num_noises <= NUM_NOISES:
        raise ValueError(f"best: num_noises must be from 1 to {NUM_NOISES}, got {num_noises!r}")
    x = noise(schedule, start, key, (num_noises, *shape))
    truth = reference(denoise, schedule, start, end, x)
    scale = spread(truth)
    tables = [candidate.table(schedule, nfe, start, end, scale) for candidate in CANDIDATES]
    scores: list[float] = []
    for table in tables:
        scores.append(float(_score(sampling.sample(denoise, table, x), truth)))
        if progress is not None:
            progress(len(scores), len(tables))
    if not np.isfinite(scores).any():
        raise ValueError(f"best: no sampler gave finite samples with {nfe} calls of this denoiser")
    return tables[int(np.argmin(np.where(np.isfinite(scores), scores, np.inf)))]


@jax.jit
def _score(samples, truth):
    return jnp.mean(jnp.sqrt(distances(samples, truth))) ** 2


def distances(samples: Float[Array, "b ..."], truth: Float[Array, "b ..."]) -> Float[Array, " b"]:
    """The root mean square error of each sample."""
    square = jnp.mean((samples - truth) ** 2, axis=tuple(range(1, samples.ndim)))
    return jnp.sqrt(square + jnp.finfo(square.dtype).tiny)  # at zero the square root has no gradient


# What choosing and fitting share ----------------------------------------------------------------------------


def checked(
    name: str, schedule: Schedule, nfe: int, start: float | None, end: float | None
) -> tuple[int, float, float]:
    """nfe and the ends as numbers, or a ValueError that names `name`."""
    try:
        count = operator.index(nfe)
    except TypeError:
        count = 0
    if count < 1 or isinstance(nfe, bool):
        raise ValueError(f"{name}: nfe, the number of calls, must be a whole number of at least 1, got {nfe!r}")
    start = float(schedule.logsnr_start if start is None else start)
    end = float(schedule.logsnr_end if end is None else end)
    if not start < end:
        raise ValueError(f"{name}: sampling runs from start (noise) up to end (data) in log-SNR, got {start} and {end}")
    return count, start, end


def checked_probe(name: str, denoise: Any, shape: Any, key: Any) -> tuple[int, ...]:
    """The shape of one sample as a tuple, or a ValueError."""
    if shape is None or key is None:
        missing = "shape (of one sample, without the batch axis)" if shape is None else "key (jax.random.key(...))"
        raise ValueError(f"{name}: asking the denoiser needs both shape and key; {missing} is missing")
    if not callable(denoise):
        raise ValueError(f"{name}: denoise must be a function (x, logsnr) -> denoised, got {type(denoise).__name__}")
    try:
        shape = tuple(operator.index(size) for size in shape)
    except TypeError:
        shape = (0,)
    if any(size < 1 for size in shape):
        raise ValueError(f"{name}: shape must be that of one sample, whole numbers of at least 1")
    return shape


def noise(schedule: Schedule, start: float, key: Array, shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Noise at the level `start` in the schedule's scale; float64 where JAX has it switched on.

    Sigma alone, and not `Schedule.size`: nothing is known of how large the data are, and the choice is to follow their scale.
    """
    sigma = float(schedule.sigma(start))
    if not math.isfinite(sigma):
        raise ValueError("noise: sigma of this schedule is infinite at log-SNR -inf; start at a finite level")
    return sigma * sampling.normal(key, shape, jnp.result_type(float))


def reference(
    denoise: Callable[..., Array],
    schedule: Schedule,
    start: float,
    end: float,
    x: Float[Array, "b ..."],
    num_steps: int = REFERENCE_STEPS,
) -> Float[Array, "b ..."]:
    """The end of the probability flow from x by a fine solve of third order, or a ValueError where it is not finite."""
    grid = grids.two_parameter(schedule, num_steps, start, end, c=1.0, rho=3.0)
    table = warped_adams(schedule, grid, two_parameter_coordinate(1.0, 3.0), 3, nodes=4)
    truth = sampling.sample(denoise, table, x)
    if not bool(jnp.isfinite(truth).all()):
        raise ValueError(
            f"the denoiser's samples with {num_steps} steps are not finite; check its scale and its levels"
        )
    return truth


def spread(samples: Float[Array, "b ..."]) -> float:
    """The standard deviation of samples about their mean, per number; about their overall mean for a single one."""
    centred = samples - (samples.mean(0) if len(samples) > 1 else samples.mean())
    scale = float(jnp.sqrt(jnp.mean(centred**2)))
    return scale if scale > 1e-6 else 1.0
