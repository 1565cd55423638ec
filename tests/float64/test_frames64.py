"""Schedule matrices, windows and known frames on Gaussian-process video, where the law of every sampler is exact.

A table whose denoiser is linear is a matrix, so the covariance of what it makes is read off, and its Wasserstein distance to
the true law is a number without noise. T = 16 frames, Ornstein-Uhlenbeck .95 (rough, Markov) and RBF 3 (smooth).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from solvers_tools import by_hand

from diffusion import frames, grids, history, noise, oracles, sampling, schedules, solvers

T = 16
COSINE = schedules.vp_cosine()
KERNELS = {"ou": oracles.ornstein_uhlenbeck(T, 0.95), "rbf": oracles.rbf(T, 3.0)}
MATRICES = {
    "full": lambda g: frames.full(g, T),
    "pyramid 1": lambda g: frames.pyramid(g, T, 1),
    "pyramid N/4": lambda g: frames.pyramid(g, T, (len(g) - 1) // 4),
    "trapezoid N/4": lambda g: frames.trapezoid(g, T, (len(g) - 1) // 4),
    "autoregressive": lambda g: frames.autoregressive(g, T),
    "blocks of 4": lambda g: frames.autoregressive(g, T, block=4),
}


def law(kernel, level, noise_covariance=None):
    own = np.eye(len(kernel)) if noise_covariance is None else noise_covariance
    return float(COSINE.alpha(level)) ** 2 * kernel + float(COSINE.sigma(level)) ** 2 * own


def made(kernel, matrix, build, denoise=None, noise_covariance=None):
    """The covariance of what a table makes of the true law at the first level, over frames."""
    denoise = denoise or oracles.gaussian_process(kernel).denoiser(COSINE, noise_covariance)
    root = np.linalg.cholesky(law(kernel, matrix[0].min(), noise_covariance))
    _, rows = by_hand(build(COSINE, matrix), denoise, root.T[..., None, None, None])
    rows = rows[..., 0, 0, 0]
    return rows.T @ rows


@functools.cache
def distance(kernel, matrix, solver, grid, steps):
    """To the true law at the last level. Grids: uniform in the cosine's time to log-SNR 6 or 20, or in log-SNR."""
    build = {
        "ddim": solvers.ddim,
        "2m": functools.partial(solvers.dpmpp, order=2, lower_order_final=False, damping=math.inf),
        "damped 2m": functools.partial(solvers.dpmpp, order=2, damping=1.5),
    }[solver]
    levels = {
        "time": lambda n: grids.uniform_time(COSINE, n),
        "time to 6": lambda n: grids.uniform_time(COSINE, n, None, 6.0),
        "logsnr": lambda n: grids.uniform_logsnr(COSINE, n, -8.0, 8.0),
    }[grid](steps)
    covariance = made(KERNELS[kernel], MATRICES[matrix](levels), build)
    return oracles.wasserstein_gaussian(covariance, law(KERNELS[kernel], levels[-1]))


def order(kernel, matrix, solver, grid, coarse, fine):
    errors = [distance(kernel, matrix, solver, grid, n) for n in (coarse, fine)]
    return math.log(errors[0] / errors[1]) / math.log(fine / coarse)


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("grid", ["time to 6", "logsnr"])
def test_every_matrix_converges_to_the_same_law_at_first_order(kernel, matrix, grid):
    assert abs(order(kernel, matrix, "ddim", grid, 12, 36) - 1) < 0.25
    assert distance(kernel, matrix, "ddim", grid, 36) < 0.3


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_multistep_tables_keep_their_order_along_any_matrix(kernel, matrix):
    assert abs(order(kernel, matrix, "2m", "logsnr", 24, 60) - 2) < 0.2


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_on_the_cosine_clock_no_matrix_is_worse_with_2m(kernel, matrix):
    for steps in (8, 40):
        assert distance(kernel, matrix, "damped 2m", "time", steps) < distance(kernel, matrix, "ddim", "time", steps)


@pytest.mark.parametrize("matrix", [name for name in MATRICES if name != "full"])
def test_staggered_tables_are_damped_and_end_low_unless_told_otherwise(matrix):
    """Without either, the last steps of a nearly singular video diverge."""
    levels = MATRICES[matrix](grids.uniform_time(COSINE, 24))
    told = solvers.dpmpp(COSINE, levels, 2, damping=1.5, lower_order_final=True)
    for ours, expected in zip(jax.tree.leaves(solvers.dpmpp(COSINE, levels, 2)), jax.tree.leaves(told), strict=True):
        np.testing.assert_array_equal(ours, expected)
    levels = frames.pyramid(grids.uniform_time(COSINE, 32), T, 1)
    free = functools.partial(solvers.dpmpp, order=2, damping=math.inf, lower_order_final=False)
    far, near = (
        oracles.wasserstein_gaussian(made(KERNELS["rbf"], levels, build), law(KERNELS["rbf"], 20.0))
        for build in (free, solvers.dpmpp)
    )
    assert near < 0.2 and far > 1e3


