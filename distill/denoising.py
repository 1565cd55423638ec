"""Denoising itself: the teacher's training (Ho et al. 2020; weights as in Kingma & Gao 2023)."""

from collections.abc import Callable

import jax
import optax

from diffusion import levels
from distill import regression
from distill.inputs import Network, clean, condition
from distill.method import Method


def objective(
    network: Network,
    *,
    law: Callable,
    weight: Callable,
    label_dropout: float = 0.1,
    per_frame: bool = False,
    per_pixel: bool = False,
) -> Callable[..., regression.Problem]:
    """The target is the clean clip.

    law: (key, shape) -> log-SNR of the noise; weight: log-SNR -> factor of the squared x0 error (SNR + 1 is the plain
    v-loss). per_frame: an independent level for every frame, [b, f] (Diffusion Forcing, Chen et al. 2024). per_pixel: for every
    pixel of every frame, [b, f, h, w].
    """
    if per_frame and per_pixel:
        raise ValueError("per_frame and per_pixel exclude each other: a level per pixel is one per frame, too")
    axes = 4 if per_pixel else 2 if per_frame else 1

    def construct(state, frozen, batch, key, hyper) -> regression.Problem:
        del state, frozen, hyper
        key_level, key_noise, key_label = jax.random.split(key, 3)
        x0 = clean(batch)
        logsnr = law(key_level, x0.shape[:axes])
        eps = network.noise(key_noise, x0.shape, x0.dtype)
        x = levels.forward(x0, eps, logsnr, network.schedule)

        return regression.Problem(
            x,
            logsnr,
            condition(network, batch, key_label, label_dropout),
            lambda answer: network.denoised(answer, x, logsnr),
            lambda *_: x0,
            weight(logsnr),
        )

    return construct


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    law: Callable,
    weight: Callable,
    ema: float = 0.999,
    label_dropout: float = 0.1,
    per_frame: bool = False,
    per_pixel: bool = False,
) -> Method:
    """Denoising as a `Method` with the one phase `train`."""
    target = objective(
        network, law=law, weight=weight, label_dropout=label_dropout, per_frame=per_frame, per_pixel=per_pixel
    )
    return regression.method(network, target, optimiser, ema=ema)
