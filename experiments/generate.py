"""The `generate` stage: a teacher's own clips as data, for students that learn from nothing else.

Sauer et al. 2024 (LADD, arXiv 2403.12015, section 3): synthetic latents at one guidance scale take the place of a data set, and
of the distillation loss.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments import config as configs
from experiments import drawing, evaluation, latents, tables, weights
from experiments.config import ConfigError
from experiments.data import latents as store

KEYS = {"weights", "steps", "solver", "grid", "guidance", "num_clips", "batch_size"}


def check(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    if not latents.is_latent(config):
        raise ConfigError(f"{where}: generated clips are written as latents; config.data.kind must be 'latents'")
    tables.check(tables.block_of(block), block["steps"], configs.schedule(config), where)
    evaluation.check_batches(block, where)


def run(context, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Writes num_clips latents, the classes in turn, in the format of the `encode` stage."""
    where, folder = f"config.stages.{name}", context.workdir / name
    source = configs.source(context.config, "train")
    codec = latents.of(source, context.workdir, where)
    assert codec is not None  # check
    path = weights.find(block["weights"], context.workdir)
    params, network, record = drawing.load_network(path)
    drawing.check_space(record, codec.record, f"{where}.weights")
    key, scale = context.key(name), block.get("guidance", 1.0)
    model = tables.Model(drawing.classes_in_turn(network, params, scale), source.shape, key, network.noise)
    asked = tables.searched(block, path, where)
    table = tables.make(asked, block["steps"], network.schedule, where, model, folder)
    count, size = block["num_clips"], block.get("batch_size", 64)

    def drawn() -> Iterator[dict[str, np.ndarray]]:
        progress = latents.Progress(name, count)
        for first in range(0, count, size):
            labels = ((first + np.arange(size)) % max(network.num_classes, 1)).astype(np.int32)
            key_noise, key_sample = jax.random.split(jax.random.fold_in(key, first))
            noise = drawing.start(network, key_noise, (size, *source.shape))
            clips = np.asarray(drawing.drawn(network, params, table, labels, noise, key_sample, scale))
            for clip, label in zip(drawing.finite(clips, table), labels, strict=True):
                yield dict(video=clip, label=label)
            progress(first + size)

    store.write(folder / "train.array_record", drawn())
    made = {"by": weights.fingerprint(path), "steps": block["steps"], "guidance": scale, "seed": context.config["seed"]}
    latents.write_index(folder, codec, {"train": count}, source.index["data"], source.num_classes, made=made)
    return {"train_clips": count, "evaluations": table.nfe * drawing.calls_each(network, scale) * count}
