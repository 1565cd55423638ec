"""Known frames on exact video: shown in the matrix, replaced, guided towards; and windows that see only a part."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion import frames, history, oracles, solvers
from experiments.ablations import page
from experiments.ablations.gaussian import COSINE, FRAMES, KERNELS, on_host
from experiments.ablations.matrices import clock

KNOWN = 4
STEPS = (16, 64, 256)
WAYS: dict[str, Callable[..., Any] | None] = {
    "a clean column of the matrix": None,
    "replacement": history.replacement,
    **{
        f"reconstruction, weight {w:g}": functools.partial(history.reconstruction, weight=w)
        for w in (1.0, 2.0, 5.0, 10.0)
    },
}


def conditional(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(known frames, the exact mean and covariance of the others given them)."""
    first = np.linalg.cholesky(kernel[:KNOWN, :KNOWN] + 1e-12 * np.eye(KNOWN)) @ np.array([1.0, -1.0, 1.0, 1.0])
    gain = np.linalg.lstsq(kernel[:KNOWN, :KNOWN], kernel[:KNOWN, KNOWN:], rcond=1e-12)[0].T
    return first, gain @ first, kernel[KNOWN:, KNOWN:] - gain @ kernel[:KNOWN, KNOWN:]


def errors(kernel: np.ndarray, way: Callable[..., Any] | None, steps: int) -> float:
    """The rms error of the mean of what is sampled: all noise at its mean, 0."""
    first, mean, _ = conditional(kernel)
    denoise = oracles.gaussian_process(kernel).denoiser(COSINE)
    clip = np.zeros((1, FRAMES))
    clip[0, :KNOWN] = first
    if way is None:
        table = solvers.ddim(COSINE, frames.known(frames.full(clock(steps), FRAMES - KNOWN), before=KNOWN))
        rows = on_host(table, denoise, clip)
    else:
        wide = clip[..., None, None, None]
        wrapped = way(denoise, COSINE, wide, np.arange(FRAMES) < KNOWN, np.zeros_like(wide))
        rows = on_host(solvers.ddim(COSINE, clock(steps)), wrapped, np.zeros_like(clip))
    return float(np.sqrt(np.mean((rows[0, KNOWN:] - mean) ** 2)))


def section(folder: pathlib.Path) -> str:
    del folder
    size = {name: np.sqrt(np.mean(conditional(kernel)[1] ** 2)) for name, kernel in KERNELS.items()}
    lines = [
        [name, *(errors(kernel, way, n) / size[k] for k, kernel in KERNELS.items() for n in STEPS)]
        for name, way in WAYS.items()
    ]
    header = ["way", *(f"{k}, {n} steps" for k in KERNELS for n in STEPS)]
    return f"""## Known frames

The last {FRAMES - KNOWN} frames given the first {KNOWN}, DDIM on the cosine's clock: the rms error of the sampled mean, over
the size of the true one. Frames that stand in the matrix as a clean column have none: a model of levels per frame is exact.
Replacement keeps its error however many steps there are; reconstruction guidance takes a part of it away, and its best weight
depends on the video.

{page.table(header, lines)}
"""
