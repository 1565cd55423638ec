"""Exact Gaussian video, and tables run on it as matrices: what the sections of `ablate video` share."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from diffusion import oracles, sampling, schedules
from diffusion.solvers import Table

FRAMES = 16
COSINE = schedules.vp_cosine()
KERNELS = {"OU": oracles.ornstein_uhlenbeck(FRAMES, 0.95), "RBF": oracles.rbf(FRAMES, 3.0)}


def law(
    kernel: Float[np.ndarray, "f f"], level: float, noise: Float[np.ndarray, "f f"] | None = None
) -> Float[np.ndarray, "f f"]:
    """The covariance over frames of noisy video at a level that all frames share."""
    own = np.eye(len(kernel)) if noise is None else noise
    return float(COSINE.alpha(level)) ** 2 * kernel + float(COSINE.sigma(level)) ** 2 * own


def on_host(table: Table, denoise: Callable[..., Any], x: Float[np.ndarray, "b f"]) -> Float[np.ndarray, "b f"]:
    """`sample` for one pixel, row by row in NumPy and float64: nothing is compiled, whatever the number of rows."""
    x = np.asarray(x, np.float64)[..., None, None, None]
    carry = x, (np.zeros_like(x),) * table.slots
    for i in range(table.nfe):
        carry, _ = sampling.step(denoise, carry, jax.tree.map(lambda leaf, i=i: leaf[i], sampling.rows(table)), None)
    return np.asarray(sampling.predict(table.final, carry, None))[..., 0, 0, 0]


def made(
    kernel: Float[np.ndarray, "f f"],
    table: Table,
    noise: Float[np.ndarray, "f f"] | None = None,
    denoise: Callable[..., Any] | None = None,
) -> Float[np.ndarray, "f f"]:
    """The covariance of what a deterministic table makes of the exact law at its first level."""
    denoise = denoise or oracles.gaussian_process(kernel).denoiser(COSINE, noise)
    root = np.linalg.cholesky(law(kernel, float(np.min(table.logsnr[0])), noise))
    rows = on_host(table, denoise, root.T)
    return rows.T @ rows


def distance(kernel: Float[np.ndarray, "f f"], table: Table, end: float, **options: Any) -> float:
    """2-Wasserstein distance of what a table makes to the law at the level `end`."""
    return oracles.wasserstein_gaussian(made(kernel, table, **options), law(kernel, end, options.get("noise")))
