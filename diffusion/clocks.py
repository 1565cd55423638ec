"""Clocks: the log-SNR as a falling function of time, t = 0 clean and t = 1 noise, with its exact inverse.

`schedules` puts them together with scalings and ends, and says what they have in common.
"""

import dataclasses
import functools
import math
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float

Levels = Float[ArrayLike, "..."] | int
"""A log-SNR or a time: a number or an array of any shape, NumPy or JAX."""


def namespace(x: Any) -> Any:
    """numpy for Python numbers and NumPy arrays, else what the array says (jax.numpy)."""
    host = isinstance(x, np.ndarray | np.generic) or not hasattr(x, "__array_namespace__")
    return np if host else x.__array_namespace__()


def elementwise(function):
    """Turn a method f(self, xp, x) of a floating x into f(self, x) in the namespace of x.

    NumPy and numbers: computed in float64, ValueError for NaN. JAX: in the dtype of x, but at least float32.
    """

    @functools.wraps(function)
    def wrapped(self, x):
        xp = namespace(x)
        if xp is np:
            with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
                result = function(self, np, np.asarray(x, np.float64))
            if np.isnan(result).any():
                kind = type(self).__name__
                raise ValueError(f"{kind}.{function.__name__} has no value somewhere in {x!r}")
            return result
        dtype = x.dtype if xp.isdtype(x.dtype, "real floating") else xp.zeros(()).dtype
        # Half precision has too few bits for a level: 8 bits of log-SNR near 10 are steps of 6 per cent.
        wide = x.astype(xp.float32 if dtype.itemsize < 4 else dtype)
        return function(self, xp, wide).astype(dtype)

    del wrapped.__wrapped__  # its signature would show xp
    return wrapped


def _log_expm1(xp, x):
    """log(e^x - 1) for x >= 0, without overflow at large x and without cancellation at small."""
    return x + xp.log(-xp.expm1(-x))


@runtime_checkable
class Clock(Protocol):
    """A strictly falling log-SNR over time and its inverse."""

    def logsnr(self, t: Levels) -> Levels: ...

    def time(self, logsnr: Levels) -> Levels: ...


def _integrated_beta(clock, xp, t):
    integral = t * (clock.beta_min + t * (clock.beta_max - clock.beta_min) / 2)
    # The parabola rises again on its other side.
    return xp.where(t < 0, xp.full_like(t, xp.nan), integral)


def _time_of_integral(clock, xp, integral):
    slope = clock.beta_max - clock.beta_min
    finite = xp.where(xp.isinf(integral), xp.ones_like(integral), integral)
    # The root of the quadratic that loses no digits at small t.
    bottom = clock.beta_min + xp.sqrt(clock.beta_min**2 + 2 * slope * finite)
    t = 2 * finite / xp.where(bottom == 0, xp.ones_like(bottom), bottom)  # 0 at t = 0 with beta_min = 0
    return xp.where(xp.isinf(integral), integral, t)


@dataclasses.dataclass(frozen=True)
class LinearBeta:
    """VP with beta(t) = beta_min + t (beta_max - beta_min), B its integral: logsnr = -log(e^B - 1).

    Song et al. 2021, arXiv 2011.13456, appendix C. Levels noisier than t = 1 have times above 1, so grids may
    start a little beyond.
    """

    beta_min: float
    beta_max: float

    def __post_init__(self):
        _check_betas(self)

    @elementwise
    def logsnr(self, xp, t):
        return -_log_expm1(xp, _integrated_beta(self, xp, t))

    @elementwise
    def time(self, xp, logsnr):
        return _time_of_integral(self, xp, xp.logaddexp(xp.zeros_like(logsnr), -logsnr))


@dataclasses.dataclass(frozen=True)
class SubVPLinearBeta:
    """Sub-VP with the same beta: alpha = e^(-B/2), sigma = 1 - e^-B, so logsnr = B - 2 log(e^B - 1)."""

    beta_min: float
    beta_max: float

    def __post_init__(self):
        _check_betas(self)

    @elementwise
    def logsnr(self, xp, t):
        integral = _integrated_beta(self, xp, t)
        return -integral - 2 * xp.log(-xp.expm1(-integral))

    @elementwise
    def time(self, xp, logsnr):
        return _time_of_integral(self, xp, 2 * xp.arcsinh(xp.exp(-logsnr / 2) / 2))


@dataclasses.dataclass(frozen=True)
class Cosine:
    """logsnr = -2 log tan(theta), theta linear in t so that t = 0 and 1 give logsnr_max and logsnr_min.

    With infinite limits alpha = cos(pi t / 2) (Nichol & Dhariwal 2021 without their offset); with finite ones
    the clipped schedule of Salimans & Ho 2022, arXiv 2202.00512, and Hoogeboom et al. 2023, arXiv 2301.11093,
    section 3.
    """

    logsnr_min: float
    logsnr_max: float

    def __post_init__(self):
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"cosine schedule: expected logsnr_min < logsnr_max, got {self}")

    @property
    def _angles(self):
        """theta at t = 0, pi/2 - theta at t = 1, and the width between: each with all its digits."""
        clean, noise = math.atan(math.exp(-self.logsnr_max / 2)), math.atan(math.exp(self.logsnr_min / 2))
        return clean, noise, math.pi / 2 - clean - noise

    @elementwise
    def logsnr(self, xp, t):
        clean, noise, width = self._angles
        # tan theta = sin theta / sin(pi/2 - theta), both angles counted from the end where they are small.
        return 2 * (xp.log(xp.sin(noise + (1 - t) * width)) - xp.log(xp.sin(clean + t * width)))

    @elementwise
    def time(self, xp, logsnr):
        clean, _, width = self._angles
        return (xp.arctan(xp.exp(-logsnr / 2)) - clean) / width


