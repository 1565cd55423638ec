"""The evaluate stage: steps against quality against seconds, with figures to look at.

Every sampler of the stage but a stream starts from the same noise and labels, so that a column of the figures shows what the
sampler alone changes, and is measured against the same held-out clips with the same frozen metric network.
"""

import io
import json
import pathlib
import shutil
import sys
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import UInt8

from distill.inputs import clean
from experiments import config as configs
from experiments import data, drawing, figures, latents, metrics, tables, weights, writers
from experiments.config import ConfigError
from experiments.metrics import classifier_training, validation
from models.classifier import build_classifier

CLASSIFIERS = {16: "pretrained:moving_digits/classifier", 64: "pretrained:moving_digits_64/classifier"}
"""The metric network by the side of a frame."""
KEYS = {
    "samplers", "num_clips", "num_reference", "num_training", "batch_size", "classifier", "bootstrap", "shown", "latency",
    "loss_levels",
}  # fmt: skip
SAMPLER_KEYS = {"weights", "steps", "guidance", "threshold", "stream", *tables.PARTS}
QUALITY = "frechet_clip"
REAL = "real"
"""The row of real clips."""
ROWS = "rows"


def check(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Names and keys of every sampler, before any work."""
    configs.check_rows(block["samplers"], [REAL], where)
    check_data(config, where)
    check_clips(block, config, where)
    check_judging(block, config, where)
    for name, sampler in block["samplers"].items():
        here = f"{where}.samplers.{name}"
        configs.check_keys(sampler, SAMPLER_KEYS, {"weights", "steps"}, here)
        check_threshold(sampler, config, here)
        configs.check_finite(sampler.get("guidance", 1.0), f"{here}.guidance")
        tables.check(tables.block_of(sampler), sampler["steps"], configs.schedule(config), here)


def check_batches(block: Mapping[str, Any], where: str) -> None:
    """All batches of one size: one compiled program, and seconds that mean something."""
    num, batch = block.get("num_clips", 256), block.get("batch_size", 64)
    if num % batch:
        raise ConfigError(f"{where}: num_clips {num} is not a multiple of batch_size {batch}")


def check_clips(block: Mapping[str, Any], config: Mapping[str, Any], where: str, split: str = "test") -> None:
    """The clips that are made, as many real ones, and those that both are held against."""
    check_batches(block, where)
    asked = block.get("num_clips", 256) + block.get("num_reference", 1024)
    if asked > (have := len(data.build(latents.pixels(config), split))):
        raise ConfigError(f"{where}: num_clips and num_reference ask for {asked} clips, the {split} split has {have}")


def check_judging(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """The training clips that memorisation is measured against, and the levels of the validation loss."""
    count, levels = block.get("num_training", 1024), block.get("loss_levels", validation.LEVELS)
    configs.check_whole(f"{where}.num_training (0: no memorisation)", count, 0)
    if count == 1:
        raise ConfigError(f"{where}.num_training: one clip has no law; nearest: 0 (no memorisation) or 2")
    if "num_training" in block:
        configs.check_enough(configs.source(config, "train"), count, f"{where}.num_training", "train")
    if not isinstance(levels, list | tuple) or any(
        isinstance(level, bool) or not isinstance(level, int | float) or not np.isfinite(level) for level in levels
    ):
        raise ConfigError(f"{where}.loss_levels must be numbers, log-SNRs as [-4, 0, 4] ([]: none), got {levels!r}")


def check_networks(block: Mapping[str, Any], config: Mapping[str, Any], workdir: pathlib.Path, where: str) -> None:
    """Whether the samplers' networks make such clips, know classes where they are guided, and can stream, `stream` frames at a
    time, where they do.
    """
    length, *frame = configs.source(config, "test").shape
    for name, sampler in block["samplers"].items():
        here, reference = f"{where}.samplers.{name}", sampler["weights"]
        model = model_of(reference, config, workdir)
        check_shape(
            model, [model["shape"][0] if "stream" in sampler else length, *frame], f"{here}.weights {reference!r}"
        )
        drawing.check_guided(sampler.get("guidance", 1.0), model.get("num_classes", 0), f"{here}.guidance")
        if "stream" not in sampler:
            continue
        drawing.check_stream(model, sampler["stream"], length, f"{here}.stream", reference)
        for key in drawing.UNSTREAMED:
            if key in sampler:
                raise ConfigError(f"{here}: a stream takes no {key}; remove one of the keys 'stream' and {key!r}")


def check_shape(model: Mapping[str, Any], expected: Sequence[int], what: str) -> None:
    if list(model["shape"]) != list(expected):
        raise ConfigError(f"{what} make clips of shape {list(model['shape'])}, config.data has {list(expected)}")


def model_of(reference: str, config: Mapping[str, Any], workdir: pathlib.Path) -> Mapping[str, Any]:
    """The model of weights that a stage leaves, which is the config's, or of weights from elsewhere."""
    if reference.split("@")[0] in config["stages"]:
        return config.get("model", {})
    return weights.load(weights.find(reference, workdir))[1].get("model", {})


def check_threshold(sampler: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    if "threshold" in sampler:
        drawing.check_threshold(sampler["threshold"], latents.is_latent(config), f"{where}.threshold")


def classifier(block: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The reference of the metric network: the stage's own, or that of the clips' size."""
    side = latents.pixels(config).get("size")
    return block.get("classifier") or CLASSIFIERS.get(side, CLASSIFIERS[16])


def check_classifier(block: Mapping[str, Any], config: Mapping[str, Any], workdir: pathlib.Path, where: str) -> None:
    """Refuses a metric network of frames of another size; one that is still to be trained fits by its stage's data."""
    reference = classifier(block, config)
    if not weights.is_file(reference):
        return
    _, record = weights.load(weights.find(reference, workdir))
    expected = tuple(data.build(latents.pixels(config), "test").shape[1:])
    if tuple(record["model"]["shape"]) != expected:
        raise ConfigError(
            f"{where}.classifier {reference!r} takes frames of shape {tuple(record['model']['shape'])}, the clips"
            f"{' behind these latents' if latents.is_latent(config) else ''} have {expected}"
        )


def check_data(config: Mapping[str, Any], where: str) -> None:
    digits = latents.pixels(config)
    if digits["kind"] != "moving_digits" or digits.get("digits", 1) != 1 or digits.get("frames", 8) < 3:
        raise ConfigError(
            f"{where}: these metrics know one moving digit over at least 3 frames; the clips are {digits}"
        )


def load_classifier(path: pathlib.Path) -> metrics.Classify:
    """The frozen metric network, its weights on the device."""
    params, record = weights.load(path)
    return classifier_training.classify_fn(build_classifier(record["model"]), jax.tree.map(jax.numpy.asarray, params))


def run(context, name: str, block: Mapping[str, Any]) -> None:
    """Samples, measures, draws and reports. Leaves report.json, report.md and figures in the stage's folder."""
    config = context.config
    num, batch = block.get("num_clips", 256), block.get("batch_size", 64)
    paths = {row: weights.find(sampler["weights"], context.workdir) for row, sampler in block["samplers"].items()}
    source = configs.source(config, "test")
    codec = latents.of(source, context.workdir, f"config.stages.{name}")
    # Held-out clips: `num` of them play the sampler that makes no mistake (the floor), the others judge. They are real clips
    # of pixels also where what is sampled is latent, so that the decoder's faults count.
    other, reference = held_out(config, block, num)
    classifier_path = weights.find(classifier(block, config), context.workdir)
    classify, judge = load_classifier(classifier_path), weights.fingerprint(classifier_path)
    key = context.key(name)
    labels = other["label"]
    # Described once: every sampler is judged against the same clips.
    seen = training_clips(config, block)
    known = None if seen is None else metrics.describe(seen, classify)
    real_sample = metrics.describe(reference["video"], classify, training=known)
    floor_sample = metrics.describe(other["video"], classify, other["label"], known)
    losses, rows, networks = {}, {}, {}
    total = len(block["samplers"])
    for index, (row, sampler) in enumerate(block["samplers"].items()):
        path = paths[row]
        if path not in networks:
            networks[path] = drawing.load_network(path)
        params, network, record = networks[path]
        if path not in [*paths.values()][index + 1 :]:  # the device need have no room for all networks at once
            del networks[path]
        where, folder = f"{name}.samplers.{row}", context.workdir / name / "tables"
        drawing.check_space(record, codec and codec.record, where)
        if sampler["weights"] not in losses:
            losses[sampler["weights"]] = loss_by_level(network, params, source, block, config["seed"])
        asked = tables.searched(sampler, path, where)
        kept, mark = context.workdir / name / ROWS / f"{row}.npz", json.dumps([weights.fingerprint(path), judge, asked])
        if (found := recall(kept, mark)) is not None:
            rows[row] = found
            print(f"{name}: {row} ({index + 1}/{total}): drawn before", file=sys.stderr, flush=True)
            continue
        noise = drawing.start(network, key, (num, *source.shape))  # the same for all networks of one source
        scale = sampler.get("guidance", 1.0)
        model = tables.Model(drawing.classes_in_turn(network, params, scale), source.shape, key, network.noise)
        table = tables.make(asked, sampler["steps"], network.schedule, where, model, folder)
        print(f"{name}: {row} ({index + 1}/{total}): {num} clips, {table.nfe} calls each", file=sys.stderr, flush=True)
        chunk = sampler.get("stream")
        streams = None if chunk is None else drawing.streamer(network, record, table, chunk, source.shape[0], scale)
        clips, seconds = drawing.draw(
            network, params, table, labels, noise, jax.random.fold_in(key, 1),  # whatever row it is: figures come again
            batch_size=batch, scale=scale, threshold=sampler.get("threshold"), codec=codec,
            streams=streams,
        )  # fmt: skip
        told = {}
        if block.get("latency"):
            first, rate = drawing.speed(
                network, params, table, source, scale, sampler.get("threshold"), codec, streams, chunk
            )
            told = {"ms to the first frames": 1e3 * first, "frames per second": rate}
        # A stream runs every frame once more, for its cache.
        evaluations = (table.nfe + (0 if chunk is None else 1)) * drawing.calls_each(network, scale)
        measures = metrics.evaluate(
            # Of a network that knows no classes none was asked for.
            clips, real_sample, labels=labels if network.num_classes else None, classify=classify, floor_reference=floor_sample,
            floor_labels=other["label"], training=known, bootstrap=block.get("bootstrap", 100), seed=config["seed"],
        )  # fmt: skip
        rows[row] = Row(figures.to_uint8(clips), seconds, evaluations, measures, told)
        remember(kept, mark, rows[row])
    report(context, name, block, rows, other["video"], classifier_path.name, losses)
    shutil.rmtree(context.workdir / name / ROWS)


def held_out(
    config: Mapping[str, Any], block: Mapping[str, Any], num: int, split: str = "test"
) -> tuple[dict[str, np.ndarray], ...]:
    """(`num` clips of a split, those that judge), of pixels."""
    clips_of = data.build(latents.pixels(config), split)
    found = data.Batches(clips_of, num + block.get("num_reference", 1024), seed=config["seed"]).batch_at(0)
    return tuple({k: v[part] for k, v in found.items()} for part in (slice(0, num), slice(num, None)))


class Row(NamedTuple):
    """A sampler's clips as bytes, what they took, what was measured of them, and further lines of the table."""

    clips: UInt8[np.ndarray, "n f h w c"]
    seconds: float
    evaluations: int
    measures: dict[str, metrics.Measure]
    told: dict[str, float]


def remember(path: pathlib.Path, mark: str, row: Row) -> None:
    """Keeps a row while the stage's others are made: one that is stopped goes on with the next. mark: of all that it is made
    with and isn't in the stage's config: its weights, those that judge, times that were searched.
    """
    measures = {name: measure._asdict() for name, measure in row.measures.items()}
    rest = {**row._asdict(), "measures": measures, "mark": mark}
    del rest["clips"]
    buffer = io.BytesIO()
    np.savez(buffer, clips=row.clips, row=json.dumps(rest))
    figures.write_atomically(path, buffer.getvalue())


def recall(path: pathlib.Path, mark: str) -> Row | None:
    """The row that `remember` kept, if it has the same mark."""
    try:
        with np.load(path, allow_pickle=False) as file:
            clips, rest = file["clips"], json.loads(str(file["row"]))
        if rest.pop("mark") != mark:
            return None
        measures = {name: metrics.Measure(**measure) for name, measure in rest.pop("measures").items()}
        return Row(clips=clips, measures=measures, **rest)
    # None, a damaged one, or one of another version: only drawn again.
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None


def training_clips(config: Mapping[str, Any], block: Mapping[str, Any]) -> np.ndarray | None:
    """Clips of pixels that the run's networks learn from, to measure memorisation against: by default 1,024 of them."""
    source, learnt = data.build(latents.pixels(config), "train"), len(configs.source(config, "train"))
    count = min(block.get("num_training", 1024), learnt)
    if count < 2:  # metrics are of two clips or more
        return None
    if latents.is_latent(config):  # those that were encoded, the source's first
        return data.read(source, np.random.default_rng(config["seed"]).choice(learnt, count, replace=False))["video"]
    return data.Batches(source, count, seed=config["seed"]).batch_at(0)["video"]


def loss_by_level(
    network, params, source: data.Source, block: Mapping[str, Any], seed: int
) -> dict[str, metrics.Measure]:
    """validation.loss_by_level of a batch of held-out clips, with their classes told: the same for all networks of a run."""
    batch = data.Batches(source, min(block.get("batch_size", 64), len(source)), seed=seed).batch_at(0)
    labels = jax.numpy.asarray(batch["label"]) if network.num_classes else None
    denoise = drawing.denoiser(network, params, labels, 1.0)
    return validation.loss_by_level(
        lambda x, logsnr: _answer(denoise, x, logsnr),
        network.schedule,
        clean({"video": jax.numpy.asarray(batch["video"])}),
        jax.random.key(seed),
        levels=block.get("loss_levels", validation.LEVELS),
        noise=network.noise,
        bootstrap=block.get("bootstrap", 100),
        seed=seed,
    )


@jax.jit
def _answer(denoise, x, logsnr):
    return denoise(x, logsnr)


def report(context, name, block, rows: Mapping[str, Row], real, classifier: str, losses=None) -> None:
    """Writes what was measured, as JSON, Markdown and pictures. losses: weights -> log-SNR -> the validation loss there."""
    folder, lines = context.workdir / name, {}
    for row, made in rows.items():
        told = {"evaluations": made.evaluations, "ms per clip": 1e3 * made.seconds, **made.told}
        for line, value in told.items():
            lines.setdefault(line, {})[row] = value
    table = metrics.table({row: made.measures for row, made in rows.items()}, lines)
    losses = {weights: by_level for weights, by_level in (losses or {}).items() if by_level}
    if losses:
        columns = {w: {f"loss at log-SNR {level}": m for level, m in found.items()} for w, found in losses.items()}
        table += "\n\n" + metrics.table(columns)
    result = {
        "clips": len(next(iter(rows.values())).clips),
        "classifier": classifier,
        "device": jax.devices()[0].device_kind,
        "samplers": {
            row: {
                **block["samplers"][row], "evaluations": made.evaluations, "seconds_per_clip": made.seconds, **made.told,
                "metrics": {k: m._asdict() for k, m in made.measures.items()},
            }
            for row, made in rows.items()
        },
        "loss_by_level": {w: {level: m._asdict() for level, m in found.items()} for w, found in losses.items()},
    }  # fmt: skip
    configs.write_json(folder / "report.json", result)
    figures.write_atomically(folder / "report.md", f"{table}\n".encode())
    configs.write_json(context.workdir / "report.json", result)
    shown = min(block.get("shown", 8), len(real))
    pictures = {REAL: real[:shown]} | {row: made.clips[:shown] for row, made in rows.items()}
    figures.comparison(folder / "comparison.png", pictures)
    figures.animate(folder / "comparison.webp", pictures)
    figures.slices(folder / "slices.png", pictures)
    figures.save_clips(folder / "clips.npz", pictures)
    for row, made in rows.items():
        figures.film_strip(folder / f"samples_{row}.png", made.clips[:shown])
        figures.sample_grid(folder / f"grid_{row}.png", made.clips[:64])
    points = {}
    for row, sampler in block["samplers"].items():
        measure = rows[row].measures[QUALITY]
        point = figures.Point(rows[row].seconds, measure.value, str(sampler["steps"]), measure.low, measure.high)
        points.setdefault(sampler["weights"].split("@")[0], []).append(point)
    figures.quality_against_seconds(
        folder / "quality.png",
        points,
        quality=f"{QUALITY} (lower is better)",
        floor=next(iter(rows.values())).measures[QUALITY].floor,
    )
    rows_logged = (
        writers.read_rows(context.workdir / "metrics.jsonl") if (context.workdir / "metrics.jsonl").exists() else []
    )
    if any("loss" in row for row in rows_logged):
        figures.loss_curves(folder / "loss.png", rows_logged)
    print(table, flush=True)
    print(
        f"\npictures: {folder / 'comparison.png'}, {folder / 'comparison.webp'}, {folder / 'quality.png'}", flush=True
    )
