"""`python -m experiments.ablate distillation`: students of every method, from finished runs."""

import functools
import pathlib
import platform
import textwrap
from collections.abc import Sequence

import jax

from experiments.ablations import digits, games, mixture, page, spaces

RUNS = pathlib.Path("runs")


def sections(runs: pathlib.Path) -> dict[str, page.Section]:
    return {
        "mixture": functools.partial(mixture.section, runs),
        "games": functools.partial(games.section, runs),
        **{f.name: functools.partial(digits.section, f, runs) for f in (digits.PIXELS, digits.LATENTS)},
        "spaces": spaces.section,
    }


def run(folder: pathlib.Path, only: Sequence[str] = (), runs: pathlib.Path = RUNS) -> None:
    """Writes distillation.md and its figures from the finished runs in `runs`; it trains nothing."""
    page.write("distillation", introduction(), sections(runs), folder, only)


def introduction() -> str:
    text = (
        f"`--only=NAME` makes one section again: {', '.join(sections(RUNS))}. The page is made from finished runs, "
        "RUNS/mixture/LAW_SEED, RUNS/games/LAW_SEED, RUNS/digits/METHOD and RUNS/digits_64/METHOD (of students of a critic "
        f"METHOD_CALLS) with RUNS given by `--runs` (`{RUNS}`), and trains nothing: what was read of a run is kept beside the "
        "page, of digits and digits_64 in distillation_SECTION.json, and runs that are missing are listed with the command "
        "that makes them. "
        f"Python {platform.python_version()}, jax {jax.__version__}."
    )
    return textwrap.fill(text, 125, break_on_hyphens=False)
