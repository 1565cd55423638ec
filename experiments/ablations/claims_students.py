"""Claims on distillation, from finished runs: where the truth is known, and on moving digits."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import run as runner
from experiments.ablations import digits, finished, mixture, page, sweep
from experiments.ablations.claims import Claim, Found, Statement
from experiments.ablations.numbers import Number, of, over_seeds, ratio
from experiments.evaluation import QUALITY
from experiments.figures import plain_logs

NEAR = 1.25
"""Times the teacher's Fréchet distance that counts as its quality."""
SWEEP = "configs/ablations/progressive.py"

Runs = Mapping[int, mixture.Run]


def at(runs: Runs, method: str, calls: int, measure: str) -> Number | None:
    """A measure of a method over the seeds that have it."""
    triples = [run.rows[method][calls][measure] for run in runs.values() if calls in run.rows.get(method, {})]
    return over_seeds(triples) if triples else None


def between(runs: Runs, first: tuple[str, int], second: tuple[str, int], measure: str) -> Number | None:
    """The difference of two rows, seed by seed: what the noise does to both cancels."""
    both = [
        [run.rows[first[0]][first[1]][measure][i] - run.rows[second[0]][second[1]][measure][0] for i in range(3)]
        for run in runs.values()
        if first[1] in run.rows.get(first[0], {}) and second[1] in run.rows.get(second[0], {})
    ]
    return over_seeds(both) if both else None


class Rows(NamedTuple):
    """A finished run on moving digits: the teacher at 50 steps, the student by its calls; shared, parts: as in
    finished.Run."""

    teacher: digits.Row
    students: dict[int, digits.Row]
    shared: dict[str, Any]
    parts: dict[str, Any] = {}


def rows(name: str, record: finished.Record) -> Rows:
    """digits.parse without what its training cost, which takes compiling."""
    made = {name: digits.row(sampler) for name, sampler in record.report["samplers"].items()}
    students = {row.steps: row for name, row in made.items() if name.startswith("student_")}
    return Rows(made[digits.TEACHER], students, {})


def on_digits(
    runs: pathlib.Path, folder: pathlib.Path, *names: str, family: digits.Family = digits.PIXELS
) -> tuple[dict[str, Rows], list[finished.Missing]]:
    """METHOD, or METHOD_CALLS of a game -> its run, there or kept in the page's folder; and those that are missing."""
    wanted = {name: finished.Wanted(runs / family.name / name, family.arguments(name)) for name in names}
    return finished.gather(wanted, rows, finished.load(folder / family.records))


def over_teacher(runs: Mapping[str, Rows], name: str, calls: int) -> Number | None:
    """The Fréchet distance of a student of moving digits over that of its teacher at 50 steps."""
    if name not in runs or calls not in runs[name].students:
        return None
    return ratio(*(of(row.measures[QUALITY]) for row in (runs[name].students[calls], runs[name].teacher)))


def bars(
    labels: Sequence[str], values: Sequence[Number | None], ylabel: str, line: float | None = None, log: bool = True
):
    """A point with its interval for each label."""
    figure, (axes,) = page.axes(1, max(5.0, 0.75 * len(labels) + 2), 4.0)
    for place, value in enumerate(values):
        if value is not None:
            low, high = max(value.value - value.low, 0), max(value.high - value.value, 0)
            if log and value.low <= 0:
                low = 0.9 * value.value
            axes.errorbar([place], [value.value], [[low], [high]], **{**page.style(place), "linestyle": ""}, capsize=3)
    if line is not None:
        axes.axhline(line, color="0.4", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(labels)), labels, rotation=40, ha="right", fontsize=8)
    axes.set(ylabel=ylabel, xlim=(-0.5, len(labels) - 0.5), **({"yscale": "log"} if log else {}))
    if log:
        plain_logs(axes.yaxis)
    return figure


# Progressive distillation ---------------------------------------------------------------------------------------


