"""The `cascade` stage: small clips, made larger in time and in space by one network after another, beside clips that were only
stretched.

A row of `samplers` is a cascade: stages by name, in order, each with its own weights, steps, solver, guidance and level of the
noise that is put into the clips before it. All rows begin with the same noise and labels, and are measured as an `evaluate`
stage measures its samplers.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from diffusion import solvers
from distill import Network
from distill.inputs import scaled
from experiments import config as configs
from experiments import data, drawing, evaluation, figures, latents, metrics, tables, weights
from experiments.config import ConfigError
from experiments.data.resized import averaged
from experiments.metrics import Measure

KEYS = {"samplers", "num_clips", "num_reference", "batch_size", "classifier", "bootstrap", "shown", "of_real"}
STAGE_KEYS = evaluation.SAMPLER_KEYS - {"matrix", "stream"} | {"aug_logsnr"}
STRETCHED = "bicubic_"
OF_REAL = "of_real_"


class Stage(NamedTuple):
    """A stage of a cascade: its name and block, its network, its table, the shape of its clips."""

    name: str
    block: Mapping[str, Any]
    network: Network
    params: Any
    table: solvers.Table
    shape: tuple[int, ...]

    @property
    def evaluations(self) -> int:
        return self.table.nfe * drawing.calls_each(self.network, self.block.get("guidance", 1.0))


def check(context: Any, block: Mapping[str, Any], where: str) -> None:
    """Names, keys, weights, shapes and levels of every cascade, before any work."""
    evaluation.check_data(context.config, where)
    if latents.is_latent(context.config):
        raise ConfigError(f"{where}: a cascade makes clips of pixels; config.data are latents")
    own = [prefix + row for row in block["samplers"] for prefix in (STRETCHED, OF_REAL, STRETCHED + OF_REAL)]
    configs.check_rows(block["samplers"], [evaluation.REAL, *own], where)
    evaluation.check_clips(block, context.config, where)
    rows = block.get("of_real", ())
    if not isinstance(rows, list | tuple):
        raise ConfigError(f"{where}.of_real must be names of rows, as ('teachers',), got {rows!r}")
    for row in rows:
        configs.choose(row, block["samplers"], f"{where}.of_real")
    for row in block["samplers"]:
        plan(context, block, row, where)


def plan(context: Any, block: Mapping[str, Any], row: str, where: str) -> list[Stage]:
    """The stages of a row; refuses weights, shapes and levels that don't go together."""
    if not block["samplers"][row]:
        raise ConfigError(f"{where}.samplers.{row} has no stages")
    made: list[Stage] = []
    for name, sampler in block["samplers"][row].items():
        here = f"{where}.samplers.{row}.{name}"
        configs.check_keys(sampler, STAGE_KEYS, {"weights", "steps"}, here)
        configs.check_forms(sampler, {"weights": str}, here)
        configs.check_whole(f"{here}.steps", sampler["steps"], 1)
        evaluation.check_threshold(sampler, context.config, here)
        configs.check_finite(sampler.get("guidance", 1.0), f"{here}.guidance")
        if any(tables.asks(sampler, part) for part in tables.PARTS) or tables.is_searched(sampler):
            raise ConfigError(
                f"{here}: a table that asks the network has no clip to show it here; name solver and grid"
            )
        path = weights.find(sampler["weights"], context.workdir)
        params, network, record = drawing.load_network(path, upsamples=True)
        drawing.check_space(record, None, f"{here}.weights")
        table = tables.check(tables.block_of(sampler), sampler["steps"], network.schedule, here)
        drawing.check_jumps(table, network.cond_keys, f"{here}.solver")
        drawing.check_guided(sampler.get("guidance", 1.0), network.num_classes, f"{here}.guidance")
        check_level(sampler, network, here)
        shape = grown(made[-1].shape, record, here) if made else first(record, here)
        made.append(Stage(name, sampler, network, params, table, shape))
    want = tuple(data.build(context.config["data"], "test").shape)
    if made[-1].shape != want:
        raise ConfigError(f"{where}.samplers.{row} makes clips of shape {made[-1].shape}, config.data has {want}")
    return made


