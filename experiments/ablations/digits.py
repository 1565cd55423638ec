"""A student of every method on moving digits, of pixels or of latents, at one budget, beside its guided teacher at 50 steps,
and the teacher itself at fewer.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from distill import GAMES as WITH_A_CRITIC
from distill import METHODS
from experiments.ablations import costs, curves, finished, page
from experiments.config import ConfigError
from experiments.evaluation import QUALITY
from experiments.metrics.report import Measure

STUDENTS = tuple(name for name in METHODS if name != "denoising" and name not in WITH_A_CRITIC)
CRITICS = {
    "dmd": (1,), "dmd2": (4, 1), "f_distill": (4,), "diff_instruct": (4,), "sid": (1,), "moment_matching": (4,), "rcm": (4,),
}  # fmt: skip
"""Students of a critic -> the calls for which one is wanted, each with a run of its own."""


class Family(NamedTuple):
    """Students of one teacher: the folder of their runs, their configs, those of a critic that are wanted, and why some aren't
    near enough, one sentence a method. By hand: a page with new numbers may need new ones. budgets: forwards of those that
    don't have the config's own. note: what else the page has to say of them.
    """

    name: str
    title: str
    configs: str
    games: Mapping[str, tuple[int, ...]]
    reasons: Mapping[str, str] = {}
    budgets: Mapping[str, int] = {}
    note: str = ""

    @property
    def records(self) -> str:
        """Where a page's folder keeps what was read of runs."""
        return f"distillation_{self.name}.json"

    def config(self, name: str) -> str:
        return f"--config={self.configs}/{name}.py"

    def arguments(self, run: str) -> tuple[str, ...]:
        """Of `experiments.run`, for METHOD or METHOD_CALLS."""
        method = name_of(run)
        if run == method:
            return (f"{self.config('students')}:{method}",)
        budget = f",{self.budgets[method]}" if method in self.budgets else ""
        return (f"{self.config('games')}:{method},{run.removeprefix(f'{method}_')}{budget}",)


