"""The `exact` stage: samples of data whose law is known, held against the truth.

From the same noise every sampler is compared with the exact probability flow (its error is an error of the map), and its
samples with the law (Wasserstein distance; modes kept). The exact denoiser, as `oracle`, is a sampler like any other, so a
student stands beside a perfect teacher at the same number of steps.
"""

import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from diffusion import oracles, sampling, schedules
from experiments import config as configs
from experiments import drawing, tables, weights
from experiments.config import ConfigError
from experiments.data.exact import Exact
from experiments.figures import write_atomically
from experiments.metrics.report import interval

ORACLE = "oracle"
FLOW, FRESH = "exact flow", "fresh draws"
"""Rows beside the samplers: what the exact flow makes of the noise, and other clips of the law."""
KEYS = {"samplers", "num_clips", "bootstrap", "noise"}
SAMPLER_KEYS = {"weights", "steps", "solver", "grid"}
NUM_CLIPS = 1024
RTOL = 1e-7
"""Of the exact flow: far below any sampler's error."""

Points = Float[np.ndarray, "n d"]


def source_of(config: Mapping[str, Any], split: str, where: str) -> Exact:
    """The config's data, if its law is known; else a ConfigError that names what wants it."""
    source = configs.source(config, split)
    if not isinstance(source, Exact):
        raise ConfigError(
            f"{where} needs data whose law is known: config.data.kind 'exact', got {config['data']['kind']!r}"
        )
    return source