def progressive(runs: pathlib.Path, folder: pathlib.Path) -> Found:
    statements, missing, shown = [], [], {}
    for law in mixture.LAWS:
        found, absent = mixture.read(runs, folder, law)
        missing += absent if not found else []
        gain = between(found, ("progressive", 1), (mixture.ORACLE, 4), mixture.ENERGY)
        statements.append(
            Statement(
                f"{law}: energy distance (times 1000) of one call, 1024 steps halved ten times, minus that of 4 calls of the"
                " exact denoiser",
                gain,
                0.0,
            )
        )
    read, absent = on_digits(runs, folder, "progressive")
    for calls in (4, 2, 1):
        over = over_teacher(read, "progressive", calls)
        shown[f"{calls} call{'s'[: calls > 1]}"] = over
        statements.append(
            Statement(
                f"moving digits: Fréchet distance of {calls} call{'s'[: calls > 1]}, over the guided teacher's at 50",
                over,
                NEAR,
            )
        )
    missing += absent
    figure = bars(list(shown), list(shown.values()), "Fréchet distance over the teacher's", 1.0)
    return Found(statements, figure, missing)


def v_and_eps(runs: pathlib.Path, _: pathlib.Path) -> Found:
    config, *_ = runner.parse(["ablate", f"--config={SWEEP}", "--workdir=."])
    workdir = runs / "ablations" / pathlib.Path(SWEEP).stem
    found: dict[tuple[str, str], list[sweep.Run]] = {}
    for run in sweep.runs(config):
        found.setdefault((run.labels["prediction"], run.labels["weight"]), []).append(run)
    path = ("exact", "metrics", "student_1", "energy")
    numbers = {key: sweep.over(workdir, own, path) for key, own in found.items()}
    lost = {key: sum((workdir / run.folder / sweep.FAILED).exists() for run in own) for key, own in found.items()}
    statements = []
    for weight in config["sweep"]["axes"]["weight"]["values"]:
        eps, v = numbers["eps", weight], numbers["v", weight]
        if lost["eps", weight] and not lost["v", weight]:
            over = Number(math.inf, math.inf, math.inf)
        else:
            over = None if eps is None or v is None or min(eps.value, v.value) <= 0 else ratio(eps, v)
        statements.append(
            Statement(
                f"weight {weight}: energy distance of one call, student that predicts eps over one that predicts v",
                over,
                least=1.0,
            )
        )
    labels = [f"{p}, {w}" for p, w in numbers]
    figure = bars(labels, list(numbers.values()), "energy distance, 1 call") if any(numbers.values()) else None
    remark = f"Read from a sweep: `python -m experiments.ablate sweep --config={SWEEP} --workdir={workdir}`."
    return Found(statements, figure, (), remark)


# Consistency ----------------------------------------------------------------------------------------------------

FAMILY = ("consistency_distillation", "consistency_training", "improved_consistency", "easy_consistency")


def consistency_steps(runs: pathlib.Path, folder: pathlib.Path) -> Found:
    found, missing = mixture.read(runs, folder, mixture.RING)
    statements = [
        Statement(
            f"ring, {method}: energy distance (times 1000) of {calls} calls minus that of one",
            between(found, (method, calls), (method, 1), mixture.ENERGY),
            0.0,
        )
        for method in FAMILY
        for calls in (2, 4)
    ]
    name = "consistency_trajectory"
    read, absent = on_digits(runs, folder, name)
    for calls in (2, 4):
        over = None
        if name in read and {1, calls} <= set(read[name].students):
            over = ratio(*(of(read[name].students[n].measures[QUALITY]) for n in (calls, 1)))
        statements.append(
            Statement(f"moving digits, {name}: Fréchet distance of {calls} calls over that of one", over, 1.0)
        )
    labels = [f"{method}, {n}" for method in FAMILY for n in (1, 2, 4)]
    values = [at(found, method, n, mixture.ENERGY) for method in FAMILY for n in (1, 2, 4)]
    figure = bars(labels, values, "1000 × energy distance, ring", 0.0, log=False)
    return Found(statements, figure, [*(missing if not found else []), *absent])