PIXELS = Family(
    "digits",
    "16x16 clips of 8 frames, sampled as pixels",
    "configs/moving_digits",
    CRITICS | {"add": (4,)},
    budgets={"dmd2": 20_000, "f_distill": 20_000, "add": 10_000},
    note="""The row of `add` is of before R1 was of each head.

""",
    reasons={
        "progressive": "273 updates a round are few (the paper has 50,000), and every round inherits the errors of the last.",
        "consistency_distillation": "the first of two calls is one from noise, which after 1,000 updates is blurred (5.5 times "
        "the teacher's distance by itself), and the second doesn't mend all of it.",
        "continuous_distillation": "984 updates, at a learning rate that leaves what is known at clean levels as it is: from "
        "pure noise one call is still near the mean of all clips (a diversity of .38), and a second, at the best level that a "
        "search found (log-SNR -3.1), mends most of it, not all.",
        "continuous_training": "as `continuous_distillation`, and without a teacher: 1,429 updates.",
        "consistency_training": "from scratch, without a teacher, in 1,500 updates where the paper has hundreds of thousands: "
        "what it makes is noise still.",
        "truncated_consistency": "half of the budget goes to the student that it begins with and ends as, which has 500 "
        "updates where `easy_consistency` has 1,000.",
        "reflow": "316 updates, since each asks the teacher for the end of a path, in 8 guided steps: from pure noise one "
        "call is still near the mean of all clips (a diversity of .42).",
        "improved_consistency": "it has no teacher, and 1,500 updates where the paper has 400,000.",
        "easy_consistency": "its law of levels, the paper's, puts 2 clips of 100 beyond log-SNR -6, where digits begin: what "
        "its first call leaves, a second doesn't mend.",
        "latent_consistency": "of its 50 levels one is pure noise: some 320 clips teach its first call.",
        "diff_instruct": "after 4 calls its clips hold 1.20 of the data's light: 323 updates of the student, and no adversary.",
        "rcm": "after the 100 updates of its warm-up, consistency alone, it has 80 in which distribution matching says "
        "anything. Before its loss was as the paper's, matching spoke from the first update on, and it was at 1.14.",
        "f_distill": "after 4 calls its clips hold 1.08 of the data's light where DMD2's hold 1.03; its weights are a young "
        "discriminator's ratio, on top of the same critic.",
    },
)
LATENTS = Family(
    "digits_64",
    "64x64 clips of 32 frames, sampled as latents, decoded and then measured",
    "configs/moving_digits_64",
    CRITICS | {"ladd": (4,)},
    note="""Larger clips are decided at more noise, most of which steps uniform in the cosine's time pass at once: the first
of four goes to log-SNR -1.8. Guided, four calls of DPM-Solver++(2M) are nearly empty frames there; at a flow time of shift 3
(`shifted`) the same teacher is at 2.98 times its distance at 50 steps of DDIM, in 8 calls at 1.07, and in 50 at .71: what the
students are held against isn't the teacher's best. Students of consistency and of trajectories step there, too. Students that
learn their steps now have a clock of their own, a cosine with shift 3: the rows of `guided`, `tract`, `multistep_consistency`,
`reflow` and `dmd` are of before, and step uniformly in the teacher's time, as the other students of critics and the teacher's
own 50 steps do.

""",
    reasons={
        "guided": "it halves the steps of DDIM in the cosine's time, the first of which, at 4, goes at once to log-SNR -1.8, "
        "past most of what these latents decide; each of its rounds, of 225 updates, adds to the error of the last.",
        "tract": "its steps are uniform in the cosine's time: the first of four goes at once to log-SNR -1.8, past most of "
        "what these latents decide (`consistency_trajectory` was at 2.46 times the teacher's distance there, and is at 1.20 at "
        "steps that begin at more noise).",
        "multistep_consistency": "its four segments are of one length in the cosine's time: the first ends, as the first step "
        "of `tract`, at log-SNR -1.8.",
        "progressive": "273 updates a round are few, and every round inherits the errors of the last; in the cosine's time, "
        "though, it was at 5.11 in 4 calls and at 7.22 in 2.",
        "latent_consistency": "of its 50 levels one is pure noise: some 160 clips teach its first call.",
        "truncated_consistency": "half of the budget goes to the student that it begins with, and 429 updates of 8 clips leave "
        "its first call at 3.39 times the teacher's distance; a second, at the best level that a search found (log-SNR -2.7), "
        "mends most of it.",
        "continuous_distillation": "984 updates of 8 clips leave its first call at 9.7 times the teacher's distance, near the "
        "mean of all clips (a diversity of .42); a second, at the best level that a search found (log-SNR -4.9), mends most of "
        "it, eight are nearer than the teacher (.54).",
        "continuous_training": "it has no teacher, and 1,429 updates of 8 clips: from pure noise one call is still near the "
        "mean of all clips (a diversity of .42), and what it leaves at the best level that a search found (log-SNR -4.9) a "
        "second doesn't mend.",
        "consistency_distillation": "1,000 updates of 8 clips leave its first call at 5.4 times the teacher's distance; seven "
        "more mend that (.81), three nearly.",
        "consistency_training": "from scratch, without a teacher, in 1,500 updates of 8 clips where the paper has hundreds of "
        "thousands: what it makes has no class yet.",
        "improved_consistency": "it has no teacher, and 1,500 updates of 8 clips where the paper has 400,000 of 1,024.",
        "mean_flow": "it learns jumps between times uniform in the cosine's time, few of which end where its steps begin: in 4 "
        "steps uniform in that time it is at 1.60, in 2 of them at 2.28.",
        "rcm": "after the 100 updates of its warm-up it has 80, of 8 clips each, in which distribution matching says anything.",
        "reflow": "its pairs are what 8 calls of the teacher make, faint digits, and 316 updates of 8 clips don't teach it "
        "which noise is whose (from noise a diversity of .2): what its later calls are shown lies on none of the pairs' lines, "
        "and they mend nothing.",
        "dmd": "the goals of its regression, four calls of the teacher, are nearly empty frames, and so are its clips, all "
        "alike from its 100th update on.",
        "dmd2": "in one call it has 164 updates of 8 clips, a quarter of the forwards of the pixels' own; its discriminator "
        "gains on it to the end, when it knows .86 of the clips for what they are.",
        "sid": "262 updates, and no adversary: the class asked for is in .60 of the frames, but a digit is kept over all 32 of "
        "them in .07 of the clips.",
        "diff_instruct": "323 updates of the student, and no adversary: its clips are blurred still (.62 of real clips' "
        "sharpness), and half of them are of the class asked for.",
        "easy_consistency": "of two calls the first is too long wherever it ends: at log-SNR -4.2, which a search found, it "
        "leaves a distance of 16.6, at the middle of the cosine's time one of 27.",
    },
)
STAGES = {
    "guided": ("guided", "progressive"),
    "truncated_consistency": ("easy_consistency", "truncated_consistency"),
    **{name: ("progressive", name) for name in (*CRITICS, "ladd") if name != "moment_matching"},
}
"""The methods of a student's stages, where they are more than its own."""
BATCH = 16
"""Clips of a step of most students."""
TEACHER = "teacher_50"
TITLE = "teacher, 50 steps"
SHOWN = {
    "label_accuracy": "class asked for", "identity_kept": "identity kept", "law_residual": "off the law of motion, px",
    "flicker": "flicker", "sharpness": "sharpness", "diversity": "diversity",
}  # fmt: skip
"""Measures beside the distance -> column."""
WITHIN = {4: 1.3, 2: 1.6}
"""calls -> how many times the teacher's distance is asked for."""
GAMES_WITHIN = WITHIN | {1: 2.0}
DIVERSE = 0.8
"""Diversity, in units of real clips', that is asked of students of a critic."""
KEPT = 0.1
"""How far, as a part of the teacher's, class and identity may fall and the distance to the law of motion may grow."""


