"""Students of a critic, or an adversary, on data whose law is known: one call beside the exact denoiser's eight."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.ablations import finished, mixture, page
from experiments.ablations.mixture import DISTANCE, ENERGY, FLOOR, MODES, ORACLE, TITLES, Estimates, Run
from experiments.figures import COLOURS, plain_logs

NAMES = ("dmd", "dmd2", "f_distill", "diff_instruct", "sid", "sida", "moment_matching", "rcm", "add")
CONFIG = "configs/mixture/games.py"
RECORDS = "distillation_games.json"
"""As in mixture.py."""
LAWS = ("a1d", mixture.RING)
"""Mixtures: of a Gaussian, which has one mode, there is none to lose."""
RIVAL = 8
"""Calls of the exact denoiser that one call of a student is held against."""
FIRST = "wasserstein_1"
HEADS = {FIRST: "distance of order 1", DISTANCE: "distance of order 2", ENERGY: "energy distance", MODES: "modes kept"}
STRAY = (
    "one continuous map of the noise must cross the gaps between modes that lie apart: it leaves {} of the ring's points in"
    " them, farther than four standard deviations from any mode, and {} of the mass in the wrong mode, each at a distance of"
    " 1.5. Its energy distance is below DDIM's."
)
REASONS: dict[str, str] = {
    "dmd": STRAY.format("4.5 %", "0.3 %"),
    "dmd2": STRAY.format("6.8 %", "1.8 %"),
    "f_distill": STRAY.format("7.6 %", "1 %"),
    "diff_instruct": STRAY.format("3 %", "2.1 %"),
    "sid": STRAY.format("10 %", "0.9 %") + " Of `a1d` it is nearer than DDIM, but not beyond chance.",
    "sida": STRAY.format("9.4 %", "1.4 %"),
    "moment_matching": "one step is not what it is for: the sample between a student's input and its clip gives the input away"
    " as it nears it, and the teacher's mean is then asked of a clip without randomness of its own, so that the spread is 1.29"
    " where the ring has 1.42, and 1.75 where `a1d` has 2.2. Four steps do well on moving digits.",
    "rcm": STRAY.format("9.9 %", "1.3 %"),
    "add": "what it adds to the teacher's mean is an adversary of small batches: modes hold .73 to 1.2 of their share, with"
    " standard deviations of .03 to .09 where the law has .1, and 8.3 % of the points lie in the gaps. Of"
    " `a1d` it makes a spread of 1.8 where the law has 2.2.",
}
"""method -> why it isn't better than DDIM, one sentence. By hand: a page with new numbers may need new ones."""


# Reading ------------------------------------------------------------------------------------------------------


def read(runs: pathlib.Path, folder: pathlib.Path, law: str) -> tuple[dict[int, Run], list[finished.Missing]]:
    """(seed -> run, what is missing) of RUNS/games/LAW_SEED, there or kept in the page's folder. A run may hold any of the
    methods; what it lacks is missing.
    """
    records = folder / RECORDS
    wanted = mixture.wanted(runs / "games", CONFIG, law, finished.load(records))
    found, missing = finished.collect(wanted, lambda seed, record: parse(law, seed, record), records)
    for seed, run in found.items():
        if lacking := [name for name in NAMES if name not in run.rows]:
            missing.append(finished.Missing(wanted[seed], f"lacks {', '.join(lacking)}; remove its folder exact first"))
    return found, missing


def parse(law: str, seed: int, record: finished.Record) -> Run:
    """Two runs of some methods each need the same settings of the methods that both have, not the same methods."""
    run = mixture.parse(law, seed, record, (DISTANCE, ENERGY), (FIRST, MODES))
    shared, parts = {k: v for k, v in run.shared.items() if k != "stages"}, {}
    for name, block in run.shared["stages"].items():
        if block["kind"] == "exact":
            parts |= {f"samplers.{row}": sampler for row, sampler in block["samplers"].items()}
            block = {k: v for k, v in block.items() if k != "samplers"}
        parts[f"stages.{name}"] = block
    return run._replace(shared=shared, parts=parts)


# Writing ------------------------------------------------------------------------------------------------------


def leading(estimates: Estimates) -> str:
    """The distance that decides: of order 1 where it is known."""
    return FIRST if FIRST in estimates[ORACLE][min(estimates[ORACLE])] else DISTANCE