@dataclasses.dataclass(frozen=True)
class InterpolatedCosine:
    """Cosine plus an offset that goes linearly in t from offset_data (t = 0) to offset_noise (t = 1).

    Hoogeboom et al. 2023, arXiv 2301.11093, section 3. offset_noise <= offset_data keeps it falling. The
    inverse is a bracketed Newton solve, to rounding error in float64.
    """

    base: Cosine
    offset_noise: float
    offset_data: float

    def __post_init__(self):
        if not self.offset_noise <= self.offset_data:
            raise ValueError(
                "interpolated cosine schedule: the noise end must be shifted at least as far towards noise"
                f" as the data end (offset_noise <= offset_data), got {self}"
            )

    @elementwise
    def logsnr(self, xp, t):
        return self.base.logsnr(t) + t * self.offset_noise + (1 - t) * self.offset_data

    @elementwise
    def time(self, xp, logsnr):
        # Unknown: the log-SNR w of the base at that time, w + offset_data - drop * time(w) = logsnr.
        drop = self.offset_data - self.offset_noise
        *_, width = self.base._angles
        inside = xp.where(xp.isinf(logsnr), xp.zeros_like(logsnr), logsnr) - self.offset_data
        # Before t = 0 and after t = 1 the offset goes on linearly, hence the margin.
        low, high = inside - drop, inside + 2 * drop
        for _ in range(12):
            middle = (low + high) / 2
            above = middle - drop * self.base.time(middle) > inside
            low, high = xp.where(above, low, middle), xp.where(above, middle, high)
        w = (low + high) / 2
        for _ in range(4):
            slope = 1 + drop / (4 * width * xp.cosh(w / 2))
            w = w - (w - drop * self.base.time(w) - inside) / slope
        return self.base.time(xp.where(xp.isinf(logsnr), logsnr, w))


@dataclasses.dataclass(frozen=True)
class Discrete:
    """A discrete VP chain, exact at its levels: i = 0 .. T-1 with abar_i = prod (1 - beta) at t = (i + 1) /
    T.

    t = 0 is clean data. Between levels -log abar is linear in t, i.e. beta(t) is constant on each interval
    (as in Lu et al. 2022, arXiv 2206.00927). If the last beta is 1 (zero terminal SNR), abar itself is linear
    on the last interval.
    """

    betas: tuple[float, ...]

    def __post_init__(self):
        betas = np.asarray(self.betas, np.float64)
        inner = betas[:-1]
        if betas.ndim != 1 or betas.size < 2 or not ((inner > 0) & (inner < 1)).all() or not 0 < betas[-1] <= 1:
            raise ValueError(
                "discrete schedule: expected at least two betas in (0, 1) (the last may be 1), got"
                f" {betas.size} with range [{betas.min(initial=np.inf)}, {betas.max(initial=-np.inf)}]"
            )
        object.__setattr__(self, "betas", tuple(betas.tolist()))

    @functools.cached_property
    def _knots(self):
        """Times and -log abar, from t = 0 to the last finite level."""
        betas = np.asarray(self.betas)
        finite = betas[betas < 1]
        return np.arange(finite.size + 1) / betas.size, np.concatenate([[0.0], np.cumsum(-np.log1p(-finite))])

    @elementwise
    def logsnr(self, xp, t):
        times, sums = (xp.asarray(k, dtype=t.dtype) for k in self._knots)
        # In steps: t = 1 is then exactly one step past the last finite level, in any precision, and noise alone.
        past = xp.maximum(t * len(self.betas) - (len(times) - 1), xp.zeros_like(t))
        if self.betas[-1] == 1:
            rest = -xp.log1p(-xp.minimum(past, xp.ones_like(t)))
        else:
            rest = past * (sums[-1] - sums[-2])
        below = xp.where(t < 0, xp.full_like(t, xp.nan), xp.zeros_like(t))
        return -_log_expm1(xp, xp.interp(t, times, sums) + rest) + below

    @elementwise
    def time(self, xp, logsnr):
        times, sums = (xp.asarray(k, dtype=logsnr.dtype) for k in self._knots)
        total = xp.logaddexp(xp.zeros_like(logsnr), -logsnr)
        past = xp.maximum(total - sums[-1], xp.zeros_like(total))
        if self.betas[-1] == 1:
            past = -xp.expm1(-past)
        else:
            past = past / (sums[-1] - sums[-2])
        return xp.interp(total, sums, times) + past / len(self.betas)


