"""Figures as files: film strips, comparisons, slices, loss curves, quality against seconds, animated grids.

Every function takes a path and arrays, makes the parent folder and replaces the file in one step, so that a
report never shows half a picture. Figures are drawn on an Agg canvas of their own, never through pyplot.
"""

import io
import math
import os
import pathlib
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's colours: told apart by readers who don't see all hues.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOVING, STILL = 96, 64
"""About how many pixels high a frame is made in an animation and in a picture, unless a figure is told its scale."""

PathLike = str | os.PathLike[str]
Videos = Num[np.ndarray, "n f h w c"]


CHANNELS = (1, 3)
"""Of clips that can be shown."""


class Point(NamedTuple):
    """One measured sampler: seconds per clip, its quality, and a label such as "4 steps"."""

    seconds: float
    quality: float
    label: str = ""
    low: float | None = None
    high: float | None = None


def to_uint8(videos: Num[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Pixels as uint8: uint8 is passed through, floats in [-1, 1] are scaled, rounded and clipped."""
    videos = np.asarray(videos)
    if videos.dtype == np.uint8:
        return videos
    if not np.issubdtype(videos.dtype, np.floating):
        raise ValueError(f"pixels must be uint8 or floats in [-1, 1], got {videos.dtype}")
    # A sample with nan is drawn black, not at the mercy of the cast.
    scaled = np.nan_to_num((np.clip(videos.astype(np.float64), -1, 1) + 1) * 127.5)
    return np.round(scaled).astype(np.uint8)


def tile(videos: Videos, columns: int | None = None, gap: int = 1) -> UInt8[np.ndarray, "f H W c"]:
    """N clips as one clip: a grid filled row by row, white gaps, all clips at the same frame."""
    videos = _checked(videos)
    n, f, h, w, c = videos.shape
    across = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / across)
    padded = np.full((rows * across, f, h + gap, w + gap, c), 255, np.uint8)
    padded[:n, :, :h, :w] = videos
    grid = padded.reshape(rows, across, f, h + gap, w + gap, c).transpose(2, 0, 3, 1, 4, 5)
    grid = grid.reshape(f, rows * (h + gap), across * (w + gap), c)
    return grid[:, : grid.shape[1] - gap, : grid.shape[2] - gap] if gap else grid


def strip(videos: Videos, max_frames: int = 8, gap: int = 1) -> UInt8[np.ndarray, "H W c"]:
    """Clips as one picture: a row per clip, a column per frame, at most `max_frames` of them, evenly
    spaced."""
    videos = _checked(videos)
    n, f, h, w, c = videos.shape
    shown = np.unique(np.round(np.linspace(0, f - 1, min(f, max_frames))).astype(int))
    return tile(videos[:, shown].reshape(n * len(shown), 1, h, w, c), len(shown), gap)[0]


def film_strip(path: PathLike, videos: Videos, *, max_frames: int = 8, scale: int | None = None) -> None:
    """PNG: rows are clips, columns are frames."""
    _save_picture(path, _upscaled(strip(videos, max_frames), scale or _scale(STILL, videos)))


def sample_grid(
    path: PathLike, videos: Videos, *, columns: int | None = None, scale: int | None = None, frame: int = 0
) -> None:
    """PNG of one frame of N clips as a grid; `animate` shows the same grid in motion."""
    _save_picture(path, _upscaled(tile(videos, columns)[frame], scale or _scale(STILL, videos)))


def comparison(
    path: PathLike,
    rows: Mapping[str, Videos],
    *,
    titles: Sequence[str] | None = None,
    max_frames: int = 4,
    scale: int | None = None,
) -> None:
    """PNG: a row per sampler, a column per clip, each cell a short film strip.

    The i-th clip of every row should come from the same noise and label: then a column shows what the sampler
    alone changes. `titles` names the columns.
    """
    rows, count = _checked_rows(rows, titles)
    scale = scale or _scale(STILL, *rows.values())
    strips = {name: [_upscaled(strip(v[None], max_frames), scale) for v in clips] for name, clips in rows.items()}
    _save_picture(path, _labelled(strips, titles or [""] * count))


def animate(
    path: PathLike,
    rows: Mapping[str, Videos],
    *,
    titles: Sequence[str] | None = None,
    scale: int | None = None,
    fps: float = 8.0,
) -> None:
    """Animated WebP (or APNG, by the suffix) of labelled rows of clips, lossless, playing in step, for ever.

    Pixels are repeated `scale` times, by default to frames some MOVING pixels high: a browser that smooths small pictures then
    still shows what was sampled.
    """
    rows, count = _checked_rows(rows, titles)
    scale = scale or _scale(MOVING, *rows.values())
    lengths = {v.shape[1] for v in rows.values()}
    if len(lengths) > 1:
        raise ValueError(f"clips that play in step need one length, got {sorted(lengths)} frames")
    pictures = [
        Image.fromarray(
            _labelled(
                {name: [_upscaled(v[t], scale) for v in clips] for name, clips in rows.items()},
                titles or [""] * count,
            )
        )
        for t in range(lengths.pop())
    ]
    suffix = pathlib.Path(path).suffix.lower()
    formats = {".webp": ("WEBP", {"lossless": True}), ".png": ("PNG", {}), ".apng": ("PNG", {})}
    if suffix not in formats:
        raise ValueError(f"{path}: an animation is .webp, .png or .apng, got {suffix!r}")
    kind, options = formats[suffix]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        **options,
    )
    write_atomically(path, buffer.getvalue())


def slices(path: PathLike, rows: Mapping[str, Videos], *, scale: int | None = None) -> None:
    """PNG of x-t and y-t slices: the brightest pixel over y (x-t, left) and over x (y-t, right) of every
    clip.

    Time runs down, so a smooth motion is a smooth band. Flicker shows as horizontal stripes, a teleport as a
    break, a change of identity as a jump of the band's width, drift as fading, a shuffle as hash.
    """
    rows, _ = _checked_rows(rows, None)
    times = scale or _scale(STILL, *rows.values())

    def cells(clips: UInt8[np.ndarray, "n f h w c"]) -> list[np.ndarray]:
        pairs = [np.concatenate([v.max(1), np.full_like(v.max(1)[:, :1], 255), v.max(2)], 1) for v in clips]
        return [_upscaled(pair, times) for pair in pairs]

    count = max(len(v) for v in rows.values())
    drawn = {name: cells(v) for name, v in rows.items()}
    _save_picture(path, _labelled(drawn, ["x-t | y-t"] * count))


def loss_curves(
    path: PathLike,
    rows: Sequence[Mapping[str, Any]],
    *,
    metric: str = "loss",
    stages: Sequence[str] | None = None,
) -> None:
    """PNG of a metric against the step, one curve per stage, both axes logarithmic (its own not where it is never positive).

    `rows` are those of `writers.read_rows`. The thin line is what was logged, the thick one its running mean
    over a twentieth of the points.
    """
    found = {row["stage"]: None for row in rows if metric in row}
    wanted = list(found) if stages is None else list(stages)
    if not found or any(stage not in found for stage in wanted):
        missing = [stage for stage in wanted if stage not in found] or ["any stage"]
        raise ValueError(f"no row of {missing[0]} has {metric!r}; stages with it: {list(found) or 'none'}")
    log = any(row[metric] > 0 for row in rows if row["stage"] in wanted and metric in row)
    figure, (axes,) = row_of_axes()
    for index, stage in enumerate(wanted):
        points = [(row["step"], row[metric]) for row in rows if row["stage"] == stage and metric in row]
        # Step 0 and values that are not positive have no place on log axes.
        steps, values = np.array([p for p in points if p[0] > 0 and (p[1] > 0 or not log)], float).reshape(-1, 2).T
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.4)
        axes.plot(steps, _running_mean(values, len(values) // 40), color=colour, linewidth=1.8, label=stage)
    axes.set(xscale="log", yscale="log" if log else "linear", xlabel="step", ylabel=metric)
    for axis in (axes.xaxis, axes.yaxis) if log else (axes.xaxis,):
        plain_logs(axis)
    axes.legend(frameon=False)
    save_figure(path, figure)


def quality_against_seconds(
    path: PathLike,
    curves: Mapping[str, Sequence[Point]],
    *,
    quality: str = "Fréchet distance (lower is better)",
    floor: float | None = None,
) -> None:
    """PNG of quality against seconds per clip, both axes logarithmic; one curve per family of samplers.

    A bar is the interval low-high of a point, the dashed line the value that real clips get against real
    clips.
    """
    if not any(curves.values()):
        raise ValueError("quality_against_seconds: no point was given")
    figure, (axes,) = row_of_axes()
    for index, (name, points) in enumerate(curves.items()):
        points = sorted(points, key=lambda point: point.seconds)
        seconds, values = (np.array([getattr(p, key) for p in points], float) for key in ("seconds", "quality"))
        low = np.array([p.quality if p.low is None else p.low for p in points], float)
        high = np.array([p.quality if p.high is None else p.high for p in points], float)
        axes.errorbar(
            seconds,
            values,
            yerr=[np.maximum(values - low, 0), np.maximum(high - values, 0)],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
        for point in points:
            axes.annotate(
                point.label,
                (point.seconds, point.quality),
                textcoords="offset points",
                xytext=(5, 5),
                fontsize=7,
            )
    if floor is not None:
        axes.axhline(floor, color="0.4", linestyle="--", linewidth=1, label="real against real")
    axes.set(xscale="log", yscale="log", xlabel="seconds per clip", ylabel=quality)
    for axis in (axes.xaxis, axes.yaxis):
        plain_logs(axis)
    axes.legend(frameon=False)
    save_figure(path, figure)


def save_clips(path: PathLike, rows: Mapping[str, Videos]) -> None:
    """Clips by row as bytes, exactly what a picture of them shows, in one .npz: a page of a run plays them again."""
    checked = {name: _checked(videos) for name, videos in rows.items()}
    buffer = io.BytesIO()
    # Names as an array of their own: a row may be called as an argument of savez is.
    np.savez_compressed(buffer, *checked.values(), names=np.array(list(checked)))
    write_atomically(path, buffer.getvalue())


def load_clips(path: PathLike) -> dict[str, UInt8[np.ndarray, "n f h w c"]]:
    """What `save_clips` saved, in its order; ValueError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {str(name): file[f"arr_{i}"] for i, name in enumerate(file["names"])}
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} holds no clips: {error}") from error


def write_atomically(path: PathLike, data: bytes) -> None:
    """Writes beside `path` and renames: a reader finds the old file or the whole new one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _checked(videos: Videos) -> UInt8[np.ndarray, "n f h w c"]:
    videos = np.asarray(videos)
    if videos.ndim != 5 or videos.shape[-1] not in CHANNELS or 0 in videos.shape:
        raise ValueError(f"expected clips [n, f, h, w, c] with c = 1 or 3, got {list(videos.shape)}")
    return to_uint8(videos)


def _checked_rows(rows: Mapping[str, Videos], titles: Sequence[str] | None) -> tuple[dict[str, np.ndarray], int]:
    if not rows:
        raise ValueError("a figure needs at least one row of clips")
    checked = {name: _checked(videos) for name, videos in rows.items()}
    shapes = {v.shape[2:] for v in checked.values()}
    if len(shapes) > 1:
        raise ValueError(f"rows of one figure need one frame shape, got {sorted(shapes)}")
    count = max(len(v) for v in checked.values())
    if titles is not None and len(titles) != count:
        raise ValueError(f"{len(titles)} column titles for {count} columns")
    return checked, count


def _scale(height: int, *videos: Videos) -> int:
    """How many times pixels are repeated for frames of some `height` pixels. All videos have frames of one size."""
    return max(1, round(height / videos[0].shape[2]))


def _upscaled(picture: UInt8[np.ndarray, "h w c"], scale: int) -> UInt8[np.ndarray, "H W c"]:
    return picture.repeat(scale, 0).repeat(scale, 1)


def _labelled(rows: Mapping[str, Sequence[np.ndarray]], titles: Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Cells [h, w, c] of one size on a white sheet, row names on the left, column titles above."""
    font = ImageFont.load_default(13)
    names = list(rows)
    cell_h = max(cell.shape[0] for cells in rows.values() for cell in cells)
    cell_w = max(cell.shape[1] for cells in rows.values() for cell in cells)
    left = math.ceil(max(font.getlength(name) for name in names)) + 12 if any(names) else 0
    top = 20 if any(titles) else 0
    gap = 6
    height = top + len(rows) * (cell_h + gap)
    width = left + len(titles) * (cell_w + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((left + column * (cell_w + gap) + cell_w / 2, top / 2), title, "black", font, anchor="mm")
    for row, (name, cells) in enumerate(rows.items()):
        y = top + row * (cell_h + gap)
        draw.text((4, y + cell_h / 2), name, "black", font, anchor="lm")
        for column, cell in enumerate(cells):
            picture = Image.fromarray(cell[..., 0] if cell.shape[-1] == 1 else cell)
            sheet.paste(picture.convert("RGB"), (left + column * (cell_w + gap), y))
    return np.asarray(sheet)


def _running_mean(values: np.ndarray, half: int) -> np.ndarray:
    """Mean over the 2 half + 1 values around each one, over fewer (the same number on both sides) at the
    ends."""
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, index[::-1]))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)


def row_of_axes(columns: int = 1, width: float = 6.4, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """A figure with a row of plots, drawn off screen."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    row = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in row:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(True, which="major", linewidth=0.4, color="0.85")
    return figure, row


def plain_logs(axis: Axis) -> None:
    """Plain numbers on a log axis that has been drawn on: at every decade, where there are few at 1, 2 and 5 of each, and at
    five even steps over less than a factor of five, of which those would leave one.
    """
    low, high = axis.get_view_interval()
    few, many = MaxNLocator(5), LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,))
    axis.set_major_locator(many if high > 5 * low else few)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def save_figure(path: PathLike, figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())


def _save_picture(path: PathLike, picture: UInt8[np.ndarray, "H W c"]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())