class Row(NamedTuple):
    """A sampler: its number of steps, seconds per clip, what was measured."""

    steps: int
    seconds: float
    measures: dict[str, Measure]

    @property
    def distance(self) -> float:
        return self.measures[QUALITY].value


class Run(NamedTuple):
    """A method: its teacher, the student by number of calls, its distance over the teacher's, what real clips get, the
    forwards of all its training, of how many clips, its seconds, and on what if not where it was judged; shared, parts: as in
    finished.Run.
    """

    teacher: Row
    students: dict[int, Row]
    ratios: dict[int, float]
    floor: dict[str, float]
    forwards: float
    batch: int
    seconds: float | None
    shared: dict[str, Any]
    parts: dict[str, Any] = {}
    devices: tuple[str, ...] = ()


ITSELF = "ddim_50"
"""The row of the teacher's run at few steps that is the teacher of the students."""
SAMPLERS = {
    "ddim": "DDIM", "dpmpp": "DPM-Solver++(2M)", "shifted": "DPM-Solver++(2M), shifted", "best": "`best`, chosen by asking",
    "fitted": "a fitted table",
}  # fmt: skip


class Undistilled(NamedTuple):
    """The teacher's rows, by SAMPLER_STEPS; shared, parts: as in finished.Run."""

    rows: dict[str, Row]
    shared: dict[str, Any]
    parts: dict[str, Any] = {}


def wanted(
    runs: pathlib.Path, family: Family, kept: Mapping[str, finished.Record]
) -> tuple[dict[str, finished.Wanted], dict[str, finished.Wanted]]:
    """METHOD -> RUNS/FAMILY/METHOD and METHOD_CALLS -> RUNS/FAMILY/METHOD_CALLS, students of a critic made for that number of
    calls, those that are wanted and those that are there or kept; and the same of the teacher's run at few steps.
    """
    folder = runs / family.name
    made = {name: finished.Wanted(folder / name, family.arguments(name)) for name in STUDENTS}
    known = [*kept, *(path.name for path in folder.glob("*"))]
    for name, counts in family.games.items():
        there = {int(m[1]) for one in known if (m := re.fullmatch(rf"{name}_(\d+)", one))}
        for calls in sorted({*counts} | there, reverse=True):
            run = f"{name}_{calls}"
            made[run] = finished.Wanted(folder / run, family.arguments(run))
    return made, {"teacher": finished.Wanted(folder / "teacher", (family.config("few_steps"),))}


def name_of(run: str) -> str:
    """The method of a METHOD or METHOD_CALLS."""
    name, _, calls = run.rpartition("_")
    return name if calls.isdecimal() else run


