"""A report to look at: `report.html` of a run, one page that opens offline and holds all that it shows.

`experiments.run` writes it after every stage. It is made from what the workdir holds (config, metrics, reports, clips), so it
can be made again at any time: `python -m experiments.report --workdir=DIR`. `--results=docs/results/NAME.md [--runs=runs]`
makes the page of an ablation from its Markdown, as `experiments.ablate` does, with the clips of the runs that it reads.
"""

import argparse
import logging
import math
import pathlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import config as configs
from experiments import figures, plots, webpage, weights, writers
from experiments.command import command
from experiments.config import ConfigError
from experiments.metrics.report import Measure, title
from experiments.plots import Point, Series, number
from experiments.webpage import Row, Section, details, table, text

log = logging.getLogger(__name__)

NAME = "report.html"
QUALITY = ("frechet_clip", "wasserstein")
"""Measures that are shown first, where there are any of them."""
MOST_LABELLED = 12
"""Points of a plot that are few enough to have a word beside each."""
PICTURES = ("comparison.png", "slices.png", "samples.png")
MANY_BYTES = 3_000_000
"""What the clips of all runs of one folder may weigh in a page over many runs."""


class Sampler(NamedTuple):
    """A row of a stage's report. family: what is joined by a line; seconds: per clip, None where unknown."""

    family: str
    steps: str
    calls: float
    seconds: float | None
    measures: dict[str, Measure]


@command
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake of the user's."""
    parser = argparse.ArgumentParser(prog="python -m experiments.report", description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=pathlib.Path, help="of a run, finished or not")
    what.add_argument("--results", type=pathlib.Path, help="a page of an ablation, NAME.md")
    parser.add_argument(
        "--runs", type=pathlib.Path, default=pathlib.Path("runs"), help="folder of the runs that it reads"
    )
    given = parser.parse_args(argv)
    print(write(given.workdir) if given.workdir else results(given.results, given.runs))
    return 0


