"""MeanFlow: the average velocity of the flow, learnt from its own derivative (Geng et al. 2025, arXiv 2505.13447).

A flow map like those of flow_maps.py, in velocity prediction: u(x, t, r) is the mean of the velocity between t and r, and the
jump is x - (t - r) u. Instead of composing jumps it differentiates the definition of u by t, with one `jax.jvp` a step.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from diffusion import levels, predictions
from diffusion.levels import expand
from distill import regression
from distill.continuous import path, still
from distill.flow_maps import check, spread
from distill.inputs import Network, clean, conditioned
from distill.jumps import guided_teacher
from distill.method import Method, number


def average_velocity(velocity: Array, slope: Array, logsnr: Array, logsnr_to: Array) -> Array:
    """u = v - (t - r) du/dt (Geng et al. 2025, arXiv 2505.13447, eq. 6), t and r the flow times sigma / (alpha + sigma).

    slope: t (1 - t) du/dt along the trajectory, r held. (t - r) / (t (1 - t)) is written without a difference of times.
    """
    length = -jnp.expm1((logsnr - logsnr_to) / 2) * jax.nn.sigmoid(logsnr_to / 2) / jax.nn.sigmoid(logsnr / 2)
    return velocity - expand(length, velocity) * slope


def objective(
    network: Network,
    *,
    law: Callable,
    share: float,
    kappa: float = 0.0,
    guidance_range: Sequence[float] | None = None,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """MeanFlow on a network that predicts the velocity (`Network.predicting`): its answer is to be v - (t - r) du/dt.

    Both levels are drawn from `law`; t is the noisier. 1 - share of the clips have r = t. The identity is one of flow
    coordinates z = x / (alpha + sigma), whose velocity is eps - x0; the network is differentiated in its own, x and
    log-SNR, as t (1 - t) d/dt = -2 d/dlogsnr.

    v is that of frozen["teacher"], guided at hyper["guidance"] or at a g per clip that the student is told; without a
    teacher that of the clip and its noise, and where g isn't 1, of the student's own answers at r = t too (eq. 19 and
    appendix B): omega v + (1 - omega - kappa) u + kappa c with omega = g (1 - kappa), which makes g the scale for any
    kappa. A clip whose label was dropped keeps v.

    Logged by level: `tangent`, the root mean square of the correction (t - r) du/dt; with a teacher `gap`, the squared
    distance from its velocity where r = t.
    """
    schedule = network.schedule

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        key_first, key_second, key_noise, key_cond = jax.random.split(key, 4)
        x0 = clean(batch)
        shape = x0.shape[:2] if per_frame else x0.shape[:1]
        ends = [jnp.clip(law(k, shape), schedule.logsnr_start, schedule.logsnr_end) for k in (key_first, key_second)]
        here, there = jnp.minimum(*ends), jnp.maximum(*ends)
        jumping, others = spread(len(x0), share)
        there = there.at[others].set(here[others])
        eps = network.noise(key_noise, x0.shape, x0.dtype)
        x = levels.forward(x0, eps, here, schedule)
        cond, teacher_cond, scale = conditioned(network, batch, key_cond, hyper, label_dropout, guidance_range)
        if "teacher" in frozen:
            denoised = guided_teacher(network, frozen["teacher"], teacher_cond, scale)(x, here)
            velocity = predictions.convert(denoised, x, here, schedule, "x0", "velocity")
        else:
            velocity = guided_velocity(network, state.params, cond, x, here, eps - x0, scale, kappa)
            denoised = predictions.denoised("velocity", velocity, x, here, schedule)
        cond = {**cond, "logsnr_to": there}

        jumps = jnp.zeros(len(x0), bool).at[jumping].set(True)

        def target(value: Array, slope: Array) -> Array:
            return average_velocity(velocity, slope, here, there)

        def report(value: Array, slope: Array) -> regression.Report:
            change = (velocity - target(value, slope)) ** 2
            size = jnp.sqrt(jnp.mean(change, tuple(range(here.ndim, x.ndim)), keepdims=True))
            gap = {"gap": ((value - velocity) ** 2, ~jumps)} if "teacher" in frozen else {}
            return {"tangent": (size, jumps), **gap}

        return regression.Problem(
            x,
            here,
            cond,
            lambda value: value,
            target,
            jnp.ones_like(here),
            tangents=(*path(schedule, denoised, x, here), jax.tree.map(still, cond)),
            jumps=jumps,
            report=report,
        )

    return construct


def guided_velocity(network: Network, params, cond, x, logsnr, velocity: Array, scale, kappa: float) -> Array:
    """omega v + (1 - omega - kappa) u + kappa c at g = scale, and v itself at g = 1 or where there is no class."""
    if not network.num_classes:
        return velocity
    scale, none = expand(jnp.asarray(scale), x), network.num_classes

    def mixed():
        omega = scale * (1.0 - kappa)
        instant = {**cond, "logsnr_to": logsnr}
        u = network.apply(params, x, logsnr, {**instant, "label": jnp.full_like(cond["label"], none)})
        mix = omega * velocity + (1.0 - omega - kappa) * u
        mix = mix + kappa * network.apply(params, x, logsnr, instant) if kappa else mix
        keeps = (cond["label"] == none).astype(x.dtype)
        return jnp.where(expand(keeps, x) > 0, velocity, mix)

    return jax.lax.cond(jnp.all(scale == 1.0), lambda: velocity, mixed)


def adaptive(p: float, c: float) -> Callable[[Array, Array], Array]:
    """|u - target|^2 / (|u - target|^2 + c)^p, the divisor without gradient and the norms over a clip (eq. 22).

    Times a clip's numbers: the mean over them, which is the loss, is the paper's sum.
    """

    def metric(output: Array, target: Array) -> Array:
        square = jnp.square(output - target)
        total = jnp.sum(square, tuple(range(1, square.ndim)), keepdims=True)
        return square * (square.size / len(square)) * jax.lax.stop_gradient((total + c) ** -p)

    return metric


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    law: Callable,
    share: float = 0.25,
    p: float = 1.0,
    c: float = 1e-2,
    kappa: float = 0.0,
    guidance_range: Sequence[float] | None = None,
    ema: float = 0.999,
    label_dropout: float = 0.1,
    per_frame: bool = False,
) -> Method:
    """MeanFlow as a `Method`. The paper's law is levels.logit_normal(-.4), its share of r != t .25, p = 1 (.75 on CIFAR).

    At p = 1 the gradient of a clip is of size 1 / |u - target|. The paper's targets are as noisy at r = t as elsewhere; with a
    teacher an error at r = t falls to nothing, its clips outweigh the jumps up to 100 times, and p = .5 is right: all alike.

    It needs an attention that `jax.jvp` can take, and a network that embeds its levels as angles: near pure noise dlogsnr/dt
    is 40,000, and only the angle's slope makes up for it.
    """
    check(network, share, guidance_range)
    number("kappa", kappa, 0.0, 1.0)
    number("p", p, 0.0)
    number("c", c, 0.0, open_=True)
    network = network.predicting("velocity")
    target = objective(
        network, law=law, share=share, kappa=kappa, guidance_range=guidance_range, label_dropout=label_dropout,
        per_frame=per_frame,
    )  # fmt: skip
    return regression.method(network, target, optimiser, ema=ema, metric=adaptive(p, c))
