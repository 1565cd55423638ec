"""Training an autoencoder of clips, and its round trip: what encoding and decoding alone cost, before any model samples."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, UInt8

from distill import regression
from distill.inputs import clean
from distill.method import Method, accumulating
from experiments import config as configs
from experiments import data, figures, latents, loop, weights
from experiments import mesh as meshes
from experiments.config import ConfigError
from experiments.context import Context
from experiments.metrics import distances, report
from experiments.training import finish_training
from models.autoencoder import DEFAULTS as AUTOENCODER_DEFAULTS
from models.autoencoder import Autoencoder, build_autoencoder

log = logging.getLogger(__name__)

STATISTICS = 256
"""Clips over which the mean and the variance of latents are taken."""
EMPTY = 0.05
"""Standard deviation of a latent channel's means, as a part of that of its noise, below which it says next to nothing."""
NUM_CLIPS = 256
"""Clips of a round trip."""
ROUND_TRIP = {"weights", "num_clips", "batch_size", "bootstrap", "shown"}


def method(
    autoencoder: Autoencoder,
    *,
    optimiser: optax.GradientTransformation,
    frames: int | None = None,
    kl: float = 1e-5,
    ema: float = 0.999,
) -> Method:
    """Squared error of the decoded clip, plus `kl` times the divergence of the latents from N(0, 1) (Rombach et al. 2022, arXiv
    2112.10752, section 3.1), each a mean over its numbers; one phase, `train`.

    frames: of the part of every clip that a step sees, its beginning drawn; None: the whole clip. A causal network that
    learnt on short clips is as good on long ones. Metrics: loss, psnr (dB, of clips in [-1, 1]), kl (nats a number).
    """
    if frames is not None and not (type(frames) is int and 1 <= frames <= autoencoder.shape[0]):
        raise ValueError(
            f"frames: expected a whole number from 1 to the clip's {autoencoder.shape[0]}, or None for all, got {frames}"
        )
    if not 0 <= kl < math.inf:
        raise ValueError(f"kl: expected a weight from 0 up, got {kl}")

    def pose(state: regression.RegressionState, frozen: PyTree, batch: PyTree, key: Array, hyper: PyTree):
        del state, frozen, hyper
        key_start, key_latent = jax.random.split(key)
        clips = part(key_start, clean(batch), frames)

        def loss(params: PyTree) -> tuple[Array, dict[str, Array]]:
            mean, log_variance = autoencoder.encode(params, clips)
            z = mean + jnp.exp(0.5 * log_variance) * jax.random.normal(key_latent, mean.shape)
            made = autoencoder.decode(params, z)[:, : clips.shape[1]]
            error = jnp.mean(jnp.square(made - clips))
            divergence = jnp.mean(0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance))
            return error + kl * divergence, {"psnr": 10 * jnp.log10(4 / error), "kl": divergence}

        return loss

    return regression.alone(pose, optimiser, ema=ema)


def part(key: PRNGKeyArray, clips: Float[Array, "b f h w c"], frames: int | None) -> Float[Array, "b n h w c"]:
    """`frames` frames in a row of every clip, from the same place in all."""
    if frames is None or frames == clips.shape[1]:
        return clips
    start = jax.random.randint(key, (), 0, clips.shape[1] - frames + 1)
    return jax.lax.dynamic_slice_in_dim(clips, start, frames, 1)


def plan(context: Context, block: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Autoencoder, Any]:
    """(its model's config spelt out, the autoencoder, the method): builds everything, computes nothing."""
    if latents.is_latent(context.config):
        raise ConfigError(f"{where}: config.data are latents; an autoencoder learns from clips of pixels")
    shape = configs.source(context.config, "train").shape
    model = {**AUTOENCODER_DEFAULTS, "shape": list(shape), **block.get("model", {})}
    built = configs.call(build_autoencoder, {}, f"{where}.model", config=model)
    if built.shape != tuple(shape):
        raise ConfigError(f"{where}.model.shape is {built.shape}, config.data gives clips of shape {tuple(shape)}")
    if weights.is_file(block.get("init") or ""):
        first(context, block["init"], model)
    optimiser = configs.optimiser(block.get("optimiser", {"learning_rate": 1e-3}), block["steps"], f"{where}.optimiser")
    options = block.get("options", {})
    learning = configs.call(method, options, f"{where}.options", autoencoder=built, optimiser=optimiser)
    return model, built, accumulating(learning, block.get("accumulate", 1))


