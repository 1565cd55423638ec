"""The `times` stage: intermediate levels of a few-step sampler, found by search on held-out noise and saved with the weights.

Song et al. 2023 (arXiv 2303.01469, section 3) find the times of multistep consistency sampling one after another, by ternary
search on the FID. Here every level between the ends of the default grid moves in turn, in the schedule's time between its
neighbours: half of the tries lie evenly, the others close in on the best by golden section. The best grid seen is kept if it
beats the default on a second set of noises too: what dozens of grids were chosen by says little. Noises, labels and judging
clips are none of those that `evaluate` and `exact` use; every grid gets the same noises, so that what is compared is the grid
alone. A sampler takes what was found with `grid="searched"`.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from diffusion import grids, sampling, schedules, solvers
from distill import Network
from experiments import config as configs
from experiments import drawing, evaluation, exact, latents, metrics, tables, weights
from experiments.config import ConfigError
from experiments.data.exact import Exact
from experiments.data.source import Source
from experiments.metrics import distances

COMMON = {"weights", "counts", "solver", "num_clips", "sweeps", "evaluations"}
CLIPS = {"guidance", "grid", "num_reference", "batch_size", "classifier"}
"""Keys of a stage whose samples are judged against clips, and not against a law. grid: where the search begins, its ends
stay.
"""
KEYS = COMMON | CLIPS
APART = 2**31 - 2
"""Folded into the stage's key: its noise is no other stage's, whatever that one's name."""

Levels = Float[np.ndarray, " points"]
Quality = Callable[[solvers.Table, int], float]
"""How far the samples of a table are from the data, from the noises searched on (0) or the fresh ones (1); lower is better."""


