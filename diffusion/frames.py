"""Which frame is denoised when: schedule matrices, windows, and roll-outs longer than a model's clip.

A **schedule matrix** is a sampling grid [rows + 1, 1, frames]. Every frame runs through the levels of one grid [n + 1], at its
own pace; a frame whose level repeats waits. Any builder of a table takes it, solvers.dpmpp(schedule, pyramid(grid, 8, lag=2)),
and `sampling.sample` runs it: for independent noise the probability flow holds along any such path, only the error of
discretisation differs. Frames that are given are columns of one level (`known`).

A **window** is a denoiser of long clips made of one of short clips (`windowed`); a **roll-out** shifts one window over a video
without end (`roll_out`): chunks after clean history, rolling and FIFO-Diffusion are the same loop with other matrices.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from diffusion import grids, sampling
from diffusion.levels import expand
from diffusion.schedules import Schedule
from diffusion.solvers.singlestep import renoise
from diffusion.solvers.table import Table

Grid = Float[np.ndarray, "points"]
Matrix = Float[np.ndarray, "rows 1 frames"]


# Matrices ---------------------------------------------------------------------------------------------------


def full(grid: Grid, frames: int) -> Matrix:
    """All frames together: `grid` itself, with a level for every frame."""
    return pyramid(grid, frames, lag=0)


def autoregressive(grid: Grid, frames: int, block: int = 1) -> Matrix:
    """`block` frames at a time, each block begun when the one before is finished."""
    return pyramid(grid, frames, lag=len(grid) - 1, block=block)


def pyramid(grid: Grid, frames: int, lag: float | int, block: int = 1) -> Matrix:
    """Every block of frames `lag` steps behind the one before; 0 is `full`, len(grid) - 1 `autoregressive`.

    Diffusion Forcing's matrix with uncertainty scale `lag` (Chen et al. 2024, arXiv 2407.01392, appendix B; a fraction is
    rounded down for each block), AR-Diffusion's at inference (Sun et al. 2025, arXiv 2503.07418, section 3.4), and, with
    blocks, the asynchronous one of SkyReels-V2 (Chen et al. 2025, arXiv 2504.13074).
    """
    _whole("frames", frames, 1)
    _whole("block", block, 1)
    return _staggered(grid, np.arange(frames) // block, lag)


def trapezoid(grid: Grid, frames: int, lag: float | int) -> Matrix:
    """A pyramid from both ends inward: for frames between two that are known (interpolation)."""
    _whole("frames", frames, 1)
    place = np.arange(frames)
    return _staggered(grid, np.minimum(place, place[::-1]), lag)


def sweep(grid: Grid, frames: int, height: int, width: int, lag: float | int, axis: str = "columns") -> np.ndarray:
    """A level for every pixel, [rows + 1, 1, frames, height, width]: rows, or columns, of the picture `lag` steps one behind
    the other, the same in all frames; of frames that is `pyramid`. For networks whose levels are maps.
    """
    sides = {"frames": frames, "rows": height, "columns": width}
    for name, size in sides.items():
        _whole(name, size, 1)
    if axis not in sides:
        raise ValueError(f"sweep: expected axis to be one of {', '.join(sides)}, got {axis!r}")
    matrix = _staggered(grid, np.arange(sides[axis]), lag)[:, 0]
    place = list(sides).index(axis)
    shape = [len(matrix), 1, 1, 1, 1]
    shape[2 + place] = sides[axis]
    return np.broadcast_to(matrix.reshape(shape), (len(matrix), 1, frames, height, width))


def rolling(grid: Grid, lag: int, block: int = 1) -> Matrix:
    """`lag` steps of a window that rolls on: the endless pyramid between the moments at which a block is finished.

    The window is the wave, (len(grid) - 1) / lag blocks: at the first row its blocks have lag, 2 lag, ... steps to go, at the
    last the first block is finished and `roll_out` moves on by a block. The levels at the first row are those of `pyramid` at
    its row len(grid) - 1 - lag, which is how a roll-out begins (`rolling_start`). After Rolling Diffusion (Ruhe et al. 2024,
    arXiv 2402.09470, section 3); lag 1 is the diagonal of FIFO-Diffusion (Kim et al. 2024, arXiv 2405.11473, section 4.1).

    Every period begins without a history, and a column's last step is of first order, so that a multistep solver is DDIM where
    lag is 1 or 2. Solvers whose last step is another must be told where frames end: `consistency(..., end=grid[-1])`.
    """
    matrix, steps = _wave(grid, lag, block)
    return matrix[steps - lag : steps + 1]


def rolling_start(grid: Grid, lag: int, block: int = 1) -> Matrix:
    """From noise to the first row of `rolling`: the matrix of the window's first steps, which no frame is finished by.

    With lag = len(grid) - 1 there is nothing to do, and ValueError says so.
    """
    matrix, steps = _wave(grid, lag, block)
    if lag == steps:
        raise ValueError(
            f"rolling_start: with lag {lag} of {steps} steps the window begins as pure noise; no start needed"
        )
    return matrix[: steps - lag + 1]


def known(
    matrix: Matrix, before: int = 0, after: int = 0, level: float | int = math.inf
) -> Float[np.ndarray, "rows 1 all"]:
    """`matrix` with frames that are given: columns of one level before and after its own.

    level: log-SNR at which they are shown to the network. The default is clean; slightly noised history (a finite level, and
    x noised to it) stabilises roll-outs (Chen et al. 2024, arXiv 2407.01392, section 3.3).
    """
    _whole("before", before, 0)
    _whole("after", after, 0)
    if math.isnan(level):
        raise ValueError("known: expected a log-SNR, inf for clean frames or -inf for hidden ones, got level nan")
    matrix = _checked("known", matrix)
    columns = [np.full((len(matrix), 1, n), float(level)) for n in (before, after)]
    return np.concatenate([columns[0], matrix, columns[1]], axis=2)


def _staggered(grid: Grid, place: Int[np.ndarray, " f"], lag: float | int) -> Matrix:
    """Frame f begins floor(lag place[f]) steps late."""
    grid, steps = _steps(grid)
    if not 0 <= lag <= steps:
        raise ValueError(f"lag: expected 0 (all together) to the grid's {steps} steps (one after the other), got {lag}")
    late = np.floor(place * lag + 1e-9).astype(int)
    done = np.arange(steps + late.max() + 1)[:, None] - late
    return grid[np.clip(done, 0, steps)][:, None]


def _steps(grid: Grid) -> tuple[Grid, int]:
    """A grid as float64, and its number of steps."""
    grid = np.asarray(grid, np.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a schedule matrix is made of one grid [n + 1] with n of at least 1, got shape {grid.shape}")
    return grids.validate(grid), len(grid) - 1


def _checked(what: str, matrix: Any) -> Matrix:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 3 or matrix.shape[1] != 1:
        raise ValueError(f"{what}: expected a schedule matrix [rows + 1, 1, frames], got shape {matrix.shape}")
    return matrix


def _wave(grid: Grid, lag: int, block: int) -> tuple[Matrix, int]:
    """(the pyramid of one wave, the steps of a frame)."""
    grid, steps = _steps(grid)
    _whole("lag", lag, 1, steps)
    if steps % lag:
        near = min((n for n in range(1, steps + 1) if steps % n == 0), key=lambda n: abs(n - lag))
        raise ValueError(f"rolling: lag must divide the grid's {steps} steps, got {lag}; nearest: {near}")
    return pyramid(grid, steps // lag * block, lag, block), steps


def wave(matrix: Matrix) -> int:
    """The longest run of frames that are under way in one call, from the first to the last that moves, or that has begun and
    waits.

    A window shorter than this can't hold them: `windowed` and models of short clips then see part of the wave only, which is
    far worse than less context. 0 where all frames are given.
    """
    matrix = _checked("wave", matrix)[:, 0]
    matrix = matrix[:, (matrix != matrix[0]).any(0)]  # frames that are given have no part in it
    if not matrix.size:
        return 0
    waits = (matrix > matrix.min()) & (matrix < matrix.max())
    under_way = (matrix[1:] != matrix[:-1]) | waits[:-1]
    return int(max(np.ptp(np.flatnonzero(row)) + 1 for row in under_way if row.any()))


# Windows ----------------------------------------------------------------------------------------------------

WEIGHTS = ("flat", "pyramid", "earliest")


def windowed(
    denoise: Callable[..., Array],
    frames: int,
    window: int,
    stride: int,
    weights: str = "flat",
    matrix: Matrix | None = None,
) -> Partial:
    """A denoiser of clips of `frames` made of one of `window`: estimates averaged where windows overlap.

    Windows begin every `stride` frames. weights: "flat" (MultiDiffusion: Bar-Tal et al. 2023, arXiv 2302.08113, eq. 5; on
    video Gen-L-Video, Wang et al. 2023, arXiv 2305.18264), "pyramid", 1 2 .. 2 1, or "earliest": each frame from the first
    window that holds it, where it stands last and sees most of the frames before it (FIFO-Diffusion's lookahead, section 4.3,
    is that with stride = window / 2; with stride = window the windows don't overlap and the three are one).

    What averaging does: it never brings back what lies outside the windows, and it loses variance. All windows of a call are
    one batch: (frames - window) / stride + 1 network evaluations. What a call hands on beside x and the level (a condition,
    say, or a tree of them) is cut as x is where its second axis is of `frames`, else repeated; what `denoise` has bound for
    each clip must have been, by jnp.repeat(value, windows). Raises ValueError for windows that leave frames over, and
    for a schedule `matrix`, if it is given, whose wave is longer than the window.
    """
    _whole("frames", frames, 1)
    _whole("window", window, 1, frames)
    _whole("stride", stride, 1, window)
    if (frames - window) % stride:
        last = (frames - window) // stride * stride + window
        raise ValueError(
            f"windowed: windows of {window} every {stride} end at frame {last} of {frames}; choose frames = {last} or"
            f" {last + stride}, or a stride that divides {frames - window}"
        )
    if weights not in WEIGHTS:
        raise ValueError(f"windowed: expected weights to be one of {', '.join(WEIGHTS)}, got {weights!r}")
    if matrix is not None and _checked("windowed", matrix).shape[2] != frames:
        raise ValueError(f"windowed: the clips have {frames} frames, this schedule matrix {np.shape(matrix)[2]}")
    if matrix is not None and wave(matrix) > window:
        raise ValueError(
            f"windowed: the wave of this schedule matrix is {wave(matrix)} frames long, the window has {window}; a larger lag"
            " makes it shorter"
        )
    starts = np.arange(0, frames - window + 1, stride)
    share = np.ones((len(starts), window))
    if weights == "pyramid":
        share = share * np.minimum(np.arange(window), np.arange(window)[::-1]) + share
    elif weights == "earliest":
        share[1:, : window - stride] = 0
    index = starts[:, None] + np.arange(window)
    total = np.zeros(frames)
    np.add.at(total, index, share)
    return Partial(_Windowed(frames), sampling.tree(denoise), jnp.asarray(index), jnp.asarray(share / total[index]))


@dataclasses.dataclass(frozen=True)
class _Windowed:
    """The static part of `windowed`, compared by value."""

    frames: int

    def __call__(self, denoise, index, share, x, logsnr, *rest):
        count, window = index.shape
        b, f = x.shape[:2]
        if f != self.frames:
            raise ValueError(f"windowed: the windows are of clips of {self.frames} frames, got x of shape {x.shape}")

        def cut(value):
            """[b, f, ...] as [b count, window, ...]; what has no frames is repeated."""
            value = jnp.asarray(value)
            if value.ndim < 1 or (value.shape[0] == 1 and value.ndim < 2):
                return value
            if value.ndim > 1 and value.shape[1] == f:
                parts = value[:, index]
            else:
                parts = jnp.broadcast_to(value[:, None], (value.shape[0], count, *value.shape[1:]))
            parts = jnp.broadcast_to(parts, (b, *parts.shape[1:]))
            return parts.reshape(b * count, *parts.shape[2:])

        answer = denoise(cut(x), cut(logsnr), *jax.tree.map(cut, rest))
        parts = answer.reshape(b, count, window, *answer.shape[2:])
        parts = parts * share.astype(parts.dtype).reshape(1, count, window, *(1,) * (x.ndim - 2))
        return jnp.zeros_like(answer, shape=x.shape).at[:, index].add(parts)


# Roll-outs --------------------------------------------------------------------------------------------------


def roll_out(
    denoise: Callable[..., Array],
    table: Table,
    x: Float[Array, "b w ..."] | Float[np.ndarray, "b w ..."],
    periods: int,
    key: Array,
    *,
    matrix: Matrix,
    schedule: Schedule,
    history: int = 0,
    advance: int | None = None,
    sdedit: bool = False,
    noise: Callable[..., Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Array, "b n ..."]:
    """A video of periods * advance frames from a window that moves on: runs `table`, hands the finished frames out, shifts.

    In every period the frames after `history` are run to the end, `advance` of them are handed out, the window moves on by
    so many, and fresh noise enters behind. A frame that stays takes the level which the first row of the matrix has at its
    new place: as it is where the levels agree or it is finished and shown clean, noised where that is noisier (stabilised
    history).

    table: of `matrix`, by a builder of one call a row, without churn. x: the window at the levels of the matrix's first row:
    known frames, then noise. Chunks after clean history: matrix = known(full(grid, new), before=history), advance = new (the
    default). Rolling: known(rolling(grid, lag, block), before=history) and advance = block, from a window that `rolling_start`
    made.
    sdedit: new frames begin as those that were just handed out, noised to their level in the matrix's first row, and not as
    noise alone: a grid that begins at a cleaner level then makes fewer steps, and keeps more of what was there (SDEdit: Meng et
    al. 2021, arXiv 2108.01073, section 3). At which level: less noise, less change.
    noise: (key, shape, dtype) -> noise of the new frames, and of the table's draws; standard normal by default. A source that
    ties frames together does so within a period only.
    One compiled program whatever the number of rows and periods, and memory for one window beside the video itself.

    Raises ValueError where history and advance don't fit the window, the frames handed out are not finished, or a frame would
    have to become cleaner by being moved.
    """
    matrix = check_rows(table, matrix)
    frames = matrix.shape[2]
    _whole("history", history, 0, frames - 1)
    advance = frames - history if advance is None else advance
    _whole("advance", advance, 1, frames - history)
    _whole("periods", periods, 1)
    x = sampling.check(table, x, key)
    if x.ndim < 2 or x.shape[1] != frames:
        raise ValueError(f"roll_out: the matrix is for windows of {frames} frames, got x of shape {x.shape}")
    before, after = matrix[0, 0], matrix[-1, 0]
    finished = after[history : history + advance]
    if (finished < after[history:].max()).any():
        raise ValueError(
            f"roll_out: frames {history} to {history + advance - 1} are handed out, but at the last row they stand at log-SNR"
            f" {finished}, not all at the end, {after[history:].max()}; choose a smaller advance"
        )
    # A finished frame is data from then on, whatever level the grid ends at.
    wanted, moved = before[: frames - advance], after[advance:]
    moved = np.where((moved == finished.max()) & (moved != wanted), np.inf, moved)
    cleaner = wanted > moved
    if cleaner.any():
        k = int(np.argmax(cleaner))
        raise ValueError(
            f"roll_out: the frame that moves to place {k} has log-SNR {moved[k]} and would have to stand at the cleaner"
            f" {wanted[k]}: the matrix does not repeat when it moves on by {advance}"
        )
    enters = before[frames - advance :]
    entering = (
        renoise(schedule, np.full_like(enters, np.inf), enters)
        if sdedit
        else (np.zeros(advance), schedule.size(enters))
    )
    return _roll_out(
        sampling.tree(denoise), table, x, key, renoise(schedule, moved, wanted), entering,
        sampling.tree(noise or sampling.normal),
        history=history, advance=advance, periods=periods, progress=progress,
    )  # fmt: skip


def check_rows(table: Table, matrix: Matrix) -> Matrix:
    """`matrix` as float64; ValueError for a table that doesn't call once a row of it, as a roll-out needs."""
    matrix = _checked("roll_out", matrix)
    if np.shape(table.logsnr) != matrix[:-1].shape or not np.allclose(table.logsnr, matrix[:-1], equal_nan=True):
        raise ValueError(
            "roll_out: the table's levels are not the matrix's: it was made of another, or by a solver that calls between rows"
        )
    return matrix


@partial(jax.jit, static_argnames=("history", "advance", "periods", "progress"))
def _roll_out(denoise, table, x, key, staying, entering, noise, *, history, advance, periods, progress):
    kept, added, again, fresh = (expand(jnp.asarray(c, x.dtype)[None], x[:, : len(c)]) for c in (*staying, *entering))

    def period(window, i):
        run_key, stay_key, new_key = jax.random.split(jax.random.fold_in(key, i), 3)
        done = sampling.solve(denoise, table, window, run_key, noise)
        sampling.tell(progress, i + 1, periods)
        out, stay = done[:, history : history + advance], done[:, advance:]
        if stay.size:  # a source of noise may know no clip without frames
            stay = kept * stay + added * noise(stay_key, stay.shape, x.dtype)
        new = again * out + fresh * noise(new_key, out.shape, x.dtype)
        return jnp.concatenate([stay, new], axis=1), out

    _, video = jax.lax.scan(period, x, jnp.arange(periods))
    return jnp.moveaxis(video, 0, 1).reshape(len(x), periods * advance, *x.shape[2:])


def stream(
    denoise: Callable[..., Array],
    remember: Callable[..., Any],
    table: Table,
    cache: Any,
    periods: int,
    key: Array,
    *,
    shape: tuple[int, ...],
    schedule: Schedule,
    noise: Callable[..., Array] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[Array, "b n ..."]:
    """A video of `periods` chunks of `shape` [b, f, ...] from a network that is causal in time, and remembers.

    The table sees one chunk; what came before is in the cache. denoise: (x, logsnr, cache) -> denoised. remember: (chunk,
    cache) -> cache, one more call of the network for each chunk; at which level the chunk is shown, or noised, is its own
    choice. Chunk i draws with fold_in(key, i). It is `sample` along `autoregressive` with blocks of f, each block's rows run
    on that block alone: at equal levels of what is finished, the same video, where the table is of one step (DDIM, Heun); a
    multistep one damps and ends low where frames wait, which this needn't.

    One compiled program whatever the number of rows and periods, and memory for one chunk and the cache beside the video.
    """
    _whole("periods", periods, 1)
    x = sampling.check(table, np.broadcast_to(sampling.starting(table, schedule, shape), shape).astype(np.float32), key)
    return _stream(
        sampling.tree(denoise), sampling.tree(remember), table, cache, x, key, sampling.tree(noise or sampling.normal),
        periods=periods, progress=progress,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("periods", "progress"))
def _stream(denoise, remember, table, cache, size, key, noise, *, periods, progress):
    def period(cache, i):
        noise_key, run_key = jax.random.split(jax.random.fold_in(key, i))
        x = size * noise(noise_key, size.shape, size.dtype)
        chunk = sampling.solve(Partial(_with_cache, denoise, cache), table, x, run_key, noise)
        sampling.tell(progress, i + 1, periods)
        return remember(chunk, cache), chunk

    _, video = jax.lax.scan(period, cache, jnp.arange(periods))
    return jnp.moveaxis(video, 0, 1).reshape(size.shape[0], -1, *size.shape[2:])


def _with_cache(denoise, cache, x, logsnr, *rest):
    return denoise(x, logsnr, *rest, cache)


def _whole(name: str, value: Any, least: int, most: float | int = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        upper = "" if most == math.inf else f" to {most}"
        raise ValueError(f"{name}: expected a whole number from {least}{upper if upper else ' up'}, got {value!r}")