def parse(run: str, record: finished.Record) -> Run:
    """A run that the `evaluate` stage has finished."""
    method = name_of(run)
    report, config, seconds, devices = record
    stages = {name: block for name, block in config["stages"].items() if block["kind"] == "train"}
    found, expected = (tuple(block["method"] for block in stages.values()), STAGES.get(method, (method,)))
    if found != expected:
        raise ConfigError(f"its training stages have the methods {list(found)}, not {list(expected)}")
    rows = {name: row(sampler) for name, sampler in report["samplers"].items()}
    if TEACHER not in rows:
        raise ConfigError(f"its report has no row {TEACHER!r}")
    teacher = rows[TEACHER]
    students = {one.steps: one for name, one in rows.items() if name.startswith("student_")}
    if run != method:
        calls = int(run.removeprefix(f"{method}_"))
        if calls not in students:
            raise ConfigError(f"its report has no row 'student_{calls}'")
        students = {calls: students[calls]}
    floor = {name: float(measure.floor) for name, measure in teacher.measures.items()}
    # Of the same clips another machine finds the same floor but for its last digits.
    rounded = {name: float(f"{value:.3g}") for name, value in floor.items()}
    return Run(
        teacher=teacher,
        students=students,
        ratios={calls: one.distance / teacher.distance for calls, one in students.items()},
        floor=floor,
        forwards=report["forwards"] if "forwards" in report else sum(training(block) for block in stages.values()),
        batch=max(block["batch_size"] for block in stages.values()),
        seconds=math.fsum(seconds[name] for name in stages) if stages.keys() <= seconds.keys() else None,
        devices=tuple(
            {devices[name]: None for name in stages if devices.get(name, report["device"]) != report["device"]}
        ),
        shared={k: report[k] for k in ("clips", "classifier", "device")} | {"seed": config["seed"], "floor": rounded},
    )


def parse_teacher(name: str, record: finished.Record) -> Undistilled:
    report = record.report
    rows = {}
    for key, sampler in report["samplers"].items():
        solver, _, steps = key.rpartition("_")
        if solver not in SAMPLERS or not steps.isdecimal():
            raise ConfigError(f"its report has a row {key!r}: expected SAMPLER_STEPS with one of {', '.join(SAMPLERS)}")
        rows[key] = row(sampler)
    if ITSELF not in rows:
        raise ConfigError(f"its report has no row {ITSELF!r}, which the others are held against")
    return Undistilled(rows, {k: report[k] for k in ("clips", "classifier")})


def trimmed(record: finished.Record, run: Run | Undistilled) -> finished.Record:
    """What the page needs of a record, with a student's forwards, which take compiling to count."""
    report, config, seconds, devices = record
    samplers = {
        name: {k: sampler[k] for k in ("steps", "seconds_per_clip")}
        | {"metrics": {k: sampler["metrics"][k] for k in (QUALITY, *SHOWN)}}
        for name, sampler in report["samplers"].items()
    }
    stages = {name: block for name, block in config["stages"].items() if block["kind"] == "train"}
    return finished.Record(
        {k: report[k] for k in ("clips", "classifier", "device")}
        | {"samplers": samplers}
        | ({"forwards": run.forwards} if isinstance(run, Run) else {}),
        {"seed": config["seed"], "stages": stages},
        {name: value for name, value in seconds.items() if name in stages},
        {name: value for name, value in devices.items() if name in stages},
    )


def row(sampler: Mapping[str, Any]) -> Row:
    measures = {name: Measure(**sampler["metrics"][name]) for name in (QUALITY, *SHOWN)}
    return Row(int(sampler["steps"]), float(sampler["seconds_per_clip"]), measures)


def training(stage: Mapping[str, Any]) -> float:
    """Forwards of a stage's whole training, a batch each; guidance acts in the first round only."""
    rounds, taught = len(stage.get("student_steps", [0])), bool(stage.get("teacher"))
    scales = [stage.get("guidance", 1.0) != 1.0, *[False] * (rounds - 1)]
    given = dict(taught=taught, steps=stage["steps"])  # a critic's head start is counted as it is
    counts = {g: costs.forwards(stage["method"], stage.get("options", {}), guided=g, **given) for g in {*scales}}
    return stage["steps"] * sum(counts[guided] for guided in scales)


def table(found: Mapping[str, Run]) -> str:
    """A row for each method and number of calls; the teacher first, real clips last."""
    first = next(iter(found.values()))

    rows = [[TITLE, *cells(first.teacher, first.teacher), None, None]]
    for name, run in found.items():
        took = [*([] if run.seconds is None else [f"{run.seconds:.0f}"]), *(f"on {device}" for device in run.devices)]
        of = "" if run.batch == BATCH else f" × {run.batch} clips"
        spent = [f"{run.forwards:,.0f}{of}", " ".join(took) or None]
        for calls in sorted(run.students, reverse=True):
            rows.append([f"`{name_of(name)}`", *cells(run.students[calls], run.teacher), *spent])
    floor = first.floor
    rows.append(["real clips", None, page.cell(floor[QUALITY]), None, *(floor[name] for name in SHOWN), *[None] * 4])
    return page.table([*HEADER, "training, forwards", "training, s"], rows)


