"""Windows and roll-outs: against plain loops, against each other, and what is refused before anything runs."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from diffusion import frames, grids, levels, oracles, sampling, schedules, solvers
from diffusion import noise as noises

VP = schedules.vp_cosine()
KEY = jax.random.key(5)
VIDEO = oracles.gaussian_process(oracles.ornstein_uhlenbeck(8, 0.9))


def DENOISE(x, logsnr):
    """Some denoiser that looks at all frames and at their levels, and compiles fast."""
    level = jnp.asarray(logsnr, x.dtype)
    gain = jax.nn.sigmoid(level.reshape(level.shape + (1,) * (x.ndim - level.ndim)))
    return gain * x + 0.3 * (1 - gain) * jnp.cumsum(x, axis=1) / (1 + jnp.arange(x.shape[1])).reshape(1, -1, 1, 1, 1)


STEPS = grids.uniform_logsnr(VP, 4, -8.0, 8.0)


def noise(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def clip(b=3, f=8):
    return noise(b, f, 2, 2, 1)


# Windows ----------------------------------------------------------------------------------------------------


def spoken(x, logsnr):
    """A denoiser that answers with the place of a frame in its window, and its level."""
    place = jnp.arange(x.shape[1], dtype=jnp.float32).reshape(1, -1, 1, 1, 1)
    level = jnp.broadcast_to(jnp.asarray(logsnr).reshape(jnp.shape(logsnr) + (1,) * (5 - jnp.ndim(logsnr))), x.shape)
    return place + 100 * level + 0 * x


def test_one_window_is_the_denoiser_itself():
    whole = frames.windowed(DENOISE, 8, 8, 8)
    for level in (0.5, jnp.full((3,), 0.5), jnp.linspace(-2, 2, 8)[None]):
        np.testing.assert_allclose(whole(clip(), level), DENOISE(clip(), level), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "weights, expected",
    [
        ("flat", [0, 1, (2 + 0) / 2, (3 + 1) / 2, (2 + 0) / 2, (3 + 1) / 2, 2, 3]),
        ("pyramid", [0, 1, (2 * 2 + 0) / 3, (3 + 2 * 1) / 3, (2 * 2 + 0) / 3, (3 + 2 * 1) / 3, 2, 3]),
        ("earliest", [0, 1, 2, 3, 2, 3, 2, 3]),
    ],
)
def test_overlaps_are_averaged_by_their_weights(weights, expected):
    answer = frames.windowed(spoken, 8, 4, 2, weights)(clip(), jnp.zeros(()))
    np.testing.assert_allclose(answer[1, :, 0, 0, 0], expected, rtol=1e-6)


def test_windows_are_shown_the_levels_of_their_frames():
    level = jnp.arange(24.0).reshape(3, 8)
    answer = frames.windowed(spoken, 8, 4, 4)(clip(), level)
    np.testing.assert_allclose(answer[:, :, 0, 0, 0], np.tile(np.arange(4), 2) + 100 * level, rtol=1e-6)
    shared = frames.windowed(spoken, 8, 4, 4)(clip(), level[:1])
    np.testing.assert_allclose(shared[2, :, 0, 0, 0], np.tile(np.arange(4), 2) + 100 * level[0], rtol=1e-6)
    each = frames.windowed(spoken, 8, 4, 4)(clip(), level[:, 0])
    np.testing.assert_allclose(each[2, :, 0, 0, 0], np.tile(np.arange(4), 2) + 100 * level[2, 0], rtol=1e-6)


def test_a_tree_of_conditions_is_cut_as_clips_are():
    def told(x, logsnr, cond):
        shift = cond["frames"][..., None, None, None] + cond["label"][:, None, None, None, None]
        return spoken(x, logsnr) + shift

    cond = {"frames": 10.0 * jnp.arange(24.0).reshape(3, 8), "label": jnp.array([0.0, 1000.0, 2000.0])}
    answer = frames.windowed(told, 8, 4, 4)(clip(), jnp.zeros(()), cond)
    expected = np.tile(np.arange(4), 2) + cond["frames"] + cond["label"][:, None]
    np.testing.assert_allclose(answer[:, :, 0, 0, 0], expected, rtol=1e-6)


def test_windows_are_of_clips_of_one_length():
    with pytest.raises(ValueError, match=r"of clips of 8 frames, got x of shape \(3, 12"):
        frames.windowed(spoken, 8, 4, 4)(noise(3, 12, 2, 2, 1), jnp.zeros(()))


def test_blended_windows_lose_variance():
    """MultiDiffusion on Gaussian video: every window is right for itself, their mean is too quiet (video of 16 frames)."""
    short = oracles.gaussian_process(oracles.ornstein_uhlenbeck(8, 0.9)).denoiser(VP)
    whole = oracles.gaussian_process(oracles.ornstein_uhlenbeck(16, 0.9)).denoiser(VP)
    table = solvers.ddim(VP, grids.uniform_time(VP, 64, None, 8.0))
    x = noise(1500, 16, 1, 1, 1)
    exact = np.asarray(sampling.sample(whole, table, x)).var(0).mean()
    blended = np.asarray(sampling.sample(frames.windowed(short, 16, 8, 2), table, x)).var(0)[4:12].mean()
    assert abs(exact - 1) < 0.06 and blended < 0.93


# Roll-outs --------------------------------------------------------------------------------------------------


def plainly(denoise, build, matrix, x, periods, key, history, advance, sdedit=False):
    """A roll-out as a loop over periods with `sample`."""
    video, table = [], build(VP, matrix)
    before, after = matrix[0, 0], matrix[-1, 0]
    for i in range(periods):
        run_key, stay_key, new_key = jax.random.split(jax.random.fold_in(key, i), 3)
        done = sampling.sample(denoise, table, x, run_key if table.stochastic else None)
        video.append(done[:, history : history + advance])
        stay = done[:, advance:]
        fresh = jax.random.normal(stay_key, stay.shape)
        for f in range(stay.shape[1]):
            here, there = after[f + advance], before[f]
            here = np.inf if here == after.max() or here == 8.0 else here  # finished: data
            if there < here and there != after[f + advance]:
                kept = VP.alpha(there) / VP.alpha(here)
                added = np.sqrt(VP.sigma(there) ** 2 - (kept * VP.sigma(here)) ** 2)
                stay = stay.at[:, f].set(kept * stay[:, f] + added * fresh[:, f])
        new = jax.random.normal(new_key, (len(x), advance, *x.shape[2:]))
        if sdedit:
            new = VP.alpha(before[-1]) * video[-1] + VP.sigma(before[-1]) * new
        x = jnp.concatenate([stay, new], axis=1)  # noisy data of unit variance has that variance, in VP
    return jnp.concatenate(video, axis=1)


ROLLOUTS = {
    "chunks": (frames.known(frames.full(STEPS, 6), before=2), 2, None),
    "stabilised": (frames.known(frames.full(STEPS, 6), before=2, level=3.0), 2, None),
    "long memory": (frames.known(frames.pyramid(STEPS, 3, 1), before=5), 5, None),
    "sdedit": (frames.known(frames.full(STEPS[2:], 6), before=2), 2, None),
    "rolling": (frames.known(frames.rolling(STEPS, 1, block=1), before=4), 4, 1),
    "rolling in blocks": (frames.rolling(STEPS, 1, block=2), 0, 2),
}


@pytest.mark.parametrize("name", ROLLOUTS)
@pytest.mark.parametrize("build", [solvers.dpmpp, solvers.ddpm], ids=["2m", "ddpm"])
def test_a_roll_out_is_a_loop_of_samples(name, build):
    matrix, history, advance = ROLLOUTS[name]
    made = frames.roll_out(
        DENOISE, build(VP, matrix), clip(), 3, KEY, matrix=matrix, schedule=VP, history=history, advance=advance,
        sdedit=name == "sdedit",
    )  # fmt: skip
    step = matrix.shape[2] - history if advance is None else advance
    assert made.shape == (3, 3 * step, 2, 2, 1)
    expected = plainly(DENOISE, build, matrix, clip(), 3, KEY, history, step, name == "sdedit")
    np.testing.assert_allclose(made, expected, atol=2e-5)


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("build", [solvers.consistency, functools.partial(solvers.flow_map, gamma=1.0)])
def test_a_frame_on_its_way_is_noised_anew_though_a_period_ends(build, lag):
    """Data of N(0, 1), for which the consistency function is x itself: frames that roll out have unit variance."""
    grid = grids.uniform_time(VP, 4, end=np.inf)
    begin, rolling = frames.rolling_start(grid, lag), frames.rolling(grid, lag)
    tables = [build(VP, matrix, end=np.inf) for matrix in (begin, rolling)]
    x = jax.random.normal(KEY, (512, rolling.shape[2], 2))
    first, then = jax.random.split(jax.random.key(1))
    x = sampling.sample(lambda x, *levels: x, tables[0], x, first)
    video = frames.roll_out(lambda x, *levels: x, tables[1], x, 8, then, matrix=rolling, schedule=VP, advance=1)
    assert tables[1].stochastic and abs(float(video.std()) - 1) < 0.05


def test_rolling_out_begins_where_its_start_ends():
    """Start and periods, put together, are the pyramid of a longer video, frame by frame; here it fits one window."""
    grid = grids.uniform_logsnr(VP, 8, -8.0, 8.0)
    x = clip()
    pyramid = sampling.sample(DENOISE, solvers.ddim(VP, frames.pyramid(grid, 8, 1)), x)
    begun = sampling.sample(DENOISE, solvers.ddim(VP, frames.rolling_start(grid, 1)), x)
    rolling = frames.rolling(grid, 1)
    first = frames.roll_out(DENOISE, solvers.ddim(VP, rolling), begun, 1, KEY, matrix=rolling, schedule=VP, advance=1)
    np.testing.assert_allclose(first[:, 0], pyramid[:, 0], atol=1e-5)


@pytest.mark.parametrize("level", [-4.0, 0.0, 3.0])
def test_sdedit_keeps_the_law_and_as_much_of_the_clip_as_its_level_says(level):
    """Along the exact flow a noised draw of a Gaussian law becomes another, correlated with the first, mode by mode."""
    covariance = oracles.ornstein_uhlenbeck(6, 0.9)
    video, count = oracles.gaussian_process(covariance), 4000
    first = video.sample(KEY, count)
    x = levels.forward(first, noise(*first.shape), jnp.float32(level), VP)
    table = solvers.dpmpp(VP, grids.uniform_logsnr(VP, 24, start=level, end=14.0))
    made = np.asarray(sampling.sample(video.denoiser(VP), table, x)).reshape(count, 6)
    first = np.asarray(first).reshape(count, 6)
    sizes, modes = np.linalg.eigh(covariance)
    alpha, sigma = VP.alpha(level), VP.sigma(level)
    kept = modes * alpha * sizes**1.5 / np.sqrt(alpha**2 * sizes + sigma**2) @ modes.T
    np.testing.assert_allclose(made.T @ made / count, covariance, atol=0.1)
    np.testing.assert_allclose(made.T @ first / count, kept, atol=0.1)


@pytest.mark.parametrize("source", [noises.progressive(1.0), noises.mixed(1.0)])
def test_without_a_history_no_frame_stays(source):
    matrix = frames.full(STEPS, 4)
    made = frames.roll_out(
        DENOISE, solvers.ddim(VP, matrix), clip(2, 4), 2, KEY, matrix=matrix, schedule=VP, noise=source
    )
    assert made.shape == (2, 8, 2, 2, 1) and np.isfinite(made).all()


def test_a_long_roll_out_of_a_markov_video_keeps_its_law():
    """Two clean frames are all that an AR(1) video remembers: 20 chunks on, the variance and the lag are as at first."""
    matrix = frames.known(frames.full(grids.uniform_time(VP, 64, None, 8.0), 6), before=2)
    first = VIDEO.sample(jax.random.key(1), 2000)
    x = jnp.concatenate([first[:, :2], noise(2000, 6, 1, 1, 1)], axis=1)
    made = frames.roll_out(
        VIDEO.denoiser(VP), solvers.dpmpp(VP, matrix), x, 20, KEY, matrix=matrix, schedule=VP, history=2
    )
    video = np.asarray(made)[:, :, 0, 0, 0]
    assert video.shape == (2000, 120)
    late = video[:, 60:]
    assert abs((late**2).mean() - 1) < 0.05
    assert abs((late[:, 1:] * late[:, :-1]).mean() - 0.9) < 0.05
    # Across the seam between two chunks, too.
    seams = np.arange(66, 120, 6)
    assert abs((video[:, seams] * video[:, seams - 1]).mean() - 0.9) < 0.05


def test_one_program_for_any_number_of_rows_and_weights():
    matrix = frames.known(frames.full(STEPS, 6), before=2)
    roll = functools.partial(frames.roll_out, matrix=matrix, schedule=VP, history=2)
    before = frames._roll_out._cache_size()
    for build in (solvers.ddim, solvers.dpmpp):
        roll(VIDEO.denoiser(VP), build(VP, matrix), clip(), 2, KEY)
    assert frames._roll_out._cache_size() - before <= 1


def test_progress_counts_periods():
    said = []
    matrix = frames.known(frames.full(STEPS, 6), before=2)
    table = solvers.ddim(VP, matrix)
    made = frames.roll_out(
        DENOISE, table, clip(), 2, KEY, matrix=matrix, schedule=VP, history=2, progress=lambda *now: said.append(now)
    )
    made.block_until_ready()
    jax.effects_barrier()
    assert sorted(said) == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "change, error",
    [
        (dict(history=8), "history"),
        (dict(advance=7), "advance"),
        (dict(periods=0), "periods"),
        (dict(x=clip(f=7)), "windows of 8 frames|does not fit"),
        (dict(matrix=frames.known(frames.full(STEPS + 0.5, 6), before=2)), "the table.s levels are not the matrix"),
        (dict(matrix=frames.full(STEPS, 8)[:, :, :1]), "the table.s levels are not the matrix"),
    ],
)
def test_what_does_not_fit_is_refused(change, error):
    matrix = frames.known(frames.full(STEPS, 6), before=2)
    call = (
        dict(table=solvers.ddim(VP, matrix), x=clip(), periods=2, key=KEY, matrix=matrix, schedule=VP, history=2)
        | change
    )
    with pytest.raises(ValueError, match=error):
        frames.roll_out(DENOISE, **call)


def test_a_matrix_that_does_not_repeat_is_refused():
    pyramid = frames.pyramid(STEPS, 8, 1)
    with pytest.raises(ValueError, match="would have to stand at the cleaner"):
        cut = frames.pyramid(STEPS, 8, 2)[3:5]
        frames.roll_out(DENOISE, solvers.ddim(VP, cut), clip(), 2, KEY, matrix=cut, schedule=VP, advance=1)
    with pytest.raises(ValueError, match="handed out"):
        frames.roll_out(
            DENOISE, solvers.ddim(VP, pyramid[:6]), clip(), 2, KEY, matrix=pyramid[:6], schedule=VP, advance=4
        )


# The least there is ---------------------------------------------------------------------------------------------


def knows(clips, x, logsnr):
    return clips


ENDS = {"finite": (-8.0, 8.0), "no signal": (-np.inf, 8.0), "clean": (-8.0, np.inf), "both": (-np.inf, np.inf)}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("steps", [1, 3])
def test_one_step_and_infinite_ends_leave_what_the_denoiser_says(ends, steps):
    """A denoiser that knows the clip: every matrix ends at it, whatever the number of steps, frames and known frames."""
    start, end = ENDS[ends]
    grid = np.array([start, *np.linspace(-2, 2, steps - 1), end])
    truth = clip(2, 4)
    for matrix in (
        frames.full(grid, 4), frames.autoregressive(grid, 4, 2), frames.pyramid(grid, 4, 0.5), frames.trapezoid(grid, 4, 1),
        frames.known(frames.pyramid(grid, 2, 1), before=1, after=1),
    ):  # fmt: skip
        first = levels.expand(matrix[0], np.asarray(truth))
        x = VP.alpha(first) * truth + VP.sigma(first) * clip(2, 4) * 0.7
        last = levels.expand(matrix[-1], np.asarray(truth))
        for build in (solvers.ddim, solvers.dpmpp):
            made = sampling.sample(Partial(knows, truth), build(VP, matrix), jnp.asarray(x, jnp.float32))
            # At an end that isn't clean the noise that is left there is what it began with.
            left = VP.sigma(last) * np.where(np.isinf(last), 0.0, 0.7) * np.asarray(clip(2, 4))
            np.testing.assert_allclose(made, VP.alpha(last) * truth + left, atol=2e-4)


def test_one_frame_rolls_out():
    """A window of one frame without history is as many clips of one frame as there are periods."""
    matrix = frames.full(STEPS, 1)
    video = frames.roll_out(
        DENOISE, solvers.ddim(VP, matrix), clip(2, 1), 3, KEY, matrix=matrix, schedule=VP, history=0
    )  # fmt: skip
    alone = sampling.sample(DENOISE, solvers.ddim(VP, STEPS), clip(2, 1))
    assert video.shape == (2, 3, 2, 2, 1)
    np.testing.assert_allclose(video[:, :1], alone, atol=1e-5)


def test_an_overlap_of_all_frames_but_one_is_the_longest_history():
    """Chunks of one frame after the other seven, against the loop."""
    matrix = frames.known(frames.full(STEPS, 1), before=7)
    table = solvers.ddim(VP, matrix)
    video = frames.roll_out(DENOISE, table, clip(), 2, KEY, matrix=matrix, schedule=VP, history=7)
    first = sampling.sample(DENOISE, table, clip())
    assert video.shape == (3, 2, 2, 2, 1)
    np.testing.assert_allclose(video[:, :1], first[:, -1:], atol=1e-5)


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: frames.known(frames.full(STEPS, 2), before=1, level=np.nan), "known: expected a log-SNR, .* got level nan"),
        (lambda: inspect.unwrap(frames.known)(frames.sweep(STEPS, 2, 3, 3, 1)), r"known: expected .* shape \(7, 1, 2"),
        (lambda: inspect.unwrap(frames.wave)(frames.sweep(STEPS, 2, 3, 3, 1)), "wave: expected a schedule matrix"),
        (lambda: frames.pyramid(STEPS[::-1], 3, 1), "must rise"),
        (lambda: frames.pyramid(np.array([0.0, np.nan, 1.0]), 3, 1), "must not hold NaN"),
        (lambda: frames.windowed(DENOISE, 16, 8, 4, matrix=frames.full(STEPS, 12)), "have 16 frames, this schedule matrix 12"),
    ],
)  # fmt: skip
def test_what_is_no_matrix_is_refused_by_name(make, error):
    """Without the tests' checks of types, which come first here."""
    with pytest.raises(ValueError, match=error):
        make()


def test_frames_that_are_all_given_are_no_wave():
    assert frames.wave(np.full((5, 1, 3), 2.0)) == 0
