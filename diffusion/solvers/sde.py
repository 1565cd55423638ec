"""Multistep samplers of reverse SDEs: SA-Solver and ER-SDE."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.schedules import Schedule
from diffusion.solvers import multistep
from diffusion.solvers.adams import s_of
from diffusion.solvers.exponential import data_anchor, data_moments, data_noise
from diffusion.solvers.multistep import data_form
from diffusion.solvers.steps import EXTREME, Steps, gauss_legendre, steps_of
from diffusion.solvers.table import Table


def sa_solver(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    predictor_order: int = 3,
    corrector_order: int = 4,
    tau: float | Callable[[np.ndarray], Any] = 1.0,
    *,
    lower_order_final: bool | None = None,
) -> Table:
    """SA-Solver (Xue et al. 2023, arXiv 2309.05019, eq. 14-18 and algorithm 1): stochastic Adams with a corrector; N calls.

    predictor_order: evaluations the predictor uses, 1 to 4. corrector_order: those of the corrector, the new one
    included, up to 5; 0 for none. On equal footing with the predictor's order p is p + 1. tau: strength of the noise, 0 the
    probability flow, 1 the reverse SDE; or a function of log-SNR, taken at each step's start and held over the step, where
    the integrals are exact. The corrector keeps the noise that its predictor drew.
    """
    if isinstance(corrector_order, bool | float) or corrector_order not in range(6):
        raise ValueError(f"sa_solver: corrector_order must be a whole number from 0 to 5, got {corrector_order!r}")
    if isinstance(predictor_order, bool | float) or predictor_order not in (1, 2, 3, 4):
        raise ValueError(f"sa_solver: predictor_order must be a whole number from 1 to 4, got {predictor_order!r}")
    deepest = max(predictor_order, corrector_order - 1)
    steps = steps_of("sa_solver", schedule, grid, deepest, lower_order_final=lower_order_final, in_logsnr=True)
    strength = _tau(tau, steps.nodes)
    moments = data_moments(steps, max(predictor_order, corrector_order), strength)
    anchor = data_anchor(steps, strength)
    noisy = bool(np.any(strength))
    predict = multistep.predictor(
        steps,
        steps.points,
        anchor,
        moments,
        order=np.minimum(steps.order, predictor_order),
        noise=data_noise(steps, strength) if noisy else None,
        eta=np.where(strength > 0, 1.0, 0.0),
    )
    correct = None
    if corrector_order:
        order = np.minimum(steps.order + 1, corrector_order)
        correct = multistep.corrector(steps, steps.points, anchor, moments, order=order)
    return multistep.table(steps, data_form(schedule), predict, correct)


def _tau(tau, level):
    value = np.broadcast_to(np.asarray(tau(level) if callable(tau) else tau, np.float64), level.shape)
    if not (np.isfinite(value).all() and (value >= 0).all()):
        raise ValueError(f"sa_solver: tau must be finite and not below 0, got {value.min()} to {value.max()}")
    return value


def er_sde_noise(s: Any) -> Any:
    """phi(s) = s (exp(s^0.3) + 10), the noise scale that the ER-SDE paper recommends (its ER-SDE 5, appendix A.8)."""
    return s * (np.exp(s**0.3) + 10)


_POINTS, _WEIGHTS = gauss_legendre(64)


def er_sde(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 3,
    *,
    noise_scale: Callable[[Any], Any] = er_sde_noise,
    lower_order_final: bool | None = None,
) -> Table:
    """ER-SDE-Solver-1, -2, -3 (Cui et al. 2023, arXiv 2309.06169, prop. 3-4): N calls.

    With y = x/alpha, s = sigma/alpha and phi = noise_scale,

        y_t = phi(s_t)/phi(s) y_s + phi(s_t) int D d(1/phi) + sqrt(s_t^2 - s^2 (phi(s_t)/phi(s))^2) z.

    noise_scale: phi(s), phi(s)/s must not fall with s: s is the probability flow, s^2 the reverse SDE. D is the polynomial
    in s through its last `order` values: for order 2 the paper's formula; for order 3 the paper's first derivative is a
    plain difference, which is of order 2, where here it is that of the polynomial. The integrals are Gauss quadratures.
    """
    steps = steps_of("er_sde", schedule, grid, order, largest=3, lower_order_final=lower_order_final)
    start, end = (np.clip(level, -EXTREME, EXTREME) for level in (steps.grid[:-1], steps.grid[1:]))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        # phi(s)/s, kept apart from s so that it may overflow at the noisiest levels.
        start_scale, end_scale = (noise_scale(s_of(level)) / s_of(level) for level in (start, end))
        kept = np.where(np.isinf(start_scale), np.where(steps.moves, 0.0, 1.0), end_scale / start_scale)
    if not (np.isfinite(kept).all() and (kept >= 0).all() and (kept <= 1 + 1e-12).all()):
        raise ValueError(
            "er_sde: noise_scale(s) / s must be positive and must not fall with s (s itself is the ODE, s**2 the SDE);"
            f" over the grid's steps the ratio end / start runs from {kept.min():.6g} to {kept.max():.6g}"
        )
    kept = np.where(kept > 1 - 1e-12, 1.0, kept)  # the root of a rounding error would be noise
    fresh = np.sqrt((1 - kept) * (1 + kept))  # the part of the noise that is drawn anew: eta of a DDIM step
    anchor = schedule.sigma(steps.there) / schedule.sigma(steps.here) * kept
    update = multistep.predictor(
        steps,
        s_of(steps.points),
        anchor,
        _er_sde_moments(steps, int(steps.order.max()), noise_scale, anchor),
        noise=schedule.sigma(steps.there) * fresh if fresh.any() else None,
        eta=fresh,
    )
    return multistep.table(steps, data_form(schedule), update)


def _er_sde_moments(steps: Steps, count: int, noise_scale: Callable[[Any], Any], anchor: Any) -> list[Any]:
    """alpha_t phi(s_t) int u^j d(1/phi), u = (s - s_s)/(s_t - s_s). By parts alpha_t (1 - j phi(s_t) int u^{j-1}/phi du),
    the integral by quadrature in log s.
    """
    alpha, s, t = steps.schedule.alpha(steps.there), s_of(steps.here), s_of(steps.there)
    first = alpha - anchor * steps.schedule.alpha(steps.here)
    totals = [0.0 * first for _ in range(1, count)]
    for v, weight in zip(_POINTS, _WEIGHTS, strict=True):
        here = s * np.exp(-v * steps.h)
        u = (here - s) / (t - s)
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = np.where(np.isinf(noise_scale(here)), 0.0, noise_scale(t) / noise_scale(here))
        density = weight * ratio * steps.h * here / (s - t)
        totals = [total + density * (j + 1) * u**j for j, total in enumerate(totals)]
    return [first, *(alpha * (1 - total) for total in totals)]
