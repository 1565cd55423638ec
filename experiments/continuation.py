"""The `continue` stage: what comes after known frames, held against what came; and how it fares far beyond the model's clip.

A clip that begins with a moving digit's first frames has one future, so the error of every frame is known. Beyond a clip's
length the video rolls on from its own last frames, and is measured chunk by chunk against real clips: drift.

`way` is how the network is held to the known frames: shown (a clean column of the schedule matrix, or one at log-SNR `level`),
replaced, guided towards (reconstruction), or shown at several levels at once (history guidance: vanilla, fractional, temporal).
With `sdedit` new frames begin as those before them, noised to where the grid begins, in place of pure noise.
`windows` makes a denoiser of long clips of the model's: with a rolling matrix the queue may be longer than the model's clip
(FIFO-Diffusion: lag 1, weights "earliest"); with any other the whole video is sampled at once, blended where windows overlap.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from diffusion import frames, levels, sampling
from diffusion import history as histories
from diffusion.schedules import Schedule
from distill.inputs import clean
from experiments import config as configs
from experiments import data, drawing, evaluation, figures, latents, metrics, tables, weights
from experiments.config import ConfigError
from experiments.latents import Progress
from experiments.metrics import drift, motion, report

KEYS = {
    "weights", "history", "level", "frames", "steps", "guidance", "told_label", "num_clips", "num_reference", "batch_size",
    "classifier", "bootstrap", "shown", "way", "windows", "sdedit", *tables.PARTS,
}  # fmt: skip
MATRICES = {name: f for name, f in tables.MATRICES.items() if f is not frames.sweep} | {"rolling": frames.rolling}
Way = tuple[Callable[..., Any], dict[str, Any]] | None
"""A wrapper of `diffusion.history` with its options; None: the network is shown the known frames as they are."""


def shown() -> Way:
    """The known frames are columns of one level in the schedule matrix: for networks with levels per frame."""
    return None


def replacement() -> Way:
    return histories.replacement, {}


def reconstruction(weight: float = 2.0) -> Way:
    if not (isinstance(weight, int | float) and np.isfinite(weight) and weight >= 0):
        raise ValueError(f"expected a weight from 0 up, got {weight!r}")
    return histories.reconstruction, dict(weight=float(weight))


def vanilla(scale: float, clean: float, hidden: float) -> Way:
    return histories.guided, dict(parts=histories.vanilla(_number("scale", scale), clean, hidden))


def fractional(scale: float, partly: float, clean: float, hidden: float) -> Way:
    given = _number("scale", scale), _number("partly", partly)
    return histories.guided, dict(parts=histories.fractional(*given, clean, hidden))


def temporal(memories: Sequence[Any], known: int, total: int, clean: float, hidden: float) -> Way:
    """memories: (weight, the known frames that it has, from 0) each."""
    pairs = []
    for weight, kept in memories:
        if not kept or not all(isinstance(f, int) and 0 <= f < known for f in kept):
            raise ValueError(f"expected memories of known frames 0 to {known - 1}, got {kept!r}")
        pairs.append((_number("a weight", weight), np.isin(np.arange(total), kept)))
    return histories.guided, dict(parts=histories.temporal(pairs, clean, hidden))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"expected {name} to be a finite number, got {value!r}")
    return float(value)


WAYS = {f.__name__: f for f in (shown, replacement, reconstruction, vanilla, fractional, temporal)}


def check(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    if latents.is_latent(config):
        raise ConfigError(f"{where}: known frames are frames of pixels; config.data are latents")
    evaluation.check_data(config, where)
    window = configs.source(config, "test").shape[0]
    evaluation.check_clips(block, config, where)
    configs.check_whole(f"{where}.history", block["history"], 1, window - 1)
    configs.check_whole(f"{where}.frames", block["frames"], 1)
    if block["frames"] % window:
        raise ConfigError(
            f"{where}.frames {block['frames']}: drift is measured in chunks of the model's {window} frames; nearest:"
            f" {max(round(block['frames'] / window), 1) * window}"
        )
    parts = {k: block[k] for k in ("solver", "grid") if k in block}
    tables.check_unasked(parts, where, "a matrix gives every frame a level, and it is asked about one for all")
    if tables.check(parts, block["steps"], configs.schedule(config), where).target is not None:
        raise ConfigError(f"{where}.solver {block['solver']!r} jumps, and frames that go on step; choose another")
    schedule = configs.schedule(config)
    planned = plan(block, schedule, window, where)
    configs.call(
        frames.check_rows, {}, f"{where}.solver", table=table_of(block, planned, schedule, where), matrix=planned.matrix
    )


class Plan(NamedTuple):
    """begin: the matrix of how a rolling window begins, or None; matrix: of a period, which hands out `advance` frames; count:
    the windows of the model that a call has; end: the level at which frames are finished.
    """

    begin: frames.Matrix | None
    matrix: frames.Matrix
    advance: int
    way: Way
    windows: dict[str, Any] | None
    count: int
    end: float


def plan(block: Mapping[str, Any], schedule: Schedule, window: int, where: str) -> Plan:
    """How a video goes on, before any work."""
    told, history, wide = block.get("matrix", "full"), block["history"], block.get("windows")
    level = block.get("level")
    if level is not None and (isinstance(level, bool) or not isinstance(level, int | float) or np.isnan(level)):
        raise ConfigError(f"{where}.level: expected a log-SNR (inf, the default: clean), got {level!r}")
    if wide is not None and not isinstance(wide, Mapping):
        raise ConfigError(f"{where}.windows: expected {{stride: n, weights: name}}, got {wide!r}")
    kind, options = configs.chosen(told, MATRICES, f"{where}.matrix")
    grid = tables.part(block, "grid", {"schedule": schedule, "num_steps": block["steps"]}, where)
    new = window - history if wide is None else block["frames"]
    needs = {"grid": grid} if kind is frames.rolling else {"grid": grid, "frames": new}
    matrix = configs.named(told, MATRICES, f"{where}.matrix", **needs)
    width = matrix.shape[2]
    if wide is None and width != window - history:
        raise ConfigError(
            f"{where}.matrix: its window is {width} frames and {history} of history, the model's clip has {window}"
        )
    advance, begin = width, None
    if kind is frames.rolling:
        advance = options.get("block", 1)
        if advance < width:
            begin = frames.rolling_start(grid, **options)
    way = planned_way(block, kind, width + history, schedule, where)
    # Guidance shows the history at levels of its own, of which `level` is the cleanest; it stays clean in the window.
    level = None if way is not None else block.get("level")
    given = dict(before=history, level=np.inf if level is None else level)
    begin, matrix = begin if begin is None else frames.known(begin, **given), frames.known(matrix, **given)
    count = 1
    if wide is not None:
        configs.check_keys(wide, {"stride", "weights"}, {"stride"}, f"{where}.windows")
        # FIFO's windows see a part of the wave each, and are made for it, as is blending where all frames have one level.
        alike = bool((matrix[:, :, history:] == matrix[:, :, -1:]).all())
        wave = {} if alike or wide.get("weights") == "earliest" else {"matrix": matrix}
        try:
            frames.windowed(lambda x, logsnr: x, history + width, window, **wide, **wave)
        except ValueError as error:
            raise ConfigError(f"{where}.windows: {error}") from None
        count = (history + width - window) // wide["stride"] + 1
    if block.get("sdedit"):
        if advance < width or wide is not None:
            raise ConfigError(
                f"{where}.sdedit: only whole chunks begin as those before them; remove it, or matrix and windows"
            )
        if grid[0] == schedule.logsnr_start:
            raise ConfigError(
                f"{where}.sdedit: the grid begins at the schedule's noise, log-SNR {grid[0]:g}, where nothing is left of a"
                " clip; give it a start, as grid=dict(kind='uniform_time', start=-2.0)"
            )
    return Plan(begin, matrix, advance, way, None if wide is None else dict(wide), count, float(grid[-1]))


def table_of(block: Mapping[str, Any], planned: Plan, schedule: Schedule, where: str, begin: bool = False):
    """The sampler along the matrix of a period, or along that of how a rolling window begins."""
    grid = planned.begin if begin else planned.matrix
    return tables.part(block, "solver", {"schedule": schedule, "grid": grid, "end": planned.end}, where)


def planned_way(block: Mapping[str, Any], kind: Callable, total: int, schedule: Schedule, where: str) -> Way:
    told, level = block.get("way", "shown"), block.get("level")
    name, _ = configs.chosen(told, WAYS, f"{where}.way")
    known = {
        "clean": np.inf if level is None else float(level), "hidden": schedule.logsnr_start, "known": block["history"],
        "total": total,
    }  # fmt: skip
    takes = inspect.signature(name).parameters
    way = configs.named(told, WAYS, f"{where}.way", **{k: v for k, v in known.items() if k in takes})
    if name in (replacement, reconstruction):
        if level is not None:
            raise ConfigError(
                f"{where}.level: {name.__name__} shows known frames at the level of all others; remove it"
            )
        if kind is not frames.full:
            raise ConfigError(
                f"{where}.matrix {kind.__name__!r}: {name.__name__} is for one level of all frames; choose 'full'"
            )
    return way


def run(context: Any, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves report.json, report.md and pictures in the stage's folder."""
    config, folder = context.config, context.workdir / name
    window, history = configs.source(config, "test").shape[0], block["history"]
    num, seed, bootstrap = block.get("num_clips", 256), config["seed"], block.get("bootstrap", 200)
    # A longer clip of the same index begins as the shorter one: what came is known for all frames that are asked for.
    source = data.build({**config["data"], "frames": history + block["frames"]}, "test")
    real = data.Batches(source, num + block.get("num_reference", 1024), seed=seed).batch_at(0)
    truth, labels, others = real["video"][:num], real["label"][:num], real["video"][num:, :window]
    made, advance, calls, evaluations = continued(context, name, block, truth[:, :history], labels)
    come = truth[:, history:]
    errors = position_errors(made, come, window, bootstrap, seed)
    curves = {}
    if made.shape[1] >= 2 * window:
        curves = drift.drift(
            made, others, chunk=window, labels=labels, floor_reference=come, names=(*drift.CURVES, "label_accuracy"),
            classify=evaluation.load_classifier(weights.find(evaluation.classifier(block, config), context.workdir)),
            bootstrap=bootstrap, seed=seed,
        )  # fmt: skip
    shown = slice(min(block.get("shown", 6), num))
    pictures = {"real": truth[shown], "continued": np.concatenate([truth[shown, :history], made[shown]], axis=1)}
    figures.comparison(folder / "comparison.png", pictures)
    figures.animate(folder / "comparison.webp", pictures)
    figures.slices(folder / "slices.png", pictures)
    figures.save_clips(folder / "clips.npz", pictures)
    lines = ["| frame after the history | error of its position, px, median |", "| --- | --- |"]
    lines += [f"| {f} | {m.value:.3g} [{m.low:.3g}, {m.high:.3g}] |" for f, m in errors.items()]
    text = "\n".join([*lines, *(["", metrics.table(curves)] if curves else [])])
    result = {
        "clips": num, "calls_per_period": calls, "evaluations_per_period": evaluations, "frames_per_period": advance,
        "weights": block["weights"],
        "position_error": {str(f): m._asdict() for f, m in errors.items()},
        "drift": {row: {k: m._asdict() for k, m in found.items()} for row, found in curves.items()},
    }  # fmt: skip
    configs.write_json(folder / "report.json", result)
    figures.write_atomically(folder / "report.md", f"{text}\n".encode())
    print(text, flush=True)
    print(f"{name}: pictures: {folder / 'comparison.png'}, {folder / 'slices.png'}", file=sys.stderr, flush=True)
    return {f"position_error_{f}": m.value for f, m in errors.items()}


