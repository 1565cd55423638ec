"""Exponential multistep samplers: the linear part of the probability flow is solved exactly, the denoiser is a
polynomial in log-SNR through its last values.

With lambda = logsnr / 2 and h = lambda_t - lambda_s the exact solutions are (Lu et al. 2022, arXiv 2206.00927, prop. 3.1,
and 2211.01095, prop. 4.1)

    x_t = sigma_t/sigma_s x_s + sigma_t int exp(lambda) D dlambda        data form, D the denoised estimate
    x_t = alpha_t/alpha_s x_s - alpha_t int exp(-lambda) eps dlambda     noise form

and, for the reverse SDE with noise of strength tau, which has the same marginals (Xue et al. 2023, arXiv 2309.05019),

    x_t = sigma_t/sigma_s exp(-tau^2 h) x_s + (1 + tau^2) alpha_t int exp(-(1 + tau^2)(lambda_t - lambda)) D dlambda
          + sigma_t sqrt(1 - exp(-2 tau^2 h)) z.

The integrals of powers of u = (lambda - lambda_s) / h are phi functions.
"""

import math
from collections.abc import Callable
from typing import Any

from jax.typing import ArrayLike
from jaxtyping import Float

from diffusion.clocks import namespace
from diffusion.names import choice
from diffusion.schedules import Schedule
from diffusion.solvers import multistep
from diffusion.solvers.multistep import Update, data_form, noise_form
from diffusion.solvers.steps import Steps, steps_of
from diffusion.solvers.table import Table

_TERMS = 19  # of the series of phi for |z| < 1: the next is below rounding in float64


def phi(k: int, z: Any) -> Any:
    """phi_k(z) = int_0^1 exp((1 - u) z) u^(k-1) / (k-1)! du, phi_0 = exp (Hochbruck & Ostermann 2010, eq. 2.11).

    phi_{k+1}(z) = (phi_k(z) - 1/k!) / z, which loses all digits at small z: there the series.
    """
    xp = namespace(z)
    if k == 0:
        return xp.exp(z)
    small = abs(z) < 1
    away, near = xp.where(small, 1.0, z), xp.where(small, z, 0.0)
    value = xp.expm1(away) / away
    for j in range(1, k):
        value = (value - 1 / math.factorial(j)) / away
    series = xp.zeros_like(near)
    for n in reversed(range(_TERMS)):
        series = series * near + 1 / math.factorial(n + k)
    return xp.where(small, series, value)


def data_moments(steps: Steps, count: int, tau: Any = 0.0) -> list[Any]:
    """M_j = (1 + tau^2) alpha_t int exp(-(1 + tau^2)(lambda_t - lambda)) u^j dlambda, j < count."""
    z = (1 + tau**2) * steps.h
    alpha = steps.schedule.alpha(steps.there)
    return [alpha * z * math.factorial(j) * phi(j + 1, -z) for j in range(count)]


def noise_moments(steps: Steps, count: int) -> list[Any]:
    """M_j = -alpha_t int exp(-lambda) u^j dlambda = -sigma_t h j! phi_{j+1}(h), j < count."""
    sigma = steps.schedule.sigma(steps.there)
    return [-sigma * steps.h * math.factorial(j) * phi(j + 1, steps.h) for j in range(count)]


def data_anchor(steps: Steps, tau: Any = 0.0) -> Any:
    """sigma_t/sigma_s exp(-tau^2 h)."""
    xp = namespace(steps.here)
    decay = xp.exp(-(tau**2) * steps.h)
    return steps.schedule.sigma(steps.there) / steps.schedule.sigma(steps.here) * decay


def noise_anchor(steps: Steps) -> Any:
    """alpha_t/alpha_s."""
    return steps.schedule.alpha(steps.there) / steps.schedule.alpha(steps.here)


def data_noise(steps: Steps, tau: Any) -> Any:
    """The standard deviation of the noise of a step, sigma_t sqrt(1 - exp(-2 tau^2 h))."""
    xp = namespace(steps.here)
    return steps.schedule.sigma(steps.there) * xp.sqrt(-xp.expm1(-2 * tau**2 * steps.h))