def attempt(workdir: pathlib.Path) -> None:
    """Writes the page of a run that goes on: what is wrong with a page must not stop a training."""
    # Whatever it is: what a run has left by a kill, or by an older version, may be of any kind, and the page can be made again.
    try:
        write(workdir)
    except Exception as error:
        log.warning("%s was not written: %s: %s", workdir / NAME, type(error).__name__, error)


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes the page of a run and returns its path. ConfigError where there is no run."""
    figures.write_atomically(workdir / NAME, run_page(workdir).encode())
    return workdir / NAME


# One run ----------------------------------------------------------------------------------------------------------


def run_page(workdir: pathlib.Path) -> str:
    config, rows = read_config(workdir), read_metrics(workdir)
    stages = config.get("stages", {})
    sections = [Section("Stages", overview(workdir, stages, rows))]
    sections += [Section(name, body) for name in stages if (body := stage_results(workdir / name))]
    if rows:
        sections.append(Section("Training curves", "".join(curves(name, rows) for name in stages)))
    shared = {k: v for k, v in config.items() if k != "stages"}
    parts = [f"<h3>Shared by all stages</h3>{webpage.settings(shared)}"]
    parts += [f"<h3>{text(name)}</h3>{webpage.settings(block)}" for name, block in stages.items()]
    sections.append(Section("Settings", "".join(parts)))
    done = sum((workdir / name / weights.DONE).is_file() for name in stages)
    whole, here = workdir.resolve(), pathlib.Path.cwd()
    # A page travels: it names no folder above the one that it was made from.
    place = whole.relative_to(here) if whole.is_relative_to(here) else whole.name
    command = f"python -m experiments.report --workdir={shlex.quote(str(place))}"
    said = f"<p>{done} of {len(stages)} stages done. To make this page again:</p>"
    said += f'<pre tabindex="0"><code>{text(command)}</code></pre>'
    return webpage.page(f"Run: {whole.name}", said, sections)


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    if not (workdir / "config.json").is_file():
        raise ConfigError(f"no run in {workdir}: it has no config.json, which experiments.run writes before any work")
    config = configs.read_json(workdir / "config.json")
    blocks = config.get("stages") if isinstance(config, Mapping) else None
    if not isinstance(blocks, Mapping) or not all(isinstance(b, Mapping) and "kind" in b for b in blocks.values()):
        raise ConfigError(f"{workdir / 'config.json'} is damaged: expected stages, each with its kind")
    return config


def read_metrics(workdir: pathlib.Path) -> list[writers.Row]:
    """What was logged; [] before anything was."""
    path = workdir / "metrics.jsonl"
    try:
        return writers.read_rows(path) if path.is_file() else []
    except ValueError as error:
        raise ConfigError(str(error)) from None


def overview(workdir: pathlib.Path, stages: Mapping[str, Any], rows: Sequence[writers.Row]) -> str:
    """A line for every stage: what it is, how far it is, and the loss that it stands at."""
    lines = []
    for name, block in stages.items():
        done = workdir / name / weights.DONE
        begun = (workdir / name / "config.json").is_file()
        state = "done" if done.is_file() else "begun" if begun else "not begun"
        seconds = configs.read_json(done).get("seconds") if done.is_file() else None
        logged = [row for row in rows if row["stage"] == name]
        total = block.get("steps", 0) * len(block.get("student_steps", [0])) if block["kind"] != "evaluate" else 0
        step = f"{logged[-1]['step']:,} of {total:,}" if logged and isinstance(total, int) and total else ""
        losses = {k: v for k, v in (logged[-1] if logged else {}).items() if k.rpartition("/")[2] == "loss"}
        loss = ", ".join(f"{k.rpartition('/')[0] or 'loss'} {number(v)}" for k, v in losses.items())
        what = block.get("method") or ", ".join(block.get("samplers", {})) or block.get("weights", "")
        lines.append([
            text(name), text(block["kind"]), text(what), f'<span class="state-{state.split()[0]}">{state}</span>',
            "" if seconds is None else f"{number(seconds)} s", step, text(loss),
        ])  # fmt: skip
    return table(("stage", "kind", "what", "state", "time", "step", "last loss"), lines)


def stage_results(folder: pathlib.Path) -> str:
    """HTML of what a stage has left to see: clips or pictures, quality over steps and seconds, its table."""
    report = configs.read_json(folder / "report.json") if (folder / "report.json").is_file() else {}
    found, parts = samplers(report), []
    if clips := stage_clips(folder, found):
        parts.append(webpage.player(clips, f"clips of {folder.name}"))
    for name in PICTURES:
        # Where there is a player it shows the comparison and the slices.
        if (folder / name).is_file() and (name == "samples.png" or not clips):
            parts.append(webpage.picture((folder / name).read_bytes(), "png", f"{folder.name}: {name}"))
    if found:
        parts.append(f"<h3>Steps, quality, latency</h3>{quality(found)}")
    parts += [f"<h3>{text(name)}</h3>{along(block)}" for name, block in report.items() if is_along(block)]
    if (folder / "report.md").is_file():
        parts.append(webpage.markdown((folder / "report.md").read_text(encoding="utf-8"), folder))
    elif report:
        parts.append(leaves(report))
    said = {k: v for k, v in report.items() if not isinstance(v, Mapping | list)}
    if said and parts:
        parts.append(f'<p class="note">{text("; ".join(f"{k}: {number(v)}" for k, v in said.items()))}</p>')
    return "".join(parts)


def leaves(report: Mapping[str, Any]) -> str:
    """A report that has no table of its own: a line for each measure, with its interval, and for each other value."""
    lines = []

    def walk(value: Any, path: str) -> None:
        if is_measure(value):
            interval = f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"
            real = "" if value.get("floor") is None else number(value["floor"])
            lines.append([f"<code>{text(path)}</code>", text(interval), text(real)])
        elif isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        elif path:
            shown = ", ".join(map(number, value)) if isinstance(value, list) else number(value)
            lines.append([f"<code>{text(path)}</code>", text(shown), ""])

    walk({k: v for k, v in report.items() if isinstance(v, Mapping | list)}, "")
    return table(("", "value", "real"), lines) if lines else ""


def is_measure(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= value.keys()


# Samplers: quality against steps and seconds ----------------------------------------------------------------------


def samplers(report: Mapping[str, Any]) -> dict[str, Sampler]:
    """The rows of an `evaluate`, `cascade` or `exact` stage's report; {} of any other."""
    told, found = report.get("samplers"), {}
    if not isinstance(told, Mapping):
        return {}
    of_laws = report.get("metrics", {})
    floors = of_laws.get("fresh draws", {})
    for name, block in told.items():
        seconds, calls = block.get("seconds_per_clip"), block.get("evaluations")
        if name in of_laws:
            kept = {k: v for k, v in of_laws[name].items() if isinstance(v, list)}
            measures = {k: Measure(*v, (floors.get(k) or [None])[0], None) for k, v in kept.items()}
            calls = of_laws[name].get("calls")
        else:
            measures = {k: Measure(**v) for k, v in block.get("metrics", {}).items()}
        steps = str(block.get("steps", ""))
        # Reports of long ago name no evaluations.
        calls = calls if calls is not None else float(steps) if steps.isdecimal() else math.nan
        family = str(block.get("weights", name)).split("@")[0]
        found[name] = Sampler(family, steps, calls, seconds, measures)
    return found


