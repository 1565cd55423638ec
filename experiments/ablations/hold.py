"""How a history holds what comes after it, on exact video: the level at which it is shown, and kinds of history guidance."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diffusion import frames, history, oracles, solvers
from experiments.ablations import page
from experiments.ablations.gaussian import COSINE, FRAMES, KERNELS, law, on_host
from experiments.ablations.matrices import END, clock
from experiments.ablations.memory import KNOWN, conditional
from experiments.ablations.windows import VIDEOS, WINDOW, begun

STEPS = 16
PAST = 2
TIMES = (0.0, 0.02, 0.05, 0.1, 0.2)
"""Times of the cosine at which a history is shown; 0 is clean."""


def rolled(denoise: Callable[..., Any], first: np.ndarray, time: float, noised: bool) -> np.ndarray:
    """The covariance of the last FRAMES of 3 FRAMES of chunks after a history that is shown at the level of `time`, exactly.

    noised: it is noised to that level; else only scaled, and said to be. first: as in windows.rolled.
    """
    level = float(COSINE.logsnr(time)) if time else np.inf
    matrix = frames.known(frames.full(clock(STEPS), WINDOW - PAST), before=PAST, level=level)
    table, advance = solvers.dpmpp(COSINE, matrix), WINDOW - PAST
    periods = -(-3 * FRAMES // advance)
    alpha, sigma = (float(f(level)) for f in (COSINE.alpha, COSINE.sigma))
    rows = len(first) + periods * WINDOW
    window, video = np.zeros((rows, WINDOW)), []
    window[: len(first)] = first
    for i in range(periods):
        fresh = np.zeros((rows, WINDOW))
        fresh[len(first) + i * WINDOW + np.arange(WINDOW), np.arange(WINDOW)] = 1.0
        window[:, :PAST] = alpha * window[:, :PAST] + (sigma * fresh[:, :PAST] if noised else 0)
        done = on_host(table, denoise, window)
        video.append(done[:, PAST:])
        noise = float(COSINE.sigma(matrix[0, 0, -1])) * fresh[:, PAST:]
        window = np.concatenate([done[:, -PAST:], noise], axis=1)
    last = np.concatenate(video, axis=1)[:, : 3 * FRAMES][:, -FRAMES:]
    return last.T @ last


def levels(folder: pathlib.Path) -> str:
    del folder
    lines = []
    for time in TIMES:
        cells = []
        for video in VIDEOS.values():
            denoise = oracles.gaussian_process(video(WINDOW)).denoiser(COSINE)
            matrix = frames.known(frames.full(clock(STEPS), WINDOW - PAST), before=PAST)
            first = begun(video(WINDOW), denoise, None, matrix, PAST)
            true = law(video(FRAMES), END)
            for noised in (False, True):
                covariance = rolled(denoise, first, time, noised)
                cells += [oracles.wasserstein_gaussian(covariance, true), f"{np.diag(covariance).mean():.3f}"]
        lines.append([f"{time:g}" if time else "clean", f"{float(COSINE.logsnr(time)):.1f}" if time else "inf", *cells])
    header = ["time", "log-SNR"]
    header += [
        f"{name}, {way}: {what}" for name in VIDEOS for way in ("said", "noised") for what in ("distance", "variance")
    ]
    return f"""## The level at which a history is shown

This shows what a stabilised history costs where the model makes no mistake: chunks of {WINDOW - PAST} frames after {PAST}, the
last {FRAMES} of {3 * FRAMES} frames, {STEPS} steps of 2M. *Said*: the history is scaled to the level and said to have its
noise, but none is added (Diffusion Forcing's first code); *noised*: it is. Distances to the true law are exact.
A time of .05 costs the rough video next to nothing and takes a seventh of the smooth one's error away; saying noise that isn't
there costs more than adding it, and makes the video too quiet.

{page.table(header, lines)}
"""


Parts = Sequence[tuple[float, Any]]


def guidances() -> dict[str, Parts]:
    frame = np.arange(FRAMES)
    early, late = (np.isin(frame, part) for part in (range(KNOWN // 2), range(KNOWN // 2, KNOWN)))
    return {
        "no guidance": history.vanilla(1.0),
        **{f"vanilla, g = {g:g}": history.vanilla(g) for g in (1.5, 2.0, 4.0)},
        **{f"fractional at log-SNR {p:g}, g = 2": history.fractional(2.0, p) for p in (-2.0, 2.0)},
        "temporal, two halves, 1 + 1": history.temporal([(1.0, early), (1.0, late)]),
        "temporal, two halves, 1/2 + 1/2": history.temporal([(0.5, early), (0.5, late)]),
    }


def guided(kernel: np.ndarray, parts: Parts) -> tuple[float, float, float]:
    """(rms error of the mean over its size, standard deviation and frame-to-frame change over the true ones), exactly."""
    known, mean, covariance = conditional(kernel)
    clip = np.zeros((1, FRAMES, 1, 1, 1))
    clip[0, :KNOWN, 0, 0, 0] = known
    denoise = oracles.gaussian_process(kernel).denoiser(COSINE)
    wrapped = history.guided(denoise, COSINE, clip, np.arange(FRAMES) < KNOWN, np.zeros_like(clip), parts)
    table = solvers.dpmpp(COSINE, frames.full(clock(2 * STEPS), FRAMES))
    rows = np.concatenate([np.zeros((1, FRAMES)), np.eye(FRAMES)])
    made = on_host(table, wrapped, rows)[:, KNOWN:]
    middle, spread = made[0], made[1:] - made[0]
    own = spread.T @ spread

    def change(mean: np.ndarray, covariance: np.ndarray) -> float:
        difference = np.diff(np.eye(len(mean)), axis=0)
        return float(np.trace(difference @ covariance @ difference.T) + np.sum(np.diff(mean) ** 2))

    return (
        float(np.sqrt(np.mean((middle - mean) ** 2) / np.mean(mean**2))),
        float(np.sqrt(np.trace(own) / np.trace(covariance))),
        change(middle, own) / change(mean, covariance),
    )


def guidance(folder: pathlib.Path) -> str:
    del folder
    lines = [
        [name, len(parts), *(number for kernel in KERNELS.values() for number in guided(kernel, parts))]
        for name, parts in guidances().items()
    ]
    header = ["guidance", "evaluations"]
    header += [f"{name}: {what}" for name in KERNELS for what in ("mean off", "spread", "change")]
    return f"""## Kinds of history guidance

This shows what guidance by history does to the law of what follows: the last {FRAMES - KNOWN} frames after {KNOWN} known ones,
{2 * STEPS} steps of 2M, the exact denoiser. *Mean off*: rms error of the mean over its size; *spread* and *change*: the
standard deviation, and the mean squared difference of neighbouring frames, over the true ones: below 1 the future is too sure,
or moves too little. Where the model is exact no guidance is right, and the table says what each kind bends; compare with the
first row. At g = 2 fractional guidance by the low frequencies bends the mean a quarter as much as vanilla guidance of the rough
video, and a fiftieth of the smooth one. Guidance doesn't freeze Gaussian video: vanilla and fractional guidance narrow its
spread, and vanilla guidance moves the smooth one more.

{page.table(header, lines)}
"""
