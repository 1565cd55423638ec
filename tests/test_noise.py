"""Noise sources against their declared covariance: measured, and exactly (a source is a linear map)."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from diffusion import noise, oracles, schedules

FRAMES, CLIPS = 6, 2000
SHIFTS = np.broadcast_to(np.array([[0, 1], [0, 0], [-1, 0], [1, 0], [0, -1]])[:, None, None], (5, 6, 6, 2))
SOURCES = {
    "iid": noise.iid(),
    "mixed": noise.mixed(1.0),
    "mixed_weak": noise.mixed(0.5),
    "progressive": noise.progressive(2.0),
    "progressive_weak": noise.progressive(0.7),
    "block": noise.block_correlated(),
    "block_positive": noise.block_correlated(0.5, 3),
    "shuffled": noise.window_shuffled(4, 2),
    "offset": noise.offset(0.5),
    "offset_per_frame": noise.offset(0.5, per_frame=True),
    "warped": noise.warped(SHIFTS),
}


@jax.jit
def moments(source, key):
    """Covariance over frames at a pixel, and over the pixels of one frame, of CLIPS clips [6, 6, 6, 1]."""
    draws = source(key, (CLIPS, FRAMES, 6, 6, 1))
    frames = draws.swapaxes(0, 1).reshape(FRAMES, -1)
    flat = draws[:, 3].reshape(CLIPS, 36)
    return frames @ frames.T / frames.shape[1], flat.T @ flat / CLIPS, draws.mean()


@pytest.mark.parametrize("name", SOURCES)
def test_measured_covariance_is_the_declared_one(name):
    source = SOURCES[name]
    over_frames, over_pixels, mean = moments(source, jax.random.key(0))
    declared = source.covariance(FRAMES)
    assert declared.shape == (FRAMES, FRAMES)
    # Five standard errors of as many independent clips, as if their pixels were copies of each other.
    np.testing.assert_allclose(over_frames, declared, atol=5 * np.sqrt(2 / CLIPS) * declared.max())
    assert abs(mean) < 5 * declared.max() / np.sqrt(CLIPS)
    expected = np.eye(36) * declared[3, 3]
    if name.startswith("block"):
        n, cell = source.block, np.arange(36).reshape(6, 6)
        for i, j in itertools.product(range(0, 6, n), repeat=2):
            block = cell[i : i + n, j : j + n].ravel()
            expected[np.ix_(block, block)] = source.block_covariance()
    if name.startswith("offset"):
        expected = np.eye(36) + 0.5**2
    np.testing.assert_allclose(over_pixels, expected, atol=6 * np.sqrt(2 / CLIPS) * expected.max())


def test_no_two_sources_share_a_program():
    """jit finds a program by the structure of its arguments: two sources' must differ, whatever their hashes are."""
    structures = {type(source): jax.tree.structure(source) for source in SOURCES.values()}
    for one, other in itertools.combinations(structures, 2):
        assert structures[one] != structures[other], (one, other)
    assert jax.tree.structure(noise.mixed(1.0)) == jax.tree.structure(noise.mixed(2.0))  # numbers are arguments
    assert jax.tree.structure(noise.block_correlated(0.1, 2)) != jax.tree.structure(noise.block_correlated(0.1, 3))


def linear_map(source, shape):
    """The matrix from a source's normal numbers to its noise, by differentiating through the draws."""
    shapes = []

    def run(numbers):
        drawn = iter(numbers)

        def draw(key, shape, dtype):
            shapes.append(shape)
            return next(drawn, jnp.zeros(shape, dtype))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.random, "normal", draw)
            return source(jax.random.key(0), shape).ravel()

    jax.eval_shape(run, ())
    parts = jax.jit(jax.jacrev(run))(tuple(jnp.zeros(s) for s in shapes))
    return np.concatenate([np.asarray(part, np.float64).reshape(int(np.prod(shape)), -1) for part in parts], axis=1)


