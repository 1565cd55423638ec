"""Tables learned for one denoiser: the levels, predictor weights and corrector weights of a few-step sampler are fitted
so that its samples end where the probability flow ends.

With y = x/alpha, s = sigma/alpha and r_i = s_{i+1} / s_i, a fitted table does

    y_{i+1} = r_i y_i + (1 - r_i) sum_k w_ik D_k      to the next call          sum_k w_ik = 1
    y_i     = r_{i-1} y_{i-1} + (1 - r_{i-1}) sum_k c_ik D_k    after the call at i, with its D     sum_k c_ik = 1

over the last five denoised estimates D_k. All of its tables are therefore exact for a constant D, whatever the weights.
What is learned is the logarithm of the steps (in the coordinate of `grids.two_parameter`) and the weights, as deviations
from those of a builder; the loss is log E|e| + 1/4 log E|e|^2 over noises, e against a fine table of our own; the optimiser
is L-BFGS from several starts, which are ranked on the training noises. The error on noises that were not trained on is
always measured, and a fit that does worse there than the best table it started from is thrown away.

Solvers with learned, step-dependent coefficients: bespoke non-stationary solvers (Shaul et al. 2024, arXiv 2403.01329),
S4S (Frankel et al. 2025, arXiv 2502.17423); learned steps: Tong et al. 2024, arXiv 2405.15506 (LD3).
"""

import functools
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from diffusion import sampling, schedules
from diffusion.clocks import namespace
from diffusion.schedules import Schedule
from diffusion.solvers.best import (
    CANDIDATES,
    REFERENCE_STEPS,
    checked,
    checked_probe,
    distances,
    noise,
    reference,
    spread,
)
from diffusion.solvers.ddim import transition
from diffusion.solvers.table import SLOTS, Correct, Predict, Remember, Table

Denoise = Callable[..., Array]

log = logging.getLogger(__name__)

MIDDLE, RHO = 1.0, 3.0
"""c and rho of the coordinate in which steps are learned."""


class Weights(NamedTuple):
    """What is learned, or a deviation of it.

    steps: [N] log of the steps in the coordinate of `grids.two_parameter`, up to a constant.
    predict: [N, K] weights w of the step from level i to the next, newest estimate first.
    correct: [N, K] weights c of the correction after the call at level i; row 0 is not used, nothing can be corrected.
    """

    steps: Any
    predict: Any
    correct: Any


class Ends(NamedTuple):
    """The two levels between which a table runs, as log-SNR; -inf and inf are legal."""

    start: float
    end: float


# From weights to a table and back ---------------------------------------------------------------------------


def _to_coordinate(logsnr):
    """1 - 2q of the two-parameter grid, rising from -1 to 1."""
    return np.tanh((np.asarray(logsnr, np.float64) + 2 * math.log(MIDDLE)) / (4 * RHO))


def levels(ends: Ends, steps: Float[Array | np.ndarray, " steps"]) -> Float[Array | np.ndarray, " points"]:
    """The grid [N+1] of log-SNR whose steps are proportional to exp(steps), in the namespace of `steps`."""
    xp = namespace(steps)
    first, last = (float(u) for u in _to_coordinate(ends))
    share = xp.exp(steps - xp.max(steps))
    inner = first + (last - first) * (xp.cumsum(share) / xp.sum(share))[:-1]
    inner = 4 * RHO * xp.arctanh(inner) - 2 * math.log(MIDDLE)
    outer = [xp.full((1,), end, inner.dtype) for end in ends]
    return xp.concatenate([outer[0], inner, outer[1]])


def usable(nfe: int, ends: Ends) -> Weights:
    """Which weights are free: booleans, for the slots that hold an estimate. A step to sigma = 0 uses the newest alone."""
    row, slot = np.arange(nfe)[:, None], np.arange(SLOTS)[None]
    predict, correct = slot <= row, (slot <= row) & (row > 0)
    if math.isinf(ends.end):
        predict[-1, 1:] = False
    return Weights(np.full(nfe, nfe > 1), predict, correct)


def to_table(schedule: Schedule, ends: Ends, weights: Weights) -> Table:
    """The table of normalised weights, traced where they are traced, else in NumPy."""
    xp = namespace(weights.steps)
    grid = levels(ends, weights.steps)
    anchor, total, _ = transition(schedule, grid[:-1], grid[1:])
    history, correction = total[:, None] * weights.predict, total[:-1, None] * weights.correct[1:]
    zero, one, none = (xp.full((len(anchor),), value, grid.dtype) for value in (0.0, 1.0, 0.0))
    empty = xp.zeros_like(weights.predict[:1])
    # Nothing to correct after the first call: its anchor is its point.
    first = xp.concatenate([one[:1], zero[1:]])
    return Table(
        logsnr=grid[:-1],
        predict=Predict(xp.concatenate([one[:1], anchor[:-1]]), xp.concatenate([empty, history[:-1]]), zero, none),
        remember=Remember(zero, one),
        correct=Correct(xp.concatenate([zero[:1], anchor[:-1]]), first, xp.concatenate([empty, correction]), zero),
        final=Predict(anchor[-1], history[-1], zero[-1], zero[-1]),
    )


