"""`python -m experiments.ablate NAME [--only=SECTION,..] [--out=docs/results] [--runs=runs]`: a page with figures.

The page is NAME.md, and NAME.html with all figures inside, which opens anywhere.

--only makes the named sections again and leaves the others of the page as they are. --runs is for a page that is made from
finished runs: the folder that holds them. `python -m experiments.ablate sweep --config=configs/ablations/X.py` runs a sweep.
"""

import functools
import pathlib
import sys

import jax

from experiments import report
from experiments.ablations import ABLATIONS, READS_RUNS, sweep
from experiments.command import command
from experiments.config import ConfigError, choose, nearest

USAGE = "usage: python -m experiments.ablate NAME [--only=SECTION,..] [--out=docs/results] [--runs=runs]"
OPTIONS = ("only", "out", "runs")


@functools.partial(command, about=__doc__)
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake of the user's."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["sweep"]:
        return sweep.main(argv[1:])
    name, only, out, runs = parse(argv)
    ablation = choose(name, ABLATIONS, "the ablation")
    options = {} if runs is None else {"runs": checked(runs, name)}
    # Orders of convergence need float64; a context, so that who calls this keeps the precision that they had.
    with jax.enable_x64(True):
        ablation(out, only, **options)
    report.results(out / f"{name}.md", runs or pathlib.Path("runs"))
    return 0


def checked(runs: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of runs, if it is there and the ablation reads any."""
    if name not in READS_RUNS:
        raise ConfigError(f"{name} reads no finished runs: --runs is for {', '.join(sorted(READS_RUNS))}")
    if not runs.is_dir():
        raise ConfigError(f"--runs: there is no folder {runs}")
    return runs


def parse(argv: list[str]) -> tuple[str, tuple[str, ...], pathlib.Path, pathlib.Path | None]:
    """(name, sections, folder, runs or None) from the command line."""
    names = [a for a in argv if not a.startswith("-")]
    given = {"only": "", "out": "docs/results", "runs": ""}
    for argument in argv:
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            if key not in OPTIONS:
                raise ConfigError(f"there is no option --{key}; {nearest(key, OPTIONS)}")
            if not equals or not value:
                raise ConfigError(f"--{key} needs a value: --{key}=...")
            given[key] = value
    if len(names) != 1:
        raise ConfigError(f"{USAGE}; one NAME of: {', '.join(sorted(ABLATIONS))}")
    only, runs = tuple(part for part in given["only"].split(",") if part), given["runs"]
    return names[0], only, pathlib.Path(given["out"]), pathlib.Path(runs) if runs else None


if __name__ == "__main__":
    sys.exit(main())
