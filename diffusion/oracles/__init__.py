"""Data whose exact denoiser is known in closed form, and exact answers to compare a sampler with.

Gaussian mixtures (`gaussian_mixture`, and the ready ones `a1d`, `b2d`, `eight_mode_ring`), a finite set of
clips (`empirical`), Gaussian-process videos (`gaussian_process`); the exact probability-flow solution
(`probability_flow`, or in closed form `Mixture.flow_map` and `GaussianProcess.flow_map`); and, because a
sampler on Gaussian data is an affine map, the exact error of its law (`affine_map`, `wasserstein_gaussian`).

Every denoiser holds under any schedule and at any level, infinite ones included, in the namespace of its
arguments: NumPy in, float64 NumPy out; JAX in, traced or not, JAX out.
"""

from diffusion.oracles.exact import affine_map, probability_flow, wasserstein_gaussian
from diffusion.oracles.mixtures import (
    Mixture,
    a1d,
    b2d,
    eight_mode_ring,
    empirical,
    gaussian,
    gaussian_mixture,
)
from diffusion.oracles.processes import GaussianProcess, gaussian_process, ornstein_uhlenbeck, rbf
from diffusion.oracles.spectra import LowRank, low_rank

__all__ = [
    "GaussianProcess",
    "LowRank",
    "Mixture",
    "a1d",
    "affine_map",
    "b2d",
    "eight_mode_ring",
    "empirical",
    "gaussian",
    "gaussian_mixture",
    "gaussian_process",
    "low_rank",
    "ornstein_uhlenbeck",
    "probability_flow",
    "rbf",
    "wasserstein_gaussian",
]