def quality(found: Mapping[str, Sampler]) -> str:
    """Every measure against network evaluations and against seconds, with intervals; a choice shows one of them."""
    names = list(dict.fromkeys(name for one in found.values() for name in one.measures))
    first = next((name for name in QUALITY if name in names), names[0] if names else None)
    options, blocks, few = [], [], len(found) <= MOST_LABELLED
    for name in names:
        known = {row: one for row, one in found.items() if name in one.measures}
        measure = next(iter(known.values())).measures[name]
        families: dict[str, list[Sampler]] = {}
        for one in known.values():
            families.setdefault(one.family, []).append(one)

        def drawn(x: str, where, families=families, name=name, measure=measure) -> str:
            series = []
            for family, group in families.items():
                points = [
                    Point(at, m.value, m.low, m.high, one.steps if few else "")
                    for one in group
                    if (at := where(one)) is not None and math.isfinite(at) and (m := one.measures[name])
                ]
                series.append(Series(family, sorted(points)))
            values = [p.y for s in series for p in s.points if math.isfinite(p.y)]
            far = bool(values) and min(values) > 0 and (name in QUALITY or max(values) > 5 * min(values))
            return plots.plot(
                series,
                title=f"{name} against {x}",
                x=x,
                y=title(name, measure),
                log_x=True,
                log_y=far,
                floor=measure.floor,
            )

        made = drawn("network evaluations", lambda one: one.calls)
        if any(one.seconds for one in known.values()):
            made += drawn("ms per clip", lambda one: one.seconds and 1e3 * one.seconds)
        options.append(f"<option{' selected' if name == first else ''}>{text(name)}</option>")
        hidden = "" if name == first else " hidden"
        blocks.append(f'<div class="plots" data-choice="{text(name)}"{hidden}>{made}</div>')
    if not names:
        return ""
    choice = f'<label>Measure <select class="choice" aria-label="Measure">{"".join(options)}</select></label>'
    note = "Bars are 95 % intervals. The dashed line is what real clips get."
    note += " The words beside the points are steps." if few else ""
    return f'<div class="chosen">{choice}{"".join(blocks)}<p class="note">{note}</p></div>'


def is_along(block: Any) -> bool:
    """Whether a block of a report holds measures along frames or chunks of frames: 1, 2, ... or 0-7, 8-15, ..."""
    return isinstance(block, Mapping) and len(block) > 1 and all(
        re.fullmatch(r"\d+(-\d+)?", str(k)) or str(k) == "last - first" for k in block
    ) and all(is_measure(v) or isinstance(v, Mapping) and all(map(is_measure, v.values())) for v in block.values())  # fmt: skip


def along(block: Mapping[str, Any]) -> str:
    """Measures along frames, each with its interval."""
    places = {k: float(str(k).split("-")[0]) for k in block if str(k)[0].isdigit()}
    names = dict.fromkeys(name for k in places for name in ([""] if is_measure(block[k]) else block[k]))
    made = []
    for name in names:
        points, floor = [], None
        for key, place in places.items():
            measure = block[key] if not name else block[key].get(name)
            if measure:
                points.append(Point(place, measure["value"], measure["low"], measure["high"]))
                floor = measure.get("floor")
        told = name or "error"
        made.append(plots.plot([Series("", points)], title=told, x="frame", y=told, floor=floor))
    first, rest = made[:2], made[2:]
    more = details(f"{len(rest)} more", f'<div class="plots">{"".join(rest)}</div>') if rest else ""
    return f'<div class="plots">{"".join(first)}</div>{more}'


