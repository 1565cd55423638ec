"""Clips of a finished network: its weights as the denoiser that `sample` wants, whole clips at a time or as a stream."""

import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from diffusion import cascade, frames, guidance, predictions, sampling, schedules, solvers
from distill import Network
from experiments import config as configs
from experiments import data, figures, latents, weights
from experiments.config import ConfigError

THRESHOLDS = {"static": guidance.static_threshold, "dynamic": guidance.dynamic_threshold}
"""What keeps estimates of clips in the range of pixels."""
UNSTREAMED = ("matrix", "threshold")
"""Keys of a sampler that a stream has no use for."""


def load_network(path: pathlib.Path, upsamples: bool = False) -> tuple[dict[str, Any], Network, dict[str, Any]]:
    """(params, network, record) of a denoiser's weights, rebuilt from its own record, the params on the device: every call that
    they are given to as NumPy arrays would copy them there. upsamples: it may be one of a cascade.
    """
    params, record = weights.load(path)
    if record.get("kind") != "denoiser":
        raise ConfigError(f"{path} holds a {record.get('kind')}, not a denoiser")
    if not upsamples and "low" in record.get("cond_keys", ()):
        raise ConfigError(f"{path} upsamples clips and makes none of noise alone: a stage of kind 'cascade' samples it")
    if isinstance(record.get("latent"), dict):
        record["latent"] = latents.read_from(record["latent"], path.parent)
    definition = configs.model(record)
    schedule = schedules.restore(record["schedule"], configs.schedule_part)
    augmentation = record.get("augmentation")
    network = Network(
        definition.apply, schedule, record["prediction"], definition.num_classes, definition.cond_keys,
        augmentation=augmentation and tuple(augmentation), noise=configs.noise(record, definition.shape),
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, params), network, record


def check_space(record: Mapping[str, Any], expected: Mapping[str, str] | None, what: str) -> None:
    """Refuses a model of other latents than the run's, of latents in a run of pixels, or the other way round. expected: the
    record of the run's codec.
    """
    own = record.get("latent")
    if (own and own["fingerprint"]) != (expected and expected["fingerprint"]):
        raise ConfigError(f"{what}: its weights are a model of {_space(own)}, this run's clips are {_space(expected)}")


def _space(latent: Mapping[str, str] | None) -> str:
    return f"latents of {latent['autoencoder']} (fingerprint {latent['fingerprint']})" if latent else "pixels"


def check_pictured(channels: int, where: str) -> None:
    """Refuses pictures of clips that are neither grey nor of three colours."""
    if channels not in figures.CHANNELS:
        raise ConfigError(f"{where}: pictures are of clips with 1 or 3 channels, these have {channels}; remove it")


def check_jumps(table: solvers.Table, told: Sequence[str], where: str) -> None:
    """Refuses a table of jumps to levels of which the network isn't told. told: its inputs."""
    if table.target is not None and "logsnr_to" not in told:
        raise ConfigError(
            f"{where} jumps to levels that its network must be told ('logsnr_to'), and this one's inputs are"
            f" {', '.join(told) or 'none'}; choose another solver, or weights of a method whose student jumps"
        )


def check_threshold(name: str, latent: bool, where: str) -> None:
    """Refuses a threshold that isn't known, and any of latents."""
    configs.choose(name, dict.fromkeys(THRESHOLDS), where)  # by name only
    if latent:
        raise ConfigError(f"{where} {name!r}: latents have no range to be kept in, as pixels have; remove it")


def check_guided(scale: float, num_classes: int, where: str) -> None:
    """Refuses the guidance of a network that knows no classes."""
    if scale != 1.0 and not num_classes:
        raise ConfigError(f"{where}: the network is unconditional (its num_classes is 0); remove it")


def check_stream(model: Mapping[str, Any], chunk: int, length: int, where: str, name: str) -> None:
    """Refuses a stream, `chunk` frames at a time, that the network called `name` can't make, or that is no clip of `length`."""
    if not model.get("causal"):
        raise ConfigError(f"{where}: {name!r} sees all frames at once; a stream needs a network with causal=True")
    # A cache holds a chunk, at least.
    configs.check_whole(where, chunk, 1, min(length, model["shape"][0]))
    if length % chunk or chunk % model.get("block", 1):
        raise ConfigError(
            f"{where}: expected a divisor of the clip's {length} frames, in whole blocks of the network's"
            f" {model.get('block', 1)}, got {chunk}"
        )


