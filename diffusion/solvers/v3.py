"""DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268): an exponential multistep sampler in a form fitted to the denoiser.

With lambda = logsnr / 2, y = x/alpha and D the denoised estimate the probability flow is dy/dlambda = D - y. For any
functions l, s, b of lambda (the empirical model statistics)

    f = (sigma eps - l x) / alpha = (1 - l) y - D,        dy/dlambda = -l y - f
    g = e^{-S} f - B,   S = int s,   B = int e^{-S} b     (all integrals from the step's start lambda_s)
    y_t = e^{-L_t} (y_s - int e^{L + S} (g + B) dlambda),   L = int l,

which is exact; g is then replaced by the polynomial through its last values. (l, s, b) = (1, 0, 0) is the data form,
(0, -1, 0) the noise form. The statistics that make g change least to first order: 1 - l is the mean of the diagonal of
dD/dy, and s, b regress df/dlambda along the flow on f.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from diffusion import grids
from diffusion.schedules import Schedule
from diffusion.solvers import multistep
from diffusion.solvers.dpm import dpmpp
from diffusion.solvers.exponential import check_damping
from diffusion.solvers.multistep import Update
from diffusion.solvers.steps import gauss_legendre, steps_of
from diffusion.solvers.table import Table


class Statistics(NamedTuple):
    """The functions l, s, b of log-SNR: knots `logsnr` [L], rising, and values [L]; splines between, constant outside.

    Values of shape [L, 1, *sample] differ by element of the sample. l, s, b are per unit of lambda = logsnr / 2.
    """

    logsnr: np.ndarray
    l: np.ndarray
    s: np.ndarray
    b: np.ndarray


def ems_statistics(
    denoise: Callable[..., Array],
    schedule: Schedule,
    x: Float[ArrayLike, "b ..."],
    key: Array,
    *,
    start: float | None = None,
    end: float | None = None,
    levels: int = 128,
    per_element: bool = False,
    probes: int = 1,
) -> Statistics:
    """Statistics of a denoiser along its own trajectories from noises x [b, ...] (at `start`, in the schedule's scale).

    The trajectories are those of DPM-Solver++(2M) with `levels` calls, uniform in log-SNR between finite start and end
    (the schedule's by default). At each level the diagonal of dD/dy comes from `probes` Rademacher vectors by `jax.jvp`
    (Hutchinson), so the denoiser must allow forward derivatives; df/dlambda is the difference between neighbouring levels.
    The means are over the batch, and over the elements too unless per_element. All levels of the trajectory are held.

    Raises ValueError for fewer than 8 levels, infinite ends or no probes.
    """
    if levels < 8 or probes < 1:
        raise ValueError(f"ems_statistics: expected at least 8 levels and 1 probe, got {levels} and {probes}")
    from diffusion import sampling  # which imports this package

    grid = grids.uniform_logsnr(schedule, levels, start, end)
    if not np.isfinite(grid).all():
        raise ValueError(f"ems_statistics: start and end must be finite, got {grid[0]} and {grid[-1]}")
    table = dpmpp(schedule, grid, 2, lower_order_final=False)
    last, points = sampling.sample(denoise, table, x, collect=_point)
    points = jnp.concatenate([points, last[None]])
    denoise = sampling.tree(denoise)
    denoised, diagonal = _probe(denoise, points, jnp.asarray(grid, points.dtype), key, probes)
    alpha = np.asarray(schedule.alpha(grid)).reshape(-1, *[1] * (points.ndim - 1))
    y, denoised, diagonal = (np.asarray(a, np.float64) for a in (points, denoised, diagonal))
    y = y / alpha
    axes = 1 if per_element else tuple(range(1, y.ndim))
    slope = (alpha * diagonal).mean(axes, keepdims=True)  # the mean of the diagonal of dD/dy, 1 - l
    f = slope * y - denoised
    change = np.gradient(f, grid / 2, axis=0)
    centred = f - f.mean(axes, keepdims=True)
    variance = (centred**2).mean(axes, keepdims=True)
    s = (centred * change).mean(axes, keepdims=True) / np.maximum(variance, np.finfo(np.float32).tiny)
    b = change.mean(axes, keepdims=True) - s * f.mean(axes, keepdims=True)
    values = (1 - slope, s, b)
    return Statistics(grid, *(v if per_element else v.reshape(-1) for v in values))


def _point(point, denoised, logsnr):
    return point


@jax.jit(static_argnames="probes")
def _probe(denoise, points, levels, key, probes):
    """At every level: the denoised values, and v (dD/dx v) averaged over random signs v."""

    def at_level(inputs):
        point, level, level_key = inputs

        def one(probe_key):
            signs = jax.random.rademacher(probe_key, point.shape, point.dtype)
            value, change = jax.jvp(lambda p: denoise(p, level), (point,), (signs,))
            return value, signs * change

        values, changes = jax.lax.map(one, jax.random.split(level_key, probes))
        return values[0], changes.mean(0)

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(len(levels)))
    return jax.lax.map(at_level, (points, levels, keys))


def dpm_solver_v3(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    statistics: Statistics,
    order: int = 3,
    *,
    corrector: bool = True,
    damping: float | None = None,
    lower_order_final: bool | None = None,
) -> Table:
    """DPM-Solver-v3 of order 1 to 4 with `statistics` (`ems_statistics`), and its corrector, one order higher; N calls.

    Whatever the statistics, the order is kept: they only set the constant. Statistics per element need a grid [N+1] and
    give weights of the sample's shape. damping and lower_order_final: see `exponential_adams`.
    """
    check_damping("dpm_solver_v3", damping)
    knots, *values = (np.asarray(part, np.float64) for part in statistics)
    _check(knots, values)
    host = grids.validate(grid)
    extra = values[0].ndim - 1
    if extra and host.ndim > 1:
        raise ValueError(f"dpm_solver_v3: statistics per element need a grid [N+1], got shape {list(host.shape)}")
    level = host.shape[1:]
    padded = host.reshape(host.shape + (1,) * extra)
    steps = steps_of("dpm_solver_v3", schedule, padded, order, lower_order_final=lower_order_final, in_logsnr=True)
    functions = _Functions(knots / 2, *values)

    def pad(a):
        return a.reshape(a.shape + (1,) * extra)

    def thin(a):
        return a.reshape(a.shape[: a.ndim - extra])

    start, length = thin(steps.here) / 2, thin(steps.h)
    depth = int(steps.order.max())
    count = depth + 1
    big_l, big_s, c = functions.big_l, functions.big_s, functions.c
    l0, s0, c0 = big_l(start), big_s(start), c(start)

    def offset(at):
        """B at lambda `at`, from this step's start."""
        return np.exp(s0) * (c(at) - c0)

    # The moments of -alpha_t e^{L - L_t + S} in u, and of the same times B.
    end = start + length
    alpha, l1 = schedule.alpha(steps.there), big_l(end)
    moments, bias = [0.0 * alpha for _ in range(count)], 0.0 * alpha
    for v, weight in zip(_POINTS, _WEIGHTS, strict=True):
        at = start + v * length
        density = -weight * alpha * pad(length) * np.exp(big_l(at) - l1 + big_s(at) - s0)
        moments = [total + density * v**j for j, total in enumerate(moments)]
        bias = bias + density * offset(at)
    anchor = alpha / schedule.alpha(steps.here) * np.exp(l0 - l1)

    behind = [thin(steps.back(steps.nodes, k)) / 2 for k in range(depth)]
    behind = [np.where(thin(np.broadcast_to(k < steps.order, steps.h.shape)), at, start) for k, at in enumerate(behind)]
    shape = np.broadcast_shapes(alpha.shape, moments[0].shape)
    order_of = np.broadcast_to(steps.order, shape)

    def update(positions, at, order):
        """From weights of g to weights of f: g = e^{-S} f - B at each node."""
        of_g = multistep.lagrange([np.broadcast_to(u, shape) for u in positions], moments, order)
        history = [w * np.exp(s0 - big_s(node)) for w, node in zip(of_g, at, strict=True)]
        return Update(anchor, tuple(history), None, bias - sum(w * offset(n) for w, n in zip(of_g, at, strict=True)))

    damped = multistep.nodes(steps, steps.points, depth, multistep.limit(steps, damping))
    predict = multistep.irregular(steps, update(damped, behind, order_of))
    correct = None
    if corrector:
        positions = [np.ones_like(steps.h), *multistep.nodes(steps, steps.points, depth)]
        correct = update(positions, [end, *behind], order_of + 1)
    l_nodes = functions.l(thin(steps.nodes) / 2)
    form = lambda at: ((1 - l_nodes) / schedule.alpha(at), -1.0 + 0.0 * at)  # noqa: E731
    table = multistep.table(steps, form, predict, correct)
    return dataclasses.replace(table, logsnr=table.logsnr.reshape(len(length), *level))


def _check(knots, values):
    if knots.ndim != 1 or len(knots) < 2 or not (np.diff(knots) > 0).all() or not np.isfinite(knots).all():
        raise ValueError("dpm_solver_v3: statistics need at least two finite rising levels [L] in `logsnr`")
    for name, value in zip("lsb", values, strict=True):
        fits = value.shape[:1] == knots.shape and value.shape[1:2] in ((), (1,)) and value.shape == values[0].shape
        if not fits or not np.isfinite(value).all():
            raise ValueError(
                f"dpm_solver_v3: {name} must be finite, of shape [{len(knots)}] or [{len(knots)}, 1, *sample], the same for"
                f" l, s and b; got shape {list(value.shape)}"
            )


_POINTS, _WEIGHTS = gauss_legendre(64)
_FEW_POINTS, _FEW_WEIGHTS = gauss_legendre(8)


class _Functions:
    """l of lambda, and the integrals L, S and C = int e^{-S} b from the first knot. Cubic splines: a kink in l or s would
    be one in f or g, and cost order once the steps are as short as the knots.
    """

    def __init__(self, knots, l, s, b):
        from scipy.interpolate import CubicSpline

        self.knots = knots
        spline, self.s, self.b = (_extended(CubicSpline(knots, v, bc_type="natural"), knots) for v in (l, s, b))

        def law(at):
            """Beyond the knots 1 - l falls as the SNR towards noise, l as its inverse towards data."""
            pad = np.reshape(at, np.shape(at) + (1,) * (l.ndim - 1))
            noisy, clean = (np.exp(-2 * np.maximum(gap, 0)) for gap in (knots[0] - pad, pad - knots[-1]))
            return np.where(
                pad < knots[0], 1 - (1 - l[0]) * noisy, np.where(pad > knots[-1], l[-1] * clean, spline(at))
            )

        self.l = law
        self.big_l, self.big_s = _integral(self.l, knots), _integral(self.s, knots)
        self.c = _integral(lambda at: np.exp(-self.big_s(at)) * self.b(at), knots)


def _extended(function, knots):
    """`function`, constant outside the knots."""
    return lambda at: function(np.clip(at, knots[0], knots[-1]))


def _integral(function, knots):
    """The integral of `function` from the first knot to wherever it is called: Gauss quadrature from knot to knot."""

    def piece(begin, end):
        parts = [w * function(begin + p * (end - begin)) for p, w in zip(_FEW_POINTS, _FEW_WEIGHTS, strict=True)]
        total = sum(parts)
        return (end - begin).reshape(np.shape(begin) + (1,) * (np.ndim(total) - np.ndim(begin))) * total

    pieces = piece(knots[:-1], knots[1:])
    upto = np.concatenate([np.zeros_like(pieces[:1]), np.cumsum(pieces, axis=0)])

    def integral(at):
        place = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 1)
        return upto[place] + piece(knots[place], at)

    return integral
