"""`python -m experiments.ablate samplers`: schedules and samplers against exact answers, and beside other libraries."""

import pathlib
import platform
import textwrap
from collections.abc import Sequence

import jax
import numpy as np

from experiments.ablations import page, peers
from experiments.ablations.calls import section as calls
from experiments.ablations.clocks import section as clocks
from experiments.ablations.convergence import section as convergence
from experiments.ablations.post import section as post
from experiments.ablations.variance import section as variance

SECTIONS: dict[str, page.Section] = {
    "post": post,
    "convergence": convergence,
    "variance": variance,
    "schedules": clocks,
    "calls": calls,
}


def run(folder: pathlib.Path, only: Sequence[str] = ()) -> None:
    """Writes samplers.md and its figures."""
    page.write("samplers", introduction(), SECTIONS, folder, only)


def introduction() -> str:
    versions = [f"Python {platform.python_version()}", f"jax {jax.__version__}", f"numpy {np.__version__}"]
    versions += [f"{name} {version}" for name, version in peers.versions().items()]
    missing = [name for name in peers.PEERS if name not in peers.versions()]
    lack = (
        f" {' and '.join(missing)} could not be imported, so its columns are left out; `pip install -e .[bench]` installs it."
        if missing
        else ""
    )
    text = (
        "`--only=NAME` makes one section again: "
        + ", ".join(SECTIONS)
        + ". Every model here is exact, every error one "
        "of the sampler alone. `a1d` is the mixture 0.4 N(-2, 1) + 0.6 N(2, 1), `b2d` eight modes on rings of radius 2 and "
        "4 with standard deviations of .05 to .2 (`diffusion.oracles`). The truth is the probability-flow solution from the "
        "same noise, DOP853 at a tolerance of 1e-10, or a closed form. Everything is in float64, on the CPU, with "
        f"{', '.join(versions)}.{lack}"
    )
    return textwrap.fill(text, 125, break_on_hyphens=False)