# Matrices as such -------------------------------------------------------------------------------------------


def test_matrices_by_hand():
    grid = np.array([-2.0, -1.0, 0.0, 1.0])
    np.testing.assert_array_equal(frames.full(grid, 2)[:, 0], np.stack([grid, grid], 1))
    np.testing.assert_array_equal(
        frames.pyramid(grid, 3, 1)[:, 0],
        [[-2, -2, -2], [-1, -2, -2], [0, -1, -2], [1, 0, -1], [1, 1, 0], [1, 1, 1]],
    )
    np.testing.assert_array_equal(frames.trapezoid(grid, 3, 2)[2:4, 0], [[0, -2, 0], [1, -1, 1]])
    np.testing.assert_array_equal(frames.autoregressive(grid, 4, block=2)[3:5, 0], [[1, 1, -2, -2], [1, 1, -1, -1]])
    np.testing.assert_array_equal(frames.rolling(grid, 1)[:, 0], [[0, -1, -2], [1, 0, -1]])
    np.testing.assert_array_equal(frames.rolling_start(grid, 1)[-1:], frames.rolling(grid, 1)[:1])
    given = frames.known(frames.full(grid, 1), before=1, after=1, level=4.0)
    np.testing.assert_array_equal(given[:, 0], np.stack([np.full(4, 4.0), grid, np.full(4, 4.0)], 1))
    assert len(frames.pyramid(grid, 4, 0.5)) == 4 + math.floor(3 * 0.5)


def test_the_wave_is_what_is_under_way():
    grid = np.linspace(-8.0, 8.0, 9)
    for lag in (1, 2, 4, 7):  # of 8 steps; a frame that leaves the noise in a call is in it
        assert frames.wave(frames.pyramid(grid, 40, lag)) == -(-8 // lag)
        assert 8 % lag or frames.wave(frames.rolling(grid, lag)) == frames.rolling(grid, lag).shape[2]
    assert frames.wave(frames.full(grid[::8], 5)) == frames.wave(frames.full(grid, 5)) == 5
    assert frames.wave(frames.autoregressive(grid, 5)) == 1
    assert frames.wave(frames.known(frames.autoregressive(grid, 5), before=3, level=2.0)) == 1


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda g: frames.pyramid(g, 4, 9), "expected 0"),
        (lambda g: frames.pyramid(g, 0, 1), "frames"),
        (lambda g: frames.pyramid(g[:1], 4, 0), "one grid"),
        (lambda g: frames.rolling(g, 3), "nearest: 2"),
        (lambda g: frames.rolling_start(g, 8), "no start needed"),
        (lambda g: frames.known(frames.full(g, 2), before=-1), "before"),
        (lambda g: frames.windowed(lambda x, l: x, 8, 3, 2), "choose frames = 7 or 9"),
        (lambda g: frames.windowed(lambda x, l: x, 8, 4, 5), "stride"),
        (lambda g: frames.windowed(lambda x, l: x, 8, 4, 2, "even"), "one of flat"),
        (lambda g: frames.windowed(lambda x, l: x, 8, 4, 2, matrix=frames.rolling(g, 1)), "wave"),
    ],
)
def test_what_does_not_fit_is_refused(call, error):
    with pytest.raises(ValueError, match=error):
        call(np.linspace(-8.0, 8.0, 9))


# Known frames -----------------------------------------------------------------------------------------------

WHERE = np.arange(T) < 4
called = jax.jit(lambda denoise, x, level: denoise(x, level))


def given_four(kernel, seed=0):
    """Four first frames drawn from the law, in a clip of zeros, and the exact mean and covariance of the other twelve."""
    K = KERNELS[kernel]
    first = np.linalg.cholesky(K + 1e-12 * np.eye(T))[:4, :4] @ np.random.default_rng(seed).standard_normal(4)
    gain = np.linalg.lstsq(K[:4, :4], K[:4, 4:], rcond=1e-12)[0].T
    clip = np.zeros((1, T, 1, 1, 1))
    clip[0, :4, 0, 0, 0] = first
    return jnp.asarray(clip), gain @ first, K[4:, 4:] - gain @ K[:4, 4:]


