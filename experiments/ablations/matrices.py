"""Schedule matrices on exact video: one law, whatever order frames are denoised in, and what an order costs."""

import functools
import math
import pathlib
from collections.abc import Callable

from diffusion import frames, grids, solvers
from experiments.ablations import page
from experiments.ablations.gaussian import COSINE, FRAMES, KERNELS, distance

MATRICES: dict[str, Callable[..., frames.Matrix]] = {
    "full": lambda grid: frames.full(grid, FRAMES),
    "pyramid, lag 1": lambda grid: frames.pyramid(grid, FRAMES, 1),
    "pyramid, lag N/4": lambda grid: frames.pyramid(grid, FRAMES, (len(grid) - 1) // 4),
    "trapezoid, lag N/4": lambda grid: frames.trapezoid(grid, FRAMES, (len(grid) - 1) // 4),
    "4 blocks": lambda grid: frames.autoregressive(grid, FRAMES, block=4),
    "autoregressive": lambda grid: frames.autoregressive(grid, FRAMES),
}
SOLVERS = {"DDIM": solvers.ddim, "2M": functools.partial(solvers.dpmpp, order=2, damping=1.5)}
STEPS = (8, 16, 32, 64)
END = 10.0
EQUAL = 64
"""Calls of the table at equal calls."""


def errors(kernel: str, matrix: str, solver: str, grid: Callable[..., grids.Grid], steps: int) -> tuple[float, int]:
    """(Wasserstein distance, calls) with `steps` steps for every frame."""
    table = SOLVERS[solver](COSINE, MATRICES[matrix](grid(steps)))
    return distance(KERNELS[kernel], table, float(grid(steps)[-1])), table.nfe


def clock(steps: int) -> grids.Grid:
    return grids.uniform_time(COSINE, steps, None, END)


def even(steps: int) -> grids.Grid:
    return grids.uniform_logsnr(COSINE, steps, -8.0, 8.0)


def most_steps(matrix: str, calls: int) -> int:
    """The most steps for every frame that a matrix has with so many calls."""
    fits = [n for n in range(2, calls + 1) if len(MATRICES[matrix](clock(n))) - 1 <= calls]
    return max(fits, default=0)


def section(folder: pathlib.Path) -> str:
    found = {
        (kernel, matrix, solver): [errors(kernel, matrix, solver, clock, n) for n in STEPS]
        for kernel in KERNELS for matrix in MATRICES for solver in SOLVERS
    }  # fmt: skip
    lines = []
    for matrix in MATRICES:
        calls = len(MATRICES[matrix](clock(STEPS[-1]))) - 1
        cells = [found[kernel, matrix, solver][-1][0] for kernel in KERNELS for solver in SOLVERS]
        slopes = [
            f"{math.log2(errors(kernel, matrix, solver, even, 32)[0] / errors(kernel, matrix, solver, even, 64)[0]):.2f}"
            for kernel in KERNELS for solver in SOLVERS
        ]  # fmt: skip
        lines.append([matrix, calls, *cells, *slopes])
    named = [f"{kernel}, {solver}" for kernel in KERNELS for solver in SOLVERS]
    header = ["matrix", "calls", *named, *(f"order: {name}" for name in named)]
    equal = []
    for matrix in MATRICES:
        steps = most_steps(matrix, EQUAL)
        equal.append(
            [matrix, steps or "-"]
            + [errors(k, matrix, s, clock, steps)[0] if steps else None for k in KERNELS for s in SOLVERS]
        )
    figure, row = page.axes(2, 10.5, 4.2)
    for axes, kernel in zip(row, KERNELS, strict=True):
        for i, matrix in enumerate(MATRICES):
            for solver in SOLVERS:
                values = found[kernel, matrix, solver]
                look = page.style(i) | dict(linestyle="-" if solver == "DDIM" else ":")
                axes.plot([c for _, c in values], [e for e, _ in values], **look, label=f"{matrix}, {solver}")
        axes.set(xscale="log", yscale="log", xlabel="calls of the network", title=kernel)
    row[0].set_ylabel("Wasserstein distance to the true law")
    page.legend_beside(figure, row)
    picture = page.save(
        figure, folder, "video_matrices.png", "distance to the true law against calls, by schedule matrix"
    )
    return f"""## Schedule matrices: the order in which frames are denoised

For independent noise the probability flow holds along any path of the frames' levels, so every matrix converges to one law;
what differs is the error of discretisation, and the number of calls. Distances with {STEPS[-1]} steps for every frame on the
cosine's clock to log-SNR {END:g}; 2M is DPM-Solver++(2M), its extrapolation damped where a step is more than 1.5 times the one
before. Orders are measured between 32 and 64 steps uniform in log-SNR from -8 to 8: 1 for DDIM, 2 for 2M (less where the last,
first-order steps still count).

{page.table(header, lines)}

At {EQUAL} calls the steps that are left for every frame, and what they reach: staggering is bought for streaming and causality,
not for accuracy per call; only 2M on OU is a little better by a lag of one step.

{page.table(["matrix", "steps a frame", *named], equal)}

{picture}
"""
