"""DPM-Solver++: exponential multistep samplers on the denoised prediction (Lu et al. 2022, arXiv 2211.01095)."""

import numpy as np

from diffusion import grids
from diffusion.schedules import Schedule
from diffusion.solvers.ddim import transition
from diffusion.solvers.table import Row, Table, assemble


def dpmpp(schedule: Schedule, grid, order: int = 2) -> Table:
    """DPM-Solver++(2M), Algorithm 2, on a rising grid [N+1, *level] of log-SNR; N calls. `order` 1 is DDIM.

    With lambda = logsnr / 2, h = lambda_t - lambda_s and r = h_previous / h:
    D = (1 + 1/(2r)) D_i - 1/(2r) D_{i-1}, x_t = sigma_t/sigma_s x_s - alpha_t (exp(-h) - 1) D. First order where a step is
    infinite (from alpha = 0, to sigma = 0), in the first step, in the last (the paper's lower-order end), and for a frame
    that did not move in the step before.
    """
    grid = grids.validate(grid)
    if order not in (1, 2):
        raise ValueError(f"dpmpp: order must be 1 or 2, got {order}")
    rows, step = [], (1.0, (0.0,))
    for i, logsnr in enumerate(grid[:-1]):
        rows.append(Row(logsnr, anchor=step[0], history=step[1]))
        x, denoised, _ = transition(schedule, logsnr, grid[i + 1])
        extrapolate = np.zeros_like(denoised)
        if order == 2 and 0 < i < len(grid) - 2:
            with np.errstate(invalid="ignore", divide="ignore"):
                ratio = (logsnr - grid[i - 1]) / (grid[i + 1] - logsnr)
                extrapolate = np.where(np.isfinite(ratio) & (ratio > 0), 1 / (2 * ratio), 0.0)
        step = (x, (denoised * (1 + extrapolate), -denoised * extrapolate))
    return assemble(rows, Row(grid[-1], anchor=step[0], history=step[1]))
