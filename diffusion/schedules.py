"""Noise schedules: a scaling, a clock and two ends, all in the log-SNR.

Noisy data is x = alpha x0 + sigma eps. With logsnr = log(alpha^2 / sigma^2), what is called a schedule falls
into

* a **scaling**, how alpha and sigma follow from the log-SNR (`VP`, `VE`, `SubVP`, `Flow`). Two scalings at
  the same log-SNR differ by a rescaling of x and by nothing else: x / alpha is the same random variable
  (Kingma et al. 2021, arXiv 2107.00630, section 5.1). So a denoiser trained in one can be sampled in any
  other, see `rescale`;
* a **clock**, the log-SNR as a function of t in [0, 1], t = 0 clean and t = 1 noise, with its exact inverse.
  A clock decides only where steps and training levels fall;
* two finite **ends**, `logsnr_start` (noise) and `logsnr_end` (data), the defaults of every grid.

Everything works in the array namespace of its argument. Python numbers and NumPy arrays give float64 NumPy
(and a ValueError where the answer is not a number); JAX arrays, traced or not, give JAX arrays of their own
dtype, computed in at least float32. alpha and sigma are finite with finite gradients at logsnr = +inf and
-inf, but for the sigma of `VE`, which is infinite at -inf.

Papers that write lambda = log(alpha / sigma) use half of this log-SNR.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from diffusion.clocks import (
    Clock,
    Cosine,
    Discrete,
    InterpolatedCosine,
    Karras,
    Laplace,
    Levels,
    LinearBeta,
    Rectified,
    Shifted,
    Sigmoid,
    Straight,
    SubVPLinearBeta,
    elementwise,
    namespace,
)
from diffusion.names import choice

Data = Float[Array | np.ndarray, "..."]

# Scalings ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class VP:
    """Variance preserving, alpha^2 + sigma^2 = 1 (Song et al. 2021, arXiv 2011.13456, section 3.4)."""

    @elementwise
    def alpha(self, xp, logsnr):
        return xp.exp(-xp.logaddexp(xp.zeros_like(logsnr), -logsnr) / 2)

    @elementwise
    def sigma(self, xp, logsnr):
        return xp.exp(-xp.logaddexp(xp.zeros_like(logsnr), logsnr) / 2)


@dataclasses.dataclass(frozen=True)
class VE:
    """Variance exploding, alpha = 1 (Song et al. 2021, section 3.4).

    It is the frame y = x / alpha of any other scaling. alpha = 0 does not exist here: at logsnr = -inf sigma
    is infinite.
    """

    @elementwise
    def alpha(self, xp, logsnr):
        return xp.ones_like(logsnr)

    @elementwise
    def sigma(self, xp, logsnr):
        return xp.exp(-logsnr / 2)


@dataclasses.dataclass(frozen=True)
class SubVP:
    """sigma = 1 - alpha^2 (Song et al. 2021, section 3.4), made for likelihoods.

    alpha^2 + sigma^2 is below 1 and dips to .75, where alpha^2 = 1/2. From 1/alpha - alpha = exp(-logsnr /
    2), alpha = exp(-asinh(exp(-logsnr / 2) / 2)); below in a form that holds at both infinite ends.
    """

    @elementwise
    def alpha(self, xp, logsnr):
        four = xp.full_like(logsnr, math.log(4.0))
        return 2 * xp.exp(-xp.logaddexp(-logsnr / 2, xp.logaddexp(-logsnr, four) / 2))

    @elementwise
    def sigma(self, xp, logsnr):
        zero = xp.zeros_like(logsnr)
        return 2 * xp.exp(-xp.logaddexp(zero, xp.logaddexp(zero, logsnr + math.log(4.0)) / 2))


@dataclasses.dataclass(frozen=True)
class Flow:
    """alpha + sigma = 1: straight lines from noise to data (Liu et al. 2022, arXiv 2209.03003)."""

    @elementwise
    def alpha(self, xp, logsnr):
        return xp.exp(-xp.logaddexp(xp.zeros_like(logsnr), -logsnr / 2))

    @elementwise
    def sigma(self, xp, logsnr):
        return xp.exp(-xp.logaddexp(xp.zeros_like(logsnr), logsnr / 2))


# Schedules --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A scaling, a clock and two finite ends.

    Equality is by value; `repr`, evaluated with this module's names, and `record` both rebuild it.
    """

    scaling: Any
    clock: Clock
    logsnr_start: float
    logsnr_end: float

    def __post_init__(self):
        start, end = float(self.logsnr_start), float(self.logsnr_end)
        if not -inf < start < end < inf:
            raise ValueError(
                "schedule: expected finite ends with logsnr_start (noise) below logsnr_end (data), got"
                f" {start} and {end}; infinite ends are asked for in the grid"
            )
        object.__setattr__(self, "logsnr_start", start)
        object.__setattr__(self, "logsnr_end", end)

    def alpha(self, logsnr: Levels) -> Levels:
        """The coefficient of x0 in x."""
        return self.scaling.alpha(logsnr)

    def sigma(self, logsnr: Levels) -> Levels:
        """The coefficient of eps in x."""
        return self.scaling.sigma(logsnr)

    def size(self, logsnr: Levels) -> Levels:
        """sqrt(alpha^2 + sigma^2), of noisy data of unit variance: how large the noise is with which a sample begins."""
        alpha, sigma = self.alpha(logsnr), self.sigma(logsnr)
        return namespace(alpha).hypot(alpha, sigma)

    def logsnr(self, t: Levels) -> Levels:
        """log(alpha^2 / sigma^2) at time t in [0, 1]; t = 0 is clean."""
        return self.clock.logsnr(t)

    def time(self, logsnr: Levels) -> Levels:
        """The inverse of `logsnr`."""
        return self.clock.time(logsnr)

    def shifted(self, offset: float = 0.0, *, factor: float = 1.0) -> "Schedule":
        """The schedule with `offset` added to its log-SNR, or sigma/alpha multiplied by `factor`.

        A factor is the offset -2 log factor, and every published shift is one of these: SD3, Wan and Flux
        t' = a t / (1 + (a - 1) t) has factor a, simple diffusion factor = resolution / base, CogVideoX
        abar' = abar / (c + (1 - c) abar) factor = sqrt(c). The ends move along.
        """
        if not (math.isfinite(offset) and 0 < factor < inf):
            raise ValueError(f"shift: expected a finite offset and a factor above 0, got {offset} and {factor}")
        total = offset - 2 * math.log(factor)
        if total == 0:
            return self
        inner, before = (self.clock.clock, self.clock.offset) if isinstance(self.clock, Shifted) else (self.clock, 0.0)
        clock = Shifted(inner, before + total) if before + total else inner
        return Schedule(self.scaling, clock, self.logsnr_start + total, self.logsnr_end + total)