def check(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Everything that a search needs, before any work."""
    known = config["data"]["kind"] == "exact"
    configs.check_keys(block, COMMON | {"kind"} | (set() if known else CLIPS), (), where)
    least = dict(num_clips=2, sweeps=1, evaluations=1) | ({} if known else dict(num_reference=2, batch_size=1))
    counts = block["counts"]
    if not isinstance(counts, list | tuple) or not counts:
        raise ConfigError(f"{where}.counts must be numbers of calls, as [2, 4], got {counts!r}")
    for key in least.keys() & block.keys():
        configs.check_whole(f"{where}.{key}", block[key], least[key])
    for count in counts:
        configs.check_whole(f"{where}.counts (with one call there is no level between the ends)", count, 2)
    parts = tables.block_of(block)
    tables.check_unasked(parts, where, "a search begins with a table that is known")
    schedule = configs.schedule(config)
    for count in counts:
        tables.check(parts, count, schedule, where)
        grid = tables.part(block, "grid", dict(schedule=schedule, num_steps=count), where)
        if not np.isfinite(schedule.time(grid)).all():
            raise ConfigError(
                f"{where}.grid {block.get('grid', tables.CHOICES['grid'][0])!r} goes from log-SNR {grid[0]:g} to {grid[-1]:g},"
                " and a level moves in time, of which this schedule has no finite one at an end; choose a grid that ends where"
                " the schedule does, as 'uniform_time'"
            )
    if not known:
        evaluation.check_data(config, where)
        evaluation.check_clips(block, config, where, "train")


def check_searched(sampler: Mapping[str, Any], earlier: Mapping[str, Any], workdir, where: str) -> None:
    """A sampler with grid 'searched', before any work: a stage before it will find these times, or, for weights from
    elsewhere, they lie beside them already.
    """
    if not tables.is_searched(sampler):
        return
    reference, name, steps = sampler["weights"], tables.sampler_name(sampler), sampler["steps"]
    search = searches(sampler, earlier)
    if any(tables.sampler_name(block) == name and steps in block["counts"] for block in search.values()):
        return
    if weights.is_file(reference):
        tables.searched(sampler, weights.find(reference, workdir), where)
        return
    there = [f"{stage} finds {tables.listed({tables.sampler_name(b): b['counts']})}" for stage, b in search.items()]
    raise ConfigError(
        f"{where}: no stage before it searches the times of {reference!r} for {name} at {steps} calls; "
        + ("; ".join(there) or "there is none of kind 'times' with these weights")
    )


def searches(sampler: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, Any]:
    """The stages that search times for the weights of a sampler."""
    return {name: b for name, b in stages.items() if b["kind"] == "times" and b["weights"] == sampler["weights"]}


def run(context, name: str, block: Mapping[str, Any]) -> None:
    """Searches, count after count, and saves what was found beside the weights. report.json in the stage's folder holds the
    counts that are done: a broken stage goes on after them.
    """
    config, where = context.config, f"config.stages.{name}"
    path = weights.find(block["weights"], context.workdir)
    params, network, record = drawing.load_network(path)
    source, known = configs.source(config, "train"), config["data"]["kind"] == "exact"
    expected = {"schedule": schedules.record(configs.schedule(config))} if known else {}
    weights.check_fits(record, {"shape": list(source.shape)} | expected, f"{where}.weights")
    codec = latents.of(source, context.workdir, where)
    drawing.check_space(record, codec and codec.record, f"{where}.weights")
    keys = jax.random.split(jax.random.fold_in(context.key(name), APART))
    num = block.get("num_clips", 1024 if known else 256)

    def table_of(levels: Levels) -> solvers.Table:
        made = {"solver": block.get("solver", "ddim"), "grid": {"kind": "levels", "levels": levels.tolist()}}
        return tables.make(made, len(levels) - 1, network.schedule, where)

    if known:
        noisy = table_of(grids.uniform_time(network.schedule, block["counts"][0])).stochastic
        measure, distance = ("energy", exact.energy) if noisy else ("wasserstein", exact.wasserstein)
        quality = to_the_law(distance, num, source, params, network, keys)
    else:
        measure, quality = evaluation.QUALITY, to_real_clips(context, block, num, source, codec, params, network, keys)
    sampler, sweeps, evaluations = tables.sampler_name(block), block.get("sweeps", 1), block.get("evaluations", 8)
    file, own = context.workdir / name / "report.json", weights.fingerprint(path)
    report = configs.read_json(file) if file.is_file() else {}
    if report.get("weights") != own:
        report = {"weights": own, "sampler": sampler, "times": {}}
    for count in block["counts"]:
        if str(count) in report["times"]:
            continue
        start = tables.part(block, "grid", dict(schedule=network.schedule, num_steps=count), where)
        head = f"{name}: {sampler} at {count} calls"
        judge = lambda levels, part: quality(table_of(levels), part)  # noqa: E731
        found = find(judge, start, network.schedule, sweeps, evaluations, head, measure)
        report["times"][str(count)] = found | {"quality": measure, "noises": num}
        configs.write_json(file, report)
    tables.keep_times(path, sampler, report["times"])
    print(f"{name}: saved as {tables.times_path(path)}", flush=True)


def find(
    quality: Callable[[Levels, int], float],
    start: Levels,
    schedule: schedules.Schedule,
    sweeps: int,
    evaluations: int,
    head: str,
    measure: str,
) -> dict[str, Any]:
    """The levels to be kept for one number of calls, and what they and `start` were worth."""
    values, total = [], 1 + sweeps * (len(start) - 2) * evaluations

    def judge(levels: Levels) -> float:
        values.append(quality(levels, 0))
        said = f"{measure} {values[-1]:.4g} at log-SNR {shown(levels)}, the best so far is {min(values):.4g}"
        print(f"{head}: {len(values)}/{total}: {said}", file=sys.stderr, flush=True)
        return values[-1]

    levels, before, after = search(judge, start, schedule, sweeps=sweeps, evaluations=evaluations)
    fresh = [quality(grid, 1) for grid in (start, levels)]
    changed = f"{before:.4g} at log-SNR {shown(start)}, {after:.4g} at {shown(levels)}"
    print(f"{head}: {measure} {changed}; {fresh[0]:.4g} and {fresh[1]:.4g} on fresh noises", flush=True)
    if not fresh[1] < fresh[0]:
        print(f"{head}: the default grid stays", flush=True)
        levels, after, fresh = start, before, fresh[:1] * 2
    return dict(levels=levels.tolist(), before=before, after=after, fresh_before=fresh[0], fresh_after=fresh[1])


def shown(levels: Levels) -> str:
    """The levels that move, as text."""
    return ", ".join(f"{level:.3f}" for level in levels[1:-1])


GOLDEN = (3 - math.sqrt(5)) / 2
"""The shorter part of a golden section."""


# The search -------------------------------------------------------------------------------------------------


def search(
    quality: Callable[[Levels], float], levels: Levels, schedule: schedules.Schedule, *, sweeps: int, evaluations: int
) -> tuple[Levels, float, float]:
    """(the best grid seen, quality of `levels`, quality of the best) by coordinate search from `levels`, whose ends stay.

    In the first sweep a level moves between the times of its neighbours; in every further one in half the range of the one
    before, around where it stands. 1 + sweeps * (N - 1) * evaluations calls of `quality`.
    """
    best, before = levels, quality(levels)
    after = before
    for sweep in range(sweeps):
        for i in range(1, len(levels) - 1):

            def moved(time: float, best=best, i=i) -> Levels:
                return np.concatenate([best[:i], [float(schedule.logsnr(time))], best[i + 1 :]])

            own, *others = (float(schedule.time(best[j])) for j in (i, i + 1, i - 1))
            low, high = (own + 0.5**sweep * (other - own) for other in others)
            value, time = minimum(lambda time, moved=moved: quality(moved(time)), low, high, (after, own), evaluations)
            if value < after:
                best, after = moved(time), value
    return best, before, after


def minimum(
    f: Callable[[float], float], low: float, high: float, known: tuple[float, float], evaluations: int
) -> tuple[float, float]:
    """(least value seen, where) after `evaluations` calls of f inside (low, high), beside a `known` (value, point) there.

    Half of them lie evenly, as f may have more than one minimum; the others close in on the best between its neighbours.
    """
    even = np.linspace(low, high, evaluations // 2 + 2)[1:-1].tolist()
    best = min([known, *((f(point), point) for point in even)])
    points = [low, known[1], *even, high]
    below, above = max(p for p in points if p < best[1]), min(p for p in points if p > best[1])
    return golden_section(f, below, above, best, evaluations - len(even))


def golden_section(
    f: Callable[[float], float], low: float, high: float, known: tuple[float, float], evaluations: int
) -> tuple[float, float]:
    """(least value seen, where) after `evaluations` calls of f inside (low, high), begun with a `known` (value, point) there.

    Every call asks in the longer part beside the best point, .382 of it away from there, and the range becomes that between
    the two neighbours of the better point (Kiefer 1953): the minimum of a function with only one.
    """
    best = known
    for _ in range(evaluations):
        point = best[1]
        upwards = high - point >= point - low
        asked = point + GOLDEN * ((high if upwards else low) - point)
        new = f(asked), asked
        inside, outside = (best, new) if best[0] <= new[0] else (new, best)
        # The worse of the two is an end of the range from here on: the upper one where it lies above the better.
        low, high = (low, outside[1]) if outside[1] > inside[1] else (outside[1], high)
        best = inside
    return best


# Qualities: made once, so that all grids of one number of calls run in one compiled program -----------------


def to_the_law(
    distance: Callable[[exact.Points, exact.Points], float],
    num: int,
    source: Exact,
    params: Any,
    network: Network,
    keys: Array,
) -> Quality:
    """The distance between samples and the exact flow's samples from the same noise, which are draws of the law."""
    schedule = network.schedule
    noises, flows = zip(*(exact.truth(source, schedule, key, num) for key in keys), strict=True)
    noises, flows = jnp.asarray(np.stack(noises), jnp.float32), np.reshape(flows, (len(keys), num, -1))

    def quality(table: solvers.Table, part: int) -> float:
        denoise = drawing.denoiser(network, params, None, 1.0, table.target is not None)
        x = noises[part] * jnp.asarray(sampling.starting(table, schedule, noises[part].shape), jnp.float32)
        drawn = np.asarray(sampling.sample(denoise, table, x, keys[part]), np.float64)
        drawn = drawing.finite(drawn, table).reshape(num, -1) / schedule.alpha(schedule.logsnr_end)
        return distance(drawn, flows[part])

    return quality


def to_real_clips(
    context,
    block: Mapping[str, Any],
    num: int,
    source: Source,
    codec: latents.Codec | None,
    params,
    network,
    keys: Array,
) -> Quality:
    """Frechet distance of clip features, as `evaluate` measures it, but to clips of the train split: those that the verdict
    falls by are never looked at. Labels are those of further train clips.
    """
    scale = block.get("guidance", 1.0)
    other, real = evaluation.held_out(context.config, block, num, "train")
    path = weights.find(evaluation.classifier(block, context.config), context.workdir)
    classify = evaluation.load_classifier(path)
    reference = metrics.describe(real["video"], classify)
    noises = [drawing.start(network, key, (num, *source.shape)) for key in keys]

    def quality(table: solvers.Table, part: int) -> float:
        drawn, _ = drawing.draw(
            network, params, table, other["label"], noises[part], keys[part],
            batch_size=block.get("batch_size", 64), scale=scale, codec=codec, timed=False,
        )  # fmt: skip
        sample = metrics.describe(drawn, classify)
        statistic = metrics.METRICS[evaluation.QUALITY].statistic
        return float(statistic(sample, reference, distances.equal_weights(num))[0])

    return quality
