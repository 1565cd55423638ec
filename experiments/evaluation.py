"""The evaluate stage: steps against quality against seconds, with figures to look at.

Every sampler of the stage starts from the same noise and labels, so that a column of the figures shows what the sampler
alone changes, and is measured against the same held-out clips with the same frozen metric network.
"""

import functools
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from diffusion import cascade, frames, guidance, levels, predictions, sampling, schedules, solvers
from distill import Network
from experiments import config as configs
from experiments import data, figures, latents, metrics, tables, weights, writers
from experiments.config import ConfigError
from experiments.data.source import check_whole
from experiments.metrics import classifier_training
from models import build as build_model
from models.classifier import build_classifier

CLASSIFIERS = {16: "pretrained:moving_digits/classifier", 64: "pretrained:moving_digits_64/classifier"}
"""The metric network by the side of a frame."""
KEYS = {
    "samplers", "num_clips", "num_reference", "batch_size", "classifier", "bootstrap", "seed_offset", "shown", "latency",
}  # fmt: skip
SAMPLER_KEYS = {"weights", "steps", "guidance", "threshold", "stream", *tables.PARTS}
THRESHOLDS = {"static": guidance.static_threshold, "dynamic": guidance.dynamic_threshold}
"""What keeps estimates of clips in the range of pixels."""
QUALITY = "frechet_clip"