def rescale(x: Data, logsnr: Levels, source: Schedule, target: Schedule) -> Data:
    """The same noisy data in another scaling: x times alpha_target / alpha_source, at a level of any shape that
    `levels.expand` takes.

    Below logsnr = 0 it is sigma_target / sigma_source, the same number, which holds at alpha = 0 too.
    """
    from diffusion.levels import expand, wide  # which are made of schedules

    logsnr = wide(expand(logsnr, x))
    xp = namespace(x) if namespace(logsnr) is np else namespace(logsnr)
    noisy = xp.asarray(logsnr) < 0
    top = xp.where(noisy, target.sigma(logsnr), target.alpha(logsnr))
    return x * top / xp.where(noisy, source.sigma(logsnr), source.alpha(logsnr))


def vp_linear(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """VP, beta linear in t (Song et al. 2021): the continuous limit of DDPM. Ends: t = 1 and t = 1e-3."""
    return _between(VP(), LinearBeta(float(beta_min), float(beta_max)), 1.0, 1e-3)


def vp_cosine(shift: float = 1.0, logsnr_min: float = -20.0, logsnr_max: float = 20.0) -> Schedule:
    """VP cosine, clipped to [logsnr_min, logsnr_max], which are its ends (before the shift).

    `shift` multiplies sigma/alpha: resolution / base in Hoogeboom et al. 2023 (their log-SNR + 2
    log(base/resolution)). Limits of -inf and inf give the plain cosine; its ends are then at -20 and 20.
    """
    clock = Cosine(float(logsnr_min), float(logsnr_max))
    return Schedule(VP(), clock, *_finite_ends(clock)).shifted(factor=shift)


def _finite_ends(clock: Cosine) -> tuple[float, float]:
    """A cosine's limits, 20 where it has none."""
    low, high = clock.logsnr_min, clock.logsnr_max
    return (-20.0 if low == -inf else low), (20.0 if high == inf else high)


def vp_cosine_interpolated(
    shift_noise: float, shift_data: float = 1.0, logsnr_min: float = -20.0, logsnr_max: float = 20.0
) -> Schedule:
    """VP cosine whose shift goes from `shift_noise` at t = 1 to `shift_data` at t = 0.

    Hoogeboom et al. 2023, arXiv 2301.11093, section 3: "interpolated from 32 to the full resolution d" is
    shift_noise = d / 32, shift_data = 1.
    """
    if not (0 < shift_noise < inf and 0 < shift_data < inf):
        raise ValueError(f"interpolated cosine: expected shifts above 0, got {shift_noise} and {shift_data}")
    base = Cosine(float(logsnr_min), float(logsnr_max))
    clock = InterpolatedCosine(base, -2 * math.log(shift_noise), -2 * math.log(shift_data))
    ends = _finite_ends(base)
    return Schedule(VP(), clock, ends[0] + clock.offset_noise, ends[1] + clock.offset_data)


def vp_discrete(betas: Sequence[float] | Float[np.ndarray, " T"]) -> Schedule:
    """VP, exact at the levels of a discrete chain, t = (i + 1) / T (see `Discrete`).

    Ends: the last and the first level. With zero terminal SNR the default start is -20, or the level before
    the last if that is lower; ask the grid for start = -inf to begin at pure noise.
    """
    clock = Discrete(tuple(np.asarray(betas, np.float64).ravel().tolist()))
    steps = len(clock.betas)
    start = float(clock.logsnr(1.0))
    if start == -inf:
        start = min(-20.0, float(clock.logsnr((steps - 1) / steps)))
    return Schedule(VP(), clock, start, float(clock.logsnr(1 / steps)))


def ve(sigma_min: float = 0.01, sigma_max: float = 50.0) -> Schedule:
    """VE, sigma geometric in t (Song et al. 2021, appendix C; the defaults are NCSN++'s on CIFAR-10)."""
    if not 0 < sigma_min < sigma_max < inf:
        raise ValueError(f"ve: expected 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    clock = Straight(-2 * math.log(sigma_max), -2 * math.log(sigma_min))
    return Schedule(VE(), clock, clock.logsnr_min, clock.logsnr_max)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """VE with Karras et al.'s sampling grid as its clock. EDM's own noise schedule is sigma = t.

    See `Karras`. Ends: sigma_max and sigma_min.
    """
    clock = Karras(float(sigma_min), float(sigma_max), float(rho))
    return Schedule(VE(), clock, -2 * math.log(sigma_max), -2 * math.log(sigma_min))


def sub_vp(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """Sub-VP, beta linear in t (Song et al. 2021, appendix C). Ends: t = 1 and t = 1e-3."""
    return _between(SubVP(), SubVPLinearBeta(float(beta_min), float(beta_max)), 1.0, 1e-3)


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow, x = (1 - t) x0 + t eps, with sigma/alpha multiplied by `shift`.

    Ends: t = .999 and .001 before the shift, so sigma/alpha from 999 shift to .001001 shift.
    """
    return _between(Flow(), Rectified(), 0.999, 1e-3).shifted(factor=shift)


def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Schedule:
    """VP, abar a sigmoid in t (Jabri et al. 2022). Ends: t = 1 - 1e-4 and 1e-4."""
    return _between(VP(), Sigmoid(float(start), float(end), float(tau)), 1 - 1e-4, 1e-4)


def laplace(mean: float = 0.0, scale: float = 0.5) -> Schedule:
    """VP, uniform time being Laplace in log-SNR (Hang et al. 2024, arXiv 2407.03297).

    Ends: mean -10 and +10; the times of those levels are too close to 0 and 1 to be given instead.
    """
    return Schedule(VP(), Laplace(float(mean), float(scale)), mean - 10.0, mean + 10.0)


def _between(scaling, clock, t_start, t_end):
    return Schedule(scaling, clock, float(clock.logsnr(t_start)), float(clock.logsnr(t_end)))


# Records ----------------------------------------------------------------------------------------------------

_PARTS = (
    VP,
    VE,
    SubVP,
    Flow,
    LinearBeta,
    SubVPLinearBeta,
    Cosine,
    InterpolatedCosine,
    Discrete,
    Straight,
    Karras,
    Rectified,
    Sigmoid,
    Laplace,
    Shifted,
    Schedule,
)
PARTS = {part.__name__: part for part in _PARTS}


def record(schedule: Schedule) -> dict[str, Any]:
    """The schedule as a JSON value, for checkpoints and saved tables; floats keep all their digits.

    A clock or a scaling of somebody else's is named with its module, "my_module:MyClock".
    """
    return plain(schedule)


def plain(value: Any) -> Any:
    """A schedule, or a value beside it in a record, as JSON has it."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        kind = type(value)
        own = PARTS.get(kind.__name__) is kind
        return {"kind": kind.__name__ if own else f"{kind.__module__}:{kind.__qualname__}", **fields}
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    # JSON has no infinity.
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def restore(saved: dict[str, Any], find: Callable[[str], type] | None = None) -> Schedule:
    """The schedule that `record` wrote. find: "my_module:MyClock" -> the class, for parts that aren't of this file; without it
    they are refused: a record imports nothing by itself.
    """

    def built(value):
        if isinstance(value, dict):
            kind = value.get("kind")
            fields = {name: built(v) for name, v in value.items() if name != "kind"}
            if kind in PARTS:  # a record written by hand may have 1 for 1.0
                fields = {name: float(v) if type(v) is int else v for name, v in fields.items()}
            if find is not None and ":" in str(kind):
                part = find(kind)
            else:
                part = choice(kind, PARTS, "schedule record: kind", KeyError)
            try:
                return part(**fields)
            except TypeError as error:
                expected = [f.name for f in dataclasses.fields(part)]
                raise ValueError(f"schedule record: {kind} takes {expected}, got {sorted(fields)}") from error
        if isinstance(value, list):
            return tuple(built(part) for part in value)
        return float(value) if value in ("inf", "-inf") else value

    schedule = built(saved)
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule record: expected kind 'Schedule', got {type(schedule).__name__}")
    return schedule


# Betas of discrete chains -----------------------------------------------------------------------------------


def ddpm_betas(beta_start: float = 1e-4, beta_end: float = 0.02, num: int = 1000) -> Float[np.ndarray, " num"]:
    """Linear betas (Ho et al. 2020, arXiv 2006.11239, section 4)."""
    return np.linspace(beta_start, beta_end, num, dtype=np.float64)


def scaled_linear_betas(
    beta_start: float = 0.00085, beta_end: float = 0.012, num: int = 1000
) -> Float[np.ndarray, " num"]:
    """Betas whose square roots are linear (Rombach et al. 2022); the defaults are Stable Diffusion's."""
    return np.linspace(beta_start**0.5, beta_end**0.5, num, dtype=np.float64) ** 2


def cosine_betas(num: int = 1000, offset: float = 0.008, beta_max: float = 0.999) -> Float[np.ndarray, " num"]:
    """abar(t) proportional to cos^2((t + offset) / (1 + offset) pi/2), betas clipped.

    Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17.
    """
    t = np.arange(num + 1) / num
    abar = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - abar[1:] / abar[:-1], beta_max)


def rescale_zero_terminal_snr(betas: Sequence[float] | Float[np.ndarray, " T"]) -> Float[np.ndarray, " T"]:
    """Betas with sqrt(abar) moved and stretched to end at exactly 0 and keep its first value.

    Lin et al. 2023, arXiv 2305.08891, algorithm 1. The last beta becomes 1; predict v, x0 or velocity, never
    eps, at that level.
    """
    root = np.exp(0.5 * np.cumsum(np.log1p(-np.asarray(betas, np.float64))))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = root**2
    return 1 - np.concatenate([abar[:1], abar[1:] / abar[:-1]])
