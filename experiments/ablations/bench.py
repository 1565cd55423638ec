"""`python -m experiments.bench` without a config: the page of what the program costs."""

import pathlib
import platform
import textwrap
from collections.abc import Sequence

import jax

from experiments.ablations import costs, cpu, feeding, overhead, page, rival, small_dit
from experiments.config import ConfigError

SECTIONS: dict[str, page.Section] = {
    "methods": costs.section,
    "attention": small_dit.section,
    "torch": rival.section,
    "diffusers": overhead.section,
    "input": feeding.section,
}


def run(folder: pathlib.Path, only: Sequence[str] = ()) -> None:
    """Writes bench.md. Everything runs on one core. ConfigError where JAX has another device."""
    with cpu.one_core():
        if (found := jax.default_backend()) != "cpu":
            raise ConfigError(f"this page is of one core of a CPU, JAX runs on {found}: set JAX_PLATFORMS=cpu")
        page.write("bench", introduction(), SECTIONS, folder, only, "experiments.{}")


def introduction() -> str:
    text = (
        f"`--only=NAME` makes one section again: {', '.join(SECTIONS)}. The first two are counted, and tests hold the page to "
        "them (`python -m pytest tests/test_bench_pages.py`, every row with `-m slow`); the others are CPU time on one core, "
        "of which the ratios mean something and the milliseconds are this machine's. With a config the same command times "
        f"its steps: [scale](../scale.md#what-a-step-costs-here). Python {platform.python_version()}, jax {jax.__version__}."
    )
    return textwrap.fill(text, 125, break_on_hyphens=False)
