"""`python -m experiments.ablate claims`: every claim of the reference post as a small experiment, with a verdict.

A claim is cut into statements, each of which says it of one setting and is decided by one number: the statement holds if the
number's whole interval lies on the right side of its bound, fails if the whole of it lies on the other, and is open between. A
claim holds if all of its statements do, holds with a condition if some do, doesn't hold if none does and one fails, and is open
if no number decides. Nothing of a verdict is typed: bounds are set before, in the code of the claim.
"""

import collections
import dataclasses
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.figure import Figure

from experiments.ablations import finished, page
from experiments.ablations.numbers import Number

HOLDS, PARTLY, FAILS, OPEN, MISSING = "holds", "holds with a condition", "doesn't hold", "open", "not run"
RUNS = pathlib.Path("runs")
OVERVIEW = "overview"


class Statement(NamedTuple):
    """What a number must be for the claim to hold in one setting: below `most`, above `least`, or both.

    number: None where the run that it is read from is missing.
    """

    says: str
    number: Number | None
    most: float = float("inf")
    least: float = float("-inf")

    @property
    def outcome(self) -> str:
        if self.number is None:
            return MISSING
        if self.least <= self.number.low and self.number.high <= self.most:
            return HOLDS
        return FAILS if self.number.low > self.most or self.number.high < self.least else OPEN

    @property
    def bound(self) -> str:
        parts = [
            f"{sign} {bound:.4g}" for sign, bound in (("≥", self.least), ("≤", self.most)) if abs(bound) < float("inf")
        ]
        return " and ".join(parts)


def verdict(statements: Sequence[Statement]) -> str:
    """The rule of the page."""
    outcomes = {one.outcome for one in statements}
    if outcomes == {HOLDS}:
        return HOLDS
    if HOLDS in outcomes:
        return PARTLY if outcomes & {FAILS, OPEN} else f"{HOLDS}, so far as it was run"
    if FAILS in outcomes:
        return FAILS
    return OPEN if OPEN in outcomes else MISSING


class Found(NamedTuple):
    """What an experiment found: its statements, its figure, runs that it lacks, and remarks that the numbers need."""

    statements: Sequence[Statement]
    figure: Figure | None = None
    missing: Sequence[finished.Missing] = ()
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Claim:
    """name: of its row, for --only; says: the claim in a line; setting: what was run. measure: its experiment, given the
    folder of finished runs if reads_runs."""

    name: str
    says: str
    setting: str
    measure: Callable[..., Found]
    reads_runs: bool = False

    def found(self, runs: pathlib.Path, folder: pathlib.Path) -> Found:
        """folder: of the page, where records of runs are kept."""
        return self.measure(runs, folder) if self.reads_runs else self.measure()


def section(claim: Claim, runs: pathlib.Path, folder: pathlib.Path) -> str:
    """A claim's part of the page."""
    found = claim.found(runs, folder)
    rows = [
        [one.says, None if one.number is None else str(one.number), one.bound, one.outcome] for one in found.statements
    ]
    parts = [
        f"## {claim.says}",
        f"**Verdict: {verdict(found.statements)}.** {counted(found.statements)} {condition(found.statements)}".strip(),
        f"`python -m experiments.ablate claims --only={claim.name}`",
        fill(claim.setting),
        page.table(["it must be that", "measured", "asked for", ""], rows),
    ]
    if found.remark:
        parts.append(fill(found.remark))
    if found.figure is not None:
        parts.append(page.save(found.figure, folder, f"claims_{claim.name}.png", claim.says))
    if found.missing:
        parts.append(finished.commands(found.missing))
    text = "\n\n".join(parts)
    measured = any(one.number is not None for one in found.statements)
    return text if measured or not found.missing else page.Empty(text)


def counted(statements: Sequence[Statement]) -> str:
    return f"{sum(one.outcome == HOLDS for one in statements)} of {len(statements)} statements hold."


def condition(statements: Sequence[Statement]) -> str:
    """Where a claim does not hold, if it holds elsewhere, and what no number decides."""
    parts = []
    for outcome, word in ((FAILS, "Not"), (OPEN, "Undecided")):
        if verdict(statements) == outcome:
            continue
        said = [one.says for one in statements if one.outcome == outcome]
        if said:
            parts.append(f"{word}: {'; '.join(said)}.")
    return " ".join(parts)


def fill(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 125, break_on_hyphens=False)


# The page -------------------------------------------------------------------------------------------------------


def known() -> dict[str, Claim]:
    """name -> claim, in the order of the post."""
    from experiments.ablations import claims_noise, claims_samplers, claims_schedules, claims_students, claims_video

    modules = (claims_schedules, claims_samplers, claims_noise, claims_students, claims_video)
    return {claim.name: claim for module in modules for claim in module.CLAIMS}


def overview(claims: Mapping[str, Claim], folder: pathlib.Path) -> str:
    """A line for each claim, from what stands on the page."""
    there = page.read(folder / "claims.md")
    rows = []
    for name, claim in claims.items():
        found = re.search(r"\*\*Verdict: (.*?)\.\*\* (\d+ of \d+)", there.get(name, ""))
        rows.append([claim.says, *(found.groups() if found else (MISSING, None)), f"`--only={name}`"])
    count = collections.Counter(row[1] for row in rows)
    said = ", ".join(f"{word}: {n}" for word, n in count.items())
    return (
        f"## All claims\n\n{said}.\n\n{page.table(['claim', 'verdict', 'statements that hold', 'made again by'], rows)}"
    )


def sections(runs: pathlib.Path) -> dict[str, page.Section]:
    claims = known()
    parts: dict[str, page.Section] = {OVERVIEW: lambda folder: overview(claims, folder)}
    for name, claim in claims.items():
        parts[name] = lambda folder, claim=claim: section(claim, runs, folder)
    return parts


def run(folder: pathlib.Path, only: Sequence[str] = (), runs: pathlib.Path = RUNS) -> None:
    """Writes claims.md and its figures; the overview anew each time."""
    parts = sections(runs)
    wanted = [name for name in only or parts if name != OVERVIEW]
    if wanted:
        page.write("claims", INTRODUCTION, parts, folder, wanted)
    page.write("claims", INTRODUCTION, parts, folder, [OVERVIEW])


INTRODUCTION = fill(
    """Every claim of the reference post (*Noise Schedules, Sampling Strategies, and Distillation: Making Video Diffusion
    Fast*), in our words, as a small experiment. A claim is cut into statements, each decided by one number and its 95 %
    interval (one without was computed exactly): a statement holds if all of the interval is on the right side of its
    bound, fails if all of it is on the other, else it is open. A claim holds if all its statements do, *with a condition*
    if some do, doesn't hold if none does and one fails. Its line `--only=NAME` makes a row again alone, in minutes on two
    cores; rows on students are read from finished runs (`--runs`, `runs`), and say by which command a missing one is
    made. What the post's formulas get wrong is in [errata.md](../errata.md). `a1d` is 0.4 N(-2, 1) + 0.6 N(2, 1), `b2d`
    eight narrow modes on two rings, OU and RBF are Gaussian videos of 16 frames, rough and smooth; their denoisers are
    exact. Moving digits are 16x16 clips of 8 frames."""
)
