"""Students of every method on data whose law is known, beside the exact denoiser: a table over seeds for every law."""

import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from distill import METHODS
from experiments.ablations import curves, finished, page
from experiments.config import ConfigError

RING = "eight_mode_ring"
LAWS = ("a1d", RING, "gaussian_process")
SEEDS = (0, 1, 2)
CALLS = (1, 2, 4)
CONFIG = "configs/mixture/students.py"
RECORDS = "distillation_mixture.json"
"""Where a page's folder keeps what was read of runs."""
ORACLE, FLOOR = "oracle", "fresh draws"
TITLES = {ORACLE: "exact denoiser, DDIM", FLOOR: FLOOR}
DISTANCE, ENERGY, ERROR, MODES = "wasserstein", "energy", "flow_map_rmse", "modes"
UNITS = {ENERGY: 1000}
HEADS = {DISTANCE: "distance", ENERGY: "energy distance", ERROR: "error of the map"}

RENEWED = (
    "after its first call it goes on from new noise, so that it has no map from there on, and its distance has the floor of "
    "fresh draws; the energy distance has none"
)
REASONS = {
    method: f"{RENEWED}."
    for method in (
        "consistency_distillation", "improved_consistency", "easy_consistency", "latent_consistency",
        "continuous_training",
    )
} | {
    "consistency_training": f"{RENEWED}. The clip's own noise in the place of a teacher's step costs accuracy on coarse grids, "
    "and its grid of at most 40 levels is one: its energy distance is large too.",
    "continuous_distillation": f"{RENEWED}. On the ring one seed of three sank to the mean as its tangent's warm-up ended: the "
    "diversity of its answers to noise, in the log, fell from .66 to .004 there, at a loss that then rested.",
    "truncated_consistency": f"{RENEWED}. At levels cleaner than its cut, s = 1, it learns nothing, and four calls "
    "ask it there.",
}  # fmt: skip
"""method -> why it doesn't beat DDIM, one sentence. By hand: a page with new numbers may need new ones."""

Measures = Mapping[str, Sequence[float]]
"""name -> (value, low, high)"""


class Run(NamedTuple):
    """One seed of a law. rows: method -> calls -> measures; floor: those of fresh draws; seconds: of a method's training;
    shared, parts: as in finished.Run.
    """

    rows: dict[str, dict[int, Measures]]
    floor: Measures
    seconds: dict[str, float | None]
    shared: dict[str, Any]
    parts: dict[str, Any] = {}


# Reading ------------------------------------------------------------------------------------------------------


def read(runs: pathlib.Path, folder: pathlib.Path, law: str) -> tuple[dict[int, Run], list[finished.Missing]]:
    """(seed -> run, what is missing): every RUNS/mixture/LAW_SEED that is there or kept in the page's folder, and the seeds
    that should be.
    """
    names, records = (*HEADS, MODES) if law == RING else tuple(HEADS), folder / RECORDS
    asked = wanted(runs / "mixture", CONFIG, law, finished.load(records))
    return finished.collect(asked, lambda seed, record: parse(law, seed, record, names), records)


def wanted(folder: pathlib.Path, config: str, law: str, kept: Iterable[str]) -> dict[int, finished.Wanted]:
    """seed -> folder/LAW_SEED: those that are there or kept, and those that should be."""
    known = [*kept, *(path.name for path in folder.glob(f"{law}_*"))]
    there = {int(m[1]) for name in known if (m := re.fullmatch(rf"{law}_(\d+)", name))}
    return {
        seed: finished.Wanted(folder / f"{law}_{seed}", (f"--config={config}:all,{law}", f"--config.seed={seed}"))
        for seed in sorted({*SEEDS} | there)
    }


def parse(law: str, seed: int, record: finished.Record, names: Sequence[str], others: Sequence[str] = ()) -> Run:
    """A run that the `exact` stage has finished. names: of the measures to read; others: of those it may lack."""
    report, config = record.report, record.config
    if "law" not in report:
        raise ConfigError("its report is not one of the `exact` stage")
    for what, found, expected in (("law", report["law"], law), ("seed", config["seed"], seed)):
        if found != expected:
            raise ConfigError(f"its {what} is {found!r}, not {expected!r}")
    rows: dict[str, dict[int, Measures]] = {}
    seconds: dict[str, float | None] = {}
    for name, sampler in report["samplers"].items():
        method, _, calls = name.rpartition("_")
        rows.setdefault(method, {})[int(calls)] = checked(report["metrics"][name], names, others)
        seconds[method] = record.seconds.get(sampler["weights"].split("@")[0])
    if ORACLE not in rows:
        raise ConfigError("its report has no row of the exact denoiser")
    floor = checked(report["metrics"][FLOOR], names, others)
    return Run(rows, floor, seconds, {k: v for k, v in config.items() if k != "seed"})