# Clips ------------------------------------------------------------------------------------------------------------


def stage_clips(folder: pathlib.Path, found: Mapping[str, Sampler]) -> dict[str, Row]:
    """The clips that a stage has kept, in its order, with what was measured; {} where it kept none."""
    if not (folder / "clips.npz").is_file():
        return {}
    try:
        clips = figures.load_clips(folder / "clips.npz")
    except ValueError as error:
        raise ConfigError(f"{error}; remove it, or the stage's folder") from error
    return {name: Row(made, said(name, found.get(name))) for name, made in clips.items()}


def said(name: str, one: Sampler | None) -> str:
    """What stands beside the clips of a sampler."""
    if one is None:
        return "held-out clips" if name == "real" else ""
    words = [f"{one.steps} step{'s' * (one.steps != '1')}"] if one.steps else []
    if math.isfinite(one.calls):
        words.append(f"{number(one.calls)} evaluation{'s' * (one.calls != 1)}")
    if one.seconds is not None:
        words.append(f"{number(1e3 * one.seconds)} ms a clip")
    for name in QUALITY:
        if name in one.measures:
            measure = one.measures[name]
            words.append(f"{name} {number(measure.value)} [{number(measure.low)}, {number(measure.high)}]")
    return ", ".join(words)


# Curves -----------------------------------------------------------------------------------------------------------