def mean_error(kernel, steps, wrap):
    """The rms error of the sampled mean: noise at its mean, 0, everywhere."""
    clip, mean, _ = given_four(kernel)
    denoise = oracles.gaussian_process(KERNELS[kernel]).denoiser(COSINE)
    grid = grids.uniform_time(COSINE, steps, None, 10.0)
    if wrap is None:
        matrix = frames.known(frames.full(grid, T - 4), before=4)
        made = sampling.sample(denoise, solvers.ddim(COSINE, matrix), clip)
    else:
        made = sampling.sample(
            wrap(denoise, COSINE, clip, WHERE, jnp.zeros_like(clip)), solvers.ddim(COSINE, grid), 0 * clip
        )
    return float(np.sqrt(np.mean((np.asarray(made)[0, 4:, 0, 0, 0] - mean) ** 2))), np.sqrt(np.mean(mean**2))


@pytest.mark.parametrize("kernel", KERNELS)
def test_history_in_the_matrix_has_no_mean_error_and_replacement_keeps_one(kernel):
    exact, size = mean_error(kernel, 16, None)
    assert exact < 1e-3 * size
    few, many = (mean_error(kernel, steps, history.replacement)[0] for steps in (16, 256))
    assert many > 0.1 * size and many > 0.7 * few
    guided = mean_error(kernel, 256, functools.partial(history.reconstruction, weight=5.0))[0]
    assert exact < guided < many


def test_history_in_the_matrix_has_the_conditional_covariance():
    clip, _, covariance = given_four("ou")
    denoise = oracles.gaussian_process(KERNELS["ou"]).denoiser(COSINE)
    matrix = frames.known(frames.full(grids.uniform_time(COSINE, 256, None, 10.0), T - 4), before=4)
    x = np.zeros((T - 4, T, 1, 1, 1))
    x[:, 4:, 0, 0, 0] = np.eye(T - 4)
    _, rows = by_hand(solvers.dpmpp(COSINE, matrix), denoise, x)
    rows = rows[:, 4:, 0, 0, 0]
    assert oracles.wasserstein_gaussian(rows.T @ rows, covariance) < 0.02


@pytest.mark.parametrize("build", [solvers.dpmpp, functools.partial(solvers.unipc, order=3)])
def test_frames_that_are_given_make_no_other_wait(build):
    """Long enough a grid to tell: neither damped nor of lower order at its end, as without them."""
    matrix = frames.full(grids.uniform_time(COSINE, 24, None, 10.0), T - 4)
    alone, beside = build(COSINE, matrix), build(COSINE, frames.known(matrix, before=2, after=2))
    assert alone.describe() != build(COSINE, matrix, damping=1.5, lower_order_final=True).describe()
    for ours, expected in zip(jax.tree.leaves(beside), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(ours[..., 2:-2] if np.shape(ours)[-1:] == (T,) else ours, expected)


def test_guided_history_is_a_sum_of_exact_denoisers():
    """Against oracles that were told which frames they may see: a shown frame as data, a hidden one as none."""
    clip, *_ = given_four("ou")
    K, level = KERNELS["ou"], -1.0
    alpha, sigma = float(COSINE.alpha(level)), float(COSINE.sigma(level))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, T, 1, 1, 1)))

    def exact(shown):
        """The posterior mean of frames 4.. given their noisy selves and the clean frames `shown`."""
        seen = np.flatnonzero(np.r_[shown, np.ones(T - 4, bool)])
        gain = np.where(seen < 4, 1.0, alpha)
        noisy = np.diag(np.where(seen < 4, 1e-12, sigma**2)) + gain[:, None] * K[np.ix_(seen, seen)] * gain
        data = np.where(seen < 4, clip[0, seen, 0, 0, 0], x[0, seen, 0, 0, 0])
        return K[4:, seen] * gain @ np.linalg.solve(noisy, data)

    every, last, none = exact(np.ones(4, bool)), exact(np.arange(4) >= 2), exact(np.zeros(4, bool))
    denoise = oracles.gaussian_process(K).denoiser(COSINE)
    for parts, expected in (
        (history.vanilla(1.0), every),
        (history.vanilla(2.5), none + 2.5 * (every - none)),
        (
            history.temporal([(1.5, WHERE), (0.5, WHERE & (np.arange(T) >= 2))]),
            none + 1.5 * (every - none) + 0.5 * (last - none),
        ),
        (history.fractional(2.0, -math.inf), every),
    ):  # fmt: skip
        answer = called(
            history.guided(denoise, COSINE, clip, WHERE, jnp.zeros_like(clip), parts), x, jnp.asarray(level)
        )
        np.testing.assert_allclose(answer[0, 4:, 0, 0, 0], expected, atol=1e-6)
        np.testing.assert_array_equal(answer[0, :4], clip[0, :4])