def from_table(schedule: Schedule, grid: Float[np.ndarray, " points"], table: Table) -> Weights:
    """The normalised weights of a deterministic multistep table on `grid` whose history holds denoised estimates."""
    _, total, _ = transition(schedule, grid[:-1], grid[1:])
    predict = np.concatenate([table.predict.history[1:], table.final.history[None]]) / total[:, None]
    correct = np.zeros_like(predict)
    for i in range(1, len(predict)):
        uncorrected = np.append(0.0, predict[i - 1, :-1])  # the point again
        acts = table.correct.point[i] == 0
        correct[i] = table.correct.history[i] / total[i - 1] if acts else uncorrected
    return Weights(np.log(np.diff(_to_coordinate(grid))), predict, correct)


def deviate(start: Weights, free: Weights, deviation: Weights) -> Weights:
    """start + deviation, the deviation of each row over its free slots being moved to sum to zero."""
    xp = namespace(deviation.steps)

    def centred(values, free):
        values = xp.where(free, values, 0.0)
        count = np.maximum(free.sum(-1, keepdims=True), 1)
        return xp.where(free, values - xp.sum(values, -1, keepdims=True) / count, 0.0)

    return Weights(*(s + centred(d, f) for s, d, f in zip(start, deviation, free, strict=True)))


# The loss ---------------------------------------------------------------------------------------------------


def loss(errors: Float[Array, " n"]) -> Float[Array, ""]:
    """log E|e| + 1/4 log E|e|^2: the mean for accuracy, the mean square for trajectories that end elsewhere."""
    return jnp.log(jnp.mean(errors)) + jnp.log(jnp.mean(errors**2)) / 4


def _chunk_errors(denoise, table, x, truth):
    return distances(sampling.sample(denoise, table, x), truth)


def _errors(denoise, table, x, truth):
    """The error of each sample, x and truth [chunks, chunk, ...].

    With several chunks the backward pass keeps the inputs of one chunk at a time and those of its calls, and computes the
    rest again.
    """
    if len(x) == 1:
        return _chunk_errors(denoise, table, x[0], truth[0])
    frugal = jax.tree_util.Partial(jax.checkpoint(lambda denoise, *inputs: denoise(*inputs)), denoise)
    body = jax.checkpoint(lambda pair: _chunk_errors(frugal, table, *pair))
    return jax.lax.map(body, (x, truth)).ravel()


@functools.partial(jax.jit, static_argnames=("schedule", "ends"))
def _descend(denoise, start, deviation, x, truth, *, schedule, ends):
    """The loss of start + deviation and its gradient."""
    free = usable(len(start.steps), ends)

    def objective(deviation):
        table = to_table(schedule, ends, deviate(start, free, deviation))
        return loss(_errors(denoise, table, x, truth))

    return jax.value_and_grad(objective)(deviation)


# Fitting ----------------------------------------------------------------------------------------------------


def fit(denoise: Denoise, schedule: Schedule, nfe: int, key: Array, **settings: Any) -> Table:
    """The table with nfe calls fitted to `denoise`; settings as in `fit_recorded`, of which `shape` is needed.

    The held-out error goes to the log (logger "diffusion.fitted"); `fit_recorded` returns it.
    """
    return fit_recorded(denoise, schedule, nfe, key, **settings)[0]