def table(found: Mapping[int, Run]) -> str:
    """A row for each method; bold: better than the exact denoiser at RIVAL calls."""
    estimates = mixture.summary(found, NAMES, RIVAL)
    floor = mixture.estimated([(run.floor, {}) for run in found.values()])
    heads = {measure: head for measure, head in HEADS.items() if measure in floor}
    rows: list[list[Any]] = []
    for method, by_calls in estimates.items():
        for calls in by_calls:
            title = f"{TITLES[ORACLE]}, {calls} call{'s'[: calls > 1]}" if method == ORACLE else f"`{method}`"
            # Bold is for distances: fewer modes than DDIM has are no gain.
            cells = [mixture.cell(estimates, method, calls, measure, bold=measure != MODES) for measure in heads]
            rows.append([title, *cells, mixture.training(found, method)])
    rows.append([FLOOR, *(str(floor[measure]) for measure in heads), None])
    return page.table(["", *heads.values(), "training, s"], rows)


def failing(estimates: Estimates) -> dict[str, str]:
    """method -> its name, of those whose distance isn't below the exact denoiser's at RIVAL calls."""
    measure = leading(estimates)
    return {
        method: f"`{method}`"
        for method, by_calls in estimates.items()
        if method != ORACLE and not mixture.beats(estimates, method, min(by_calls), measure)
    }


def verdicts(estimates: Mapping[str, Estimates]) -> str:
    head = f"Not better than DDIM at {RIVAL} calls in the distance of order 1:"
    totals = {law: len(of_law) - 1 for law, of_law in estimates.items()}
    return mixture.listed(head, {law: failing(of_law) for law, of_law in estimates.items()}, totals, REASONS)


def draw(found: Mapping[str, Mapping[int, Run]], estimates: Mapping[str, Estimates], folder: pathlib.Path) -> str:
    """A point for each seed, a bar for their mean."""
    figure, panels = page.axes(len(found), 1.2 + 3.6 * len(found), 4.2)
    for axes, (law, runs) in zip(panels, found.items(), strict=True):
        of_law, measure = estimates[law], leading(estimates[law])
        methods = [method for method in of_law if method != ORACLE]
        for place, method in enumerate(methods):
            calls, colour = min(of_law[method]), COLOURS[place % len(COLOURS[:-1])]
            values = [
                run.rows[method][calls][measure][0]
                for run in runs.values()
                if measure in run.rows.get(method, {}).get(calls, {})
            ]
            if values:
                mean = of_law[method][calls][measure].mean
                axes.plot([place] * len(values), values, ".", color=colour, markersize=6)
                axes.plot([place - 0.3, place + 0.3], [mean] * 2, color=colour, linewidth=2)
        if RIVAL in of_law[ORACLE]:
            axes.axhline(of_law[ORACLE][RIVAL][measure].mean, color="black", label=f"{TITLES[ORACLE]}, {RIVAL} calls")
        floor = mixture.estimated([(run.floor, {}) for run in runs.values()])[measure].mean
        axes.axhline(floor, color="0.4", linestyle="--", linewidth=1, label=FLOOR)
        axes.set_xticks(range(len(methods)), methods, rotation=60, ha="right", fontsize=8)
        axes.set(title=law, yscale="log", ylabel=f"distance of order {1 if measure == FIRST else 2}")
        plain_logs(axes.yaxis)
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, frameon=False, fontsize=8, ncols=2, loc="outside upper center")
    return page.save(figure, folder, "distillation_games.png", "distance of one call by method and law")


def section(runs: pathlib.Path, folder: pathlib.Path) -> str:
    found, missing, parts = mixture.by_law(runs, folder, read, table, LAWS)
    if found:
        estimates = {law: mixture.summary(seeds, NAMES, RIVAL) for law, seeds in found.items()}
        parts += [verdicts(estimates), draw(found, estimates, folder)]
    parts += [finished.commands(missing)] if missing else []
    text = f"""## Students of a critic where the truth is known

This shows how near one call comes to the law of the data when a student learns from a critic of its own clips, or from an
adversary, beside the exact denoiser sampled by DDIM. These students have no map of noise to clips to keep to, only a law.
*Distance* is the Wasserstein distance between the samples and those of the exact flow from the same noise: of order 1, where
a share e of clips in the wrong place costs e, and of order 2, where it costs sqrt(e). *Energy distance* (times 1000) is over
pairs from different noises; chance can make it negative. All are in units of the data, whose standard deviation is 2.2
(`a1d`) and 1.4 (`eight_mode_ring`). *Modes kept* are those of a mixture that hold at least a third of their share.
*{FLOOR.capitalize()}* are as many of the law itself. ± is half of the 95 % t-interval over the seeds that have the method.
Bold: better than DDIM at {RIVAL} calls, the interval of the difference, seed by seed, being below 0 (of a single seed: the
interval over its clips).
*Training* is the method's own stage, after the denoiser whose weights it begins with.

{(chr(10) * 2).join(parts)}
"""
    return text if found else page.Empty(text)
