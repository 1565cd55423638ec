"""From pixels to the latents that a model learns on, and back: the codec, and the stages that write latents.

A latent is the encoder's mean, each channel moved and scaled to mean 0 and variance 1 over the training clips: a diffusion
model's schedule is made for data of unit variance (Rombach et al. 2022, arXiv 2112.10752, section D.1 and appendix G). Latents
are unbounded: nothing here clips them.
"""

import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from distill.inputs import clean
from experiments import config as configs
from experiments import data, loop, weights
from experiments.config import ConfigError
from experiments.data import latents as store
from experiments.data.latents import INDEX, Latents
from models.autoencoder import Autoencoder, build_autoencoder

ENCODE = {"autoencoder", "train_clips", "test_clips", "batch_size"}


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """An autoencoder with its weights, between clips and latents of unit variance.

    reference, fingerprint: where the weights came from, and a text that only they have.
    """

    autoencoder: Autoencoder
    params: Any
    mean: Float[np.ndarray, " d"]
    std: Float[np.ndarray, " d"]
    reference: str
    fingerprint: str

    @functools.cached_property
    def _encode(self):
        def encode(params, video):
            return (self.autoencoder.encode(params, clean({"video": video}))[0] - self.mean) / self.std

        return jax.jit(encode)

    @functools.cached_property
    def _decode(self):
        return jax.jit(lambda params, z: self.autoencoder.decode(params, z * self.std + self.mean))

    def encode(self, clips: Num[np.ndarray, "n f h w c"]) -> Float[np.ndarray, "n k y x d"]:
        """Clips, bytes or floats in [-1, 1], as latents."""
        return np.asarray(self._encode(self.params, clips))

    def decode(self, latents: Float[np.ndarray, "n k y x d"] | Array) -> Float[np.ndarray, "n f h w c"]:
        """Latents as clips in [-1, 1]: the one place where something is clipped, and it is pixels."""
        return np.clip(np.asarray(self._decode(self.params, jnp.asarray(latents, jnp.float32))), -1.0, 1.0)

    def check_clips(self, shape: tuple[int, ...], where: str) -> None:
        if tuple(shape) != self.autoencoder.shape:
            raise ConfigError(
                f"{where}: the autoencoder {self.reference!r} is for clips of shape {self.autoencoder.shape} (frames, height,"
                f" width, channels), config.data gives {tuple(shape)}"
            )

    @property
    def record(self) -> dict[str, str]:
        """What the weights of a model of these latents must say of them."""
        return {"autoencoder": self.reference, "fingerprint": self.fingerprint}

    def record_in(self, folder: pathlib.Path) -> dict[str, str]:
        """The same, to be written into a folder: where the weights lie is said from there, as all may be moved together."""
        if self.reference.startswith("pretrained:"):
            return self.record
        return self.record | {"autoencoder": os.path.relpath(self.reference, folder.resolve())}


def load(reference: str, workdir: pathlib.Path, where: str) -> Codec:
    """The codec of an autoencoder's finished weights, by reference; ConfigError for anything else."""
    path = weights.find(reference, workdir)
    params, record = weights.load(path)
    if record.get("kind") != "autoencoder":
        raise ConfigError(f"{where}: {reference!r} ({path}) holds a {record.get('kind')}, not an autoencoder")
    autoencoder = configs.call(build_autoencoder, {}, where, config=record["model"])
    if "latent_mean" not in record:
        raise ConfigError(
            f"{where}: {reference!r} ({path}) lacks the latents' mean: its training was cut off; run it again"
        )
    mean, std = (np.asarray(record[k], np.float32) for k in ("latent_mean", "latent_std"))
    portable = reference if reference.startswith("pretrained:") else str(path.resolve())
    return Codec(autoencoder, jax.tree.map(jnp.asarray, params), mean, std, portable, weights.fingerprint(path))


def of(source: data.Source, workdir: pathlib.Path, where: str) -> Codec | None:
    """The codec of a source's latents; None for a source of pixels."""
    if not isinstance(source, Latents):
        return None
    told = read_from(source.index, pathlib.Path(source.path))
    reference, index = told.get("autoencoder"), pathlib.Path(source.path) / INDEX
    if is_path(reference) and not pathlib.Path(reference).is_file():
        raise ConfigError(
            f"{where}: {index} has the autoencoder of these latents at {reference}, where there is none; put its weights (with"
            f" the fingerprint {told.get('fingerprint')}) there, or their path into that file"
        )
    return codec_of(told, workdir, where)