def first(context: Context, reference: str, model: Mapping[str, Any]) -> Any:
    """Weights to begin with, refused where they are of another model."""
    params, record = weights.load(weights.find(reference, context.workdir))
    # As it stands in a record, where tuples are lists.
    weights.check_fits(record, json.loads(json.dumps({"kind": "autoencoder", "model": model})), reference)
    return params


def run(context: Context, name: str, block: Mapping[str, Any]) -> None:
    """Trains an autoencoder; its record holds the mean and standard deviation of its latents."""
    model, built, learning = plan(context, block, f"config.stages.{name}")
    source, key = configs.source(context.config, "train"), context.key(name)
    record = {"format": 1, "kind": "autoencoder", "model": model, "shape": list(source.shape), "weights": "ema"}
    initial = jax.random.fold_in(key, 2**31 - 1)
    if block.get("init"):
        params = meshes.put(first(context, block["init"], model), context.mesh)
    else:
        params = meshes.made(built.init, context.mesh, initial)
    state = meshes.made(learning.init, context.mesh, key, params)
    whole = loop.Run(learning, state, {}, {"learning_rate_scale": 1.0}, block["steps"])
    del params, state  # as in training.run
    finish_training(context, name, block, whole, source, key, record)
    if not meshes.leads():
        return
    clips = data.Batches(source, min(STATISTICS, len(source)), seed=context.config["seed"]).batch_at(0)["video"]
    path = weights.result_path(context.workdir, name)
    params, record = weights.load(path)
    weights.save(path, params, record | statistics(params, built, clips, f"config.stages.{name}"))


