"""The validation loss of a denoiser, level by level: fixed clips, fixed noise, fixed levels.

A training loss is a mean over random levels and says little: it is dominated by the levels where nothing can be known. At one
level, with the same noise every time, it compares checkpoints, and with the exact denoiser where that is known.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from diffusion import sampling
from diffusion.schedules import Schedule
from experiments.metrics import distances
from experiments.metrics.report import Measure, interval

LEVELS = (-8.0, -6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0, 8.0)


def loss_by_level(
    denoise: Callable[[Array, Array], Array],
    schedule: Schedule,
    clips: Float[Array, "n f h w c"],
    key: PRNGKeyArray,
    *,
    levels: Sequence[float] = LEVELS,
    noise: Callable[..., Array] = sampling.normal,
    bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, Measure]:
    """log-SNR -> the mean of (1 + SNR) (denoised - x0)² over numbers and clips, with its bootstrap interval over the clips.

    The weight makes it the squared error of v in a variance-preserving schedule (Salimans & Ho 2022, arXiv 2202.00512,
    app. D), of order 1 at every level, whatever the schedule's scale and the network's prediction.

    denoise: (x [n, ...], logsnr []) -> denoised, with any labels of the n clips bound in it. clips: held out, in the units
    of the model; all n are one batch. Level i draws its noise, of the network's source, with fold_in(key, i).
    """
    measures = {}
    weights = np.concatenate([distances.equal_weights(len(clips)), distances.resampled(len(clips), bootstrap, seed)])
    for index, level in enumerate(levels):
        logsnr = jnp.asarray(level, jnp.float32)
        eps = noise(jax.random.fold_in(key, index), clips.shape, clips.dtype)
        x = schedule.alpha(logsnr) * clips + schedule.sigma(logsnr) * eps
        error = np.asarray(jnp.mean((denoise(x, logsnr) - clips) ** 2, tuple(range(1, clips.ndim))), np.float64)
        value, *others = weights @ error * (1 + np.exp(level))
        measures[f"{level:g}"] = Measure(float(value), *interval(value, others), None, "lower")
    return measures
