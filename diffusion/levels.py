"""Noise levels in training: how a level broadcasts, where training puts it, and what it weighs.

A **law** is a function (key, shape) -> logsnr, float32; the shape is [b] for a level per clip, [b, f] for one
per frame. Every law here is a quantile function of a uniform variable, so that each can be drawn in every way
of `draws`: independently, stratified over the batch, rising from frame to frame, after clean history, ...

A **weight** is a function logsnr -> factor of the squared error of x0, in the namespace of its argument. What
it means for the error of what the network predicts, with SNR = alpha^2 / sigma^2 and errors at the same x:

    |error of eps|^2      = SNR |error of x0|^2                       in any scaling
    |error of v|^2        = (SNR + 1) (alpha^2 + sigma^2) |..|^2      so SNR + 1 in VP
    |error of velocity|^2 = (1 + sqrt(SNR))^2 |..|^2                  in any scaling
    |error of F|^2        = (SNR + 1 / sigma_data^2) |..|^2           in any scaling
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from diffusion import clocks, draws
from diffusion.clocks import Levels, namespace
from diffusion.draws import Named
from diffusion.schedules import Data, Schedule

Law = Callable[[PRNGKeyArray, tuple[int, ...]], Float[Array, "..."]]
Weight = Callable[[Any], Any]


def expand(
    level: Shaped[Array, "..."] | Shaped[np.ndarray, "..."] | np.number | float,
    like: Shaped[Array, "..."] | Shaped[np.ndarray, "..."],
) -> Shaped[Array, "..."] | Shaped[np.ndarray, "..."]:
    """`level`, or whatever else is known of each clip, with ones on the right up to the rank of `like`.

    A level is [] or starts with the batch axis, of length 1 or b; every further axis is 1 or that of `like`.
    Anything else is a ValueError: a bare [frames] would be read as a batch.
    """
    level = level if hasattr(level, "shape") else np.asarray(level, np.float64)
    shape, target = level.shape, like.shape
    if len(shape) > len(target) or any(n not in (1, m) for n, m in zip(shape, target, strict=False)):
        per_frame = len(target) > 1 and shape == target[1:2]
        hint = f"; a level per frame is [1, {shape[0]}] or [{target[0]}, {shape[0]}]" if per_frame else ""
        raise ValueError(
            f"a level of shape {list(shape)} does not fit data of shape {list(target)}: expected [], or the"
            f" batch axis (1 or {target[0] if target else 1}) followed by axes that are 1 or the data's{hint}"
        )
    return level.reshape(shape + (1,) * (len(target) - len(shape)))


def wide(level: Levels) -> Levels:
    """In at least float32: alpha and sigma of a level in half precision (a network's input, say) are off by up to 10 %."""
    return level.astype(namespace(level).promote_types(level.dtype, np.float32))


def forward(x0: Data, eps: Data, logsnr: Levels, schedule: Schedule) -> Data:
    """x = alpha x0 + sigma eps at a level of any shape that `expand` takes, in at least float32; NumPy where all three are."""
    level = expand(logsnr, x0)
    xp = next((found for found in map(namespace, (x0, eps, level)) if found is not np), np)
    x0, eps, level = xp.asarray(x0), xp.asarray(eps), wide(level)
    dtype = xp.promote_types(xp.promote_types(x0.dtype, eps.dtype), np.float32)
    alpha, sigma = (xp.asarray(c, dtype=dtype) for c in (schedule.alpha(level), schedule.sigma(level)))
    return alpha * x0 + sigma * eps


def _law(quantile, draw) -> Law:
    """The law of quantile(u), which falls in u: 0 is the cleanest level of the law, 1 the noisiest."""
    uniform = draws.named(draw)
    return lambda key, shape: quantile(uniform(key, tuple(shape)))


# Laws -------------------------------------------------------------------------------------------------------


def uniform_time(
    schedule: Schedule, start: float | None = None, end: float | None = None, draw: Named = "independent"
) -> Law:
    """t uniform between the times of `start` and `end`, log-SNR; the schedule's ends by default."""
    start, end = _ends(schedule, start, end)
    first, last = float(schedule.time(end)), float(schedule.time(start))
    return _law(lambda u: schedule.logsnr(first + u * (last - first)), draw)


def uniform_logsnr(
    schedule: Schedule, start: float | None = None, end: float | None = None, draw: Named = "independent"
) -> Law:
    """Log-SNR uniform between the schedule's ends, or `start` and `end`."""
    start, end = _ends(schedule, start, end)
    return _law(lambda u: end + u * (start - end), draw)


def logit_normal(mean: float = 0.0, std: float = 1.0, shift: float = 1.0, draw: Named = "independent") -> Law:
    """Flow time t = sigmoid(n), n ~ N(mean, std^2), then sigma/alpha = t / (1 - t) times `shift`.

    That is logsnr = -2 n - 2 log shift (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """
    _positive("logit_normal", std=std, shift=shift)
    return _law(lambda u: -2 * (mean + std * ndtri(u)) - 2 * math.log(shift), draw)


def edm_lognormal(mean: float = -1.2, std: float = 1.2, draw: Named = "independent") -> Law:
    """log(sigma/alpha) ~ N(mean, std^2) (Karras et al. 2022, arXiv 2206.00364, table 1)."""
    return logit_normal(mean, std, 1.0, draw)


def cosine(logsnr_min: float = -20.0, logsnr_max: float = 20.0, shift: float = 1.0, draw: Named = "independent") -> Law:
    """The law of a uniform time on the cosine schedule, whatever schedule is trained.

    A hyperbolic secant, of density sech(l/2) / 2 pi before clipping (Kingma & Gao 2023, arXiv 2303.00848).
    """
    _positive("cosine", shift=shift)
    clock = clocks.Cosine(float(logsnr_min), float(logsnr_max))
    return _law(lambda u: clock.logsnr(u) - 2 * math.log(shift), draw)


def laplace(mean: float = 0.0, scale: float = 0.5, draw: Named = "independent") -> Law:
    """Laplace-distributed log-SNR (Hang et al. 2024, arXiv 2407.03297)."""
    return _law(clocks.Laplace(float(mean), float(scale)).logsnr, draw)


def ict_pairs(
    num_levels: int | Shaped[Array | np.ndarray, ""],
    mean: float = -1.1,
    std: float = 2.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    draw: Named = "independent",
) -> Callable[[PRNGKeyArray, tuple[int, ...]], tuple[Float[Array, "..."], Float[Array, "..."]]]:
    """(key, shape) -> log-SNR of s_{i+1} and of s_i, neighbours on a Karras grid of `num_levels` levels.

    sigma/alpha rises from s_0 = sigma_min to sigma_max, and i has a probability proportional to
    Phi((log s_{i+1} - mean) / std) - Phi((log s_i - mean) / std) (Song & Dhariwal 2023, arXiv 2310.14189,
    section 3). That discrete law telescopes: i is the interval into which a log-normal falls that is cut off
    at both ends of the grid. So nothing is tabulated, and num_levels, at least 2, may be traced (it grows in
    training).
    """
    _positive("ict_pairs", std=std, rho=rho)
    clock = clocks.Karras(float(sigma_min), float(sigma_max), float(rho))
    if not isinstance(num_levels, jax.core.Tracer) and not num_levels >= 2:
        raise ValueError(f"ict_pairs: expected at least 2 levels, got {num_levels}")
    edges = [(math.log(s) - mean) / std for s in (sigma_min, sigma_max)]
    low, high = (0.5 * math.erfc(-e / math.sqrt(2)) for e in edges)
    uniform = draws.named(draw)

    def pair(key, shape):
        log_s = mean + std * ndtri(low + uniform(key, tuple(shape)) * (high - low))
        intervals = jnp.asarray(num_levels, jnp.float32) - 1
        index = jnp.clip(jnp.floor(clock.time(-2 * log_s) * intervals), 0, intervals - 1)
        return clock.logsnr((index + 1) / intervals), clock.logsnr(index / intervals)

    return pair


def ict_discretised(
    num_levels: int | Shaped[Array | np.ndarray, ""],
    mean: float = -1.1,
    std: float = 2.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    draw: Named = "independent",
) -> Law:
    """The noisier level s_{i+1} of `ict_pairs`: where the student is called."""
    pair = ict_pairs(num_levels, mean, std, sigma_min, sigma_max, rho, draw)
    return lambda key, shape: pair(key, shape)[0]


def time_density(
    schedule: Schedule, start: float | None = None, end: float | None = None
) -> Callable[[Float[Array, "..."]], Float[Array, "..."]]:
    """The density over log-SNR of `uniform_time` with these arguments: |dt/dlogsnr| over the range of t."""
    start, end = _ends(schedule, start, end)
    width = float(schedule.time(start)) - float(schedule.time(end))

    def density(logsnr):
        logsnr = jnp.asarray(logsnr)
        return -jax.jvp(schedule.time, (logsnr,), (jnp.ones_like(logsnr),))[1] / width

    return density


def _ends(schedule, start, end):
    start = schedule.logsnr_start if start is None else float(start)
    end = schedule.logsnr_end if end is None else float(end)
    if not -math.inf < start < end < math.inf:
        raise ValueError(f"a law of log-SNR needs finite ends, start (noise) below end (data); got {start} and {end}")
    return start, end


def _positive(what, **values):
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{what}: expected {name} above 0, got {value}")


# Weights ----------------------------------------------------------------------------------------------------


def uniform() -> Weight:
    """1: the plain error of x0."""
    return lambda logsnr: namespace(logsnr).ones_like(logsnr)


def snr() -> Weight:
    """SNR: the plain error of eps, "simple" of Ho et al. 2020. 0 at logsnr = -inf."""
    return lambda logsnr: namespace(logsnr).exp(logsnr)


def v() -> Weight:
    """SNR + 1: the plain error of v in VP (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""
    return lambda logsnr: namespace(logsnr).exp(logsnr) + 1


def velocity() -> Weight:
    """(1 + sqrt(SNR))^2: the plain error of the flow velocity."""
    return lambda logsnr: (1 + namespace(logsnr).exp(logsnr / 2)) ** 2


def truncated_snr(floor: float = 1.0) -> Weight:
    """max(SNR, floor) (Salimans & Ho 2022, section 4, with floor 1)."""
    _positive("truncated_snr", floor=floor)
    return lambda logsnr: namespace(logsnr).exp(namespace(logsnr).maximum(logsnr, math.log(floor)))


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) (Hang et al. 2023, arXiv 2303.09556). Finite everywhere: gamma at logsnr = +inf."""
    _positive("min_snr", gamma=gamma)
    return lambda logsnr: namespace(logsnr).exp(namespace(logsnr).minimum(logsnr, math.log(gamma)))


def edm(sigma_data: float = 0.5) -> Weight:
    """(s^2 + sd^2) / (s sd)^2 = SNR + 1 / sd^2: the plain error of F (Karras et al. 2022, table 1)."""
    _positive("edm", sigma_data=sigma_data)
    return lambda logsnr: namespace(logsnr).exp(logsnr) + sigma_data**-2


def sigmoid(bias: float = 2.0) -> Weight:
    """sigmoid(bias - logsnr) on the error of eps: 1 / (1/SNR + exp(-bias)) on that of x0.

    Kingma & Gao 2023, arXiv 2303.00848, with bias 2; Hoogeboom et al. 2024, arXiv 2410.19324. exp(bias) at
    +inf.
    """

    def weight(logsnr):
        xp = namespace(logsnr)
        return xp.exp(-xp.logaddexp(-logsnr, xp.full_like(logsnr, -bias)))

    return weight


def fused_min_snr(cap: float = 5.0, smoothing: float = 0.9, causal: bool = True, of: str = "v") -> Weight:
    """Min-SNR of what a frame and its neighbours know of it together, for levels [b, f] (Diffusion Forcing, Chen et al. 2024,
    arXiv 2407.01392, section 3.4 and appendix B.2).

    With S = SNR / cap and C the running mean of min(S, 1) over the frames before, a frame has the fused SNR
    cap (1 - (1 - smoothing C) (1 - S)): clean neighbours make a noisy frame an easy one. The error of what is predicted, `of`
    'eps', 'v' or 'x0', gets min-SNR's factor, both SNRs of it fused. causal: False takes the mean of the frames before and
    of those after.
    """
    _positive("fused_min_snr", cap=cap)
    if not 0 <= smoothing < 1:
        raise ValueError(f"fused_min_snr: expected smoothing in [0, 1), got {smoothing}")
    if of not in _ERRORS:
        raise ValueError(f"fused_min_snr: expected of to be one of {', '.join(_ERRORS)}, got {of!r}")
    factor = _ERRORS[of]

    def weight(logsnr):
        if logsnr.ndim != 2:
            raise ValueError(f"fused_min_snr: expected a level per frame, [b, f], got shape {logsnr.shape}")
        xp = namespace(logsnr)
        snr = xp.exp(xp.minimum(logsnr, 60.0))  # finite, also of a clean frame
        own, capped = snr / cap, xp.minimum(snr / cap, 1.0)
        before = xp.asarray(_running_mean(logsnr.shape[1], smoothing), dtype=logsnr.dtype)
        known = capped @ before if causal else (capped @ before + capped @ before[::-1, ::-1]) / 2
        # 1 - (1 - smoothing C) (1 - S), without the digits that are lost where both are small.
        fused, clipped = (cap * (s + smoothing * known * (1 - s)) for s in (own, capped))
        bottom = factor(fused)  # 0 at pure noise, where what the error of eps is worth is 0, too
        return factor(snr) * clipped / xp.where(bottom == 0, xp.ones_like(bottom), bottom)

    return weight


_ERRORS = {"eps": lambda snr: snr, "v": lambda snr: snr + 1, "x0": lambda snr: snr**0}


def _running_mean(frames: int, smoothing: float) -> Float[np.ndarray, "f f"]:
    """Column i weighs frames 0 .. i - 1 in C_i = smoothing C_(i-1) + (1 - smoothing) S_(i-1), C_1 = S_0 and C_0 = 0."""
    weights = np.zeros((frames, frames))
    for i in range(1, frames):
        weights[:, i] = smoothing * weights[:, i - 1]
        weights[i - 1, i] = 1.0 if i == 1 else 1 - smoothing
    return weights


def vlb(density: Callable[[Any], Any]) -> Weight:
    """SNR / (2 density): the continuous-time variational bound (Kingma et al. 2021, section 5).

    With levels drawn from that density over log-SNR, the mean weighted error is the integral of
    |error of eps|^2 / 2 over the log-SNR. It then depends on the ends of the law only, not on its shape.
    `time_density` is the density of `uniform_time`.
    """
    return lambda logsnr: namespace(logsnr).exp(logsnr) / (2 * density(logsnr))
