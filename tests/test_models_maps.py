"""A level for every pixel, and for every channel: networks, training, sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import draws, frames, grids, oracles, sampling, schedules, solvers
from distill import Network, denoising
from models import build
from models.definition import level_map

SHAPE = (2, 8, 8, 2)
TINY = {
    "unet": dict(kind="unet", widths=(4, 6), blocks=(1, 1), embed=8, head_dim=6),
    "dit": dict(kind="dit", patch=2, width=12, depth=1, head_dim=12, mlp_ratio=1),
}
X = jnp.asarray(np.random.default_rng(0).standard_normal((2, *SHAPE)), jnp.float32)


def network(kind):
    model = build(dict(shape=SHAPE, num_classes=3, cond=("logsnr_to",)) | TINY[kind])
    rng, params = np.random.default_rng(1), model.init(jax.random.key(0))
    return model, jax.tree.map(lambda p: p + 0.1 * rng.standard_normal(p.shape).astype(np.float32), params)


@pytest.mark.parametrize("kind", TINY)
def test_a_map_is_told_where_it_is(kind):
    """A constant map is the scalar; a pixel's level moves its own surroundings most; channels count by their mean."""
    model, params = network(kind)
    apply = jax.jit(model.apply)

    def run(level, to=None):
        level = jnp.broadcast_to(jnp.asarray(level, jnp.float32), (2, 2, 8, 8, 2))
        to = level if to is None else jnp.broadcast_to(jnp.asarray(to, jnp.float32), level.shape)
        return np.asarray(apply(params, X, level, {"logsnr_to": to}))

    plain = run(1.5)
    np.testing.assert_allclose(plain, jax.jit(model.apply)(params, X, 1.5), atol=1e-6)
    level = np.full((2, 2, 8, 8, 2), 1.5, np.float32)
    level[0, 1, 2:4, 4:6] = -6.0
    change = np.abs(run(level, 1.5) - plain)
    assert change[1].max() == 0 and change[0, 1, 2:4, 4:6].mean() > 5e-3
    assert change[0, 1, 2:4, 4:6].mean() > 4 * change[0, 1, :, :2].mean()
    assert np.abs(run(1.5, level) - plain)[0, 1, 2:4, 4:6].max() > 1e-3
    apart = np.stack([np.full(level.shape[:4], 0.5), np.full(level.shape[:4], 2.5)], -1)
    np.testing.assert_allclose(run(apart), plain, atol=1e-6)


def test_a_level_map_broadcasts_and_is_clipped_before_it_is_averaged():
    level = level_map(jnp.asarray([[[[[np.inf, 0.0]]]]]), *X.shape)
    np.testing.assert_array_equal(level, np.full((1, 2), 10.0))
    rows = np.arange(8.0).reshape(1, 1, 8, 1)
    got = level_map(rows, *X.shape)
    np.testing.assert_array_equal(got, np.broadcast_to(rows, (1, 2, 8, 8)))
    third = level_map(np.full((1, 1, 1, 1, 3), 0.1, np.float32), 2, 2, 8, 8, 3)
    np.testing.assert_array_equal(third, np.full((1, 2), np.float32(0.1)))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 7), r"axis 2 must have length 1 or the clip's 8 rows, got \(1, 2, 7\)"),
        ((1, 2, 8, 4), r"axis 3 must have length 1 or the clip's 8 columns, got \(1, 2, 8, 4\)"),
        ((1, 2, 1, 1, 3), r"axis 4 must have length 1 or the clip's 2 channels, got \(1, 2, 1, 1, 3\)"),
        ((3, 2, 8, 8), r"leading length must be 1 or the batch's 2, got shape \(3, 2\)"),
    ],
)
def test_maps_of_a_wrong_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        level_map(np.zeros(shape), *X.shape)


