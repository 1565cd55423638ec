"""Covariances of modes by their spectra: a diagonal, or variance * I + basis diag(extra) basis^T.

Everything an oracle needs of a covariance (root, inverse, determinant, with noise added) is a function of it,
so the decomposition is done once, in float64 on the host.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion.oracles.coordinates import Numbers


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The covariance variance * I + factors diag(eigenvalues) factors^T; see `low_rank`."""

    factors: Float[np.ndarray, "d r"]
    eigenvalues: Float[np.ndarray, " r"]
    variance: float


def low_rank(factors: Numbers, eigenvalues: Numbers, variance: float = 0.0) -> LowRank:
    """variance * I + factors diag(eigenvalues) factors^T; the factors need not be orthonormal."""
    factors, eigenvalues = np.asarray(factors, np.float64), np.asarray(eigenvalues, np.float64)
    if factors.ndim != 2 or eigenvalues.shape != factors.shape[1:]:
        raise ValueError(
            f"low rank: expected factors [d, r] and eigenvalues [r], got {factors.shape}, {eigenvalues.shape}"
        )
    finite = np.isfinite(factors).all() and np.isfinite(eigenvalues).all() and math.isfinite(variance)
    if not finite or (eigenvalues < 0).any() or variance < 0:
        raise ValueError(
            "low rank: expected finite factors, eigenvalues >= 0 and variance >= 0,"
            f" got eigenvalues {eigenvalues} and variance {variance}"
        )
    return LowRank(factors, eigenvalues, float(variance))


def spectra(covariances: Any, shape: Sequence[int], d: int) -> tuple[np.ndarray, Any, Any]:
    """(variances [k, d] or [k, 1], basis [k, d, r] or None, extra [k, r] or None) of k covariances."""
    modes: list[Any] = [_spectrum(covariance, shape, d, i) for i, covariance in enumerate(covariances)]
    if all(isinstance(mode, np.ndarray) for mode in modes):
        return np.stack(np.broadcast_arrays(*modes)), None, None
    modes = [_with_basis(mode, d) for mode in modes]
    rank = max(len(extra) for _, _, extra in modes)
    # Padding with the direction 0 of extra variance 0 changes nothing.
    basis = np.stack([np.pad(basis, ((0, 0), (0, rank - len(extra)))) for _, basis, extra in modes])
    extra = np.stack([np.pad(extra, (0, rank - len(extra))) for _, _, extra in modes])
    return np.array([[variance] for variance, _, _ in modes]), basis, extra


def _spectrum(covariance: Any, shape: Sequence[int], d: int, mode: int):
    """A covariance as variances ([1] or [d]), or as (variance, orthonormal basis [d, r], extra [r])."""
    if isinstance(covariance, LowRank):
        if len(covariance.factors) != d:
            raise ValueError(
                f"mixture, mode {mode}: expected low-rank factors of {d} rows, got {len(covariance.factors)}"
            )
        basis, singular, _ = np.linalg.svd(covariance.factors * np.sqrt(covariance.eigenvalues), full_matrices=False)
        return _proper(covariance.variance, basis, singular**2)
    covariance = np.asarray(covariance, np.float64)
    if not np.isfinite(covariance).all():
        raise ValueError(f"mixture, mode {mode}: expected a finite covariance")
    if covariance.ndim == 0 or covariance.shape in ((d,), tuple(shape)):
        if (covariance < 0).any():
            raise ValueError(f"mixture, mode {mode}: expected variances >= 0, got {covariance.min()}")
        return covariance.reshape(-1)
    if covariance.shape != (d, d):
        raise ValueError(
            f"mixture, mode {mode}: expected a covariance of shape [], [{d}] or [{d}, {d}] or low_rank,"
            f" got {covariance.shape}"
        )
    eigenvalues, basis = np.linalg.eigh(check_covariance(covariance, f"mixture, mode {mode}"))
    return _proper(0.0, basis, np.maximum(eigenvalues, 0))


def _proper(variance, basis, extra):
    """With a basis of the whole space, its least direction becomes the rest, of one dimension."""
    if basis.shape[0] > basis.shape[1]:
        return variance, basis, extra
    least = extra.min()
    keep = np.arange(len(extra)) != extra.argmin()
    return variance + least, basis[:, keep], extra[keep] - least


def _with_basis(mode, d):
    if not isinstance(mode, np.ndarray):
        return mode
    if len(mode) == 1 or d == 1:
        return float(mode[0]), np.zeros((d, 0)), np.zeros(0)
    return _proper(0.0, np.eye(d), mode)


def check_covariance(matrix: Numbers, name: str) -> Float[np.ndarray, "n n"]:
    """The matrix in float64, checked to be square, finite, symmetric and positive semidefinite."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"{name}: expected a square covariance matrix, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: expected a finite covariance matrix")
    size = np.abs(matrix).max()
    if np.abs(matrix - matrix.T).max() > 1e-8 * size:
        raise ValueError(
            f"{name}: expected a symmetric covariance matrix; the two halves differ by up to"
            f" {np.abs(matrix - matrix.T).max():.3g}"
        )
    least = np.linalg.eigvalsh(matrix)[0]
    if least < -1e-10 * size * len(matrix):
        raise ValueError(
            f"{name}: expected a positive semidefinite covariance matrix, its least eigenvalue is {least:.3g}"
        )
    return (matrix + matrix.T) / 2