def fit_recorded(
    denoise: Denoise,
    schedule: Schedule,
    nfe: int,
    key: Array,
    *,
    shape: tuple[int, ...] | None = None,
    start: float | None = None,
    end: float | None = None,
    num_noises: int = 2048,
    chunk: int | None = None,
    num_starts: int = 3,
    iterations: int = 300,
    reference_steps: int = REFERENCE_STEPS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Table, dict[str, Any]]:
    """A table fitted to `denoise` and the record of the fit, a JSON value, which `solvers.save` keeps beside it.

    denoise: (x, logsnr) -> denoised, differentiable in x and logsnr, for any batch size. shape: of one sample. start, end:
    log-SNR, the schedule's own unless given; infinite ends are legal.
    num_noises: to train on; a quarter as many are held out. 2048 where the denoiser costs nothing, 32 to 256 for a network.
    chunk: noises in one batch, a divisor of num_noises; memory is then that of one call forward and back, plus the points.
    num_starts, iterations: builders' tables to start from, the best of `best`'s candidates on the training noises (one of
    each grid), and L-BFGS iterations from each.
    reference_steps: calls of the fine solve that the samples are held against.
    progress: called with (tries done, at most): the builders' tables that are tried as starts, and L-BFGS iterations.

    The record holds nfe, shape, schedule, start, end, fingerprint (see `fingerprint`) and errors (loss, rmse, mean, median) of
    the fitted table and of the best start, on the training and the held-out noises. `kept` says whether the fitted table is
    the one returned: if its loss on the held-out noises is not below the best start's, that is.
    In float32, and in float64 where JAX has it switched on. Raises ValueError for bad settings, and for a denoiser whose
    samples are not finite.
    """
    nfe, *ends = checked("fit", schedule, nfe, start, end)
    shape, ends = checked_probe("fit", denoise, shape, key), Ends(*ends)
    sizes = _sizes(num_noises, chunk)
    for name, value in dict(num_starts=num_starts, iterations=iterations, reference_steps=reference_steps).items():
        if value < 1:
            raise ValueError(f"fit: {name} must be at least 1, got {value!r}")
    denoise = sampling.tree(denoise)
    train, held_out = (
        _problems(denoise, schedule, ends, jax.random.fold_in(key, i), shape, size, chunk, reference_steps)
        for i, size in enumerate(sizes)
    )
    done, total = itertools.count(1), len(CANDIDATES) + num_starts * iterations
    told = (lambda: None) if progress is None else (lambda: progress(next(done), total))
    starts = _starts(denoise, schedule, nfe, ends, *train, told)[:num_starts]
    fits = [_minimise(denoise, schedule, ends, weights, *train, iterations, told) for _, weights in starts]
    winner = int(np.argmin([value for value, _ in fits]))
    tables = dict(start=to_table(schedule, ends, starts[0][1]), fitted=to_table(schedule, ends, fits[winner][1]))
    judged = {
        name: {which: _judge(denoise, table, *data) for which, data in (("train", train), ("held_out", held_out))}
        for name, table in tables.items()
    }
    kept = judged["fitted"]["held_out"]["loss"] < judged["start"]["held_out"]["loss"]
    record = dict(
        nfe=nfe,
        shape=list(shape),
        schedule=schedules.record(schedule),
        **{name: schedules.plain(value) for name, value in ends._asdict().items()},
        fingerprint=fingerprint(denoise, schedule, shape),
        num_noises=sizes[0],
        num_held_out=sizes[1],
        started_from=dict(starts[winner][0]._asdict()),
        kept=bool(kept),
        errors=judged,
    )
    before, after = judged["start"]["held_out"], judged["fitted"]["held_out"]
    log.info(
        "fit: %d calls, %d held-out noises: rmse %.4g (start %.4g), median %.4g (start %.4g)%s",
        *(nfe, sizes[1], after["rmse"], before["rmse"], after["median"], before["median"]),
        "" if kept else "; not better than its start, which is kept",
    )
    return tables["fitted" if kept else "start"], record