def run_round_trip(context: Context, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Encodes and decodes held-out clips; leaves report.json and pictures in the stage's folder."""
    where, folder = f"config.stages.{name}", context.workdir / name
    codec = latents.load(block["weights"], context.workdir, where)
    source = configs.source(context.config, "test")
    codec.check_clips(source.shape, where)
    num, batch = block.get("num_clips", NUM_CLIPS), block.get("batch_size", 16)
    real = data.Batches(source, num, seed=context.config["seed"]).batch_at(0)["video"]
    made, still = [], []
    for first in range(0, num, batch):
        clips = real[first : first + batch]
        made.append(figures.to_uint8(codec.decode(codec.encode(clips))))
        stopped = np.repeat(clips[:, :1], clips.shape[1], 1)
        still.append(figures.to_uint8(codec.decode(codec.encode(stopped))))
        print(f"{name}: {min(first + batch, num)}/{num} clips", file=sys.stderr, flush=True)
    made, still = np.concatenate(made), np.concatenate(still)
    found = measure(
        real, made, still, codec.autoencoder.patch, codec.autoencoder.group, block.get("bootstrap", 200),
        context.config["seed"],
    )  # fmt: skip
    shown = min(block.get("shown", 6), num)
    pictures = {"real": real[:shown], "decoded": made[:shown]}
    figures.comparison(folder / "comparison.png", pictures)
    figures.animate(folder / "comparison.webp", pictures)
    figures.save_clips(folder / "clips.npz", pictures)
    result = {"clips": num, "weights": block["weights"], "metrics": {k: m._asdict() for k, m in found.items()}}
    configs.write_json(folder / "report.json", result)
    for key, m in found.items():
        print(f"{name}: {key} {m.value:.4g} [{m.low:.4g}, {m.high:.4g}]", flush=True)
    print(f"{name}: pictures: {folder / 'comparison.png'}, {folder / 'comparison.webp'}", flush=True)
    return {k: m.value for k, m in found.items()}


def measure(
    real: UInt8[np.ndarray, "n f h w c"],
    made: UInt8[np.ndarray, "n f h w c"],
    still: UInt8[np.ndarray, "n f h w c"],
    patch: int,
    group: int,
    bootstrap: int,
    seed: int,
) -> dict[str, report.Measure]:
    """What a round trip did to clips, with intervals over clips.

    psnr: dB, mean over clips. shimmer: rms of the second difference in time, decoded over real. still: rms of the change from
    frame to frame where the clip stood still (`still` decoded), over the rms contrast of its real frames. seams_space: rms
    change of the error from pixel to pixel across the borders of the decoder's patches, over that inside them; seams_time: from
    frame to frame, across the borders of its groups; 1 is no seam. What clips of one or two frames, or
    frames of one patch, cannot show is left out.
    """
    weights_ = np.concatenate(
        [distances.equal_weights(len(real)), distances.resampled(len(real), bootstrap, seed, None)]
    )
    x, y, stood = (clips.astype(np.float32) / 255 for clips in (real, made, still))
    error = y - x
    mean = lambda a: a.mean(tuple(range(1, a.ndim)))  # noqa: E731
    psnr = -10 * np.log10(np.maximum(mean(np.square(error)), 1e-10))
    # Left out, not refused: an autoencoder of images, or of frames of one patch, is a good one and has a psnr.
    parts = {}
    if x.shape[1] > 2:
        parts["shimmer"] = [mean(np.square(np.diff(clips, n=2, axis=1))) for clips in (y, x)]
        parts["seams_time"] = jumps(error, 1, group)
    if x.shape[1] > 1:
        contrast = mean(np.square(x[:, :1] - x[:, :1].mean((2, 3), keepdims=True)))
        parts["still"] = [mean(np.square(np.diff(stood, axis=1))), contrast]
    if patch < min(x.shape[2:4]):
        rows, columns = (jumps(error, axis, patch) for axis in (2, 3))
        parts["seams_space"] = [np.add(*pair) for pair in zip(rows, columns, strict=True)]
    values = {"psnr": weights_ @ psnr}
    values |= {k: np.sqrt(weights_ @ a / np.maximum(weights_ @ b, 1e-12)) for k, (a, b) in parts.items()}
    better = {"psnr": "higher", "shimmer": None, "still": "lower", "seams_space": "lower", "seams_time": "lower"}
    floors = {"psnr": None, "shimmer": 1.0, "still": 0.0, "seams_space": 1.0, "seams_time": 1.0}
    return {
        k: report.Measure(float(v[0]), *report.interval(float(v[0]), v[1:]), floors[k], better[k])
        for k, v in values.items()
    }


def jumps(error: Float[np.ndarray, "n f h w c"], axis: int, period: int) -> list[Float[np.ndarray, " n"]]:
    """The mean squared change of the error along an axis of every clip: [across borders, inside]. In time the first frame is a
    group alone. Without an inside both are the same.
    """
    change = np.square(np.diff(error, axis=axis))
    place = np.arange(change.shape[axis]) + (0 if axis == 1 else 1)
    sides = [place % period == 0, place % period != 0] if period > 1 else [place >= 0] * 2
    return [np.compress(side, change, axis).mean((1, 2, 3, 4)) for side in sides]


def statistics(
    params: Any, autoencoder: Autoencoder, clips: UInt8[np.ndarray, "n f h w c"], where: str
) -> dict[str, list[float]]:
    """Mean and standard deviation of every latent channel over clips: what makes them of unit variance for a model. A channel
    that says next to nothing is named in a warning, and stays small.
    """
    encode = jax.jit(lambda params, video: autoencoder.encode(params, clean({"video": video})))
    parts = [encode(params, clips[i : i + 16]) for i in range(0, len(clips), 16)]
    means, log_variances = (np.concatenate(x) for x in zip(*parts, strict=True))
    axes = (0, 1, 2, 3)
    std, least = means.std(axes), EMPTY * np.sqrt(np.exp(log_variances).mean(axes))
    if empty := np.flatnonzero(std < least).tolist():
        log.warning(
            "%s: of %d latent channels %s say next to nothing (below %g of their own noise): choose fewer model.channels, or a"
            " smaller options.kl", where, len(std), empty, EMPTY,
        )  # fmt: skip
    return {
        "latent_mean": means.mean(axes).astype(float).tolist(),
        # What says nothing isn't made loud: of a constant its rounding would be.
        "latent_std": np.maximum(std, least).astype(float).tolist(),
    }
