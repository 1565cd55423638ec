"""How levels of a clip's frames hang together: exact laws, counted sequences, and what a config may ask for."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from diffusion import draws, levels, schedules

KEY = jax.random.key(3)
COUNT = 20_000


def uniforms(draw, frames=4, key=KEY):
    drawn = np.asarray(draws.named(draw)(key, (COUNT, frames)))
    assert drawn.shape == (COUNT, frames) and drawn.dtype == np.float32
    assert (0 < drawn).all() and (drawn < 1).all()
    return drawn


@pytest.mark.parametrize("law", [levels.uniform_logsnr, levels.uniform_time])
def test_a_draw_near_one_is_noise_in_laws_of_a_schedule(law):
    fixed = law(schedules.vp_cosine(), draw=lambda key, shape: jnp.array([0.1, 0.5, 0.9]))(KEY, (3,))
    assert (np.diff(fixed) < 0).all()


@pytest.mark.parametrize("law", [levels.logit_normal, levels.edm_lognormal, levels.cosine, levels.laplace])
def test_a_draw_near_one_is_noise(law):
    assert (np.diff(law(draw=lambda key, shape: jnp.array([0.1, 0.5, 0.9]))(KEY, (3,))) < 0).all()
    pair = levels.ict_pairs(12, draw=lambda key, shape: jnp.array([0.1, 0.5, 0.9]))(KEY, (3,))
    assert (np.diff(pair[0]) < 0).all()


def test_shared_levels_are_one_uniform_for_all_frames():
    drawn = uniforms("shared")
    assert (drawn == drawn[:, :1]).all()
    assert scipy.stats.kstest(drawn[:, 0], "uniform").statistic < 1.2 / COUNT


def test_monotone_sequences_are_counted_right():
    """Against the discrete recursion's law on a coarse grid, by brute force over all sequences (4 levels, 3 frames).

    The continuous draw, cut into many bins, has the mean levels of the discrete one to 1 / bins.
    """
    bins, frames = 24, 3
    sequences = [s for s in itertools.product(range(bins), repeat=frames) if list(s) == sorted(s)]
    grouped = {}
    for s in sequences:
        for f in range(frames):
            grouped.setdefault((f, s[f]), []).append(s)
    expected = np.mean([np.mean(grouped[f, t], 0) for f in range(frames) for t in range(bins)], 0) / (bins - 1)
    drawn = uniforms("monotone", frames)
    assert (np.diff(drawn, axis=1) >= 0).all()
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.02)


def test_a_frame_of_a_monotone_sequence_has_the_mixture_of_order_statistics():
    """Frame 0 of 2: half the time uniform, half the time u times a uniform: P(< x) = x/2 + (x - x log x)/2."""
    drawn = uniforms("monotone", 2)
    first = scipy.stats.kstest(drawn[:, 0], lambda x: x / 2 + (x - x * np.log(x)) / 2)
    last = scipy.stats.kstest(1 - drawn[:, 1], lambda x: x / 2 + (x - x * np.log(x)) / 2)
    assert first.pvalue > 0.01 and last.pvalue > 0.01


def test_a_rolling_window_is_a_ramp_behind_clean_history():
    drawn = uniforms(dict(kind="rolling", history=1, start=0.0), 5)
    assert (drawn[:, 0] < 1e-6).all()
    np.testing.assert_allclose(np.diff(drawn[:, 1:], axis=1), 0.25, atol=1e-6)
    assert scipy.stats.kstest(drawn[:, 1], scipy.stats.uniform(0, 0.25).cdf).statistic < 1.2 / COUNT
    begins = uniforms(dict(kind="rolling", history=1, start=1.0), 5)
    assert scipy.stats.kstest(begins[:, 1], "uniform").statistic < 1.2 / COUNT
    assert (begins[:, 4] >= 0.75 - 1e-6).all() and (np.diff(begins, axis=1) >= 0).all()


def test_history_is_clean_or_masked_and_the_future_as_asked():
    drawn = uniforms(dict(kind="with_history", longest=2, masked=0.25, future="shared"))
    clean, noise = (drawn < 1e-6).sum(1), (drawn > 1 - 1e-6).sum(1)
    for frames in range(3):
        assert abs(((clean == frames) | (noise == frames))[clean + noise == frames].mean() - 1) < 1e-9
        assert abs((clean + noise == frames).mean() - 1 / 3) < 0.02
    assert abs((noise > 0).mean() - 0.25 * 2 / 3) < 0.02
    assert (drawn[:, 2] == drawn[:, 3]).all()


def test_the_frames_of_a_block_share_what_is_drawn_for_it():
    drawn = uniforms(dict(kind="blocks", block=2, of=dict(kind="with_history", longest=1, masked=0.0)), 6)
    assert (drawn[:, ::2] == drawn[:, 1::2]).all()
    clean = drawn[:, 0] < 1e-6
    assert abs(clean.mean() - 0.5) < 0.02 and (drawn[:, 2:] == drawn[:, 2:3]).all() and (drawn[:, 2:] > 1e-6).all()
    apart = uniforms(dict(kind="blocks", block=2), 4)
    assert abs(np.corrcoef(apart[:, 0], apart[:, 2])[0, 1]) < 0.02


def test_a_mixture_draws_whole_clips_by_its_parts():
    drawn = uniforms(dict(kind="mixture", parts=[[3, "shared"], [1, "independent"]]))
    assert abs((drawn == drawn[:, :1]).all(1).mean() - 0.75) < 0.02


@given(st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_levels_per_frame_never_leave_the_open_interval(longest, seed):
    for draw in ("monotone", dict(kind="with_history", longest=longest), dict(kind="rolling", history=longest)):
        drawn = draws.named(draw)(jax.random.key(seed), (3, 6))
        assert drawn.shape == (3, 6) and (drawn > 0).all() and (drawn < 1).all()


@pytest.mark.parametrize(
    "draw, error",
    [
        ("monotonic", "nearest: 'monotone'"),
        (dict(kind="rolling", hist=2), "hist"),
        (dict(kind="shared", history=2), "has no options"),
        (dict(kind="rolling", history=-1), "from 0 up"),
        (dict(kind="with_history", longest=0), "at least one frame"),
        (dict(kind="with_history", longest=2, masked=1.5), "probability"),
        (dict(kind="blocks", block=0), "from 1 up"),
        (dict(kind="blocks", block=2, of="sharde"), "nearest: 'shared'"),
        (dict(kind="mixture", parts=[]), "weights above 0"),
        (dict(kind="mixture", parts=[[float("nan"), "shared"]]), "weights above 0"),
        (dict(kind="mixture", parts=[[1, "sharde"]]), "nearest: 'shared'"),
    ],
)
def test_bad_draws_are_refused(draw, error):
    with pytest.raises((KeyError, ValueError), match=error):
        draws.named(draw)


def test_levels_per_frame_are_asked_for_by_shape():
    for draw in ("shared", "monotone", dict(kind="rolling", history=3), dict(kind="with_history", longest=3)):
        with pytest.raises(ValueError, match=r"expected a level per frame"):
            draws.named(draw)(KEY, (8,))
    with pytest.raises(ValueError, match="at least 4"):
        draws.named(dict(kind="rolling", history=3))(KEY, (8, 3))
    with pytest.raises(ValueError, match="a divisor of the clip's 5 frames, got block 2"):
        draws.named(dict(kind="blocks", block=2))(KEY, (8, 5))


# Fused weights: what Diffusion Forcing gives a frame among clean ones ------------------------------------------


def test_fused_weights_of_one_frame_are_min_snr():
    logsnr = np.linspace(-8, 8, 9)[:, None]
    for of in ("eps", "v", "x0"):
        np.testing.assert_allclose(
            levels.fused_min_snr(5.0, 0.9, of=of)(logsnr), np.minimum(np.exp(logsnr), 5.0), rtol=1e-12
        )


def test_fused_weights_by_the_recursion():
    logsnr = np.random.default_rng(0).normal(0, 3, (2, 5))
    cap, g = 5.0, 0.8
    for row, weights in zip(logsnr, levels.fused_min_snr(cap, g, of="x0")(logsnr), strict=True):
        known, clipped = 0.0, np.minimum(np.exp(row), cap) / cap
        for f in range(5):
            assert abs(weights[f] - cap * (1 - (1 - g * known) * (1 - clipped[f]))) < 1e-12
            known = clipped[f] if f == 0 else g * known + (1 - g) * clipped[f]
    both = levels.fused_min_snr(cap, g, causal=False)
    np.testing.assert_allclose(both(logsnr), both(logsnr[:, ::-1])[:, ::-1], rtol=1e-12)
    assert np.isfinite(both(np.array([[np.inf, -np.inf, 0.0]]))).all()


@pytest.mark.parametrize("of", ["eps", "v", "x0"])
def test_fused_weights_in_single_precision_keep_their_digits(of):
    """Down to the noisy end of the cosine, where the SNR is 2e-9, and beyond it."""
    logsnr = np.random.default_rng(0).uniform(-20, 20, (64, 5))
    weight = levels.fused_min_snr(of=of)
    np.testing.assert_allclose(weight(jnp.asarray(logsnr, jnp.float32)), weight(logsnr), rtol=2e-5)
    assert (np.asarray(weight(jnp.full((1, 3), -jnp.inf))) == 0).all()


def test_a_noisy_frame_after_clean_ones_weighs_more():
    weight = levels.fused_min_snr(of="x0")
    assert weight(np.array([[9.0, -4.0]]))[0, 1] > 20 * weight(np.array([[-9.0, -4.0]]))[0, 1]
    with pytest.raises(ValueError, match=r"level per frame"):
        weight(np.zeros(3))
    with pytest.raises(ValueError, match="one of eps, v, x0"):
        levels.fused_min_snr(of="F")
