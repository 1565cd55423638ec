"""`python -m experiments.ablate NAME [--only=SECTION,..] [--out=docs/results]`: measures, and writes a page with figures.

--only makes the named sections again and leaves the others of the page as they are.
"""

import pathlib
import sys

import jax

from experiments.ablations import ABLATIONS
from experiments.config import ConfigError, choose, nearest
from experiments.run import fail

USAGE = "usage: python -m experiments.ablate NAME [--only=SECTION,..] [--out=docs/results]"
OPTIONS = ("only", "out")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake of the user's."""
    try:
        name, only, out = parse(sys.argv[1:] if argv is None else argv)
        ablation = choose(name, ABLATIONS, "the ablation")
        # Orders of convergence need float64; a context, so that who calls this keeps the precision that they had.
        with jax.enable_x64(True):
            ablation(out, only)
    except ConfigError as error:
        return fail(str(error), 2)
    return 0


def parse(argv: list[str]) -> tuple[str, tuple[str, ...], pathlib.Path]:
    """(name, sections, folder) from the command line."""
    names = [a for a in argv if not a.startswith("-")]
    given = {"only": "", "out": "docs/results"}
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
    return names[0], tuple(part for part in given["only"].split(",") if part), pathlib.Path(given["out"])


if __name__ == "__main__":
    sys.exit(main())
