"""Clips beside a training, to look at: what the averaged weights make at every checkpoint, always of the same noise."""

import contextlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from distill import Network
from experiments import config as configs
from experiments import drawing, evaluation, figures, latents, loop, tables
from experiments import mesh as meshes
from experiments.config import ConfigError
from experiments.context import Context
from experiments.data.source import Source

KEYS = {"clips", "steps", "guidance", "threshold", *tables.PARTS}
CLIPS = 6
MOST = 8
"""Steps of which clips are kept: of more, every second goes."""
APART = 2**31 - 3
"""Folded into the stage's key: its noise is no step's, whatever that one's number."""


def check(context: Context, block: Mapping[str, Any], network: Network, where: str) -> None:
    """preview=dict(steps=N, clips=6, ...), the rest as of a sampler of `evaluate`, before any work. Where a method has rounds,
    each is drawn in its own student's steps, unless `steps` says how many.
    """
    if "preview" not in block:
        return
    given, here, config = block["preview"], f"{where}.preview", context.config
    counts = [given["steps"]] if "steps" in given else block.get("student_steps", [])
    configs.check_keys(given, KEYS, () if counts else {"steps"}, here)
    tables.check_unasked(given, here, "this one still learns")
    for key in ("clips", "steps"):
        configs.check_whole(f"{here}.{key}", given.get(key, 1), 1)
    for count in counts:
        table = tables.check(tables.block_of(given), count, network.schedule, here)
        drawing.check_jumps(table, network.cond_keys, f"{here}.solver")
    evaluation.check_threshold(given, config, here)
    configs.check_finite(given.get("guidance", 1.0), f"{here}.guidance")
    drawing.check_guided(given.get("guidance", 1.0), network.num_classes, f"{here}.guidance")
    if config["data"]["kind"] == "exact":
        raise ConfigError(f"{here}: data of kind 'exact' are points, which make no picture; remove it")
    if "low" in network.cond_keys:
        raise ConfigError(f"{here}: this network upsamples clips and makes none of noise alone; remove it")
    source = configs.source(config, "train")
    codec = latents.of(source, context.workdir, here)
    drawing.check_pictured((source if codec is None else codec.autoencoder).shape[-1], here)


class Preview:
    """Clips of a stage's averaged weights, called with (run, steps done) before a checkpoint; gives {"preview": clips} for the
    writers. Those of several steps stand one above the other in the stage's comparison.png, and play in its report.html.
    """

    def __init__(
        self, context: Context, name: str, block: Mapping[str, Any], network: Network, source: Source,
        codec: latents.Codec | None,
    ):  # fmt: skip
        self.given, self.where, self.folder = block["preview"], f"config.stages.{name}.preview", context.workdir / name
        self.network, self.source, self.codec = network, source, codec
        self.key = jax.random.fold_in(context.key(name), APART)
        count = self.given.get("clips", CLIPS)
        self.labels = (np.arange(count) % max(network.num_classes, 1)).astype(np.int32)
        self.noise = drawing.start(network, self.key, (count, *source.shape))

    def __call__(self, run: loop.Run, step: int) -> dict[str, UInt8[np.ndarray, "n f h w c"]]:
        params = meshes.whole(run.state.ema)
        if not meshes.leads():
            return {}
        params = jax.tree.map(jnp.asarray, params)  # on the device once, and not with every call
        scale, steps = self.given.get("guidance", 1.0), self.given.get("steps") or round(run.hyper["steps"])
        asked = drawing.classes_in_turn(self.network, params, scale)
        model = tables.Model(asked, self.source.shape, self.key, self.network.noise)
        table = tables.make(tables.block_of(self.given), steps, self.network.schedule, self.where, model)
        clips, _ = drawing.draw(
            self.network, params, table, self.labels, self.noise, self.key, batch_size=len(self.labels), scale=scale,
            threshold=self.given.get("threshold"), codec=self.codec, timed=False,
        )  # fmt: skip
        made = figures.to_uint8(clips)
        self.keep(step, made)
        return {"preview": made}

    def keep(self, step: int, made: UInt8[np.ndarray, "n f h w c"]) -> None:
        """Beside those of earlier steps. A stage that went back to an earlier checkpoint makes the later ones again."""
        path, before = self.folder / "clips.npz", {}
        if path.is_file():
            with contextlib.suppress(ValueError):  # a damaged one is lost, and no reason to stop
                before = figures.load_clips(path)
        rows = {name: clips for name, clips in before.items() if int(name.removeprefix("step ")) < step}
        rows[f"step {step}"] = made
        if len(rows) > MOST:
            rows = {name: rows[name] for name in [*rows][::-2][::-1]}  # the newest stays
        figures.save_clips(path, rows)
        figures.comparison(self.folder / "comparison.png", rows)