HEADER = ["", "calls", "Fréchet distance", "over the teacher's", *SHOWN.values(), "ms per clip", "times as fast"]


def cells(row: Row, teacher: Row) -> list[Any]:
    """The cells of HEADER but for the first. teacher: drawn in the same run, so that a slow machine is slow for both."""
    distance = row.measures[QUALITY]
    values = [row.measures[name].value for name in SHOWN]
    ratio = f"{distance.value / teacher.distance:.2f}"
    return [row.steps, page.interval(distance), ratio, *values, row.seconds * 1e3, teacher.seconds / row.seconds]


def undistilled(found: Mapping[str, Undistilled]) -> str:
    """The teacher's table: what few steps cost without a student."""
    rows = found["teacher"].rows
    lines = [
        [SAMPLERS[solver], *cells(one, rows[ITSELF])]
        for solver in SAMPLERS
        for key, one in rows.items()
        if key.rpartition("_")[0] == solver
    ]
    text = "The teacher itself, with guidance, at few calls; over its own distance at 50 calls of DDIM:"
    return f"{text}\n\n{page.table(HEADER, lines)}"


def verdicts(found: Mapping[str, Run], reasons: Mapping[str, str]) -> str:
    """How many methods come as near to their teacher as was asked for, why others don't; students of a critic apart."""
    plain = {name: run for name, run in found.items() if name_of(name) == name}
    games = {name: run for name, run in found.items() if name not in plain}
    parts, worse = [], {}
    for head, family, within in (
        ("", plain, WITHIN),
        ("Students of a critic, each made for its calls:", games, GAMES_WITHIN),
    ):
        lines = []
        for calls, most in within.items():
            made = {name_of(name): run for name, run in family.items() if calls in run.ratios}
            lines += judged(made, calls, most, diverse=family is games) if made else []
            worse |= {method: None for method, run in made.items() if run.ratios[calls] > most}
        if lines:
            parts += [*([head] if head else []), "\n".join(lines)]
    why = [f"- `{method}`: {reasons.get(method, 'not explained.')}" for method in worse]
    return "\n\n".join([*parts, *(["Why not:", "\n".join(why)] if why else [])])


def judged(made: Mapping[str, Run], calls: int, most: float, diverse: bool) -> list[str]:
    """A line for each demand on students of so many calls. diverse: whether there is one on diversity."""
    ratios = sorted((run.ratios[calls], method) for method, run in made.items())
    near, far = ([f"`{m}` {ratio:.2f}" for ratio, m in ratios if (ratio <= most) == inside] for inside in (True, False))
    count, of = f"{calls} call{'s'[: calls > 1]}", f"of {len(made)}"
    first = f"- {count}, within {most} times the teacher's distance: {len(near)} {of}"
    lines = [first + (f": {', '.join(near)}" if near else "") + (f"; not: {', '.join(far)}" if far else "") + "."]
    keep = [f"`{method}`" for method, run in made.items() if keeps(run, calls)]
    demands = {f"class, identity and motion at most {KEPT:.0%} worse than the teacher's": keep}
    if diverse:
        values = {method: run.students[calls].measures["diversity"].value for method, run in made.items()}
        demands[f"diversity at least {DIVERSE} of real clips'"] = [
            f"`{method}` {value:.2f}" for method, value in values.items() if value >= DIVERSE
        ]
    for demand, names in demands.items():
        lines.append(f"- {count}, {demand}: {len(names)} {of}" + (f": {', '.join(names)}." if names else "."))
    return lines


def keeps(run: Run, calls: int) -> bool:
    """Whether a student keeps the class, the digit's identity and the law of its motion nearly as its teacher does. Without the
    class an empty frame would: it stays what it is, and doesn't move.
    """
    student, teacher = (
        [row.measures[name].value for name in ("label_accuracy", "identity_kept", "law_residual")]
        for row in (run.students[calls], run.teacher)
    )
    shares = zip(student[:2], teacher[:2], strict=True)
    return all(own >= (1 - KEPT) * best for own, best in shares) and student[2] <= (1 + KEPT) * teacher[2]


