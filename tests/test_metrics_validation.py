"""The loss at one level, against the error of the exact denoiser of a Gaussian, which is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import schedules
from experiments.metrics.validation import LEVELS, loss_by_level

SPREAD = 0.5
SHAPE = (200, 3, 4, 4, 1)


def denoise(schedule, spread=SPREAD):
    def best(x, logsnr):
        """E[x0 | x] of independent numbers with standard deviation `spread`."""
        alpha, sigma = schedule.alpha(logsnr), schedule.sigma(logsnr)
        return alpha * spread**2 * x / (alpha**2 * spread**2 + sigma**2)

    return best


@pytest.mark.parametrize("schedule", [schedules.vp_cosine(), schedules.flow(), schedules.edm()])
def test_the_exact_denoiser_has_its_known_error(schedule):
    clips = SPREAD * jax.random.normal(jax.random.key(0), SHAPE)
    got = loss_by_level(denoise(schedule), schedule, clips, jax.random.key(1))
    assert list(got) == ["-8", "-6", "-4", "-2", "0", "2", "4", "6", "8"]
    for level, measure in zip(LEVELS, got.values(), strict=True):
        snr = np.exp(level)
        known = (1 + snr) * SPREAD**2 / (1 + snr * SPREAD**2)
        half = (measure.high - measure.low) / 2
        assert abs(measure.value - known) < 2 * half < 0.1 * known
    worse = loss_by_level(denoise(schedule, 2 * SPREAD), schedule, clips, jax.random.key(1))
    assert all(worse[level].value > got[level].value for level in got)


def test_the_loss_is_the_same_each_time_and_of_any_schedule():
    clips = SPREAD * jax.random.normal(jax.random.key(0), SHAPE)
    options = dict(levels=(-3.0, 1.5), bootstrap=10)
    vp, flow = schedules.vp_cosine(), schedules.flow()
    first = loss_by_level(denoise(vp), vp, clips, jax.random.key(1), **options)
    assert first == loss_by_level(denoise(vp), vp, clips, jax.random.key(1), **options)
    other = loss_by_level(denoise(flow), flow, clips, jax.random.key(1), **options)
    for level, measure in first.items():
        np.testing.assert_allclose(measure[:3], other[level][:3], rtol=1e-4)
    perfect = loss_by_level(lambda x, logsnr: clips, vp, clips, jax.random.key(1), **options)
    assert all(measure[:3] == (0, 0, 0) for measure in perfect.values())
    assert jnp.issubdtype(clips.dtype, jnp.floating)