def exponential_table(
    steps: Steps,
    *,
    noise: bool = False,
    correct: bool = False,
    second: Callable[[Steps, Any], Any] | None = None,
    damping: float | None = None,
) -> Table:
    """The deterministic table of either form. `second`: (steps, M_0) -> M_1 of the steps with two nodes."""
    count = int(steps.order.max()) + 1
    if noise:
        form, anchor, moments = noise_form(steps.schedule), noise_anchor(steps), noise_moments(steps, count)
    else:
        form, anchor, moments = data_form(steps.schedule), data_anchor(steps), data_moments(steps, count)
    first = None if second is None else second(steps, moments[0])
    predict = multistep.predictor(steps, steps.points, anchor, moments, second=first, damping=damping)
    update: Update | None = None
    if correct:
        update = multistep.corrector(steps, steps.points, anchor, moments, second=first)
    return multistep.table(steps, form, predict, update)


def check_damping(name: str, damping: float | None) -> None:
    if damping is not None and not damping > 0:
        raise ValueError(f"{name}: damping is the largest ratio of neighbouring steps, above 0, or None; got {damping}")


def exponential_adams(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 3,
    *,
    noise_form: bool = False,
    corrector: bool = False,
    damping: float | None = None,
    lower_order_final: bool | None = None,
    like: Float[ArrayLike, "same ..."] | None = None,
) -> Table:
    """Exponential Adams: exact phi-function weights over the last `order` evaluations; N calls.

    order: 1 (DDIM) to 4. noise_form: interpolate eps instead of the denoised estimate. corrector: after each call the
    point is corrected with the new evaluation, one order higher, at no extra call. damping: the largest ratio of a step
    to the one before it that an extrapolation may assume (1.5 is a good value for orders from 3 on few steps); inf is no
    limit, and so is None, unless frames wait for each other (a schedule matrix), where it is 1.5. lower_order_final: see
    `steps.steps_of`; None means with fewer than 20 steps, with a long last one, or where frames wait for each other.
    like: for a grid that is traced (a fitted one, say), a host grid of its shape with infinities and waits at the same
    places; the table is then traced too.
    """
    steps = steps_of(
        "exponential_adams", schedule, grid, order, lower_order_final=lower_order_final, in_logsnr=True,
        careful=noise_form and corrector, like=like,
    )  # fmt: skip
    check_damping("exponential_adams", damping)
    return exponential_table(steps, noise=noise_form, correct=corrector, damping=damping)


def _bh1(steps: Steps, first: Any) -> Any:
    """B(h) / 2 with B(h) = h: alpha_t h / 2 (data), -sigma_t h / 2 (noise)."""
    xp = namespace(first)
    sizes = xp.where(first < 0, -steps.schedule.sigma(steps.there), steps.schedule.alpha(steps.there))
    return sizes * steps.h / 2


def half(steps: Steps, first: Any) -> Any:
    """B(h) / 2 with B(h) = exp(h) - 1 (noise) or 1 - exp(-h) (data), which makes M_1 = M_0 / 2: UniPC's bh2, and the
    second order of DPM-Solver(++).
    """
    return first / 2


UNIPC_VARIANTS: dict[str, Callable[[Steps, Any], Any]] = {"bh1": _bh1, "bh2": half}


def unipc(
    schedule: Schedule,
    grid: Float[ArrayLike, "points ..."],
    order: int = 2,
    *,
    variant: str = "bh2",
    corrector: bool = True,
    noise_form: bool = False,
    damping: float | None = None,
    lower_order_final: bool | None = None,
    like: Float[ArrayLike, "same ..."] | None = None,
) -> Table:
    """UniPC-p (Zhao et al. 2023, arXiv 2302.04867): predictor UniP-p, corrector UniC-p, of order p + 1; N calls.

    Where the paper's system R_p(h) a B(h) = phi_p(h) is solved, B cancels and the weights are exponential Adams'. Only
    where the paper sets a_1 = 1/2 outright, in UniP-2 and UniC-1, B(h) counts: `variant` bh1 has h, bh2 exp(h) - 1.
    order: 1 to 4. The other arguments are those of `exponential_adams`.
    """
    second = choice(variant, UNIPC_VARIANTS, "unipc: variant")
    steps = steps_of(
        "unipc", schedule, grid, order, lower_order_final=lower_order_final, in_logsnr=True,
        careful=noise_form and corrector, like=like,
    )  # fmt: skip
    check_damping("unipc", damping)
    return exponential_table(steps, noise=noise_form, correct=corrector, second=second, damping=damping)