def curves(stage: str, rows: Sequence[writers.Row]) -> str:
    """What a stage has logged: losses and gradients, and the rest folded away."""
    rows = [row for row in rows if row["stage"] == stage]
    groups: dict[str, dict[str, list[Point]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "stage"):
                group, series = grouped(name)
                groups.setdefault(group, {}).setdefault(series, []).append(Point(row["step"], float(value)))
    if not groups:
        return ""
    order = sorted(groups, key=lambda name: (name != "loss", not name.endswith("loss"), name != "grad_norm"))
    first = [name for name in order if name == "grad_norm" or name.endswith("loss")]
    made = {name: curve(name, groups[name]) for name in order}
    rest = "".join(made[name] for name in order if name not in first)
    more = (
        details(f"{len(order) - len(first)} more curves of {stage}", f'<div class="plots">{rest}</div>') if rest else ""
    )
    shown = "".join(made[name] for name in first)
    return f'<h3>{text(stage)}</h3><div class="plots">{shown}</div>{more}'


def grouped(name: str) -> tuple[str, str]:
    """(plot, curve) of a metric: phases share the plot of what both log, levels that of what is logged by level."""
    if "_by_level/" in name:
        group, _, level = name.rpartition("/")
        return group, level
    phase, _, last = name.rpartition("/")
    return last, phase


def curve(group: str, series: Mapping[str, Sequence[Point]], told: str = "") -> str:
    """A plot against the step, titled `told` or as its group. Thin lines are what was logged, thick ones running means where
    there are many points.
    """
    if group.endswith("_by_level"):
        series = dict(sorted(series.items(), key=lambda item: float(item[0].split("..")[0])))
    lines = []
    for look, (name, points) in enumerate(series.items()):
        half = len(points) // 40
        lines.append(Series("" if half else name, points, "thin" if half else "thick", look))
        if half:
            lines.append(Series(name, plots.smooth(points, half), "thick", look))
    values = [p.y for points in series.values() for p in points if math.isfinite(p.y)]
    far = bool(values) and min(values) > 0 and ("loss" in group or max(values) > 5 * min(values))
    name = told or (f"{group}, by log-SNR" if group.endswith("_by_level") else group)
    return plots.plot(lines, title=name, x="step", y=group.rpartition("/")[2], log_y=far)


# Many runs --------------------------------------------------------------------------------------------------------


def results(path: pathlib.Path, runs: pathlib.Path) -> pathlib.Path:
    """Writes NAME.html beside an ablation's NAME.md: its sections, then clips, quality and losses of the runs that it reads, as
    far as they are in `runs`.
    """
    from experiments.ablations import READS_RUNS  # here: its pages train and sample, a report doesn't

    if not path.is_file():
        raise ConfigError(f"no page {path}; python -m experiments.ablate writes it")
    head, *parts = re.split(r"^## +(?=.)", path.read_text(encoding="utf-8"), flags=re.M)
    head = re.sub(r"\A# .*\n", "", head)
    sections = []
    for part in parts:
        heading, _, body = part.partition("\n")
        sections.append(Section(heading.replace("`", ""), webpage.markdown(body, path.parent)))
    for told, pattern in READS_RUNS.get(path.stem, {}).items():
        folders = [f for f in sorted(runs.glob(pattern)) if (f / "config.json").is_file()]
        if folders:
            sections.append(Section(f"Runs: {told}", many(folders)))
    page = webpage.page(f"Results: {path.stem}", webpage.markdown(head, path.parent), sections)
    figures.write_atomically(path.with_suffix(".html"), page.encode())
    return path.with_suffix(".html")


class Run(NamedTuple):
    """A run among many. measured, clips: by stage; rows: what was logged."""

    name: str
    measured: dict[str, dict[str, Sampler]]
    clips: dict[str, dict[str, Row]]
    rows: list[writers.Row]


def read_run(workdir: pathlib.Path) -> Run:
    measured, clips = {}, {}
    for stage in read_config(workdir).get("stages", {}):
        report = workdir / stage / "report.json"
        measured[stage] = samplers(configs.read_json(report)) if report.is_file() else {}
        # Not the previews of a training, which are of steps and not of samplers.
        clips[stage] = stage_clips(workdir / stage, measured[stage]) if measured[stage] else {}
    return Run(workdir.name, measured, clips, read_metrics(workdir))


def many(workdirs: Iterable[pathlib.Path]) -> str:
    """Several runs in one: all their clips in one player, their samplers in one plot, their losses folded away. What several of
    them have, as their teacher, is shown once; a run that can't be read is left out, with a warning.
    """
    clips: dict[str, Row] = {}
    found: dict[str, Sampler] = {}
    losses, seen = [], set()
    for workdir in workdirs:
        try:
            run = read_run(workdir)
        # Whatever else stands in files of these names.
        except (ConfigError, LookupError, TypeError, ValueError, AttributeError, OSError) as error:
            log.warning("%s is left out: %s: %s", workdir, type(error).__name__, error)
            continue
        for stage, measured in run.measured.items():
            for name, one in measured.items():
                # A run's own student has the run's name.
                own = run.name if one.family == "student" else f"{run.name}: {one.family}"
                family = own if one.family in run.measured else one.family
                if (key := (family, one.calls, repr(one.measures))) not in seen:
                    seen.add(key)
                    found[f"{run.name}: {name}"] = one._replace(family=family)
            for name, row in run.clips[stage].items():
                if (key := row.clips.tobytes()) not in seen:
                    seen.add(key)
                    shared = name not in clips and (name not in measured or measured[name].family not in run.measured)
                    clips[name if shared else f"{run.name}: {name}"] = row
        if series := loss_curves(run.rows):
            losses.append(curve("loss", series, f"{run.name}: loss"))
    parts = [webpage.player(clips, "clips of all runs", MANY_BYTES)] if clips else []
    parts += [f"<h3>Steps, quality, latency</h3>{quality(found)}"] if found else []
    parts += [details(f"Losses of {len(losses)} runs", f'<div class="plots">{"".join(losses)}</div>')] if losses else []
    return "".join(parts)


def loss_curves(rows: Sequence[writers.Row]) -> dict[str, list[Point]]:
    """The losses of all stages and phases."""
    series: dict[str, list[Point]] = {}
    for row in rows:
        for name, value in row.items():
            phase, _, last = name.rpartition("/")
            if last == "loss":
                series.setdefault(f"{row['stage']} {phase}".strip(), []).append(Point(row["step"], float(value)))
    return series


if __name__ == "__main__":
    sys.exit(main())