def continued(
    context: Any,
    name: str,
    block: Mapping[str, Any],
    known: UInt8[np.ndarray, "n p h w c"],
    labels: Int[np.ndarray, " n"],
) -> tuple[UInt8[np.ndarray, "n f h w c"], int, int, int]:
    """(block["frames"] frames after those that are known; the frames, calls and network evaluations of a period)."""
    where = f"config.stages.{name}"
    params, network, record = drawing.load_network(weights.find(block["weights"], context.workdir))
    drawing.check_space(record, None, f"{where}.weights")
    schedule, level, history = network.schedule, block.get("level"), known.shape[1]
    window = record["shape"][0]
    planned = plan(block, schedule, window, where)
    begin, matrix, advance, way, wide, count, _ = planned
    table = table_of(block, planned, schedule, where)
    level, sdedit = None if way is not None else level, block.get("sdedit", False)
    start = matrix if begin is None else begin
    configs.noise(record, (start.shape[2] - history, *record["shape"][1:]))  # a source may be for whole clips only
    batch, made, progress = block.get("batch_size", 64), [], Progress(name, len(known))
    for first in range(0, len(known), batch):
        part, key = slice(first, first + batch), jax.random.fold_in(context.key(name), first)
        new_key, known_key, begin_key, run_key = jax.random.split(key, 4)
        label = None
        if network.num_classes:
            label = jnp.asarray(labels[part]) if block.get("told_label") else jnp.full((batch,), network.num_classes)
            label = jnp.repeat(label, count)  # of every window of a clip
        denoise = drawing.denoiser(network, params, label, block.get("guidance", 1.0))
        if wide is not None:
            denoise = frames.windowed(denoise, start.shape[2], window, **wide)
        seen = clean({"video": jnp.asarray(known[part])})
        at = float(start[0, 0, -1])
        new = network.noise(new_key, (batch, start.shape[2] - history, *seen.shape[2:]))
        # Of no chunk before the first there is the last known frame.
        new = levels.forward(seen[:, -1:], new, jnp.float32(at), schedule) if sdedit else new * float(schedule.size(at))
        if level is not None:
            seen = levels.forward(seen, network.noise(known_key, seen.shape), jnp.float32(level), schedule)
        if way is not None:
            shape = (1, start.shape[2], *seen.shape[2:])
            wrap, options = way
            denoise = histories.within(wrap, denoise, schedule, history, network.noise(known_key, shape), **options)
        x = jnp.concatenate([seen, new], axis=1)
        if begin is not None:
            x = sampling.sample(
                denoise, table_of(block, planned, schedule, where, True), x, begin_key, noise=network.noise
            )
        video = frames.roll_out(
            denoise, table, x, -(-block["frames"] // advance), run_key, matrix=matrix, schedule=schedule, history=history,
            advance=advance, sdedit=sdedit, noise=network.noise,
        )  # fmt: skip
        video = drawing.finite(np.asarray(video)[:, : block["frames"]], table)
        made.append(figures.to_uint8(video))
        progress(first + batch)
    calls, parts = len(matrix) - 1, 1 if way is None else len(way[1].get("parts", [1]))
    each = count * parts * drawing.calls_each(network, block.get("guidance", 1.0))
    return np.concatenate(made), advance, calls, calls * each


def position_errors(
    made: np.ndarray, real: np.ndarray, count: int, bootstrap: int, seed: int
) -> dict[int, report.Measure]:
    """By frame after the history, from 1: the median over clips of the distance between centroids, in pixels."""
    tracks = [motion.centroids(clips[:, :count, ..., 0] / 255.0) for clips in (made, real)]
    apart = np.linalg.norm(tracks[0] - tracks[1], axis=-1)
    drawn = np.random.default_rng(seed).integers(0, len(apart), (bootstrap, len(apart)))
    found = {}
    for f in range(count):
        value = float(np.median(apart[:, f]))
        found[f + 1] = report.Measure(value, *report.interval(value, np.median(apart[drawn, f], 1)), 0.0, "lower")
    return found