def read_from(told: Mapping[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """What `Codec.record_in` wrote into a folder, with the path from anywhere."""
    reference = told.get("autoencoder")
    return {**told, "autoencoder": str((folder / reference).resolve())} if is_path(reference) else {**told}


def is_path(reference: Any) -> bool:
    return isinstance(reference, str) and reference.endswith(".safetensors")


def codec_of(told: Mapping[str, Any], workdir: pathlib.Path, where: str) -> Codec:
    """The codec that an index of latents, or a model's record, names; refused if its weights are others by now."""
    for key in ("autoencoder", "fingerprint"):
        if not isinstance(told.get(key), str):
            raise ConfigError(
                f"{where}: what tells of the latents is damaged, it lacks {key}; they must be encoded again"
            )
    codec = load(told["autoencoder"], workdir, where)
    if codec.fingerprint != told["fingerprint"]:
        raise ConfigError(
            f"{where}: the latents are of an autoencoder with the fingerprint {told['fingerprint']}, {codec.reference!r} has"
            f" {codec.fingerprint}: they must be encoded again"
        )
    return codec


def pixels(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a run's clips of pixels: its data, or what its latents stand for."""
    if not is_latent(config):
        return config["data"]
    return configs.named(config["data"], {"latents": store.read_index}, "config.data")["data"]


def is_latent(config: Mapping[str, Any]) -> bool:
    return config["data"]["kind"] == "latents"


def check_encode(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    if is_latent(config):
        raise ConfigError(f"{where}: config.data are latents already; a stage of kind 'encode' takes clips of pixels")
    for split in ("train", "test"):
        have, asked = len(configs.source(config, split)), block.get(f"{split}_clips", 1)
        if type(asked) is not int or not 1 <= asked <= have:
            raise ConfigError(f"{where}.{split}_clips: expected 1 to {have}, the clips of that split, got {asked!r}")


def run_encode(context, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the latents of the first clips of both splits into the stage's folder; whole splits are not written again."""
    where, folder = f"config.stages.{name}", context.workdir / name
    codec = load(block["autoencoder"], context.workdir, where)
    codec.check_clips(configs.source(context.config, "train").shape, where)
    size, counts = block.get("batch_size", 16), {}
    # A whole split is kept if this autoencoder wrote it: after a retraining the old latents go.
    begun = folder / "encoding.json"
    if not begun.is_file() or configs.read_json(begun).get("fingerprint") != codec.fingerprint:
        for split in ("train", "test"):
            (folder / f"{split}.array_record").unlink(missing_ok=True)
        configs.write_json(begun, codec.record_in(folder))
    for split in ("train", "test"):
        source = configs.source(context.config, split)
        counts[split] = block.get(f"{split}_clips", min(1024, len(source)))
        path = folder / f"{split}.array_record"
        if not store.is_whole(path, counts[split]):
            store.write(path, encoded(codec, source, counts[split], size, f"{name}: {split}"))
    write_index(folder, codec, counts, context.config["data"], configs.source(context.config, "train").num_classes)
    print(f"{name}: latents of shape {codec.autoencoder.latent_shape} in {folder}", flush=True)
    return {f"{split}_clips": n for split, n in counts.items()}


def encoded(codec: Codec, source: data.Source, count: int, size: int, head: str) -> Iterator[dict[str, np.ndarray]]:
    """The latents of the first clips of a source, in its order."""
    batches = data.Batches(source, min(size, count), shuffle=False)
    progress = Progress(head, count)
    for first in range(0, count, size):
        batch = next(batches)
        for latent, label in zip(codec.encode(batch["video"])[: count - first], batch["label"], strict=False):
            yield dict(video=latent, label=label)
        progress(min(first + size, count))


def write_index(folder: pathlib.Path, codec: Codec, clips, pixels, num_classes: int, **more: Any) -> None:
    index = {
        "shape": list(codec.autoencoder.latent_shape),
        "num_classes": num_classes,
        "clips": dict(clips),
        "data": pixels,
    }
    configs.write_json(folder / INDEX, index | codec.record_in(folder) | more)


class Progress:
    """A line every few seconds: how many of how many, and the time left."""

    def __init__(self, head: str, total: int, every: float = 5.0):
        self.head, self.total, self.every = head, total, every
        self.begun = self.said = time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done < self.total and now - self.said < self.every:
            return
        self.said = now
        left = (now - self.begun) / done * (self.total - done)
        print(f"{self.head}: {done}/{self.total} clips, {loop.duration(left)} left", file=sys.stderr, flush=True)