def test_a_mlp_takes_no_map():
    model = build(dict(kind="mlp", shape=(1, 1, 2, 1), num_classes=0, width=4, depth=1))
    with pytest.raises(ValueError, match=r"one level per frame, \[b\|1, f\], got shape \(1, 1, 1, 2, 1\)"):
        model.apply(model.init(jax.random.key(0)), jnp.zeros((1, 1, 1, 2, 1)), jnp.zeros((1, 1, 1, 2, 1)))


def test_squares_and_whole_frames_of_levels():
    key, shape = jax.random.key(0), (64, 3, 8, 4)
    squares = np.asarray(draws.squares(4)(key, shape))
    blocks = squares.reshape(64, 3, 2, 4, 1, 4)
    assert (np.ptp(blocks, axis=(3, 5)) == 0).all() and len(np.unique(squares)) == 64 * 3 * 2
    assert abs(squares.mean() - 0.5) < 0.05
    whole = np.asarray(draws.whole_frames("monotone")(key, shape))
    assert (np.ptp(whole, axis=(2, 3)) == 0).all() and (np.diff(whole[:, :, 0, 0], axis=1) >= 0).all()
    with pytest.raises(ValueError, match="divisor of the frame's 8 x 4 pixels, got size 3"):
        draws.squares(3)(key, shape)
    with pytest.raises(ValueError, match=r"draw 'squares': expected a level per pixel"):
        draws.squares(2)(key, (4, 3))


def test_training_per_pixel_noises_every_pixel_to_its_level():
    """A law that noises the left half wholly and the right one not at all: the input tells."""
    vp = schedules.vp_cosine()

    def law(key, shape):
        assert shape == (2, 2, 8, 8)
        return jnp.where(jnp.arange(8) < 4, -20.0, 20.0) * jnp.ones(shape)

    net = Network(lambda *a, **k: None, vp, "v")
    given = dict(law=law, weight=lambda logsnr: jnp.ones_like(logsnr), label_dropout=0.0)
    clips = jnp.full((2, 2, 8, 8, 1), 0.5)
    problem = denoising.objective(net, per_pixel=True, **given)(None, None, {"video": clips}, jax.random.key(0), None)
    np.testing.assert_allclose(problem.x[..., 4:, :], 0.5, atol=1e-3)
    assert 0.8 < np.std(problem.x[..., :4, :]) < 1.2 and problem.weight.shape == (2, 2, 8, 8)
    with pytest.raises(ValueError, match="exclude each other"):
        denoising.objective(net, per_pixel=True, per_frame=True, **given)


def test_a_sweep_of_pixels_is_the_pyramid_along_its_axis():
    """Of frames it is the pyramid; of columns, on data that know only their columns, the same sampler, turned."""
    vp = schedules.vp_cosine()
    grid, video = grids.uniform_time(vp, 6, None, 8.0), oracles.gaussian_process(oracles.ornstein_uhlenbeck(4, 0.9))
    pyramid = frames.pyramid(grid, 4, 2)
    np.testing.assert_array_equal(frames.sweep(grid, 4, 3, 2, 2, "frames")[:, :, :, 0, 0], pyramid)
    columns = frames.sweep(grid, 1, 1, 4, 2)
    np.testing.assert_array_equal(columns[:, :, 0, 0], pyramid)
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 4, 1, 1, 1)))
    exact = video.denoiser(vp)

    def turned(x, logsnr):
        return jnp.swapaxes(exact(jnp.swapaxes(x, 1, 3), logsnr[:, 0, 0]), 1, 3)

    want = sampling.sample(exact, solvers.dpmpp(vp, pyramid), x)
    got = sampling.sample(turned, solvers.dpmpp(vp, columns), np.swapaxes(x, 1, 3))
    np.testing.assert_allclose(np.swapaxes(got, 1, 3), want, atol=1e-5)
    with pytest.raises(ValueError, match="axis to be one of frames, rows, columns, got 'colums'"):
        frames.sweep(grid, 4, 3, 2, 2, "colums")