def check(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Names and keys of every sampler, before any work."""
    if not block["samplers"]:
        raise ConfigError(f"{where}.samplers is empty")
    check_data(config, where)
    num, batch = block.get("num_clips", 256), block.get("batch_size", 64)
    if num % batch:  # all batches of one size: one compiled program, and seconds that mean something
        raise ConfigError(f"{where}: num_clips {num} is not a multiple of batch_size {batch}")
    for name, sampler in block["samplers"].items():
        here = f"{where}.samplers.{name}"
        configs.check_keys(sampler, SAMPLER_KEYS, {"weights", "steps"}, here)
        check_threshold(sampler, config, here)
        tables.check(table_block(sampler), sampler["steps"], configs.schedule(config), here)


def check_streams(block: Mapping[str, Any], config: Mapping[str, Any], workdir: pathlib.Path, where: str) -> None:
    """Of samplers that stream, `stream` frames at a time: whether their networks can."""
    length = configs.source(config, "test").shape[0]
    for name, sampler in block["samplers"].items():
        if "stream" not in sampler:
            continue
        here, reference, chunk = f"{where}.samplers.{name}", sampler["weights"], sampler["stream"]
        if reference.split("@")[0] in config["stages"]:
            model = config.get("model", {})
        else:
            model = weights.load(weights.find(reference, workdir))[1].get("model", {})
        if not model.get("causal"):
            raise ConfigError(
                f"{here}.stream: {reference!r} sees all frames at once; a stream needs a network with causal=True"
            )
        try:
            check_whole(f"{here}.stream", chunk, 1, length)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if length % chunk or chunk % model.get("block", 1):
            raise ConfigError(
                f"{here}.stream: expected a divisor of the clip's {length} frames, in whole blocks of the network's"
                f" {model.get('block', 1)}, got {chunk}"
            )
        for key in ("matrix", "threshold"):
            if key in sampler:
                raise ConfigError(f"{here}: a stream takes no {key}; remove one of the keys 'stream' and {key!r}")


def check_threshold(sampler: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    if "threshold" not in sampler:
        return
    configs.choose(sampler["threshold"], THRESHOLDS, f"{where}.threshold")
    if latents.is_latent(config):
        raise ConfigError(
            f"{where}.threshold {sampler['threshold']!r}: latents have no range to be kept in, as pixels have; remove it"
        )


def classifier(block: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The reference of the metric network: the stage's own, or that of the clips' size."""
    side = latents.pixels(config).get("size")
    return block.get("classifier") or CLASSIFIERS.get(side, CLASSIFIERS[16])


def check_classifier(block: Mapping[str, Any], config: Mapping[str, Any], workdir: pathlib.Path, where: str) -> None:
    """Refuses a metric network of frames of another size; one that is still to be trained fits by its stage's data."""
    reference = classifier(block, config)
    if not (reference.startswith("pretrained:") or reference.endswith(".safetensors")):
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


def table_block(sampler: Mapping[str, Any]) -> dict[str, Any]:
    return {k: sampler[k] for k in tables.PARTS if k in sampler}


def load_network(path: pathlib.Path, upsamples: bool = False) -> tuple[dict[str, Any], Network, dict[str, Any]]:
    """(params, network, record) of a denoiser's weights, rebuilt from its own record. upsamples: it may be one of a cascade."""
    params, record = weights.load(path)
    if record.get("kind") != "denoiser":
        raise ConfigError(f"{path} holds a {record.get('kind')}, not a denoiser")
    if not upsamples and "low" in record.get("cond_keys", ()):
        raise ConfigError(f"{path} upsamples clips and makes none of noise alone: a stage of kind 'cascade' samples it")
    definition = build_model(record["model"])
    schedule = schedules.restore(record["schedule"])
    augmentation = record.get("augmentation")
    network = Network(
        definition.apply, schedule, record["prediction"], definition.num_classes, definition.cond_keys,
        augmentation=augmentation and tuple(augmentation),
    )  # fmt: skip
    return params, network, record


def load_classifier(path: pathlib.Path) -> metrics.Classify:
    """The frozen metric network."""
    params, record = weights.load(path)
    return classifier_training.classify_fn(build_classifier(record["model"]), params)


def conditions(
    network: Network, labels: Int[Array, " b"] | None, scale: float, given: Mapping[str, Array] | None = None
) -> list[dict[str, Array]]:
    """What the network is told in each call of an answer. The guidance scale is an input where the network takes it; else there
    is classifier-free guidance, where it changes anything: a second call, without a class. given: what else stands in cond.
    """
    cond = {**(given or {}), **({} if labels is None else {"label": labels})}
    if "guidance" in network.cond_keys:
        return [{**cond, "guidance": jnp.float32(scale)}]
    if scale == 1.0:
        return [cond]
    return [cond, {**cond, "label": jnp.full_like(labels, network.num_classes)}]


def answer(network: Network, params: Any, conds: Sequence[dict[str, Any]], scale: float, jumps: bool = False):
    """The network as `sample` wants it, of one call or guided. jumps: it is told the level to jump to, for tables with a
    target.
    """
    kind = predictions.flow_map if jumps else predictions.denoiser
    made = [
        kind(network.apply, params, cond, schedule=network.schedule, prediction=network.prediction) for cond in conds
    ]
    return made[0] if len(made) == 1 else guidance.classifier_free(*made, scale)


def denoiser(
    network: Network,
    params: Any,
    labels: Int[Array, " b"] | None,
    scale: float,
    jumps: bool = False,
    given: Mapping[str, Array] | None = None,
):
    """The network as `sample` wants it, whole clips at a time."""
    return answer(network, params, conditions(network, labels, scale, given), scale, jumps)


def check_space(record: Mapping[str, Any], expected: Mapping[str, str] | None, what: str) -> None:
    """Refuses a model of other latents than the run's, of latents in a run of pixels, or the other way round. expected: the
    record of the run's codec.
    """
    own = record.get("latent")
    if (own and own["fingerprint"]) != (expected and expected["fingerprint"]):
        raise ConfigError(f"{what}: its weights are a model of {_space(own)}, this run's clips are {_space(expected)}")


def _space(latent: Mapping[str, str] | None) -> str:
    return f"latents of {latent['autoencoder']} (fingerprint {latent['fingerprint']})" if latent else "pixels"


def classes_in_turn(network: Network, params: Any, scale: float) -> Callable[..., Array]:
    """(x, logsnr) -> denoised for any batch size, sample i being of class i modulo their number: whom a table asks."""

    def denoise(params, x, logsnr):
        labels = jnp.arange(len(x)) % network.num_classes if network.num_classes else None
        return denoiser(network, params, labels, scale)(x, logsnr)

    return jax.tree_util.Partial(denoise, params)


Stream = Callable[[Any, Int[np.ndarray, " b"], Array], Float[Array, "b f h w c"]]
"""(params, labels, key) -> clips"""


def draw(
    network: Network,
    params: Any,
    table: solvers.Table,
    labels: Int[np.ndarray, " n"],
    noise: Float[np.ndarray, "n f h w c"],
    key: Array,
    *,
    batch_size: int,
    scale: float = 1.0,
    threshold: str | None = None,
    codec: latents.Codec | None = None,
    timed: bool = True,
    low: Float[np.ndarray, "n ..."] | None = None,
    aug_logsnr: float = np.inf,
    streams: Stream | None = None,
) -> tuple[Float[np.ndarray, "n f h w c"], float]:
    """(clips in [-1, 1], seconds per clip). All batches have one size. codec: decodes what was drawn, its seconds counted.
    timed: the first batch runs twice, so that compiling isn't in the seconds. low, aug_logsnr: as in `drawn`. streams: makes
    them, not from `noise` but from noise of its own.
    """
    clips, seconds = [], 0.0
    for index in range(0, len(noise), batch_size):
        rows = slice(index, index + batch_size)
        part = labels[rows], noise[rows], jax.random.fold_in(key, index)
        small = None if low is None else low[rows]

        def run(part=part, small=small) -> np.ndarray:
            if streams is None:
                made = np.asarray(drawn(network, params, table, *part, scale, threshold, small, aug_logsnr))
            else:
                made = np.asarray(streams(params, part[0], part[2]))
            return np.clip(made, -1.0, 1.0) if codec is None else codec.decode(made)

        if timed and index == 0:
            run()
        begun = time.perf_counter()
        clips.append(run())
        seconds += time.perf_counter() - begun
    return np.concatenate(clips), seconds / len(noise)


def drawn(
    network: Network,
    params: Any,
    table: solvers.Table,
    labels: Int[np.ndarray, " b"],
    noise: Float[np.ndarray, "b f h w c"],
    key: Array,
    scale: float = 1.0,
    threshold: str | None = None,
    low: Float[np.ndarray, "b ..."] | None = None,
    aug_logsnr: float = np.inf,
) -> Float[Array, "b f h w c"]:
    """One batch, as the network makes it: not clipped, of pixels or of latents. low: clips that it upsamples, to be noised to
    log-SNR aug_logsnr.
    """
    level = levels.expand(np.asarray(table.logsnr)[0], noise)
    # The scale of noisy data at the first level, for data of unit variance: 1 in VP, sqrt(1 + sigma^2) in VE.
    x = jnp.asarray(noise * np.hypot(network.schedule.alpha(level), network.schedule.sigma(level)), jnp.float32)
    label = jnp.asarray(labels) if network.num_classes else None
    given = {}
    if low is not None:
        key, key_low = jax.random.split(key)
        given = cascade.conditioning(jnp.asarray(low), aug_logsnr, noise.shape[1:], network.schedule, key_low)
        given = {name: value for name, value in given.items() if name in network.cond_keys}
    denoise = denoiser(network, params, label, scale, table.target is not None, given)
    if threshold is not None:
        denoise = THRESHOLDS[threshold](denoise)
    return sampling.sample(denoise, table, x, key)


def streamer(
    network: Network, record: Mapping[str, Any], table: solvers.Table, chunk: int, scale: float = 1.0
) -> Stream:
    """Clips of a causal network as they would be streamed: `chunk` frames at a time, after a cache of those before.

    Finished frames are remembered at the schedule's clean end; with guidance each of its two calls has a cache of its own.
    """
    model, schedule = build_model(record["model"]), network.schedule
    length, *frame = record["shape"]
    level = jnp.float32(schedule.logsnr_end)
    assert model.remember is not None and model.empty_cache is not None  # check_streams
    empty_cache, one_remembers = model.empty_cache, model.remember

    def with_caches(labels, caches):
        conds = conditions(network, labels, scale)
        return [{**cond, "cache": cache} for cond, cache in zip(conds, caches, strict=True)]

    def denoise(params, labels, *inputs):
        *inputs, caches = inputs
        return answer(network, params, with_caches(labels, caches), scale, table.target is not None)(*inputs)

    def remember(params, labels, x, caches):
        return [one_remembers(params, x, level, cond) for cond in with_caches(labels, caches)]

    def clips(params, labels, key):
        batch, labels = len(labels), jnp.asarray(labels) if network.num_classes else None
        empty = [empty_cache(batch, length) for _ in conditions(network, labels, scale)]
        return frames.stream(
            Partial(denoise, params, labels), Partial(remember, params, labels), table, empty, length // chunk, key,
            shape=(batch, chunk, *frame), schedule=schedule,
        )  # fmt: skip

    return clips


REPEATS = 5
"""Timings of which the median is reported."""


def speed(network, params, table, source: data.Source, scale: float, codec, streams: Stream | None, chunk: int | None):
    """(seconds until the first frames are there, frames per second), of one clip alone. First frames are a stream's first
    chunk, which has no past yet, else the whole clip.
    """
    noise, labels, key = np.zeros((1, *source.shape), np.float32), np.zeros(1, np.int32), jax.random.key(0)

    def median(make: Callable[[], Array]) -> float:
        seconds = []
        for _ in range(1 + REPEATS):
            begun = time.perf_counter()
            made = np.asarray(make())
            if codec is not None:
                codec.decode(made)
            seconds.append(time.perf_counter() - begun)
        return float(np.median(seconds[1:]))  # the first compiles

    whole = functools.partial(drawn, network, params, table, labels, noise, key, scale)
    if streams is None:
        seconds = median(whole)
        return seconds, source.shape[0] / seconds
    first = functools.partial(drawn, network, params, table, labels, noise[:, :chunk], key, scale)
    return median(first), source.shape[0] / median(lambda: streams(params, labels, key))


def run(context, name: str, block: Mapping[str, Any]) -> None:
    """Samples, measures, draws and reports. Leaves report.json, report.md and figures in the stage's folder."""
    config = context.config
    num, batch = block.get("num_clips", 256), block.get("batch_size", 64)
    source = configs.source(config, "test")
    codec = latents.of(source, context.workdir, f"config.stages.{name}")
    # Held-out clips: `num` of them play the sampler that makes no mistake (the floor), the others judge. They are real clips
    # of pixels also where what is sampled is latent, so that the decoder's faults count.
    clips_of = data.build(latents.pixels(config), "test")
    held_out = data.Batches(clips_of, num + block.get("num_reference", 1024), seed=config["seed"]).batch_at(0)
    other, reference = ({k: v[part] for k, v in held_out.items()} for part in (slice(0, num), slice(num, None)))
    classifier_path = weights.find(classifier(block, config), context.workdir)
    classify = load_classifier(classifier_path)
    key = context.key(name)
    noise = np.asarray(jax.random.normal(key, (num, *source.shape)), np.float32)
    labels = other["label"]
    # Described once: every sampler is judged against the same clips.
    real_sample = metrics.describe(reference["video"], classify)
    floor_sample = metrics.describe(other["video"], classify, other["label"])
    rows, clips, seconds, evaluations, networks, told = {}, {}, {}, {}, {}, {}
    total = len(block["samplers"])
    for index, (row, sampler) in enumerate(block["samplers"].items()):
        path = weights.find(sampler["weights"], context.workdir)
        if path not in networks:
            networks[path] = load_network(path)
        params, network, record = networks[path]
        where, folder = f"{name}.samplers.{row}", context.workdir / name / "tables"
        check_space(record, codec and codec.record, where)
        scale = sampler.get("guidance", 1.0)
        model = tables.Model(classes_in_turn(network, params, scale), source.shape, key)
        table = tables.make(
            tables.searched(sampler, path, where), sampler["steps"], network.schedule, where, model, folder
        )
        print(f"{name}: {row} ({index + 1}/{total}): {num} clips, {table.nfe} calls each", file=sys.stderr, flush=True)
        chunk = sampler.get("stream")
        streams = None if chunk is None else streamer(network, record, table, chunk, scale)
        clips[row], seconds[row] = draw(
            network, params, table, labels, noise, jax.random.fold_in(key, index + 1),
            batch_size=batch, scale=scale, threshold=sampler.get("threshold"), codec=codec,
            streams=streams,
        )  # fmt: skip
        if block.get("latency"):
            first, rate = speed(network, params, table, source, scale, codec, streams, chunk)
            told.setdefault("ms to the first frames", {})[row] = 1e3 * first
            told.setdefault("frames per second", {})[row] = rate
        # A network that is told g answers in one call; a stream runs every frame once more, for its cache.
        calls = table.nfe + (0 if chunk is None else 1)
        evaluations[row] = calls * (1 if scale == 1.0 or "guidance" in network.cond_keys else 2)
        rows[row] = metrics.evaluate(
            clips[row], real_sample, labels=labels, classify=classify, floor_reference=floor_sample,
            floor_labels=other["label"], bootstrap=block.get("bootstrap", 100), seed=config["seed"],
        )  # fmt: skip
    report(context, name, block, rows, clips, seconds, evaluations, other["video"], classifier_path.name, told)


def report(context, name, block, rows, clips, seconds, evaluations, real, classifier: str, extra=None) -> None:
    """Writes what was measured, as JSON, Markdown and pictures. extra: further lines of the table, name -> row -> number."""
    folder = context.workdir / name
    table = metrics.table(
        rows,
        extra={"evaluations": evaluations, "ms per clip": {r: 1e3 * s for r, s in seconds.items()}, **(extra or {})},
    )
    shown = min(block.get("shown", 8), len(real))
    pictures = {"real": real[:shown]} | {row: figures.to_uint8(v[:shown]) for row, v in clips.items()}
    figures.comparison(folder / "comparison.png", pictures)
    figures.animate(folder / "comparison.webp", pictures)
    figures.slices(folder / "slices.png", pictures)
    for row, videos in clips.items():
        figures.film_strip(folder / f"samples_{row}.png", videos[:shown])
        figures.sample_grid(folder / f"grid_{row}.png", videos[:64])
    points = {}
    for row, sampler in block["samplers"].items():
        measure = rows[row][QUALITY]
        point = figures.Point(seconds[row], measure.value, str(sampler["steps"]), measure.low, measure.high)
        points.setdefault(sampler["weights"].split("@")[0], []).append(point)
    figures.quality_against_seconds(
        folder / "quality.png",
        points,
        quality=f"{QUALITY} (lower is better)",
        floor=next(iter(rows.values()))[QUALITY].floor,
    )
    rows_logged = (
        writers.read_rows(context.workdir / "metrics.jsonl") if (context.workdir / "metrics.jsonl").exists() else []
    )
    if any("loss" in row for row in rows_logged):
        figures.loss_curves(folder / "loss.png", rows_logged)
    result = {
        "clips": len(next(iter(clips.values()))),
        "classifier": classifier,
        "device": jax.devices()[0].device_kind,
        "samplers": {
            row: {
                **block["samplers"][row], "evaluations": evaluations[row], "seconds_per_clip": seconds[row],
                **{line: column[row] for line, column in (extra or {}).items() if row in column},
                "metrics": {k: m._asdict() for k, m in measures.items()},
            }
            for row, measures in rows.items()
        },
    }  # fmt: skip
    configs.write_json(folder / "report.json", result)
    (folder / "report.md").write_text(table + "\n", encoding="utf-8")
    configs.write_json(context.workdir / "report.json", result)
    print(table, flush=True)
    print(
        f"\npictures: {folder / 'comparison.png'}, {folder / 'comparison.webp'}, {folder / 'quality.png'}", flush=True
    )