@dataclasses.dataclass(frozen=True)
class Straight:
    """A straight line from logsnr_max at t = 0 to logsnr_min at t = 1.

    The geometric sigma(t) of NCSN++ (Song et al. 2021, appendix C).
    """

    logsnr_min: float
    logsnr_max: float

    def __post_init__(self):
        if not -math.inf < self.logsnr_min < self.logsnr_max < math.inf:
            raise ValueError(f"straight log-SNR: expected finite logsnr_min < logsnr_max, got {self}")

    @elementwise
    def logsnr(self, xp, t):
        return t * self.logsnr_min + (1 - t) * self.logsnr_max

    @elementwise
    def time(self, xp, logsnr):
        return (self.logsnr_max - logsnr) / (self.logsnr_max - self.logsnr_min)


@dataclasses.dataclass(frozen=True)
class Karras:
    """sigma/alpha to the power 1/rho linear in t (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    In that paper this is the *sampling grid*; its noise schedule is sigma(t) = t, and training levels are
    log-normal (`levels.edm_lognormal`). As a clock it makes "uniform in t" that grid.
    """

    sigma_min: float
    sigma_max: float
    rho: float

    def __post_init__(self):
        if not (0 < self.sigma_min < self.sigma_max < math.inf and 0 < self.rho < math.inf):
            raise ValueError(f"EDM clock: expected 0 < sigma_min < sigma_max and rho > 0, got {self}")

    @elementwise
    def logsnr(self, xp, t):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return -2 * self.rho * xp.log(t * high + (1 - t) * low)

    @elementwise
    def time(self, xp, logsnr):
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (xp.exp(-logsnr / (2 * self.rho)) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class Rectified:
    """sigma/alpha = t / (1 - t): in the flow scaling sigma = t (Liu et al. 2022)."""

    @elementwise
    def logsnr(self, xp, t):
        return 2 * (xp.log1p(-t) - xp.log(t))

    @elementwise
    def time(self, xp, logsnr):
        return xp.exp(-xp.logaddexp(xp.zeros_like(logsnr), logsnr / 2))


@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """VP with abar a sigmoid that falls from exactly 1 to exactly 0 (Jabri et al. 2022, arXiv 2212.11972).

    abar = (S(end) - S(u)) / (S(end) - S(start)), u = start + t (end - start), all over tau, S the logistic
    function. With k = (end - start) / 2 tau it is logsnr = log sinh((1-t)k) - log sinh(tk) + log
    cosh(start/2tau)
    - log cosh(end/2tau): the terms in u cancel, and the inverse is closed.
    """

    start: float
    end: float
    tau: float

    def __post_init__(self):
        if not (self.start < self.end and 0 < self.tau < math.inf and 2 * self._half_width < 80):
            raise ValueError(
                f"sigmoid schedule: expected start < end, tau > 0 and (end - start) / tau < 80, got {self}"
            )

    @property
    def _half_width(self):
        return (self.end - self.start) / (2 * self.tau)

    @property
    def _constant(self):
        return math.log(math.cosh(self.start / (2 * self.tau)) / math.cosh(self.end / (2 * self.tau)))

    @elementwise
    def logsnr(self, xp, t):
        k = self._half_width
        return xp.log(xp.sinh((1 - t) * k)) - xp.log(xp.sinh(t * k)) + self._constant

    @elementwise
    def time(self, xp, logsnr):
        k = self._half_width
        ratio = xp.exp(logsnr - self._constant)
        return xp.log1p(2 * math.sinh(k) / (ratio + math.exp(-k))) / (2 * k)


@dataclasses.dataclass(frozen=True)
class Laplace:
    """Uniform t gives a Laplace-distributed log-SNR (Hang et al. 2024, arXiv 2407.03297)."""

    mean: float
    scale: float

    def __post_init__(self):
        if not (0 < self.scale < math.inf and math.isfinite(self.mean)):
            raise ValueError(f"Laplace schedule: expected a finite mean and a scale above 0, got {self}")

    @elementwise
    def logsnr(self, xp, t):
        half = xp.zeros_like(t) + 0.5
        # On the clean half (t < 1/2) the second term is 0, on the noisy half the first.
        return self.mean + self.scale * (xp.log(2 * xp.minimum(1 - t, half)) - xp.log(2 * xp.minimum(t, half)))

    @elementwise
    def time(self, xp, logsnr):
        away = logsnr - self.mean
        noisy = away < 0  # at 0 the slope of abs would be that of the other half
        tail = xp.exp(-xp.where(noisy, -away, away) / self.scale) / 2
        return xp.where(noisy, 1 - tail, tail)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Another clock plus one constant on its log-SNR."""

    clock: Clock
    offset: float

    @elementwise
    def logsnr(self, xp, t):
        return self.clock.logsnr(t) + self.offset

    @elementwise
    def time(self, xp, logsnr):
        return self.clock.time(logsnr - self.offset)


def _check_betas(clock):
    if not (0 <= clock.beta_min < math.inf and 0 < clock.beta_max < math.inf and clock.beta_min <= clock.beta_max):
        raise ValueError(f"linear beta: expected 0 <= beta_min <= beta_max and beta_max > 0, got {clock}")