def _sizes(num_noises, chunk):
    """How many noises to train on and to hold out."""
    if num_noises < 1:
        raise ValueError(f"fit: num_noises must be at least 1, got {num_noises!r}")
    if chunk is None:
        return num_noises, max(1, num_noises // 4)
    if not 1 <= chunk <= num_noises or num_noises % chunk:
        raise ValueError(f"fit: chunk must divide num_noises = {num_noises}, got {chunk!r}")
    return num_noises, chunk * max(1, num_noises // (4 * chunk))


def _problems(denoise, schedule, ends, key, shape, size, chunk, steps):
    """Noises and where the probability flow takes them, [chunks, chunk, *shape]."""
    x = noise(schedule, ends.start, key, (size, *shape)).reshape(-1, chunk or size, *shape)
    return x, jnp.stack([reference(denoise, schedule, *ends, part, steps) for part in x])


def _starts(denoise, schedule, nfe, ends, x, truth, told):
    """The candidates of `best` with their normalised weights, best on these noises first, one of each grid."""
    scale, ranked = spread(truth.reshape(-1, *truth.shape[2:])), []
    for candidate in CANDIDATES:
        table = candidate.table(schedule, nfe, *ends, scale)
        value = _judge(denoise, table, x[:1], truth[:1])["loss"]
        if math.isfinite(value):
            ranked.append((value, candidate, table))
        told()
    if not ranked:
        raise ValueError(f"fit: no sampler gave finite samples with {nfe} calls of this denoiser")
    ranked.sort(key=lambda entry: entry[0])
    distinct: dict[tuple[float, float], Any] = {}
    for _, candidate, table in ranked:
        grid = np.append(table.logsnr, ends.end)
        distinct.setdefault(candidate[:2], (candidate, from_table(schedule, grid, table)))
    return list(distinct.values())


def _minimise(denoise, schedule, ends, start, x, truth, iterations, told=lambda: None):
    """The lowest loss seen by L-BFGS from `start`, and its weights. told: called after every iteration.

    In float32 the line search often gives up where rounding hides the slope, and may end anywhere: so the best point is kept,
    and the descent begins anew from there as long as that helps.
    """
    from scipy.optimize import minimize

    flat, unravel = ravel_pytree(jax.tree.map(np.zeros_like, start))
    cast = functools.partial(jax.tree.map, lambda leaf: jnp.asarray(leaf, x.dtype))
    origin, free = cast(start), usable(len(start.steps), ends)
    best = (math.inf, np.zeros(flat.size))

    def objective(vector):
        nonlocal best
        deviation = unravel(jnp.asarray(vector, flat.dtype))
        value, gradient = _descend(denoise, origin, deviation, x, truth, schedule=schedule, ends=ends)
        value, gradient = float(value), np.asarray(ravel_pytree(gradient)[0], np.float64)
        if not (math.isfinite(value) and np.isfinite(gradient).all()):
            return 1e6, np.zeros_like(gradient)  # a step to here is refused
        if value < best[0]:
            best = value, vector.copy()
        return value, gradient

    before = math.inf
    while iterations > 0 and not best[0] > before - 1e-3:
        before = best[0]
        options = dict(maxiter=iterations, maxfun=iterations + iterations // 2, maxcor=20, ftol=0.0, gtol=0.0)
        given: dict[str, Any] = dict(jac=True, method="L-BFGS-B", options=options, callback=lambda _: told())
        iterations -= minimize(objective, best[1], **given).nit + 1
    deviation = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), unravel(jnp.asarray(best[1], flat.dtype)))
    return best[0], deviate(start, free, deviation)


@jax.jit
def _measure(denoise, table, x, truth):
    errors = _errors(denoise, table, x, truth)
    rmse = jnp.sqrt(jnp.mean(errors**2))
    return dict(loss=loss(errors), rmse=rmse, mean=jnp.mean(errors), median=jnp.median(errors))


def _judge(denoise, table, x, truth) -> dict[str, float]:
    """The loss, and the RMSE, mean and median of the samples' errors."""
    table = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype), table)
    return {name: float(value) for name, value in _measure(denoise, table, x, truth).items()}


# Which model a table was made for ---------------------------------------------------------------------------

_PROBES, _GRAIN = 8, 1 / 16
"""Levels at which a model is probed, and the grain to which the answers are rounded."""


@jax.jit
def _ask(denoise, x, logsnr):
    return denoise(x, logsnr)


def fingerprint(denoise: Denoise, schedule: Schedule, shape: tuple[int, ...]) -> str:
    """A short text that is the same for the same model, schedule and shape, to be kept with a table that was fitted to it.

    The denoiser is asked at fixed points and levels between the schedule's ends, in float32. Hashed are, for each level, the
    size of its answer and the answer along fixed directions, in units of that size, rounded to 1/16: coarse enough for
    another device or precision, fine enough to tell any two trained models apart.
    """
    shape = tuple(shape)
    denoise = sampling.tree(denoise)
    draw = np.random.default_rng(len(shape)).standard_normal
    clean, eps, first, second = (draw((2, *shape)).astype(np.float32) for _ in range(4))
    digits = [json.dumps(schedules.record(schedule), sort_keys=True), list(shape)]
    for share in (np.arange(_PROBES) + 0.5) / _PROBES:
        level = schedule.logsnr_start + share * (schedule.logsnr_end - schedule.logsnr_start)
        x = schedule.alpha(level) * clean + schedule.sigma(level) * eps
        answer = np.asarray(_ask(denoise, *(jnp.asarray(value, jnp.float32) for value in (x, level))), np.float64)
        size = math.sqrt(np.mean(answer**2)) + 1e-6
        along = [np.sum(answer * part) / (size * np.linalg.norm(part)) for part in (first, second)]
        digits.append([int(np.round(value / _GRAIN)) for value in (math.log2(size), *along)])
    return hashlib.sha256(json.dumps(digits).encode()).hexdigest()[:16]
