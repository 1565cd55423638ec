"""What a network predicts, and every conversion between them.

One idea: every prediction p satisfies c p = a x0 + b eps, with (a, b, c) functions of (alpha, sigma).
Together with x = alpha x0 + sigma eps these are two linear equations for x0 and eps, so

    x0  = (b x - sigma c p) / D,    eps = (alpha c p - a x) / D,    D = alpha b - sigma a,

and any prediction converts into any other. The conversions hold at infinite log-SNR wherever the answer is
finite: v, velocity, F and x0 give x0 at alpha = 0; v, velocity, F and eps give eps at sigma = 0. The rest has
no answer (eps and score say nothing about x0 at alpha = 0, x0 nothing about eps at sigma = 0): a ValueError
where the level is known on the host, NaN where it is traced. `check_levels` holds a whole grid against a
prediction beforehand.

All arithmetic is in at least float32: at sigma/alpha = 157 a bfloat16 error of .004 in eps is .6 in x0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PRNGKeyArray

from diffusion.clocks import Levels
from diffusion.levels import expand, wide
from diffusion.names import choice
from diffusion.schedules import Data, Schedule

Coefficients = Callable[[Any, Any], tuple[Any, Any, Any]]
"""(alpha, sigma) -> (a, b, c) of c p = a x0 + b eps."""


def x0(alpha, sigma):
    """The clean data itself."""
    one = alpha * 0 + 1
    return one, one * 0, one


def eps(alpha, sigma):
    """The noise (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""
    one = alpha * 0 + 1
    return one * 0, one, one


def v(alpha, sigma):
    """v = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv 2202.00512, appendix D), in any scaling."""
    return -sigma, alpha, alpha * 0 + 1


def velocity(alpha, sigma):
    """eps - x0, the velocity of rectified flow (Liu et al. 2022, arXiv 2209.03003), in any scaling."""
    one = alpha * 0 + 1
    return -one, one, one


def score(alpha, sigma):
    """grad log p(x) = -eps / sigma (Song et al. 2021, arXiv 2011.13456)."""
    return alpha * 0, alpha * 0 - 1, sigma


@dataclasses.dataclass(frozen=True)
class F:
    """The raw network of EDM, x0 = c_skip x + c_out F (Karras et al. 2022, arXiv 2206.00364, eq. 7).

    In any scaling F = (sigma x0 - alpha sd^2 eps) / (sd sqrt(alpha^2 sd^2 + sigma^2)), sd the standard
    deviation of the data. In the VP scaling with sd = 1 it is -v.
    """

    sigma_data: float = 0.5

    def __post_init__(self):
        if not 0 < self.sigma_data < float("inf"):
            raise ValueError(f"F: expected sigma_data above 0, got {self.sigma_data}")

    def __call__(self, alpha, sigma):
        sd = self.sigma_data
        return sigma, -alpha * sd**2, sd * (alpha**2 * sd**2 + sigma**2) ** 0.5


PREDICTIONS: dict[str, Coefficients] = {
    "x0": x0, "eps": eps, "v": v, "velocity": velocity, "score": score, "F": F()
}  # fmt: skip
"""The predictions by name. Wherever a name is taken, so is a function such as `F(sigma_data=1.0)`."""


def coefficients(prediction: str | Coefficients) -> Coefficients:
    """The coefficient function of a prediction; KeyError for an unknown name, with the nearest one."""
    if callable(prediction):
        return prediction
    return choice(prediction, PREDICTIONS, "prediction", KeyError)


def _solved(source, target, alpha, sigma, xp):
    """(X, P) with target prediction = X x + P p. NaN where p and x do not determine it."""
    a, b, c = source(alpha, sigma)
    a_to, b_to, c_to = target(alpha, sigma)
    det = alpha * b - sigma * a

    def over(numerator, denominator):
        safe = xp.where(denominator == 0, xp.ones_like(denominator), denominator)
        return xp.where(denominator == 0, xp.full_like(denominator, xp.nan), numerator / safe)

    zero = xp.zeros_like(alpha)
    # Where b = 0 the prediction is x0 up to a factor, even if det = 0; where a = 0 it is eps.
    x0_x, x0_p = xp.where(b == 0, zero, over(b, det)), xp.where(b == 0, over(c, a), over(-sigma * c, det))
    eps_x, eps_p = xp.where(a == 0, zero, over(-a, det)), xp.where(a == 0, over(c, b), over(alpha * c, det))

    def mixed(of_x0, of_eps):
        # What is not used may be undetermined.
        return xp.where(a_to == 0, zero, a_to * of_x0) + xp.where(b_to == 0, zero, b_to * of_eps)

    return over(mixed(x0_x, eps_x), c_to), over(mixed(x0_p, eps_p), c_to)


def convert(
    value: Data,
    x: Data,
    logsnr: Levels,
    schedule: Schedule,
    source: str | Coefficients,
    target: str | Coefficients,
) -> Data:
    """The prediction `value` of kind `source` at noisy `x`, as kind `target`; logsnr is a level of x.

    Returns at least float32. Raises KeyError for an unknown kind, and ValueError for a level, known on the
    host, at which the source does not determine the target.
    """
    source, target = coefficients(source), coefficients(target)
    xp, value, x = _wide(value, x, logsnr)
    if source == target:
        return value
    _refuse(source, target, logsnr, schedule)
    of_x, of_value = _weights(source, target, wide(expand(logsnr, x)), schedule, xp, x.dtype)
    return of_x * x + of_value * value


def denoised(
    prediction: str | Coefficients,
    value: Data,
    x: Data,
    logsnr: Levels,
    schedule: Schedule,
) -> Data:
    """The estimate of x0 that a network's output `value` means: `convert` to "x0"."""
    return convert(value, x, logsnr, schedule, prediction, "x0")


def check_levels(
    prediction: str | Coefficients,
    logsnr: Levels,
    schedule: Schedule,
    target: str | Coefficients = "x0",
) -> None:
    """Raises ValueError if `prediction` does not determine `target` at every given level (host arrays)."""
    _refuse(coefficients(prediction), coefficients(target), np.asarray(logsnr), schedule)


def _weights(source, target, level, schedule, xp, dtype):
    alpha, sigma = (xp.asarray(c, dtype=dtype) for c in (schedule.alpha(level), schedule.sigma(level)))
    return _solved(source, target, alpha, sigma, xp)


def _refuse(source, target, logsnr, schedule):
    if isinstance(logsnr, jax.core.Tracer):
        return
    level = np.asarray(logsnr, np.float64)
    infinite = np.isinf(level)
    if not infinite.any():
        return
    ends = np.unique(level[infinite])
    weights = _solved(source, target, schedule.alpha(ends), schedule.sigma(ends), np)
    bad = ends[~np.isfinite(weights).all(0)]
    if bad.size:
        raise ValueError(
            f"prediction {_name(source)} does not determine {_name(target)} at logsnr {bad.tolist()} in"
            f" {schedule.scaling}: use a finite level, or a network that predicts v, velocity or F"
        )


def _name(kind):
    return next((name for name, known in PREDICTIONS.items() if known == kind), repr(kind))


def _wide(value, x, logsnr):
    """(namespace of all three, both data in it and in one dtype of at least float32)"""
    if np.shape(value) != np.shape(x):
        raise ValueError(
            f"a prediction of shape {list(np.shape(value))} at x of shape {list(np.shape(x))}: expected the same"
        )
    host = isinstance(value, np.ndarray) and isinstance(x, np.ndarray) and not isinstance(logsnr, jax.Array)
    xp = np if host else jnp
    value, x = xp.asarray(value), xp.asarray(x)
    dtype = xp.promote_types(xp.promote_types(value.dtype, x.dtype), np.float32)
    return xp, value.astype(dtype), x.astype(dtype)


# Networks as denoisers --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Network:
    """The static part of a denoiser. Equal parts have equal tree structures: other weights compile nothing."""

    apply: Callable[..., Array]
    schedule: Schedule
    prediction: str | Coefficients
    train: bool
    jumps: bool

    def __call__(self, params, cond, key, x, logsnr, *jump):
        if self.jumps:
            cond = {**(cond or {}), "logsnr_to": jump[0]}
        # Left out when not asked for: a plain function of (params, x, logsnr, cond) is a network too.
        options = {"key": key, "train": self.train} if self.train or key is not None else {}
        value = self.apply(params, x, logsnr, cond, **options)
        return denoised(self.prediction, value, x, logsnr, self.schedule)


def denoiser(
    apply: Callable[..., Array],
    params: Any,
    cond: dict[str, Any] | None = None,
    *,
    schedule: Schedule,
    prediction: str | Coefficients = "v",
    key: PRNGKeyArray | None = None,
    train: bool = False,
) -> Partial:
    """denoise(x, logsnr) -> the estimate of x0, from apply(params, x, logsnr, cond, key=, train=).

    A `jax.tree_util.Partial`: params, cond and the dropout key are arguments of whatever program it enters;
    apply, schedule, prediction and train are static and compared by value. The network gets the level as it
    comes, and key and train only if they are given.
    """
    return Partial(_static(apply, schedule, prediction, train, False), params, cond, key)


def flow_map(
    apply: Callable[..., Array],
    params: Any,
    cond: dict[str, Any] | None = None,
    *,
    schedule: Schedule,
    prediction: str | Coefficients = "v",
    key: PRNGKeyArray | None = None,
    train: bool = False,
) -> Partial:
    """jump(x, logsnr, logsnr_to) -> the x0 with which one DDIM step from x lands where the network says.

    The network finds the level to jump to in cond["logsnr_to"]. Its prediction is read at (x, logsnr) as a
    denoiser's is: with x0 this is g of consistency trajectory models (Kim et al. 2023, arXiv 2310.02279),
    with velocity in the flow scaling the average velocity of MeanFlow (Geng et al. 2025, arXiv
    2505.13447), as a DDIM step with x0 = x - t u moves x by -(t - r) u.
    """
    return Partial(_static(apply, schedule, prediction, train, True), params, cond, key)


def _static(apply, schedule, prediction, train, jumps):
    coefficients(prediction)
    return _Network(apply, schedule, prediction, bool(train), jumps)


# Preconditioning --------------------------------------------------------------------------------------------


def preconditioning(logsnr: Levels, schedule: Schedule, sigma_data: float = 0.5) -> tuple[Levels, Levels, Levels]:
    """(c_skip, c_out, c_in) with x0 = c_skip x + c_out F(c_in x) (Karras et al. 2022, table 1).

    In any scaling, with v = alpha^2 sd^2 + sigma^2 the variance of x: c_skip = alpha sd^2 / v,
    c_out = sigma sd / sqrt(v), c_in = 1 / sqrt(v).
    """
    alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
    variance = alpha**2 * sigma_data**2 + sigma**2
    return alpha * sigma_data**2 / variance, sigma * sigma_data / variance**0.5, variance**-0.5


def boundary_coefficients(
    logsnr: Levels,
    logsnr_boundary: Levels,
    schedule: Schedule,
    sigma_data: float = 0.5,
) -> tuple[Levels, Levels, Levels]:
    """(c_skip, c_out, c_in) of f(x) = c_skip x + c_out F(c_in x), which is x itself at the boundary level.

    f estimates the point at the boundary on the same trajectory, in the schedule's scale. With (alpha',
    sigma') there and v = alpha^2 sd^2 + sigma^2:

        c_skip = (alpha alpha' sd^2 + sigma sigma') / v,   c_out = sd (sigma alpha' - alpha sigma') / sqrt(v).

    c_skip is the regression of the boundary's noisy data on x and c_out^2 the variance left, so F has unit
    variance for any boundary. In EDM's scaling c_skip = (sd^2 + e t) / (sd^2 + t^2) and
    c_out = (t - e) sd / sqrt(sd^2 + t^2); Song et al. 2023, arXiv 2303.01469, appendix C, has the same c_out
    and c_skip = sd^2 / ((t - e)^2 + sd^2), which is off in scale when the boundary e is large. VP with sd = 1
    gives cos and sin of the angle between the levels (TrigFlow); a boundary at +inf gives `preconditioning`.
    """
    alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
    to_alpha, to_sigma = schedule.alpha(logsnr_boundary), schedule.sigma(logsnr_boundary)
    variance = alpha**2 * sigma_data**2 + sigma**2
    skip = (alpha * to_alpha * sigma_data**2 + sigma * to_sigma) / variance
    out = sigma_data * (sigma * to_alpha - alpha * to_sigma) / variance**0.5
    return skip, out, variance**-0.5