def draw(found: Mapping[str, Run], teacher: Mapping[str, Undistilled], folder: pathlib.Path, name: str) -> str:
    """Quality over calls and over seconds, of students and of the teacher at few steps; a broad line is the front: who is
    better is slower.
    """
    first = next(iter(found.values()))
    ratios: dict[str, dict[float, float]] = {}
    quality = {TITLE: {1.0: first.teacher.distance}}
    for key, run in found.items():
        ratios.setdefault(name_of(key), {}).update(run.ratios)
        quality.setdefault(name_of(key), {}).update(
            {row.seconds / run.teacher.seconds: row.distance for row in run.students.values()}
        )
    for one in teacher.values():
        best = one.rows[ITSELF]
        for key, row in one.rows.items():
            title = f"teacher, {SAMPLERS[key.rpartition('_')[0]]}"
            ratios.setdefault(title, {})[row.steps] = row.distance / best.distance
            quality.setdefault(title, {})[row.seconds / best.seconds] = row.distance
    figure, (left, right) = page.axes(2, 11.0, 5.4)
    looks = curves.looks(quality, TITLE)
    # Grey; kinds of dashes are too few, so the last have another marker.
    for index, solver in enumerate(SAMPLERS.values()):
        dashes = dict(linestyle=curves.DASHES[index % len(curves.DASHES)], linewidth=1.3)
        looks[f"teacher, {solver}"] = dict(color="0.5", marker="xxx++"[index], **dashes)
    for axes, points in ((left, ratios), (right, quality)):
        known = [point for curve in points.values() for point in curve.items()]
        broad = dict(color="0.85", linewidth=7, zorder=0, solid_capstyle="round")
        axes.plot(*zip(*front(known), strict=True), **broad, label="front: the others are worse or slower")
    curves.draw(left, ratios, looks)
    curves.mark_calls(left, ratios)
    left.axhline(1.0, color=looks[TITLE]["color"], linewidth=looks[TITLE]["linewidth"])
    left.set(xlabel="calls", ylabel="Fréchet distance over the teacher's")
    curves.draw(right, quality, looks)
    right.axhline(first.floor[QUALITY], color="0.4", linestyle="--", linewidth=1, label="real clips")
    right.set(xlabel="seconds per clip over the teacher's", ylabel="Fréchet distance")
    curves.legend(figure, (right, left))
    return page.save(
        figure, folder, f"distillation_{name}.png", "students on moving digits: quality over calls and seconds"
    )


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other point is below and left of, from left to right."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not best or y < best[-1][1]:
            best.append((x, y))
    return best


def section(family: Family, runs: pathlib.Path, folder: pathlib.Path) -> str:
    records = folder / family.records
    students, teachers = wanted(runs, family, finished.load(records))
    found, missing = finished.collect(students, parse, records, trimmed)
    teacher, lacking = finished.collect(teachers, parse_teacher, records, trimmed)
    parts = [table(found), verdicts(found, family.reasons), draw(found, teacher, folder, family.name)] if found else []
    parts += [undistilled(teacher)] if teacher else []
    missing += lacking
    parts += [finished.commands(missing)] if missing else []
    text = f"""## Students on moving digits: {family.title}

This shows what few calls are worth on video: a student of every method, beside the teacher at 50 steps with guidance
(two evaluations a call). Students that learn from the teacher have the guidance built in, or are told it; those that learn
from clips have none. A student of a critic, or of an adversary, is made for one number of calls, in a run of its own.
*Fréchet distance* is that of clip features to held-out clips, with its 95 % interval over clips; *over the teacher's* its
ratio to the teacher's. *Real clips* are as many other held-out ones: what a perfect generator gets. Seconds are of
machines that did other things too; *times as fast* holds a sampler against the teacher on the same one. *Training,
forwards* are those of a batch of {BATCH} clips, or of as many as stand beside them, in all of a student's stages, counted as in
[what a step costs](bench.md#what-a-step-costs), with each method's own options. Rows whose runs are gone are kept in
[{family.records}]({family.records}).

{family.note}{(chr(10) * 2).join(parts)}
"""
    return text if found or teacher else page.Empty(text)
