"""Consistency models: one clean estimate along a whole trajectory (Song et al. 2023, arXiv 2303.01469), and their kin.

The consistency function is the DDIM jump of the network's own clean estimate D from a level l to a boundary b,

    f(x, l) = sigma_b/sigma_l x + (alpha_b - sigma_b/sigma_l alpha_l) D(x, l),

which is x itself at l = b whatever the network says. It is the general c_skip, c_out of `predictions.boundary_coefficients`
for any prediction, scaling and boundary. So a student is an ordinary network with an ordinary prediction.

An objective draws a pair of levels, makes a point at the cleaner one, and asks that f agree at both. Its parts are
functions, chosen apart: `pairs` of levels, the `solver` that goes from one to the other (or the data itself), the network
that gives the `target`, what is compared, and how. A method is a choice of these with a paper's numbers. Noise enters as
s = sigma/alpha, so the choices hold for any schedule; levels may be per frame.
"""

import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from diffusion import levels, predictions
from diffusion.levels import expand
from distill import regression
from distill.inputs import Network, clean, conditioned
from distill.jumps import ddim_step, guided_teacher, inverse_ddim
from distill.pairs import Pairs, noise_ratio


def consistency_function(
    network: Network, params: PyTree, cond: dict[str, Array], *, key: Array | None = None, train: bool = False
) -> Callable[[Array, Array, Array], Array]:
    """f(x, logsnr, boundary) -> the point at the boundary; x itself from there on, also at an infinite boundary."""
    schedule = network.schedule
    denoise = predictions.denoiser(
        network.apply, params, cond, schedule=schedule, prediction=network.prediction, key=key, train=train
    )

    def f(x: Array, logsnr: Array, boundary: Array) -> Array:
        # A network knows no infinite level; what it says there isn't used.
        level = jnp.where(jnp.isinf(logsnr), schedule.logsnr_end, logsnr)
        return jnp.where(
            expand(logsnr, x) >= expand(boundary, x), x, ddim_step(schedule, x, denoise(x, level), level, boundary)
        )

    return f


# Solvers: (schedule, denoise, x, x0, here, there) -> (the point at `there`, the estimate at `here`) ------------


def euler(schedule, denoise, x, x0, here, there) -> tuple[Array, Array]:
    """Euler in s on x/alpha, which is DDIM in every scaling. With the data as the estimate it is the same noise, less of it."""
    del x0
    denoised = denoise(x, here)
    return ddim_step(schedule, x, denoised, here, there), denoised


def heun(schedule, denoise, x, x0, here, there) -> tuple[Array, Array]:
    """Heun in s on x/alpha (Karras et al. 2022, algorithm 1): Euler with the mean of the slopes at both ends."""
    rough, denoised = euler(schedule, denoise, x, x0, here, there)

    def slope(point, level, estimate):
        return (point - expand(schedule.alpha(level), x) * estimate) / expand(schedule.sigma(level), x)

    change = (slope(rough, there, denoise(rough, there)) - slope(x, here, denoised)) / 2
    return rough + expand(schedule.alpha(there) * (noise_ratio(there) - noise_ratio(here)), x) * change, denoised


def addim(eta: float | None = None) -> Callable[..., tuple[Array, Array]]:
    """DDIM with the noise raised by the variance that the estimate lacks (Heek et al. 2024, section 3.2 and algorithm 3):

        x_s = a_s D + sqrt(s_s^2 + (d / |e|^2) (a_s - a_t s_s/s_t)^2 var) e,   e = (x - a_t D) / s_t.

    eta: var is eta |D - x0|^2 / d; None: the closed form .1 / (2 + SNR), which the paper finds
    equally good (its runs have eta = .75). The paper takes D without guidance in var,
    which is one more call of a guided teacher; here var has the D of the step, so under guidance prefer the closed form.
    """

    def solve(schedule, denoise, x, x0, here, there):
        alpha, sigma, to_alpha, to_sigma = (
            expand(part, x) for level in (here, there) for part in (schedule.alpha(level), schedule.sigma(level))
        )
        denoised = denoise(x, here)
        eps = (x - alpha * denoised) / sigma

        def mean(square):
            return jnp.mean(square, tuple(range(here.ndim, x.ndim)), keepdims=True)

        lacking = 0.1 / (2.0 + (alpha / sigma) ** 2) if eta is None else eta * mean((denoised - x0) ** 2)
        raised = to_sigma**2 + (to_alpha - alpha * to_sigma / sigma) ** 2 * lacking / mean(eps**2)
        return to_alpha * denoised + jnp.sqrt(raised) * eps, denoised

    return solve