@pytest.mark.parametrize("name", ["mixed", "progressive", "block", "shuffled", "offset", "offset_per_frame"])
def test_exact_covariance_of_the_linear_map(name):
    """Every source is linear in normal numbers, so its covariance is M M^T exactly, no sampling error."""
    source, shape = SOURCES[name], (1, 5, 2, 2, 1)
    matrix = linear_map(source, shape)
    law = (matrix @ matrix.T).reshape(5, 4, 5, 4)
    at_pixel = law[:, 0, :, 0]
    if name == "shuffled":
        # Given its shuffle: ones where a frame repeats another, each frame white.
        assert set(np.round(at_pixel, 6).ravel()) == {0.0, 1.0}
        np.testing.assert_allclose(law[0, :, 0], np.eye(4), atol=1e-6)
        return
    np.testing.assert_allclose(at_pixel, source.covariance(5), atol=2e-6)
    within = {"block": lambda: source.block_covariance(), "offset": lambda: np.eye(4) + 0.25}
    expected = within.get(name.removesuffix("_per_frame"), lambda: np.eye(4))()
    np.testing.assert_allclose(law[2, :, 2], expected, atol=2e-6)


def test_clips_and_keys_are_independent():
    for source in (noise.mixed(3.0), noise.window_shuffled(4, 2)):
        draw = jax.jit(lambda key, source=source: source(key, (3, 8, 6, 6, 1)))
        one, other = draw(jax.random.key(0)), draw(jax.random.key(1))
        assert np.abs(np.corrcoef(np.asarray(one).reshape(3, -1)) - np.eye(3)).max() < 0.4
        assert not np.allclose(one, other)
        np.testing.assert_array_equal(one, draw(jax.random.key(0)))


def test_pyramid_jump_gives_white_noise():
    """Noise upsampled by repetition, plus its share of block noise, is white (Pyramid Flow, section 3.2)."""
    for signal in (0.0, 0.3, 0.8):
        g = 1 / 3
        a = 1 / (np.sqrt(1 + 1 / g) * (1 - signal) + signal)
        b = a * (1 - signal) / np.sqrt(g)
        repeated = a**2 * (1 - signal) ** 2 * np.ones((4, 4))
        white = repeated + b**2 * noise.block_correlated(-g, 2).block_covariance()
        np.testing.assert_allclose(white, np.eye(4) * (1 - a * signal) ** 2, atol=1e-15)


def test_shuffled_windows_hold_the_same_frames():
    draw = jax.jit(
        lambda frames: noise.window_shuffled(6, 3)(jax.random.key(0), (2, frames, 2, 2, 1)), static_argnums=0
    )
    draws = np.asarray(draw(20))
    for clip in draws:
        first = {frame.tobytes() for frame in clip[:6]}
        assert len(first) == 6
        for chunk in range(0, 14, 3):
            assert {frame.tobytes() for frame in clip[chunk : chunk + 6]} == first
    # Short clips are plain independent noise.
    assert len({frame.tobytes() for frame in np.asarray(draw(4))[0]}) == 4


@hypothesis.given(st.integers(0, 10_000), st.integers(1, 3))
def test_warped_noise_is_exactly_white_whatever_the_flow(seed, reach):
    """Each frame is a choice of distinct fresh numbers, so its covariance is the identity exactly."""
    flow = np.random.default_rng(seed).integers(-reach, reach + 1, (3, 4, 5, 2))
    origin = noise.warped(flow).origin
    for frame in origin:
        assert len(np.unique(frame)) == frame.size
    # A pixel has the noise that its flow says, unless that came from outside or was taken; then it is new.
    for t in range(3):
        taken = set()
        for y, x in np.ndindex(4, 5):
            v, u = y - flow[t, y, x, 0], x - flow[t, y, x, 1]
            if 0 <= v < 4 and 0 <= u < 5 and (v, u) not in taken:
                taken.add((v, u))
                assert origin[t + 1, y, x] == origin[t, v, u]
            else:
                assert origin[t + 1, y, x] // 20 == t + 1