def checked(measures: Mapping[str, Any], names: Sequence[str], others: Sequence[str]) -> Measures:
    """The named measures of a row, in the units of the tables."""
    there = [*names, *(name for name in others if name in measures)]
    triples = {name: tuple(UNITS.get(name, 1) * float(number) for number in measures[name]) for name in there}
    if any(len(triple) != 3 for triple in triples.values()):
        raise ConfigError(f"its rows should hold {', '.join(names)} as [value, low, high]")
    return triples


# Means over seeds ---------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A mean over seeds, half the width of its interval (None: one seed), the interval's upper end, and that of the difference
    from the exact denoiser, seed by seed (None: nothing to compare with).
    """

    mean: float
    half: float | None
    high: float
    excess: float | None = None

    def __str__(self) -> str:
        # Two digits are all that an interval over three seeds knows.
        return page.cell(self.mean) + ("" if self.half is None else f" ± {page.cell(float(f'{self.half:.2g}'))}")


Estimates = dict[str, dict[int, dict[str, Estimate]]]
"""method -> calls -> measure -> estimate"""


def over_seeds(triples: Sequence[Sequence[float]]) -> Estimate:
    """Mean of the values with its 95 % t-interval; of one seed the value, with the upper end of its own interval."""
    values = [triple[0] for triple in triples]
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, None, triples[0][2])
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, half, mean + half)


def summary(found: Mapping[int, Run], methods: Sequence[str] = tuple(METHODS), rival: int | None = None) -> Estimates:
    """Over the seeds that have a row; the exact denoiser first, then as in `methods`. rival: the calls of the exact denoiser
    that all are compared with, None for as many as a method's own.
    """
    order = {name: i for i, name in enumerate([ORACLE, *methods])}
    names = {method for run in found.values() for method in run.rows}
    result: Estimates = {}
    for method in sorted(names, key=lambda name: (order.get(name, len(order)), name)):
        runs = [run for run in found.values() if method in run.rows]
        result[method] = {
            n: estimated(
                [(run.rows[method][n], run.rows[ORACLE].get(rival or n, {})) for run in runs if n in run.rows[method]]
            )
            for n in sorted({n for run in runs for n in run.rows[method]})
        }
    return result


def estimated(rows: Sequence[tuple[Measures, Measures]]) -> dict[str, Estimate]:
    """`against` for every measure, of (a row, what it is compared with) of each seed; over seeds that have the measure."""
    names = dict.fromkeys(name for row, _ in rows for name in row)
    return {name: against([(row[name], rival.get(name)) for row, rival in rows if name in row]) for name in names}


def against(pairs: Sequence[tuple[Sequence[float], Sequence[float] | None]]) -> Estimate:
    """`over_seeds` of (a student's triple, the exact denoiser's from the same noise): what the noise does to both cancels."""
    estimate = over_seeds([student for student, _ in pairs])
    differences = [[end - teacher[0] for end in student] for student, teacher in pairs if teacher is not None]
    return estimate._replace(excess=over_seeds(differences).high) if differences else estimate


def beats(estimates: Estimates, method: str, calls: int, measure: str) -> bool:
    """Better than the exact denoiser it is compared with, beyond chance: the interval of their difference is below 0."""
    estimate = estimates[method][calls].get(measure)
    return method != ORACLE and estimate is not None and estimate.excess is not None and estimate.excess < 0


def failing(estimates: Estimates) -> dict[str, list[int]]:
    """method -> the numbers of calls at which its distance or its error of the map doesn't beat the exact denoiser's."""
    students = {method: rows for method, rows in estimates.items() if method != ORACLE}
    worse = {
        m: [n for n in rows if not all(beats(estimates, m, n, measure) for measure in (DISTANCE, ERROR))]
        for m, rows in students.items()
    }
    return {method: calls for method, calls in worse.items() if calls}


# Writing ------------------------------------------------------------------------------------------------------


def table(found: Mapping[int, Run]) -> str:
    """A row for each method; bold: it `beats` the exact denoiser."""
    estimates, columns = summary(found), [(measure, n) for measure in HEADS for n in CALLS]
    floor = estimated([(run.floor, {}) for run in found.values()])

    header = ["method", *(f"{HEADS[measure]}, {n} call{'s'[: n > 1]}" for measure, n in columns)]
    rows: list[list[Any]] = [
        [TITLES.get(method, f"`{method}`"), *(cell(estimates, method, n, measure) for measure, n in columns)]
        for method in estimates
    ]
    rows.append([FLOOR, *(str(floor[measure]) for measure, _ in columns)])
    if MODES in floor:
        header.append("modes kept")
        fewest = [str(by_calls[min(by_calls)][MODES]) for by_calls in estimates.values()]
        rows = [[*row, kept] for row, kept in zip(rows, [*fewest, str(floor[MODES])], strict=True)]
    for row, method in zip(rows, [*estimates, FLOOR], strict=True):
        row.append(training(found, method))
    return page.table([*header, "training, s"], rows)


def cell(estimates: Estimates, method: str, calls: int, measure: str, bold: bool = True) -> str | None:
    """An estimate as a table shows it: bold, if it may be, where it `beats` the exact denoiser."""
    if measure not in estimates[method].get(calls, {}):
        return None
    text = str(estimates[method][calls][measure])
    return f"**{text}**" if bold and beats(estimates, method, calls, measure) else text


def training(found: Mapping[int, Run], method: str) -> int | None:
    """Seconds of a method's training, mean over the seeds that know it."""
    times = [seconds for run in found.values() if (seconds := run.seconds.get(method)) is not None]
    return round(float(np.mean(times))) if times else None