def first(record: Mapping[str, Any], where: str) -> tuple[int, ...]:
    if "low" in record["cond_keys"]:
        raise ConfigError(f"{where}: the first stage of a cascade begins with noise alone, these weights upsample")
    return tuple(record["shape"])


def grown(shape: tuple[int, ...], record: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """The shape of a stage's clips, by the factors that it was trained for."""
    if "low" not in record["cond_keys"]:
        raise ConfigError(f"{where}: these weights make clips of noise alone and upsample nothing")
    low = record.get("data", {}).get("low")
    if low is None:
        raise ConfigError(
            f"{where}: the record of these weights doesn't say how much larger they make a clip, as that of weights trained on"
            " data of kind 'resized' does (low)"
        )
    time, space = low
    return shape[0] * time, shape[1] * space, shape[2] * space, shape[3]


def check_level(sampler: Mapping[str, Any], network: Network, where: str) -> None:
    """The noise of the clips before must be such as the network has learnt to be told of."""
    level, trained = sampler.get("aug_logsnr"), network.augmentation
    if level is not None:
        configs.check_finite(level, f"{where}.aug_logsnr")
    if trained is None:
        if level is not None:
            raise ConfigError(f"{where}.aug_logsnr {level}: these weights know no noise in the clips before; remove it")
        return
    if level is None:
        raise ConfigError(
            f"{where} lacks the key 'aug_logsnr', log-SNR of the noise in the clips before: {list(trained)}"
        )
    if not trained[0] <= level <= trained[1]:
        raise ConfigError(
            f"{where}.aug_logsnr {level}: training saw {list(trained)}; nearest: {min(max(level, trained[0]), trained[1]):g}"
        )


def stretched(low: Float[np.ndarray, "n f h w c"], shape: tuple[int, ...]) -> Float[np.ndarray, "n ..."]:
    """Every frame made larger by bicubic interpolation, then repeated: what a cascade has to beat."""
    larger = jax.image.resize(low, (*low.shape[:2], *shape[1:3], low.shape[-1]), "cubic")
    return np.repeat(np.clip(np.asarray(larger), -1.0, 1.0), shape[0] // low.shape[1], 1)


def compared(rows: Mapping[str, Measure], others: Mapping[str, Measure]) -> dict[str, list[str]]:
    """The metrics in which `rows` is better and worse than `others`; where neither way is better, nearer to real clips is. Of
    either the `unsure`, where the intervals overlap.
    """

    def badness(measure: Measure) -> float:
        if measure.better is None:
            return abs(measure.value - (measure.floor or 0.0))
        return -measure.value if measure.better == "higher" else measure.value

    found: dict[str, list[str]] = {"better": [], "worse": [], "unsure": []}
    for name, ours in rows.items():
        other = others[name]
        found["better" if badness(ours) < badness(other) else "worse"].append(name)
        if ours.low <= other.high and other.low <= ours.high:
            found["unsure"].append(name)
    return found


def run(context: Any, name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """Samples, measures, draws and reports, as `evaluate` does. For every row also its first clips stretched, and for the rows
    of `of_real` (the first by default) real first clips upsampled, and stretched: the fault of the stages after it alone, and
    of stretching alone.
    """
    config, where = context.config, f"config.stages.{name}"
    num, key = block.get("num_clips", 256), context.key(name)
    other, reference = evaluation.held_out(config, block, num)
    path = weights.find(evaluation.classifier(block, config), context.workdir)
    classify = evaluation.load_classifier(path)
    real_sample = metrics.describe(reference["video"], classify)
    floor_sample = metrics.describe(other["video"], classify, other["label"])
    labels: Int[np.ndarray, " n"] = other["label"]
    rows, samplers = {}, {}
    kept: dict[str, tuple[np.ndarray, float]] = {}

    def climb(stages: list[Stage], low: np.ndarray | None = None) -> tuple[np.ndarray, list[float]]:
        """(the last stage's clips, seconds a clip of every stage). What several rows have in common is made once. low: what
        the second stage begins with, the first one being left out.
        """
        spent, begun = [], "" if low is None else OF_REAL
        for index, stage in enumerate(stages, 0 if low is None else 1):
            begun += json.dumps([stage.name, dict(stage.block)], sort_keys=True)
            if begun not in kept:
                print(
                    f"{name}: {stage.name}: {num} clips of shape {stage.shape}, {stage.table.nfe} calls each",
                    flush=True,
                )
                key_noise, key_run = jax.random.split(jax.random.fold_in(key, index))
                noise = drawing.start(stage.network, key_noise, (num, *stage.shape))
                kept[begun] = drawing.draw(
                    stage.network, stage.params, stage.table, labels, noise, key_run, batch_size=block.get("batch_size", 64),
                    scale=stage.block.get("guidance", 1.0), threshold=stage.block.get("threshold"), low=low,
                    aug_logsnr=stage.block.get("aug_logsnr", np.inf),
                )  # fmt: skip
            low, second = kept[begun]
            spent.append(second)
        return low, spent

    def measured(row: str, made: np.ndarray, stages: list[Stage], spent: list[float], series: str, knows: bool) -> None:
        told = {}
        for stage, second in zip(stages, spent, strict=True):
            told |= {f"evaluations of {stage.name}": stage.evaluations, f"ms per clip of {stage.name}": 1e3 * second}
        calls = " + ".join(str(stage.table.nfe) for stage in stages) or "0"
        samplers[row] = {"weights": series, "steps": calls, "stages": {s.name: dict(s.block) for s in stages}}
        measures = metrics.evaluate(
            made, real_sample, labels=labels if knows else None, classify=classify, floor_reference=floor_sample,
            floor_labels=labels, bootstrap=block.get("bootstrap", 100), seed=config["seed"],
        )  # fmt: skip
        evaluations = sum(stage.evaluations for stage in stages)
        rows[row] = evaluation.Row(figures.to_uint8(made), sum(spent), evaluations, measures, told)

    against = {}
    for row in block["samplers"]:
        stages = plan(context, block, row, where)
        knows = any(stage.network.num_classes for stage in stages)  # of all rows that are held against one another
        made, spent = climb(stages)
        measured(row, made, stages, spent, "cascade", knows)
        small, spent = climb(stages[:1])
        measured(STRETCHED + row, stretched(small, made.shape[1:]), stages[:1], spent, "bicubic and repeat", knows)
        against[row] = compared(rows[row].measures, rows[STRETCHED + row].measures)
        if row in block.get("of_real", list(block["samplers"])[:1]):
            small = low_of(other["video"], stages[0].shape)
            made, spent = climb(stages[1:], small)
            measured(OF_REAL + row, made, stages[1:], spent, "upsampled real clips", knows)
            begun = time.perf_counter()
            made = stretched(small, made.shape[1:])
            second = (time.perf_counter() - begun) / num
            measured(STRETCHED + OF_REAL + row, made, [], [], "stretched real clips", knows)
            rows[STRETCHED + OF_REAL + row] = rows[STRETCHED + OF_REAL + row]._replace(seconds=second)
    evaluation.report(context, name, {**block, "samplers": samplers}, rows, other["video"], path.name)
    for row, found in against.items():
        better, worse = found["better"], found["worse"]
        text = f"{name}: {row} beats {STRETCHED}{row} in {len(better)} of {len(rows[row].measures)} metrics"
        print(text + (f", not in {', '.join(worse)}" if worse else ""), flush=True)
    return {"against_bicubic": against}


def low_of(videos: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "n f h w c"]:
    """Real clips made as small as a first stage's, as its training clips were."""
    every, size = videos.shape[1] // shape[0], videos.shape[2] // shape[1]
    small = np.stack([averaged(video[::every], size) for video in videos])
    return np.asarray(scaled(jnp.asarray(small)))
