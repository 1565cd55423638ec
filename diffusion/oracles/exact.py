"""Exact answers to hold a sampler against: probability-flow solutions, affine maps, Gaussian distances."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from diffusion.levels import expand
from diffusion.oracles.coordinates import Numbers, Scaling, rescaled, variance_preserving
from diffusion.oracles.spectra import check_covariance

# Stand-ins for infinite levels: beyond them alpha (below) and sigma (above) are below rounding in float64.
LOWEST, HIGHEST = -80.0, 50.0


def probability_flow(
    denoise: Callable[..., Any],
    x: Numbers,
    schedule: Scaling,
    start: Numbers,
    end: Numbers,
    rtol: float = 1e-10,
) -> Float[np.ndarray, "b ..."]:
    """The probability-flow ODE from x at log-SNR `start` to log-SNR `end`, by DOP853 in float64 on the host.

    The velocity is E[d(alpha) x0 + d(sigma) eps | x] (Lipman et al. 2022), which in the scaling alpha^2 +
    sigma^2 = 1 is dx / dlogsnr = (alpha denoised - alpha^2 x) / 2. In that scaling x keeps the size of the
    data at any level.

    denoise: called with NumPy arrays in the schedule's scale; it must answer in float64 for rtol below 1e-5
        (the oracles do; a JAX function does if JAX has float64 switched on).
    start, end: levels [], [b], [b|1, f], ...; either way round. Levels per frame move in proportion along the
        straight line in log-SNR, and frames with start = end wait. Infinite: -inf starts where alpha is 0,
        +inf ends at the clean data.

    Raises ValueError for a start or end at which the schedule's sigma is infinite, RuntimeError if the solver
    gives up.
    """
    from scipy.integrate import solve_ivp

    x = np.asarray(x, np.float64)
    start, end = (expand(np.asarray(level, np.float64), x) for level in (start, end))
    first, last = variance_preserving(np, schedule, start), variance_preserving(np, schedule, end)
    if (first[2] == 0).any() or (last[2] == 0).any():
        raise ValueError(
            "probability_flow: sigma is infinite at -inf in this schedule and x says nothing there;"
            " expected a finite level"
        )
    waits = start == end
    finite = [np.nan_to_num(level, nan=np.nan, neginf=LOWEST, posinf=HIGHEST) for level in (start, end)]
    span = finite[1] - finite[0]

    def denoised(tau, unit):
        logsnr = np.where(waits, start, finite[0] + tau * span)
        alpha, _, scale = variance_preserving(np, schedule, logsnr)
        answer = np.asarray(denoise(unit / scale, logsnr))
        if answer.dtype != np.float64 and rtol < 1e-5:
            raise ValueError(
                f"probability_flow: denoise answers in {answer.dtype}, too coarse for rtol {rtol:g}:"
                " switch on jax_enable_x64 or ask for rtol >= 1e-5"
            )
        return alpha, answer.astype(np.float64)

    def velocity(tau, flat):
        unit = flat.reshape(x.shape)
        alpha, answer = denoised(tau, unit)
        return (span / 2 * alpha * (answer - alpha * unit)).ravel()

    unit = rescaled(np, x, first[2])
    if np.any(span):
        # The solver must not step over the few nats in which the law takes shape.
        longest = min(1.0, 4 / np.abs(span).max())
        solution = solve_ivp(
            velocity, (0.0, 1.0), unit.ravel(), method="DOP853", rtol=rtol, atol=rtol / 10, max_step=longest
        )
        if not solution.success:
            raise RuntimeError(f"probability_flow: {solution.message}")
        unit = solution.y[:, -1].reshape(x.shape)
    arrived = np.isposinf(end) & ~waits
    if np.any(arrived):
        unit = np.where(arrived, denoised(1.0, unit)[1], unit)
    return unit / last[2]


def affine_map(
    function: Callable[..., Any], shape: tuple[int, ...]
) -> tuple[Float[np.ndarray, "m d"], Float[np.ndarray, " m"]]:
    """(matrix, offset) of a function that is affine in each sample of `shape`: matrix x + offset.

    `function` takes [b, *shape] and is called once, with the origin and the d unit vectors. On Gaussian data
    with the exact denoiser every deterministic sampler is affine, so the law of its samples is N(offset,
    matrix V matrix^T) exactly.
    """
    d = int(np.prod(shape))
    points = np.concatenate([np.zeros((1, d)), np.eye(d)]).reshape(d + 1, *shape)
    answers = np.asarray(function(points), np.float64).reshape(d + 1, -1)
    return (answers[1:] - answers[0]).T, answers[0]


def wasserstein_gaussian(
    covariance1: Numbers,
    covariance2: Numbers,
    mean1: Numbers | float = 0.0,
    mean2: Numbers | float = 0.0,
) -> float:
    """The 2-Wasserstein distance between two Gaussians (Bures; Dowson & Landau 1982), not squared.

    As the least |A^1/2 - B^1/2 O| over rotations O (Bhatia et al. 2019, theorem 1): unlike the trace formula
    it keeps its digits when the two are close.
    """
    roots = []
    for name, covariance in (("covariance1", covariance1), ("covariance2", covariance2)):
        values, vectors = np.linalg.eigh(check_covariance(covariance, name))
        roots.append((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
    if roots[0].shape != roots[1].shape:
        raise ValueError(f"wasserstein_gaussian: covariances of shapes {roots[0].shape} and {roots[1].shape}")
    left, _, right = np.linalg.svd(roots[1] @ roots[0])
    shift = np.linalg.norm(np.broadcast_to(np.subtract(mean1, mean2), len(roots[0])))
    return float(np.hypot(np.linalg.norm(roots[0] - roots[1] @ (left @ right)), shift))