def check(block: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Names and keys of every sampler, before any work."""
    source = source_of(config, "test", where)
    configs.check_enough(source, block.get("num_clips", NUM_CLIPS), f"{where}.num_clips", "test")
    configs.choose(block.get("noise", "independent"), dict.fromkeys(NOISES), f"{where}.noise")  # by name only
    configs.check_rows(block["samplers"], [FLOW, FRESH], where)
    for name, sampler in block["samplers"].items():
        configs.check_keys(sampler, SAMPLER_KEYS, {"weights", "steps"}, f"{where}.samplers.{name}")
        tables.check(tables.block_of(sampler), sampler["steps"], configs.schedule(config), f"{where}.samplers.{name}")
        if weights.is_file(sampler["weights"]):
            path = weights.find(sampler["weights"], pathlib.Path())
            check_fits(weights.load(path)[1], source, configs.schedule(config), f"{where}.samplers.{name}.weights")


def run(context, name: str, block: Mapping[str, Any]) -> None:
    """Samples, measures and reports: report.json, report.md and a picture in the stage's folder."""
    where, folder = f"config.stages.{name}", context.workdir / name
    source = source_of(context.config, "test", where)
    schedule, n = configs.schedule(context.config), block.get("num_clips", NUM_CLIPS)
    key = context.key(name)
    kind = block.get("noise", "independent")
    noise, flow = truth(source, schedule, key, n, NOISES[kind])
    apart = groups(kind, n)
    law = source.clips[:n]
    rows, drawn = {}, {FLOW: flow}
    for row, sampler in block["samplers"].items():
        drawn[row], calls = draw(
            context, source, schedule, sampler, noise, key, f"{where}.samplers.{row}", folder / "tables"
        )
        rows[row] = {"calls": calls, **measure(drawn[row], flow, source, block.get("bootstrap", 100), apart)}
        print(f"{name}: {row}: " + ", ".join(f"{k} {text(v)}" for k, v in rows[row].items()), flush=True)
    floor = measure(law, flow, source, block.get("bootstrap", 100), apart)
    rows = {FRESH: {"calls": None, **floor}, **rows}
    result = {"law": source.name, "clips": n, "samplers": block["samplers"], "metrics": rows}
    configs.write_json(folder / "report.json", result)
    configs.write_json(context.workdir / "report.json", result)
    lines = ["| | " + " | ".join(floor) + " | calls |", "|---" * (len(floor) + 2) + "|"]
    lines += [f"| {row} | " + " | ".join(text(v[k]) for k in (*floor, "calls")) + " |" for row, v in rows.items()]
    write_atomically(folder / "report.md", ("\n".join(lines) + "\n").encode())
    picture(folder / "samples.png", {FRESH: law, **drawn})
    print("\n".join(lines), f"\npicture: {folder / 'samples.png'}", flush=True)


def independent(key, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(jax.random.normal(key, shape), np.float64)


def sobol(key, shape: tuple[int, ...]) -> np.ndarray:
    """Normal quantiles of a scrambled Sobol sequence (Owen 1998): every region gets its share of the points nearly exactly, so
    that what chance adds to a distance between laws is small. The two halves are scrambled apart: points of one keep away from
    each other, and only those of different ones are independent.
    """
    n, *rest = shape
    seeds = jax.random.randint(key, (2,), 0, 2**31 - 1).tolist()
    halves = zip(seeds, (n // 2, n - n // 2), strict=True)
    uniform = np.concatenate([stats.qmc.Sobol(math.prod(rest), rng=seed).random(size) for seed, size in halves])
    return stats.norm.ppf(np.clip(uniform, 2.0**-32, 1 - 2.0**-32)).reshape(shape)


NOISES = {"independent": independent, "sobol": sobol}


def groups(noise: str, n: int) -> np.ndarray:
    """Of n such noises, those that are independent of each other differ in this number."""
    return np.where(np.arange(n) < n // 2, 0, 1) if noise == "sobol" else np.arange(n)


def truth(
    source: Exact, schedule: schedules.Schedule, key, n: int, noise_of: Callable = independent
) -> tuple[np.ndarray, np.ndarray]:
    """n noises of unit size, and the clean data to which the exact flow takes them from the schedule's start; float64."""
    noise = noise_of(key, (n, *source.shape))
    start, end = schedule.logsnr_start, schedule.logsnr_end
    x = noise * schedule.size(start)
    flow = oracles.probability_flow(source.oracle.denoiser(schedule), x, schedule, start, end, RTOL)
    return noise, flow / schedule.alpha(end)


def draw(context, source, schedule: schedules.Schedule, sampler, noise, key, where, folder) -> tuple[np.ndarray, int]:
    """(samples from the noise, calls)."""

    def table_for(block: Mapping[str, Any], denoise: Callable):
        return tables.make(block, sampler["steps"], schedule, where, tables.Model(denoise, source.shape, key), folder)

    if sampler["weights"] == ORACLE:
        denoise = source.oracle.denoiser(schedule)
        table = table_for(tables.block_of(sampler), denoise)
    else:
        path = weights.find(sampler["weights"], context.workdir)
        params, network, record = drawing.load_network(path)
        check_fits(record, source, schedule, f"{where}.weights")
        table = table_for(tables.searched(sampler, path, where), drawing.classes_in_turn(network, params, 1.0))
        denoise = drawing.denoiser(network, params, None, 1.0, table.target is not None)
    x = jnp.asarray(noise * sampling.starting(table, schedule, noise.shape), jnp.float32)
    drawn = drawing.finite(np.asarray(sampling.sample(denoise, table, x, key), np.float64), table)
    return drawn / schedule.alpha(schedule.logsnr_end), table.nfe


def check_fits(record: Mapping[str, Any], source: Exact, schedule: schedules.Schedule, where: str) -> None:
    """Refuses weights of other points, of another schedule or of another noise."""
    fitting = {"schedule": schedules.record(schedule), "shape": list(source.shape), "noise": "iid"}
    weights.check_fits(record, fitting, where)


SLOW = ("wasserstein", "wasserstein_1", "energy")


def measure(drawn, flow, source: Exact, bootstrap: int, apart: np.ndarray) -> dict[str, Any]:
    """Distances to the law, error of the map, and, where the law has modes, how many of them are kept. apart: `groups`.

    Each as [value, low, high], the 95 % interval over resampled clips (`metrics.report.interval`).
    """
    drawn, flow = (np.reshape(part, (len(part), -1)).astype(np.float64) for part in (drawn, flow))
    error = np.sqrt(((drawn - flow) ** 2).mean(-1))
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(error), len(error)) for _ in range(bootstrap)]
    draws = [rows for rows in draws if np.ptp(apart[rows])]  # of few clips some have no two that are independent
    measures = {
        "wasserstein": lambda rows: wasserstein(drawn[rows], flow[rows]),
        "energy": lambda rows: energy(drawn[rows], flow[rows], apart[rows]),
        "flow_map_rmse": lambda rows: float(np.sqrt(np.mean(error[rows] ** 2))),
        "flow_map_median": lambda rows: float(np.median(error[rows])),
    }
    if drawn.shape[1] <= 2:
        measures["wasserstein_1"] = lambda rows: wasserstein(drawn[rows], flow[rows], 1)
    if isinstance(source.oracle, oracles.Mixture):
        measures["modes"] = lambda rows: modes_kept(drawn[rows], source.oracle)
    everything = np.arange(len(error))
    result = {}
    for name, function in measures.items():
        # What looks at all pairs of a thousand points takes a while: ten resamples give its interval.
        resampled = [function(rows) for rows in draws[: 10 if name in SLOW else None]]
        value = function(everything)
        result[name] = [value, *interval(value, np.array(resampled))]
    return result


def wasserstein(drawn: Points, flow: Points, order: int = 2) -> float:
    """The Wasserstein distance of an order, 1 or 2, between samples and the exact flow's samples from the same noise, in units
    of the data.

    Those are draws of the law, and what both owe to the draw of the noise cancels: the exact flow's own distance is 0, and
    that of a sampler that adds noise of its own has a floor, which fresh draws of the law show. On the line by order, in
    the plane by the best assignment, beyond it between the Gaussians of the same moments (order 2 only).

    A share e of the mass that is in the wrong place costs e in order 1, and sqrt(e) in order 2.
    """
    if drawn.shape[1] == 1:
        moved = np.abs(np.sort(drawn[:, 0]) - np.sort(flow[:, 0])) ** order
    elif drawn.shape[1] == 2:
        cost = ((drawn[:, None] - flow[None]) ** 2).sum(-1) ** (order / 2)
        moved = cost[linear_sum_assignment(cost)]
    elif order == 2:
        return oracles.wasserstein_gaussian(np.cov(drawn.T), np.cov(flow.T), drawn.mean(0), flow.mean(0))
    else:
        raise ValueError(f"beyond the plane only the distance of order 2 is known here, got order {order}")
    return float(np.mean(moved) ** (1 / order))


def energy(drawn: Points, flow: Points, apart: np.ndarray | None = None) -> float:
    """The energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013), in units of the data, over pairs
    that come from independent noises: unbiased (so it may fall below 0), and 0 for the exact flow. apart: a number for each
    noise, different for those that are independent; None: all are.

    For samplers that add noise of their own. There the Wasserstein distance rewards the grid that adds least, not the best: a
    sample that stays near the flow's own makes its floor smaller.
    """
    x, y = np.asarray(drawn), np.asarray(flow)
    apart = np.arange(len(x)) if apart is None else apart
    pairs = apart[:, None] != apart
    return float(np.mean((2 * cdist(x, y) - cdist(x, x) - cdist(y, y))[pairs]))


def modes_kept(points: Points, law: oracles.Mixture) -> float:
    """How many of a mixture's modes hold at least a third of their share of the points, each point being of the mode that is
    nearest in standard deviations, and of none beyond four.
    """
    away = np.linalg.norm((points[:, None] - law.means) / np.sqrt(law.variances), axis=-1)
    near = (away == away.min(1, keepdims=True)) & (away < 4)
    return float((near.mean(0) >= np.exp(law.log_weights) / 3).sum())


def text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{value[0]:.3g} ({value[1]:.3g} to {value[2]:.3g})"
    return str(value)


def picture(path: pathlib.Path, sets: Mapping[str, np.ndarray]) -> None:
    """A panel for each set of samples: a histogram on the line, points in the plane, clips over time."""
    columns = min(5, len(sets))
    rows = -(-len(sets) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.4 * rows), sharex=True, sharey=True, squeeze=False
    )
    for axis, (name, clips) in zip(axes.ravel(), sets.items(), strict=False):
        points = np.reshape(clips, (len(clips), -1))
        if points.shape[1] == 1:
            # Those beyond stand at the edge: a set that is all beyond has a histogram, too.
            axis.hist(np.clip(points[:, 0], -6, 6), bins=60, range=(-6, 6), density=True)
        elif points.shape[1] == 2:
            axis.plot(*points.T, ".", markersize=1.5, alpha=0.5)
            axis.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
        else:
            axis.plot(points[:24].T, linewidth=0.8)
        axis.set_title(name, fontsize=8)
    for axis in axes.ravel()[len(sets) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