@pytest.mark.parametrize("level", [-1.0, [-1.0, 0.5], [[1.0, 0.5, -1.0, -2.0]]], ids=["one", "per clip", "per frame"])
@pytest.mark.parametrize("name", ["vp_cosine", "flow", "edm"])
def test_reconstruction_descends_the_error_on_the_known_frames(name, level):
    """Against central differences of half their squared error, of a denoiser that mixes frames and is no line: what is
    estimated of the others moves by minus weight alpha times that slope.
    """
    schedule, rng, where = getattr(schedules, name)(), np.random.default_rng(0), np.array([True, True, False, False])
    mix, (x, known, eps) = rng.standard_normal((4, 4)), rng.standard_normal((3, 2, 4, 1, 1, 1))
    level = np.asarray(level)
    per_frame = np.broadcast_to(level if level.ndim != 1 else level[:, None], (2, 4)).reshape(x.shape)
    alpha, sigma = np.asarray(schedule.alpha(per_frame)), np.asarray(schedule.sigma(per_frame))

    def denoise(x, logsnr):
        return jnp.tanh(jnp.einsum("ij,bjhwc->bihwc", mix, x))

    def half_error(x):
        return 0.5 * np.sum(np.asarray(known - denoise(x, level))[:, where] ** 2, (1, 2, 3, 4))

    shown = np.where(where.reshape(-1, 1, 1, 1), alpha * known + sigma * eps, x)
    slope = np.zeros_like(x)
    for frame in range(4):
        nudge = np.zeros_like(x)
        nudge[:, frame] = 1e-5
        slope[:, frame, 0, 0, 0] = (half_error(shown + nudge) - half_error(shown - nudge)) / 2e-5
    weight = 3.0
    answer = history.reconstruction(denoise, schedule, known, where, eps, weight)(jnp.asarray(x), jnp.asarray(level))
    expected = denoise(shown, level) - weight * alpha * slope
    np.testing.assert_allclose(answer[:, ~where], expected[:, ~where], rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(answer[:, where], known[:, where])
    assert np.abs((weight * alpha * slope)[:, ~where]).max() > 0.1


def test_known_frames_that_do_not_fit_are_refused():
    clip, *_ = given_four("ou")
    with pytest.raises(ValueError, match="must sum to 1"):
        history.guided(lambda x, l: x, COSINE, clip, WHERE, clip, [(1.0, 0.0), (0.5, 1.0)])
    with pytest.raises(ValueError, match=r"one log-SNR or \[16\]"):
        history.guided(lambda x, l: x, COSINE, clip, WHERE, clip, [(1.0, np.zeros(4))])
    with pytest.raises(ValueError, match="a truth value for each of the 16 frames"):
        history.replacement(lambda x, l: x, COSINE, clip, np.ones(4, bool), clip)
    with pytest.raises(ValueError, match="from 0 up"):
        history.reconstruction(lambda x, l: x, COSINE, clip, WHERE, clip, -1.0)


# Noise that hangs together ----------------------------------------------------------------------------------


def with_noise(kernel, source, steps=8):
    own = source.covariance(T)
    levels = frames.full(grids.uniform_time(COSINE, steps, None, 10.0), T)
    made_ = made(KERNELS[kernel], levels, solvers.ddim, noise_covariance=own)
    return oracles.wasserstein_gaussian(made_, law(KERNELS[kernel], 10.0, own))


def test_correlated_noise_has_an_optimum_and_too_much_of_it_hurts():
    """PYoCo's choices on exact video: gains of a quarter and more at 8 steps; at a = 4, mixed noise is worse than none."""
    iid = with_noise("ou", noise.iid())
    mixed = {a: with_noise("ou", noise.mixed(a)) for a in (0.5, 1.0, 2.0, 4.0)}
    progressive = {a: with_noise("ou", noise.progressive(a)) for a in (0.5, 1.0, 2.0, 4.0)}
    assert min(mixed, key=mixed.get) == 1.0 and mixed[1.0] < 0.7 * iid and mixed[4.0] > mixed[1.0]
    assert min(progressive, key=progressive.get) >= 2.0 and progressive[2.0] < 0.65 * iid
    smooth = {a: with_noise("rbf", noise.mixed(a)) for a in (0.5, 4.0)}
    assert smooth[0.5] < with_noise("rbf", noise.iid()) < smooth[4.0]
