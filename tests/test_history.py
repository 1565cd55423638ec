"""Known frames read off a window that rolls on: the same as when they are told, period by period."""

import functools

import jax
import numpy as np
import pytest

from diffusion import frames, grids, history, oracles, sampling, schedules, solvers

VP = schedules.vp_cosine()
VIDEO = oracles.gaussian_process(oracles.ornstein_uhlenbeck(6, 0.9))
KNOWN, KEY = 2, jax.random.key(0)
MATRIX = frames.known(frames.full(grids.uniform_time(VP, 4), 6 - KNOWN), before=KNOWN)
TABLE = solvers.ddim(VP, MATRIX)
X = np.asarray(jax.random.normal(KEY, (3, 6, 2, 2, 1)))
EPS = np.asarray(jax.random.normal(jax.random.key(1), (1, 6, 2, 2, 1)))
EACH = np.repeat(EPS, 3, axis=0)
DENOISE = VIDEO.denoiser(VP)


def one_level(x, logsnr):
    """A network that takes one level for all frames."""
    assert logsnr.shape == (1, 1)
    return DENOISE(x, logsnr)


@pytest.mark.parametrize(
    ("way", "options"),
    [
        (history.guided, dict(parts=history.vanilla(2.0))),
        (history.guided, dict(parts=history.fractional(1.5, 0.0))),
        (history.guided, dict(parts=history.temporal([(1.0, np.arange(6) == 0), (0.5, np.arange(6) == 1)]))),
        (history.replacement, {}),
        (history.reconstruction, dict(weight=3.0)),
    ],
)
def test_what_the_window_holds_is_what_is_known(way, options):
    """Two periods by hand, each with its known frames told; replacement told the level of the frames that are sampled."""
    denoise = DENOISE if way is history.guided else one_level
    rolled = frames.roll_out(
        history.within(way, denoise, VP, KNOWN, EPS, **options), TABLE, X, 2, KEY, matrix=MATRIX, schedule=VP,
        history=KNOWN,
    )  # fmt: skip
    where, video, window = np.arange(6) < KNOWN, [], X
    for i in range(2):
        if way is history.guided:
            told, table = way(DENOISE, VP, window, where, EACH, **options), TABLE
        else:
            told, table = way(DENOISE, VP, window, where, EACH, **options), solvers.ddim(VP, grids.uniform_time(VP, 4))
        done = np.asarray(sampling.sample(told, table, window))
        video.append(done[:, KNOWN:])
        fresh = jax.random.split(jax.random.fold_in(KEY, i), 3)[2]
        window = np.concatenate([done[:, -KNOWN:], np.asarray(jax.random.normal(fresh, X[:, KNOWN:].shape))], 1)
    np.testing.assert_allclose(rolled, np.concatenate(video, 1), atol=2e-4)


def test_the_whole_history_shown_once_is_no_guidance():
    roll = functools.partial(
        frames.roll_out, table=TABLE, x=X, periods=2, key=KEY, matrix=MATRIX, schedule=VP, history=KNOWN
    )
    alone = history.within(history.guided, DENOISE, VP, KNOWN, EPS, parts=history.vanilla(1.0))
    np.testing.assert_allclose(roll(alone), roll(DENOISE), atol=1e-5)


@pytest.mark.parametrize(
    ("way", "first", "second"),
    [
        (history.guided, dict(parts=history.vanilla(2.0)), dict(parts=history.vanilla(3.0, hidden=-8.0))),
        (history.reconstruction, dict(weight=3.0), dict(weight=2)),
    ],
)
def test_another_strength_compiles_nothing(way, first, second):
    traced = []

    def denoise(x, logsnr):
        traced.append(x.shape)
        return DENOISE(x, logsnr)

    def rolled(options):
        known = history.within(way, denoise, VP, KNOWN, EPS, **options)
        return frames.roll_out(known, TABLE, X, 1, KEY, matrix=MATRIX, schedule=VP, history=KNOWN)

    one, count = rolled(first), len(traced)
    assert count and np.abs(rolled(second) - one).max() > 0.01
    assert len(traced) == count


def test_a_map_that_is_the_same_all_over_a_frame_is_a_level_per_frame():
    """Known frames, not columns of pixels, are told their own level: a clip as high and wide as it is long."""
    video = oracles.gaussian_process(oracles.ornstein_uhlenbeck(4, 0.9))
    x = jax.random.normal(KEY, (2, 4, 4, 4, 1))
    where, told = np.arange(4) < 1, []

    def denoise(x, logsnr):
        told.append(logsnr)
        return video.denoiser(VP)(x, logsnr if logsnr.ndim < 3 else logsnr[:, :, 0, 0])

    guided = history.guided(denoise, VP, x, where, jax.random.normal(KEY, x.shape), parts=history.vanilla(2.0))
    levels = np.asarray([[-3.0, -2.0, -1.0, 0.0]])
    per_frame = guided(x, levels)
    as_map = guided(x, np.broadcast_to(levels[..., None, None], (1, 4, 4, 4)))
    np.testing.assert_allclose(as_map, per_frame, atol=1e-5)
    assert all(np.ptp(level, axis=(2, 3)).max() == 0 for level in told if level.ndim == 4 and np.isfinite(level).all())


def test_no_known_frame_is_refused():
    with pytest.raises(ValueError, match="at least one known frame, got history 0"):
        history.within(history.replacement, DENOISE, VP, 0, EPS)


@pytest.mark.parametrize("way", ["vanilla", "fractional", "temporal"])
def test_history_hidden_behind_infinite_noise_is_refused(way):
    """A VE network would be shown inf times noise; with a finite level it is finite."""
    edm, first = schedules.edm(), np.arange(6) == 0
    make = {
        "vanilla": lambda **more: history.vanilla(2.0, **more),
        "fractional": lambda **more: history.fractional(1.5, 0.0, **more),
        "temporal": lambda **more: history.temporal([(0.5, first)], **more),
    }[way]
    with pytest.raises(ValueError, match="guided: at level .*hide history at a finite level, as hidden=-8.76"):
        history.guided(DENOISE, edm, EPS, first, EPS, parts=make())
    history.guided(DENOISE, edm, EPS, first, EPS, parts=make(hidden=edm.logsnr_start))


@pytest.mark.parametrize("way", [history.replacement, history.reconstruction])
def test_known_frames_of_one_clip_serve_a_level_for_each(way):
    """Known frames [1, f, ...] with levels [b]: the same as told once for every clip."""
    mask, level = np.arange(6) < KNOWN, np.array([-2.0, 0.0, 2.0])
    answers = [way(VIDEO.denoiser(VP), VP, known, mask, eps)(X, level) for known, eps in ((EPS, EPS), (EACH, EACH))]
    np.testing.assert_allclose(*answers, rtol=1e-6)