def calls_each(network: Network, scale: float) -> int:
    """The network's calls for one answer: two where there is guidance and it isn't told the scale."""
    return 1 if scale == 1.0 or "guidance" in network.cond_keys else 2


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


def classes_in_turn(network: Network, params: Any, scale: float) -> Callable[..., Array]:
    """(x, logsnr) -> denoised for any batch size, sample i being of class i modulo their number: whom a table asks."""

    def denoise(params, x, logsnr):
        labels = jnp.arange(len(x)) % network.num_classes if network.num_classes else None
        return denoiser(network, params, labels, scale)(x, logsnr)

    return jax.tree_util.Partial(denoise, params)


def start(network: Network, key: Array, shape: tuple[int, ...]) -> Float[np.ndarray, "n f h w c"]:
    """The noise that clips begin as: of the source that the network was trained with, of unit size."""
    return np.asarray(network.noise(key, shape), np.float32)


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
    pixels: bool = True,
) -> tuple[Float[np.ndarray, "n f h w c"], float]:
    """(clips, in [-1, 1] if they are of pixels, seconds per clip). All batches have one size. codec: decodes what was drawn,
    its seconds counted. timed: the first batch runs twice, so that compiling isn't in the seconds. low, aug_logsnr: as in
    `drawn`. streams: makes them, not from `noise` but from noise of its own.
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
            finite(made, table)
            if codec is not None:
                return codec.decode(made)
            return np.clip(made, -1.0, 1.0) if pixels else made

        if timed and index == 0:
            run()
        begun = time.perf_counter()
        clips.append(run())
        seconds += time.perf_counter() - begun
    return np.concatenate(clips), seconds / len(noise)


def finite(made: np.ndarray, table: solvers.Table) -> np.ndarray:
    """What was made, if it is finite; else FloatingPointError: clipped to bytes nan would be black, and black is smooth."""
    if not np.isfinite(made).all():
        raise FloatingPointError(f"samples are not finite with calls at log-SNR {np.asarray(table.logsnr).tolist()}")
    return made


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
    x = jnp.asarray(noise * sampling.starting(table, network.schedule, noise.shape), jnp.float32)
    label = jnp.asarray(labels) if network.num_classes else None
    given = {}
    if low is not None:
        key, key_low = jax.random.split(key)
        given = cascade.conditioning(jnp.asarray(low), aug_logsnr, noise.shape[1:], network.schedule, key_low)
        given = {name: value for name, value in given.items() if name in network.cond_keys}
    denoise = denoiser(network, params, label, scale, table.target is not None, given)
    if threshold is not None:
        denoise = THRESHOLDS[threshold](denoise)
    return sampling.sample(denoise, table, x, key, noise=network.noise)


def streamer(
    network: Network, record: Mapping[str, Any], table: solvers.Table, chunk: int, length: int, scale: float = 1.0
) -> Stream:
    """Clips of `length` frames of a causal network as they would be streamed: `chunk` frames at a time, after a cache of those
    before. Cache and chunk together are the network's own clip, or two chunks where that is shorter, whatever the length.

    Finished frames are remembered at the schedule's clean end; with guidance each of its two calls has a cache of its own.
    """
    model, schedule = configs.model(record), network.schedule
    window, *frame = record["shape"]
    configs.noise(record, (chunk, *frame))  # a source may be for whole clips only
    level = jnp.float32(schedule.logsnr_end)
    assert model.remember is not None and model.empty_cache is not None  # check_stream
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
        empty = [empty_cache(batch, max(window - chunk, chunk)) for _ in conditions(network, labels, scale)]
        return frames.stream(
            Partial(denoise, params, labels), Partial(remember, params, labels), table, empty, length // chunk, key,
            shape=(batch, chunk, *frame), schedule=schedule, noise=network.noise,
        )  # fmt: skip

    return clips


REPEATS = 5
"""Timings of which the median is reported."""


def speed(
    network,
    params,
    table,
    source: data.Source,
    scale: float,
    threshold,
    codec,
    streams: Stream | None,
    chunk: int | None,
):
    """(seconds until the first frames are there, frames per second), of one clip alone. First frames are a stream's first
    chunk, which has no past yet, else the whole clip. Of a latent model the frames are those of pixels.
    """
    length = source.shape[0] if codec is None else codec.autoencoder.shape[0]
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

    whole = functools.partial(drawn, network, params, table, labels, noise, key, scale, threshold)
    if streams is None:
        seconds = median(whole)
        return seconds, length / seconds
    first = functools.partial(drawn, network, params, table, labels, noise[:, :chunk], key, scale)
    return median(first), length / median(lambda: streams(params, labels, key))