def test_warped_noise_follows_a_shift():
    draws = np.asarray(noise.warped(SHIFTS)(jax.random.key(0), (2, 6, 6, 6, 3)))
    np.testing.assert_array_equal(draws[:, 1, :, 1:], draws[:, 0, :, :-1])
    np.testing.assert_array_equal(draws[:, 2], draws[:, 1])
    np.testing.assert_array_equal(draws[:, 3, :-1], draws[:, 2, 1:])
    assert not np.isin(draws[:, 1, :, 0], draws[:, 0]).any()


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_pytrees_and_types_are_kept(name):
    source = SOURCES[name]
    leaves, tree = jax.tree_util.tree_flatten(source)
    assert jax.tree_util.tree_unflatten(tree, leaves).covariance(FRAMES).shape == (FRAMES, FRAMES)
    shape = (2, FRAMES, 6, 6, 1)
    for dtype in (jnp.float32, jnp.bfloat16):
        draws = jax.eval_shape(lambda s, dtype=dtype: s(jax.random.key(0), shape, dtype), source)
        assert draws.shape == shape and draws.dtype == dtype


def test_strength_is_an_argument_of_the_program():
    program = jax.jit(lambda source, key: source(key, (1, 4, 2, 2, 1)))
    for a in (0.0, 1.0, 5.0):
        program(noise.progressive(a), jax.random.key(0))
    assert program._cache_size() == 1


def test_correlated_noise_is_the_oracles_noise():
    """Adding a source's noise to data and regressing gives the oracle's denoiser for that covariance."""
    frames, n, schedule = 3, 60_000, schedules.vp_linear()
    source, process = noise.progressive(1.0), oracles.gaussian_process(oracles.ornstein_uhlenbeck(3, 0.9))
    level = np.array([[-1.0, 0.5, 2.0]])
    x0 = np.asarray(process.sample(jax.random.key(0), n), np.float64).reshape(n, frames)
    eps = np.asarray(source(jax.random.key(1), (n, frames)), np.float64)
    x = schedule.alpha(level) * x0 + schedule.sigma(level) * eps
    regression = np.linalg.lstsq(x, x0, rcond=None)[0].T
    matrices = []
    for covariance in (source.covariance(frames), None):
        denoise = process.denoiser(schedule, covariance)
        matrices.append(oracles.affine_map(lambda x, denoise=denoise: denoise(x, level), (frames,))[0])
    exact, plain = matrices
    assert np.abs(regression - exact).max() < 0.01 < 0.1 < np.abs(plain - exact).max()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: noise.mixed(-1.0), "a in"),
        (lambda: noise.progressive(float("inf")), "a in"),
        (lambda: noise.progressive(float("nan")), "a in"),
        (lambda: noise.offset(-0.1), "strength"),
        (lambda: noise.block_correlated(-0.5), "nearest: -0.333333"),
        (lambda: noise.block_correlated(1.5), "nearest: 1"),
        (lambda: noise.block_correlated(0.5, 0), "at least 1 pixel"),
        (lambda: noise.window_shuffled(16, 5), "nearest stride: 4"),
        (lambda: noise.window_shuffled(np.inf, 4), "got window inf"),
        (lambda: noise.block_correlated(0.0, np.nan), "expected a block of at least 1 pixel, got nan"),
        (lambda: noise.window_shuffled(4, 8), "stride"),
        (lambda: noise.window_shuffled(0, 0), "stride"),
        (lambda: noise.warped(np.zeros((3, 4, 4, 2))), "integer"),
        (lambda: noise.warped(np.zeros((3, 4, 4), int)), "shape"),
        (lambda: noise.warped(np.zeros((3, 4, 4, 2), int)).covariance(3), "4 frames"),
        (
            lambda: noise.warped(np.zeros((3, 4, 4, 2), int))(jax.random.key(0), (1, 4, 4, 5, 1)),
            "flow is for",
        ),
        (lambda: noise.block_correlated()(jax.random.key(0), (1, 4, 5, 4, 1)), "multiples of 2"),
        (lambda: noise.block_correlated()(jax.random.key(0), (1, 4, 4)), "at least 5 axes"),
        (lambda: noise.iid()(jax.random.key(0), (4,)), "at least 2 axes"),
        (lambda: noise.iid().covariance(0), "at least one frame"),
        (lambda: noise.mixed().covariance(-1), "at least one frame"),
    ],
)
def test_bad_input_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()
