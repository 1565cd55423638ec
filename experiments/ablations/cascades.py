"""A cascade at its step budgets: teachers, their students, and clips that were only stretched. From a finished run."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.ablations import finished, page
from experiments.cascade import OF_REAL, STRETCHED, compared
from experiments.metrics import Measure

CONFIG, WORKDIR = "configs/moving_digits_64/cascade.py:evaluate", "moving_digits_64/cascade"
SHOWN = {
    "frechet_clip": "Fréchet distance", "label_accuracy": "class", "identity_kept": "identity kept",
    "heading_distance": "heading, degrees", "spectrum_time": "spectrum in time, dB", "sharpness": "sharpness",
    "flicker": "flicker", "diversity": "diversity",
}  # fmt: skip
CAUSES = {
    "acceleration": "a repeated frame doesn't move, so nearly all of its accelerations are 0",
    "flicker": "most frames of a repeated clip equal the one before",
    "warping_error": "most frames of a repeated clip equal the one before",
    "bounces": "a stretched clip turns only where its base does, a sharp one also where its digit changes shape",
    "identity_correlation": "blur makes any two digits alike",
    "precision": "blurred clips lie in the middle of all clips, where real ones have neighbours",
    "mass": "it is the base's: stretching keeps it",
    "mass_variation": "it is the base's: stretching keeps it",
    "mass_drift": "it is the base's: stretching keeps it",
    "objects": "blur joins the pieces of a broken digit",
    "position_distance": "it is the base's: stretching keeps positions",
    "law_kept": "no clip of either keeps the law within its bound: the base's digits change shape",
}
"""Metric -> why stretching a clip may do as well, or better. By hand: new runs may need new ones."""


class Row:
    """A row of the run's report."""

    def __init__(self, report: Mapping[str, Any]):
        self.steps, self.evaluations = str(report["steps"]), int(report["evaluations"])
        self.seconds = float(report["seconds_per_clip"])
        self.metrics = {name: Measure(**measure) for name, measure in report["metrics"].items()}


class Run:
    """The rows of a run, by name."""

    def __init__(self, report: Mapping[str, Any]):
        self.clips, self.rows = int(report["clips"]), {name: Row(row) for name, row in report["samplers"].items()}
        self.shared: dict[str, Any] = {}
        self.parts: dict[str, Any] = {}


def read(runs: pathlib.Path) -> tuple[Run | None, list[finished.Missing]]:
    wanted = {"cascade": finished.Wanted(runs / WORKDIR, (f"--config={CONFIG}",))}
    found, missing = finished.gather(wanted, lambda _, workdir: Run(finished.report_and_config(workdir)[0]))
    return found.get("cascade"), missing


def title(name: str) -> str:
    if name.startswith(STRETCHED):
        return f"{name.removeprefix(STRETCHED)}, base only, bicubic and repeated"
    return f"{name.removeprefix(OF_REAL)}, of real small clips" if name.startswith(OF_REAL) else name


def table(run: Run) -> str:
    header = ["", "steps", "evaluations", "ms a clip", *SHOWN.values()]
    rows = []
    for name, row in run.rows.items():
        distance = row.metrics["frechet_clip"]
        interval = f"{page.cell(distance.value)} [{page.cell(distance.low)}, {page.cell(distance.high)}]"
        others = [row.metrics[metric].value for metric in list(SHOWN)[1:]]
        rows.append([title(name), row.steps, str(row.evaluations), f"{1e3 * row.seconds:.0f}", interval, *others])
    floors = [row.metrics[metric].floor for row in list(run.rows.values())[:1] for metric in SHOWN]
    return page.table(header, [*rows, ["real clips", "", "", "", *floors]])


def verdicts(run: Run) -> str:
    lines, named = [], {}
    for name, row in run.rows.items():
        if STRETCHED + name not in run.rows:
            continue
        against = compared(row.metrics, run.rows[STRETCHED + name].metrics)
        worse = [metric for metric in against["worse"] if metric not in against["unsure"]]
        unsure = [metric for metric in against["unsure"] if metric in against["worse"]]
        lines.append(
            f"- `{name}`: better than its base stretched in {len(against['better'])} of {len(row.metrics)} metrics"
            + (f"; worse in {', '.join(worse)}" if worse else "")
            + (f"; no better, within the intervals, in {', '.join(unsure)}" if unsure else "")
            + "."
        )
        named |= dict.fromkeys([*worse, *unsure])
    causes = [f"- {metric}: {CAUSES.get(metric, 'not explained')}." for metric in named]
    return "\n".join([*lines, *(["", "Why stretching may do as well:", "", *causes] if causes else [])])


def section(runs: pathlib.Path, folder: pathlib.Path) -> str:
    del folder
    run, missing = read(runs)
    parts = [finished.commands(missing)] if run is None else [table(run), verdicts(run)]
    clips = "" if run is None else f" {run.clips} clips."
    return f"""## A cascade's step budgets

This shows what steps are worth in each stage of a cascade: 16x16 clips of 8 frames from noise, then 32 frames, then 64x64
pixels, moving digits, with the teachers at 50 + 10 + 10 steps and their progressive students at 4 + 2 + 2
(configs/moving_digits_64/cascade.py). A guided step of the base is two evaluations.{clips} *Heading* is the distance of the
law of directions from that of real clips, *spectrum* the mean difference of power spectra.

{(chr(10) * 2).join(parts)}
"""