def verdicts(estimates: Mapping[str, Estimates]) -> str:
    """Which methods don't beat DDIM, a line for each law, and why, a line for each of these methods."""
    worse = {
        law: {method: f"`{method}` ({', '.join(map(str, calls))})" for method, calls in failing(of_law).items()}
        for law, of_law in estimates.items()
    }
    head = "Methods whose distance or error of the map, with its interval, isn't below DDIM's, and at how many calls:"
    return listed(head, worse, {law: len(of_law) - 1 for law, of_law in estimates.items()}, REASONS)


def listed(
    head: str, worse: Mapping[str, Mapping[str, str]], totals: Mapping[str, int], reasons: Mapping[str, str]
) -> str:
    """worse: law -> method -> how it is named there; totals: law -> of how many methods."""
    lines, places = [], {}
    for law, named in worse.items():
        lines.append(
            f"- `{law}`: {len(named)} of {totals[law]} methods{': ' if named else ''}{', '.join(named.values())}."
        )
        for method in named:
            places.setdefault(method, []).append(f"`{law}`")
    why = [f"- `{name}` ({', '.join(laws)}): {reasons.get(name, 'not explained.')}" for name, laws in places.items()]
    return "\n\n".join([head, "\n".join(lines), *(["Why:", "\n".join(why)] if why else [])])


def draw(estimates: Mapping[str, Estimates], folder: pathlib.Path) -> str:
    lines = {
        law: {TITLES.get(m, m): {n: row[DISTANCE].mean for n, row in rows.items()} for m, rows in of_law.items()}
        for law, of_law in estimates.items()
    }
    figure, panels = page.axes(len(lines), 3.2 + 3.4 * len(lines), 4.4)
    looks = curves.looks({name: None for by_name in lines.values() for name in by_name}, TITLES[ORACLE])
    for axes, (law, by_name) in zip(panels, lines.items(), strict=True):
        curves.draw(axes, by_name, looks)
        curves.mark_calls(axes, by_name)
        axes.set(title=law, xlabel="calls")
    panels[0].set_ylabel("Wasserstein distance")
    curves.legend(figure, panels)
    return page.save(figure, folder, "distillation_mixture.png", "Wasserstein distance over calls, by method and law")


def by_law(
    runs: pathlib.Path,
    folder: pathlib.Path,
    read: Callable[..., Any],
    table: Callable[[Mapping[int, Run]], str],
    laws: Sequence[str] = LAWS,
) -> tuple[dict[str, dict[int, Run]], list[finished.Missing], list[str]]:
    """(law -> its runs, what is missing, a titled table for each law that has any)"""
    found, missing, parts = {}, [], []
    for law in laws:
        seeds, absent = read(runs, folder, law)
        missing += absent
        if seeds:
            found[law] = seeds
            parts.append(f"`{law}`, seed{'s'[: len(seeds) > 1]} {', '.join(map(str, seeds))}:\n\n{table(seeds)}")
    return found, missing, parts


def section(runs: pathlib.Path, folder: pathlib.Path) -> str:
    seeds, missing, parts = by_law(runs, folder, read, table)
    found = {law: summary(of_law) for law, of_law in seeds.items()}
    if found:
        parts += [verdicts(found), draw(found, folder)]
    parts += [finished.commands(missing)] if missing else []
    text = f"""## Students where the truth is known

This shows how near a student of every method comes to the law of its data and to the exact flow, beside a teacher without a
fault: the exact denoiser, sampled by DDIM at as many calls. *Distance* is the Wasserstein-2 distance between the samples and
those of the exact flow from the same noise, *error of the map* the root mean square distance of the two sample by sample. A
consistency model draws new noise before its second call: from there on it has no map, and its distance has the floor of two
draws of the law. *Energy distance* (times 1000) is over pairs from different noises; it has no floor, and chance can make it
negative. All are in units of the data, whose standard deviation is 2.2 (`a1d`), 1.4 (`{RING}`) and 1
(`gaussian_process`). *{FLOOR.capitalize()}* are as many of the law itself. *Modes kept* are those of the ring's eight, at the
fewest calls. ± is half of the 95 % t-interval over seeds. Bold: better than DDIM at as many calls, the interval of the
difference, seed by seed, being below 0 (of a single seed: the interval over its clips). A dash: the method isn't judged
there. *Training* is the method's own stage, after the denoiser whose weights it begins with.

{(chr(10) * 2).join(parts)}
"""
    return text if found else page.Empty(text)
