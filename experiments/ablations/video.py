"""`python -m experiments.ablate video`: levels per frame, noise and memory on exact video, and the metrics held against known
corruptions.
"""

import pathlib
import textwrap
from collections.abc import Sequence

from experiments.ablations import page
from experiments.ablations.matrices import section as matrices
from experiments.ablations.memory import section as memory
from experiments.ablations.ties import section as ties
from experiments.ablations.windows import section as windows

SECTIONS: dict[str, page.Section] = {"matrices": matrices, "memory": memory, "noise": ties, "windows": windows}


def run(folder: pathlib.Path, only: Sequence[str] = ()) -> None:
    """Writes video.md and its figures."""
    page.write("video", introduction(), SECTIONS, folder, only)


def introduction() -> str:
    text = (
        "`--only=NAME` makes one section again: "
        + ", ".join(SECTIONS)
        + ". The video is Gaussian, 16 frames, its denoiser "
        "exact under any level per frame (`oracles.gaussian_process`), so a deterministic sampler is a matrix, the law of what "
        "it makes is read off, and its 2-Wasserstein distance to the truth has no noise. OU is Ornstein-Uhlenbeck with a "
        "correlation of .95 from frame to frame (rough, Markov), RBF a squared exponential of length 3 (smooth). Cosine "
        "schedule; every sampler begins with the exact law at its first level."
    )
    return textwrap.fill(text, 125, break_on_hyphens=False)
