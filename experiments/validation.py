"""Held-out clips beside a training: what the stage's own losses are on them, and the best weights by one of these numbers."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments import config as configs
from experiments import data, loop, weights
from experiments import mesh as meshes
from experiments.config import ConfigError
from experiments.context import Context


def check(context: Context, block: Mapping[str, Any], where: str) -> None:
    """validation=dict(clips=N, keep_best=METRIC): held-out clips of the config's data, whole batches of them."""
    if "validation" not in block:
        return
    given, size = block["validation"], block["batch_size"]
    configs.check_keys(given, {"clips", "keep_best"}, {"clips"}, f"{where}.validation")
    have = len(configs.source(context.config, "test"))
    if type(given["clips"]) is not int or given["clips"] % size or not 0 < given["clips"] <= have:
        raise ConfigError(
            f"{where}.validation.clips: expected a multiple of batch_size {size}, up to the {have} held-out clips, got"
            f" {given['clips']!r}"
        )
    if "keep_best" in given and block.get("student_steps"):
        raise ConfigError(
            f"{where}.validation.keep_best: losses of rounds with other steps can't be compared; remove it"
        )


class Validation:
    """What a stage's own losses and metrics are on held-out clips, with the averaged weights and the same noise every time.

    Called with (run, steps done) before a checkpoint; gives `validation/` metrics. Where they are the best so far by
    `keep_best` (the lowest counts; of equal ones the first), the weights are kept as STAGE/weights@best.safetensors, to which
    a later stage refers as "STAGE@best".
    """

    def __init__(self, context: Context, name: str, block: Mapping[str, Any], key: jax.Array, run: loop.Run, record):
        given, size = block["validation"], block["batch_size"]
        part, parts = meshes.reader(context.mesh, size)
        source = configs.source(context.config, "test")
        batches = data.Batches(source, size, shuffle=False, process_index=part, process_count=parts)
        self.mesh, self.key, self.record, self.phases = context.mesh, jax.random.fold_in(key, 2**31 - 2), record, {}
        self.batches = [meshes.put_batch(batches.batch_at(i), self.mesh, size) for i in range(given["clips"] // size)]
        for phase, of in run.method.phases.items():
            prefix = f"{phase}/" if len(run.method.phases) > 1 else ""
            self.phases[f"validation/{prefix}"] = jax.jit(functools.partial(self._measure, of))
        self.metric, self.path = given.get("keep_best"), weights.result_path(context.workdir, name, "best")
        if self.metric is not None:
            told = {
                f"{prefix}{k}"
                for prefix, phase in self.phases.items()
                for k in jax.eval_shape(phase, *self._given(run, 0))
            }
            choices = [k.removeprefix("validation/") for k in told]
            if self.metric not in choices:
                near = configs.nearest(self.metric, choices)
                raise ConfigError(f"config.stages.{name}.validation.keep_best {self.metric!r} is not measured; {near}")
        self.best = math.inf
        if self.metric is not None and self.path.is_file():
            self.best = weights.load(self.path)[1]["validation"]

    def _measure(self, phase, state, frozen, batch, key, hyper):
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            state = state._replace(params=state.ema)
            loss, metrics = phase.pose(state, frozen, batch, key, hyper)(phase.weights(state))
        return {"loss": loss, **metrics}

    def _given(self, run: loop.Run, index: int):
        hyper = {k: np.float32(v) for k, v in run.hyper.items()}
        return run.state, run.frozen, self.batches[index], jax.random.fold_in(self.key, index), hyper

    def __call__(self, run: loop.Run, step: int) -> dict[str, float]:
        scalars: dict[str, float] = {}
        for prefix, phase in self.phases.items():
            rows = jax.device_get([phase(*self._given(run, index)) for index in range(len(self.batches))])
            scalars |= {f"{prefix}{k}": v for k, v in loop.average(rows).items()}
        value = scalars.get(f"validation/{self.metric}", math.inf)
        if value < self.best:
            self.best = value
            params = meshes.whole(run.state.ema)
            if meshes.leads():
                weights.save(self.path, params, self.record | {"step": step, "validation": value})
        return scalars
