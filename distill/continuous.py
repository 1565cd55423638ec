"""Continuous-time consistency, sCM: the limit of one point (Lu & Song 2024, arXiv 2410.11081).

TrigFlow is x = cos(t) x0 + sin(t) z with z ~ N(0, sd^2), so sigma/alpha = sd tan(t): every schedule is TrigFlow up to a
rescaling of x, with t = arctan(exp(-logsnr/2) / sd). The consistency function with its boundary at t = 0 is the clean
estimate, f = D = cos(t) x - sin(t) sd F, and it must not change along the trajectory.

The tangent is taken in the coordinate that networks have, the log-SNR: cos(t) sin(t) d/dt is exactly -2 d/dlogsnr. So the
factor that the paper moves into its JVP for stability near t = pi/2 (section 5.1) is there from the start, and the network
is differentiated in its own inputs, x in the schedule's scale and the log-SNR.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from diffusion import levels, predictions
from diffusion.levels import expand
from distill import regression
from distill.inputs import Network, check_range, clean, conditioned
from distill.jumps import guided_teacher
from distill.method import Method, choice, number, whole_number


@dataclasses.dataclass(frozen=True)
class TrigFlow:
    """The prediction F with dx/dt = sd F in TrigFlow's x: sd F = cos(t) z - sin(t) x0. It is minus EDM's F."""

    sigma_data: float = 1.0

    def __post_init__(self):
        predictions.F(self.sigma_data)  # refuses what isn't a standard deviation

    def __call__(self, alpha, sigma):
        a, b, c = predictions.F(self.sigma_data)(alpha, sigma)
        return -a, -b, c


def angle(logsnr: Array, sigma_data: float = 1.0) -> tuple[Array, Array]:
    """(cos t, sin t) of t = arctan(exp(-logsnr/2) / sd)."""
    shifted = logsnr + 2.0 * np.log(sigma_data)
    return jnp.sqrt(jax.nn.sigmoid(shifted)), jnp.sqrt(jax.nn.sigmoid(-shifted))


def path(schedule, denoised: Array, x: Array, logsnr: Array) -> tuple[Array, Array]:
    """cos(t) sin(t) d/dt of (x, logsnr) along the probability flow through x, in the schedule's own scale.

    dx/dlogsnr = alpha' D + sigma' eps: with D and eps held, the trajectory is the forward process.
    """
    ones = jnp.ones_like(logsnr)
    slopes = (jax.jvp(part, (logsnr,), (ones,))[1] for part in (schedule.alpha, schedule.sigma))
    alpha_slope, sigma_slope = (expand(slope, x) for slope in slopes)
    eps = predictions.convert(denoised, x, logsnr, schedule, "x0", "eps")
    return -2.0 * (alpha_slope * denoised + sigma_slope * eps), -2.0 * ones


def tangent(
    value: Array,
    slope: Array,
    velocity: Array,
    x: Array,
    logsnr: Array,
    schedule,
    sigma_data: float,
    ratio: Array | float,
) -> Array:
    """g = -cos^2 (sd F - dx/dt) - r (cos sin x + sd cos sin dF/dt) (algorithm 1); cos(t) df/dt at r = 1.

    value: F; slope: cos(t) sin(t) dF/dt; velocity: (dx/dt) / sd; x: in the schedule's scale; ratio: r.
    """
    cos, sin = (expand(part, x) for part in angle(logsnr, sigma_data))
    alpha, sigma = (expand(part, x) for part in (schedule.alpha(logsnr), schedule.sigma(logsnr)))
    trig = x * sigma_data / jnp.sqrt(alpha**2 * sigma_data**2 + sigma**2)
    return -(cos**2) * sigma_data * (value - velocity) - ratio * (cos * sin * trig + sigma_data * slope)


def _norm(g: Array, axes: int, mean: bool) -> Array:
    reduce = jnp.mean if mean else jnp.sum
    return jnp.sqrt(reduce(g**2, tuple(range(axes, g.ndim)), keepdims=True))


NORMALISE: dict[str, Callable[[Array, int, float], Array]] = {
    "norm": lambda g, axes, c: g / (_norm(g, axes, False) + c),
    "rms": lambda g, axes, c: g / (_norm(g, axes, True) + c),
    "clip": lambda g, axes, c: jnp.clip(g, -1.0, 1.0),
    "none": lambda g, axes, c: g,
}
"""name -> (tangent, number of the level's axes, c) -> tangent. "norm" is the paper's, |g| + c with the norm over a sample;
"rms" divides |g| by sqrt(D) first, so steps are larger by sqrt(D); "clip" is the paper's alternative."""


def objective(
    network: Network,
    *,
    law: Callable,
    distilled: bool,
    warmup: int = 10_000,
    normalise: Callable[[Array, int, float], Array] = NORMALISE["rms"],
    c: float = 0.1,
    guidance_range: Sequence[float] | None = None,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """Algorithm 1, on a network that predicts TrigFlow's F (`Network.predicting`): F is to move by the tangent g.

    distilled: dx/dt is that of frozen["teacher"], guided at hyper["guidance"] or at a g per clip (as in `consistency`); else
    of the clip and its noise. warmup: updates in which r rises from 0 to 1; at r = 0 g is the velocity's error.
    The adaptive weight exp(w(t)), a network of its own that the paper finds useful beside the normalised tangent, is left out.

    Logged by level: `tangent`, the root mean square of g before it is normalised, and for a teacher `gap`, the squared
    distance of the student's F from its teacher's.
    """
    whole_number("warmup", warmup, 0)
    number("c", c, 0.0, open_=True)
    schedule, sigma_data = network.schedule, network.prediction.sigma_data

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        key_level, key_noise, key_cond = jax.random.split(key, 3)
        x0 = clean(batch)
        logsnr = law(key_level, x0.shape[:2] if per_frame else x0.shape[:1])
        logsnr = jnp.clip(logsnr, schedule.logsnr_start, schedule.logsnr_end)
        x = levels.forward(x0, network.noise(key_noise, x0.shape, x0.dtype), logsnr, schedule)
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        denoised = x0
        if distilled:
            denoised = guided_teacher(network, frozen["teacher"], teacher_cond, scale)(x, logsnr)
        velocity = predictions.convert(denoised, x, logsnr, schedule, "x0", network.prediction)
        ratio = jnp.minimum(state.step / warmup, 1.0) if warmup else 1.0

        def moved(value: Array, slope: Array) -> Array:
            return tangent(value, slope, velocity, x, logsnr, schedule, sigma_data, ratio)

        def target(value: Array, slope: Array) -> Array:
            return value + normalise(moved(value, slope), logsnr.ndim, c)

        def report(value: Array, slope: Array) -> regression.Report:
            size = _norm(moved(value, slope), logsnr.ndim, True)
            return {"tangent": (size, None)} | ({"gap": ((value - velocity) ** 2, None)} if distilled else {})

        return regression.Problem(
            x,
            logsnr,
            cond,
            lambda value: value,
            target,
            jnp.ones_like(logsnr),
            tangents=(*path(schedule, denoised, x, logsnr), jax.tree.map(still, cond)),
            report=report,
        )

    return construct


def still(leaf: Any) -> Any:
    """A zero tangent; that of whole numbers has a type of its own."""
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros_like(leaf)
    return np.zeros(leaf.shape, jax.dtypes.float0)


def _method(network, optimiser, distilled, mean, std, sigma_data, normalise, ema, **options) -> Method:
    trig = network.predicting(TrigFlow(sigma_data))
    construct = objective(
        trig,
        law=levels.edm_lognormal(mean, std),
        distilled=distilled,
        normalise=choice(normalise, NORMALISE, "normalise"),
        **options,
    )
    return regression.method(trig, construct, optimiser, ema=ema)


def distillation(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    mean: float = -1.0,
    std: float = 1.4,
    sigma_data: float = 1.0,
    warmup: int = 10_000,
    normalise: str = "rms",
    c: float = 0.1,
    guidance_range: Sequence[float] | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """sCD: the velocity is the teacher's. log(sigma/alpha) ~ N(mean, std^2), the paper's numbers for CIFAR-10, whose own
    spread is .5. sigma_data: the clips' standard deviation; half of it can sink a student to the mean. Needs an attention
    that `jax.jvp` can take.
    """
    return _method(
        network, optimiser, True, mean, std, sigma_data, normalise, ema,
        warmup=warmup, c=c, guidance_range=check_range(network, guidance_range), label_dropout=label_dropout,
        per_frame=per_frame,
    )  # fmt: skip


def training(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    mean: float = -1.0,
    std: float = 1.4,
    sigma_data: float = 1.0,
    warmup: int = 10_000,
    normalise: str = "rms",
    c: float = 0.1,
    ema: float = 0.999,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """sCT: the velocity is that of the clip and its own noise, whose mean given x is the flow's; no teacher."""
    return _method(
        network, optimiser, False, mean, std, sigma_data, normalise, ema,
        warmup=warmup, c=c, label_dropout=label_dropout, per_frame=per_frame,
    )  # fmt: skip
