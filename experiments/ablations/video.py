"""`python -m experiments.ablate video`: levels per frame, noise and memory on exact video, and the metrics held against known
corruptions.
"""

import functools
import pathlib
import textwrap
from collections.abc import Sequence

from experiments.ablations import cascades, drifting, hold, on_digits, page, steps
from experiments.ablations.faults import section as corruptions
from experiments.ablations.matrices import section as matrices
from experiments.ablations.memory import section as memory
from experiments.ablations.ties import section as ties
from experiments.ablations.windows import section as windows

RUNS = pathlib.Path("runs")


def sections(runs: pathlib.Path) -> dict[str, page.Section]:
    return {
        "matrices": matrices,
        "memory": memory,
        "noise": ties,
        "windows": windows,
        "level": hold.levels,
        "guidance": hold.guidance,
        "steps": steps.section,
        "stochastic": steps.noisy,
        "orders": on_digits.orders,
        "sources": on_digits.sources,
        "history": on_digits.history,
        "blending": on_digits.blending,
        "drift": drifting.section,
        "corruptions": corruptions,
        "cascade": functools.partial(cascades.section, runs),
    }


def run(folder: pathlib.Path, only: Sequence[str] = (), runs: pathlib.Path = RUNS) -> None:
    """Writes video.md and its figures; the cascade's section is read from its finished run in `runs`."""
    page.write("video", introduction(), sections(runs), folder, only)


EXACT = ("matrices", "memory", "noise", "windows", "level", "guidance")


def introduction() -> str:
    text = (
        "`--only=NAME` makes one section again: "
        + ", ".join(sections(RUNS))
        + f". The last is read from a finished run (`--runs`, `{RUNS}`). In "
        + ", ".join(EXACT)
        + " the video is Gaussian, in the others it is of moving digits. Gaussian video has 16 frames, its "
        "denoiser exact under any level per frame (`oracles.gaussian_process`), so a deterministic sampler is a matrix, the "
        "law of what it makes is read off, and its 2-Wasserstein distance to the truth has no noise. OU is Ornstein-Uhlenbeck "
        "with a correlation of .95 from frame to frame (rough, Markov), RBF a squared exponential of length 3 (smooth). Cosine "
        "schedule; every sampler begins with the exact law at its first level."
    )
    return textwrap.fill(text, 125, break_on_hyphens=False)
