"""Windows on exact video: what a model of short clips loses of a long one, by blending, in chunks, rolling, and FIFO."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion import frames, oracles, solvers
from experiments.ablations import page
from experiments.ablations.gaussian import COSINE, FRAMES, law, made, on_host
from experiments.ablations.matrices import END, clock

WINDOW = 8
STEPS = 64
VIDEOS: dict[str, Callable[[int], np.ndarray]] = {
    "OU": lambda n: oracles.ornstein_uhlenbeck(n, 0.95),
    "RBF": lambda n: oracles.rbf(n, 3.0, 1e-3),
}


def rolled(
    denoise: Callable[..., Any], matrix: frames.Matrix, first: np.ndarray, history: int, advance: int, count: int
) -> np.ndarray:
    """The covariance of the last FRAMES of `count` frames that a window hands out, exactly.

    A roll-out is linear in its noises, each kept as the vector of its weights over them, so the loop of `frames.roll_out` is
    run once for a basis of them. first: [d, window], the window at the matrix's first row as such weights.
    """
    table, width = solvers.dpmpp(COSINE, matrix), matrix.shape[2]
    periods = -(-count // advance)
    window = np.zeros((len(first) + periods * advance, width))
    window[: len(first)] = first
    video = []
    for i in range(periods):
        done = on_host(table, denoise, window)
        video.append(done[:, history : history + advance])
        fresh = np.zeros((len(window), advance))
        rows = len(first) + i * advance + np.arange(advance)
        fresh[rows, np.arange(advance)] = float(COSINE.sigma(matrix[0, 0, -1]))
        window = np.concatenate([done[:, advance:], fresh], axis=1)
    last = np.concatenate(video, axis=1)[:, :count][:, -FRAMES:]
    return last.T @ last


def begun(
    kernel: np.ndarray, denoise: Callable[..., Any], start: frames.Matrix | None, matrix: frames.Matrix, history: int
):
    """Weights of a window that begins with `history` true frames, over as many normals as it has frames."""
    width = matrix.shape[2]
    first = np.zeros((width, width))
    first[:history, :history] = np.linalg.cholesky(kernel[:history, :history] + 1e-12 * np.eye(history)).T
    first[history:, history:] = float(COSINE.sigma(COSINE.logsnr_start)) * np.eye(width - history)
    return first if start is None else on_host(solvers.dpmpp(COSINE, start), denoise, first)


def ways(video: Callable[[int], np.ndarray]) -> dict[str, np.ndarray]:
    """way -> the covariance over FRAMES frames of what it makes."""
    grid, short = clock(STEPS), oracles.gaussian_process(video(WINDOW)).denoiser(COSINE)
    whole = solvers.dpmpp(COSINE, frames.full(grid, FRAMES))
    found = {"the whole at once": made(video(FRAMES), whole)}
    for stride, weights in ((8, "flat"), (4, "flat"), (2, "flat"), (2, "pyramid")):
        blended = frames.windowed(short, FRAMES, WINDOW, stride, weights)
        found[f"blended every {stride} frames, {weights}"] = made(video(FRAMES), whole, denoise=blended)
    for history in (1, 2, 4):
        matrix = frames.known(frames.full(grid, WINDOW - history), before=history)
        first = begun(video(WINDOW), short, None, matrix, history)
        found[f"chunks after {page.plural(history, 'clean frame')}"] = rolled(
            short, matrix, first, history, WINDOW - history, 3 * FRAMES
        )
    for history in (0, 4):
        width = WINDOW - history
        start, matrix = (
            frames.known(part(grid, STEPS // width), before=history) for part in (frames.rolling_start, frames.rolling)
        )
        first = begun(video(WINDOW), short, start, matrix, history)
        found[f"rolling after {page.plural(history, 'clean frame')}"] = rolled(
            short, matrix, first, history, 1, 3 * FRAMES
        )
    for stride in (WINDOW, WINDOW // 2):
        queue = clock(2 * WINDOW)
        matrix, start = frames.rolling(queue, 1), frames.rolling_start(queue, 1)
        seen = frames.windowed(short, 2 * WINDOW, WINDOW, stride, "earliest")
        first = begun(video(2 * WINDOW), seen, start, matrix, 0)
        name = "FIFO" if stride == WINDOW else "FIFO with lookahead"
        found[f"{name}, {2 * WINDOW} steps"] = rolled(seen, matrix, first, 0, 1, 3 * FRAMES)
    return found


def section(folder: pathlib.Path) -> str:
    del folder
    rows: dict[str, list[Any]] = {}
    for video in VIDEOS.values():
        true = law(video(FRAMES), END)
        for name, covariance in {"the truth": true, **ways(video)}.items():
            ties = (np.diag(covariance, lag).mean() for lag in (0, WINDOW))
            apart = oracles.wasserstein_gaussian(covariance, true)
            rows.setdefault(name, [name]).extend([apart, *(f"{tie:.3f}" for tie in ties)])
    header = ["way", *(f"{name}: {what}" for name in VIDEOS for what in ("distance", "variance", f"lag {WINDOW}"))]
    return f"""## Windows: a model of {WINDOW} frames and a video of {FRAMES}

The denoiser is exact for {WINDOW} frames and knows of no others; {STEPS} steps of 2M. The distance of {FRAMES} frames in a row
to the true law (of roll-outs the last of {3 * FRAMES}); their variance and the covariance of frames {WINDOW} apart. Blending
never brings back what lies outside the windows, and is too quiet; chunks after clean frames keep the law of a Markov video;
rolling costs some of it by the noise on what a frame remembers. Every frame of RBF has noise of its own, of variance .001:
without it small errors in clean frames would be extrapolated without bound.

{page.table(header, list(rows.values()))}
"""