# Metrics and weights ------------------------------------------------------------------------------------------


def pseudo_huber(c: float | None = None, *, axes: int | None = 1) -> Callable[[Array, Array], Array]:
    """sqrt(|u|^2 + c^2) - c (Song & Dhariwal 2023, section 3.3); c = 0 is the norm, with gradient 0 at 0.

    c: None is their .00054 sqrt(D), D the numbers that |u| adds up. axes: how many leading axes keep a norm of their own,
    1 a clip, 2 a frame; None: every number by itself.
    """

    def metric(output: Array, target: Array) -> Array:
        summed = tuple(range(output.ndim if axes is None else axes, output.ndim))
        size = math.prod(output.shape[a] for a in summed)
        smooth = 0.00054 * math.sqrt(size) if c is None else c
        square = jnp.sum(jnp.square(output - target), summed, keepdims=True) + smooth**2
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0) - smooth

    return metric


METRICS: dict[str, Callable[[int], Callable]] = {
    "squared": lambda axes: regression.squared_error,
    "huber": lambda axes: pseudo_huber(axes=axes),
    "norm": lambda axes: pseudo_huber(0.0, axes=axes),
}
"""name -> metric, given how many axes the level has."""
TARGETS: dict[str, Callable] = {"student": operator.attrgetter("params"), "ema": operator.attrgetter("ema")}
"""name -> state -> the weights that give the target."""


def plain(here: Array, there: Array) -> Array:
    return jnp.ones_like(here)


def inverse_gap(here: Array, there: Array) -> Array:
    """1 / (s - r), of the noise levels sigma/alpha."""
    return 1.0 / (noise_ratio(here) - noise_ratio(there))


# The objective ------------------------------------------------------------------------------------------------


def objective(
    network: Network,
    *,
    pairs: Pairs,
    solver: Callable[..., tuple[Array, Array]] | None,
    weight: Callable[[Array, Array], Array] = plain,
    target: Callable[[regression.RegressionState], PyTree] = TARGETS["student"],
    compare_denoised: bool = False,
    cut: float | None = None,
    guidance_range: Sequence[float] | None = None,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """f at `here` is to be what the target network's f makes of the point at `there`.

    solver: how frozen["teacher"], guided at hyper["guidance"], gets there; None is the data, with the same noise (training).
    compare_denoised: errors are those of the x0 whose DDIM step leads to f, not of f. cut: a level beyond which
    frozen["previous"] gives the target, a consistency model finished earlier.
    guidance_range: g is drawn per clip in it, and given to the student as cond["guidance"].

    Dropout: student and target drop the same units. Logged: `gap` by level, the squared distance of the student's answer from
    that of one step of its teacher.
    """
    schedule = network.schedule

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        key_pairs, key_noise, key_cond, key_dropout = jax.random.split(key, 4)
        x0 = clean(batch)
        here, there, boundary = pairs(key_pairs, x0.shape[:2] if per_frame else x0.shape[:1], state.step, hyper)
        x = levels.forward(x0, network.noise(key_noise, x0.shape, x0.dtype), here, schedule)
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        if solver is None:
            x_there, estimate = euler(schedule, lambda *_: x0, x, x0, here, there)
        else:
            teacher = guided_teacher(network, frozen["teacher"], teacher_cond, scale)
            x_there, estimate = solver(schedule, teacher, x, x0, here, there)
        f = consistency_function(network, target(state), cond, key=key_dropout, train=True)
        point = f(x_there, there, boundary)
        if cut is not None:
            previous = consistency_function(network, frozen["previous"], cond)
            point = jnp.where(expand(there, x) > cut, previous(x_there, there, boundary), point)

        def compared(denoised: Array) -> Array:
            return denoised if compare_denoised else ddim_step(schedule, x, denoised, here, boundary)

        def output(prediction: Array) -> Array:
            return compared(network.denoised(prediction, x, here))

        goal = inverse_ddim(schedule, x, point, here, boundary) if compare_denoised else point

        def report(primal: Array, tangent: Array | None) -> regression.Report:
            return {} if solver is None else {"gap": ((primal - compared(estimate)) ** 2, None)}

        return regression.Problem(
            x,
            here,
            cond,
            output,
            lambda *_: goal,
            weight(here, there),
            dropout=key_dropout,
            report=report,
        )

    return construct
