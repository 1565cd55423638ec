"""Noise that hangs together over frames, on exact video: fewer steps where it fits the video, an error where it is too much."""

import pathlib

from diffusion import frames, noise, solvers
from experiments.ablations import page
from experiments.ablations.gaussian import COSINE, FRAMES, KERNELS, distance
from experiments.ablations.matrices import END, clock

AMOUNTS = (0.5, 1.0, 2.0, 4.0)
STEPS = 8
SOURCES = {
    "iid": noise.iid(),
    **{f"mixed, a = {a:g}": noise.mixed(a) for a in AMOUNTS},
    **{f"progressive, a = {a:g}": noise.progressive(a) for a in AMOUNTS},
}


def section(folder: pathlib.Path) -> str:
    del folder
    table = solvers.ddim(COSINE, frames.full(clock(STEPS), FRAMES))
    lines = []
    for name, source in SOURCES.items():
        found = [distance(kernel, table, END, noise=source.covariance(FRAMES)) for kernel in KERNELS.values()]
        lines.append([name, *found])
    return f"""## Correlated noise

PYoCo's noises (Ge et al. 2023, arXiv 2305.10474), used in the denoiser and in sampling alike: DDIM, {STEPS} steps on the
cosine's clock. Correlation that fits takes two fifths off the error of OU and a quarter off that of RBF, of which too much
of it, mixed, is worse than none.

{page.table(["noise", *KERNELS], lines)}
"""