def consistency_training(runs: pathlib.Path, folder: pathlib.Path) -> Found:
    statements, missing, labels, values = [], [], [], []
    for law in mixture.LAWS:
        found, absent = mixture.read(runs, folder, law)
        missing += absent if not found else []
        for method in FAMILY[1:3]:
            without = between(found, (method, 1), ("consistency_distillation", 1), mixture.DISTANCE)
            works = between(found, (method, 1), (mixture.ORACLE, 1), mixture.DISTANCE)
            statements += [
                Statement(
                    f"{law}, {method}: it learns (distance of one call minus that of the exact denoiser's)", works, 0.0
                ),
                Statement(
                    f"{law}, {method}: it is harder (distance of one call minus that of distillation)",
                    without,
                    least=0.0,
                ),
            ]
        for method in FAMILY[:3]:
            labels.append(f"{law}, {method}")
            values.append(at(found, method, 1, mixture.DISTANCE))
    return Found(statements, bars(labels, values, "distance of one call"), missing)


# Games ----------------------------------------------------------------------------------------------------------


def adversarial(runs: pathlib.Path, folder: pathlib.Path) -> Found:
    statements, missing, shown = [], [], {}
    for family, names in ((digits.PIXELS, ("dmd2_4", "dmd2_1", "add_4")), (digits.LATENTS, ("ladd_4",))):
        found, absent = on_digits(runs, folder, *names, family=family)
        missing += absent
        for name in names:
            method, _, calls = name.rpartition("_")
            said = f"{method.upper()}, {calls} call{'s'[: calls != '1']}, {'pixels' if family is digits.PIXELS else 'latents'}"
            shown[said] = over_teacher(found, name, int(calls))
            statements.append(
                Statement(
                    f"{said}: Fréchet distance over that of the teacher's 50 steps",
                    shown[said],
                    digits.GAMES_WITHIN[int(calls)],
                )
            )
    return Found(
        statements, bars(list(shown), list(shown.values()), "Fréchet distance over the teacher's", 1.0), missing
    )


CLAIMS = (
    Claim(
        "progressive",
        "Progressive distillation takes 1024 steps to one in ten rounds at the teacher's quality",
        f"""Finished runs: laws that are known (configs/mixture/students.py, 300 updates a round; intervals over seeds),
        and moving digits, 16 steps halved to 1 from the shipped teacher (273 updates a round; 256 clips). The teacher's
        quality is at most {NEAR} times its distance.""",
        progressive,
        reads_runs=True,
    ),
    Claim(
        "v_eps",
        "Progressive distillation works best with v: eps does worse",
        """Eight modes on a ring, a denoiser and its students with either prediction, and three weights of the loss; 64
        steps halved to 1; three seeds.""",
        v_and_eps,
        reads_runs=True,
    ),
    Claim(
        "consistency_steps",
        "A consistency model makes samples in one call, and better ones in 2 to 4",
        """Finished runs: the ring of eight modes over seeds, differences seed by seed; moving digits, 256 clips. After
        its first call a consistency model goes on from new noise; the energy distance has no floor for that.""",
        consistency_steps,
        reads_runs=True,
    ),
    Claim(
        "consistency_training",
        "Consistency training needs no teacher but is harder than distillation",
        "Finished runs: 3,000 updates each on three known laws, one call, differences seed by seed.",
        consistency_training,
        reads_runs=True,
    ),
    Claim(
        "adversarial",
        "ADD, DMD2 and LADD come near the quality of 50 steps in 1 to 4",
        """Finished runs on moving digits, students of at most 20,000 forwards of training, against the guided teacher at
        50 steps, 256 clips. Near is what distillation.md asks of such students: within 1.3 times its Fréchet distance at
        4 calls, twice at one.""",
        adversarial,
        reads_runs=True,
    ),
)
