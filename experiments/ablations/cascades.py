"""A cascade at its step budgets: teachers, their students, and clips that were only stretched. From a finished run."""

import pathlib
import textwrap
from collections.abc import Mapping, Sequence
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
    "mass": "stretching keeps the base's; what the stages add lies far from the digit, a haze of less than a grey level, for of"
    " black every error is too light",
    "mass_variation": "stretching keeps the base's; the stages draw every frame's strokes anew",
    "mass_drift": "stretching keeps the base's; the stages draw every frame's strokes anew",
    "objects": "blur joins the pieces of a broken digit",
    "position_distance": "stretching keeps the base's positions",
    "law_kept": "no clip of either keeps the law within its bound: a repeated frame leaves it, and a digit that changes shape",
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
    found, missing = finished.gather(wanted, lambda _, record: Run(record.report))
    return found.get("cascade"), missing


def title(name: str) -> str:
    if name.startswith(STRETCHED + OF_REAL):
        return "real small clips, bicubic and repeated"
    if name.startswith(STRETCHED):
        return f"{name.removeprefix(STRETCHED)}, base only, bicubic and repeated"
    return f"{name.removeprefix(OF_REAL)}, of real small clips" if name.startswith(OF_REAL) else name


def table(run: Run) -> str:
    header = ["", "steps", "evaluations", "ms a clip", *SHOWN.values()]
    rows = []
    for name, row in run.rows.items():
        others = [row.metrics[metric].value for metric in list(SHOWN)[1:]]
        rows.append(
            [
                title(name),
                row.steps,
                str(row.evaluations),
                f"{1e3 * row.seconds:.0f}",
                page.interval(row.metrics["frechet_clip"]),
                *others,
            ]
        )
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
            f"- {title(name)}: better than the same clips stretched in {len(against['better'])} of {len(row.metrics)} metrics"
            + (f"; worse in {', '.join(worse)}" if worse else "")
            + (f"; no better, within the intervals, in {', '.join(unsure)}" if unsure else "")
            + "."
        )
        if not name.startswith(OF_REAL):
            named |= dict.fromkeys([*worse, *unsure])
    return "\n".join([*lines, *(["", reasons(run, list(named))] if named else [])])


def reasons(run: Run, metrics: Sequence[str]) -> str:
    """Why stretching does as well: whether the metric sees at all that a real clip was stretched, and what the stages add."""
    causes = {metric: CAUSES.get(metric, "not explained") for metric in metrics}
    real = next((name for name in run.rows if name.startswith(STRETCHED + OF_REAL)), None)
    if real is None:
        return "\n".join(
            ["Why stretching may do as well:", "", *(f"- {metric}: {cause}." for metric, cause in causes.items())]
        )
    ours, others = run.rows[real.removeprefix(STRETCHED)].metrics, run.rows[real].metrics
    against, rows, blind, own = compared(ours, others), [], [], []
    for metric, cause in causes.items():
        made, seen = ours[metric], others[metric]
        floor = seen._replace(value=seen.floor, low=seen.floor, high=seen.floor) if seen.floor is not None else seen
        found = compared({metric: seen}, {metric: floor})
        sees = bool(found["worse"]) and not found["unsure"]
        adds = metric in against["worse"] and metric not in against["unsure"]
        blind += [] if sees else [metric]
        own += [metric] if adds else []
        verdicts = ["yes" if sees else "no", "yes" if adds else "no" if metric in against["better"] else "not surely"]
        rows.append([metric, floor.value, *(page.interval(one) for one in (seen, made)), *verdicts, cause])
    header = ["metric", "real clips", "real small clips stretched", "and made larger by the stages"]
    header += ["sees that a clip was stretched", "sees a fault of the stages", "why"]
    text = (
        "Why stretching does as well, by what becomes of real small clips, in which the base has no part. "
        f"{len(blind)} of these {len(rows)} metrics don't see that a real clip was stretched: it gets what real ones get, or "
        f"better. In {len(own)} the stages make more of a fault than stretching does, beyond the intervals: "
        f"{', '.join(own) or 'none'}."
    )
    return f"{textwrap.fill(text, 125, break_on_hyphens=False)}\n\n{page.table(header, rows)}"


def section(runs: pathlib.Path, folder: pathlib.Path) -> str:
    del folder
    run, missing = read(runs)
    parts = [finished.commands(missing)] if run is None else [table(run), verdicts(run)]
    clips = "" if run is None else f" {run.clips} clips."
    text = f"""## A cascade's step budgets

This shows what steps are worth in each stage of a cascade: 16x16 clips of 8 frames from noise, then 32 frames, then 64x64
pixels, moving digits, with the teachers at 50 + 10 + 10 steps and their progressive students at 4 + 2 + 2
(configs/moving_digits_64/cascade.py). A guided step of the base is two evaluations.{clips} *Heading* is the distance of the
law of directions from that of real clips, *spectrum* the mean difference of power spectra.

{(chr(10) * 2).join(parts)}
"""
    return page.Empty(text) if run is None else text
