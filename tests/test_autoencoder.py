"""The causal autoencoder: what knows what, groups and chunks, its training, and what `measure` says of known errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import autoencoder as training
from models.autoencoder import Autoencoder, build_autoencoder

SMALL = {"shape": (9, 8, 8, 1), "channels": 3, "patch": 2, "group": 4, "widths": (4, 8), "blocks": 1}
FRAMES = 9


@functools.cache
def built(group=4, dtype="float32"):
    """(autoencoder, weights, encode, decode), compiled; both dtypes have the same weights."""
    autoencoder = build_autoencoder({**SMALL, "group": group, "dtype": dtype})
    params = autoencoder.init(jax.random.key(0)) if dtype == "float32" else built(group)[1]
    return autoencoder, params, jax.jit(autoencoder.encode), jax.jit(autoencoder.decode, static_argnames="chunk")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def clips(frames=FRAMES, batch=2, seed=0):
    return noise(batch, frames, 8, 8, 1, seed=seed)


def changes(a, b):
    """[frames], the largest change of each."""
    return np.abs(np.asarray(a) - np.asarray(b)).max((0, 2, 3, 4))


@pytest.mark.parametrize("group", [2, 4])
def test_a_latent_knows_no_later_frame(group):
    _, params, encode, _ = built(group)
    x = clips()
    before = encode(params, x)
    for frame in range(FRAMES):
        moved = x.copy()
        moved[:, frame] = noise(2, 8, 8, 1, seed=1)
        own = -(-frame // group)  # the first frame is a group alone
        for a, b in zip(before, encode(params, moved), strict=True):
            change = changes(a, b)
            assert (change[:own] < 1e-6).all(), (frame, change)
            # Its own latent has seen it, and the next one remembers.
            assert (change[own : own + 2] > 1e-3).all(), (frame, change)


@pytest.mark.parametrize("group", [2, 4])
def test_a_decoded_frame_knows_no_later_latent(group):
    autoencoder, params, _, decode = built(group)
    n = autoencoder.latent_shape[0]
    z = 2 * noise(2, *autoencoder.latent_shape)
    before = decode(params, z)
    for latent in range(n):
        moved = z.copy()
        moved[:, latent] *= -1
        change = changes(before, decode(params, moved))
        start = 1 + (latent - 1) * group if latent else 0
        assert (change[:start] < 1e-6).all(), (latent, change)
        # All frames of its own group show it, and those of the next.
        assert (change[start : 1 + (latent + 1) * group] > 1e-3).all(), (latent, change)


def test_the_clips_of_a_batch_do_not_see_each_other():
    _, params, encode, decode = built()
    x = clips()
    mean, log_variance = encode(params, x)
    swapped = encode(params, x[::-1])
    np.testing.assert_allclose(swapped[0][::-1], mean, atol=1e-5)
    np.testing.assert_allclose(swapped[1][::-1], log_variance, atol=1e-5)
    np.testing.assert_allclose(decode(params, mean[::-1])[::-1], decode(params, mean), atol=1e-5)


def test_the_beginning_of_a_clip_has_the_first_latents_of_the_whole():
    _, params, encode, decode = built()
    x = clips()
    whole = encode(params, x)
    frames = decode(params, whole[0])
    for k in (0, 1):  # 0: a clip of one frame, an image
        part = encode(params, x[:, : 1 + 4 * k])
        for a, b in zip(part, whole, strict=True):
            assert a.shape == (2, 1 + k, 2, 2, 3)
            np.testing.assert_allclose(a, b[:, : 1 + k], atol=1e-5)
        made = decode(params, part[0])
        assert made.shape == (2, 1 + 4 * k, 8, 8, 1)
        np.testing.assert_allclose(made, frames[:, : 1 + 4 * k], atol=1e-5)


def test_a_last_group_is_filled_up_with_its_last_frame():
    _, params, encode, _ = built()
    x = clips()
    x[:, 6:] = x[:, 6:7]
    for a, b in zip(encode(params, x[:, :7]), encode(params, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("group", "compiled"), [(2, True), (4, True), (4, False)], ids=["2-jit", "4-jit", "4-eager"])
def test_decoding_in_chunks_is_decoding_whole(group, compiled):
    autoencoder, params, _, decode = built(group)
    n = autoencoder.latent_shape[0]
    z = 2 * noise(2, *autoencoder.latent_shape)
    whole = decode(params, z)
    assert whole.shape == (2, FRAMES, 8, 8, 1) and np.std(whole) > 0.1
    for chunk in range(1, n + 2):
        made = (decode if compiled else autoencoder.decode)(params, z, chunk=chunk)
        assert made.shape == whole.shape
        np.testing.assert_allclose(made, whole, atol=1e-5, err_msg=f"chunk {chunk} of {n}")


def test_a_count_that_fills_no_group_comes_back():
    autoencoder = build_autoencoder({**SMALL, "shape": (32, 8, 8, 1)})
    assert autoencoder.latent_shape == (9, 2, 2, 3)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))

    def round_trip(frames, **options):
        z = jax.eval_shape(autoencoder.encode, params, jax.ShapeDtypeStruct((3, frames, 8, 8, 1), jnp.float32))[0]
        return z.shape[1], jax.eval_shape(lambda p, z: autoencoder.decode(p, z, **options), params, z).shape[1]

    assert round_trip(32) == round_trip(32, chunk=2) == round_trip(32, chunk=9) == (9, 32)
    # Other lengths are not cut: whole groups come back, at least as many frames as there were.
    assert round_trip(1) == (1, 1)
    assert round_trip(5) == (2, 5)
    assert round_trip(6) == round_trip(9) == (3, 9)
    assert round_trip(34) == round_trip(37) == (10, 37)


@settings(max_examples=12)
@given(
    frames=st.integers(1, 7),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    colours=st.integers(1, 3),
    channels=st.integers(1, 3),
    patch=st.integers(1, 3),
    group=st.integers(1, 4),
    widths=st.sampled_from([(3,), (2, 4), (2, 3), (1, 2, 5)]),
    blocks=st.integers(1, 2),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_shapes_are_those_that_are_told(
    frames, sides, colours, channels, patch, group, widths, blocks, dtype
):  # fmt: skip
    factor = patch * 2 ** (len(widths) - 1)
    shape = (frames, sides[0] * factor, sides[1] * factor, colours)
    autoencoder = build_autoencoder(
        dict(shape=shape, channels=channels, patch=patch, group=group, widths=widths, blocks=blocks, dtype=dtype)
    )
    assert (autoencoder.shape, autoencoder.patch, autoencoder.group) == (shape, patch, group)
    params = jax.eval_shape(autoencoder.init, jax.random.key(0))
    outputs = jax.eval_shape(autoencoder.encode, params, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    assert [(z.shape, z.dtype) for z in outputs] == [((2, *autoencoder.latent_shape), jnp.float32)] * 2
    assert autoencoder.latent_shape == (len(range(0, frames - 1, group)) + 1, *sides, channels)
    made = jax.eval_shape(autoencoder.decode, params, outputs[0])
    assert (made.shape, made.dtype) == ((2, *shape), jnp.float32)


def test_one_width_one_frame_a_group_one_pixel_a_patch():
    autoencoder = build_autoencoder(dict(shape=(3, 4, 4, 1), channels=2, patch=1, group=1, widths=(4,), blocks=1))
    params, x = autoencoder.init(jax.random.key(0)), noise(1, 3, 4, 4, 1)
    encode, decode = jax.jit(autoencoder.encode), jax.jit(autoencoder.decode)
    moved = x.copy()
    moved[:, 1] *= -1
    change = changes(encode(params, x)[0], encode(params, moved)[0])
    assert change[0] == 0 and (change[1:] > 1e-3).all()
    z = encode(params, x)[0]
    np.testing.assert_allclose(autoencoder.decode(params, z, chunk=2), decode(params, z), atol=1e-5)


def leaves(params):
    for name, value in params.items():
        assert type(name) is str
        yield from leaves(value) if isinstance(value, dict) else [value]


def test_weights_are_a_plain_dict_and_equal_configs_one_autoencoder():
    autoencoder, params, *_ = built()
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in leaves(params))
    jax.tree.map(np.testing.assert_array_equal, params, autoencoder.init(jax.random.key(0)))
    as_json = {k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()}
    assert build_autoencoder(as_json) is build_autoencoder({**SMALL, "dtype": "float32"}) is autoencoder
    assert build_autoencoder({**SMALL, "group": 2}) is not autoencoder
    half = build_autoencoder({**SMALL, "dtype": "bfloat16"})
    assert all(leaf.dtype == jnp.float32 for leaf in leaves(jax.eval_shape(half.init, jax.random.key(0))))


def test_bfloat16_gives_float32_near_the_float32_ones():
    _, params, encode, decode = built()
    _, _, encode_half, decode_half = built(dtype="bfloat16")
    x = clips()
    z = encode(params, x)[0]
    pairs = [*zip(encode(params, x), encode_half(params, x), strict=True)]
    pairs += [(decode(params, z), decode_half(params, z))]
    for whole, half in pairs:
        assert half.dtype == whole.dtype == jnp.float32
        # Bfloat16 has 8 bits: near, and not the same.
        assert 1e-4 < np.std(half - whole) / np.std(whole) < 0.05
    np.testing.assert_allclose(decode_half(params, z, chunk=2), decode_half(params, z), atol=0.05)


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"width": (4,)}, KeyError, "unknown key 'width' for an autoencoder; did you mean 'widths'"),
        ({"groups": 4}, KeyError, "unknown key 'groups' for an autoencoder; did you mean 'group'"),
        ({"shape": (9, 10, 8, 1)}, ValueError, r"frames of 10x8 do not divide by patch \* 2\^\(levels - 1\) = 4"),
        ({"shape": (9, 8, 10, 1)}, ValueError, r"frames of 8x10 do not divide by patch \* 2\^\(levels - 1\) = 4"),
        ({"shape": (8, 8, 1)}, ValueError, r"shape is \(frames, height, width, channels\), got \(8, 8, 1\)"),
        ({"shape": (0, 8, 8, 1)}, ValueError, "shape of an autoencoder is made of whole numbers from 1 up"),
        ({"shape": 64}, ValueError, "shape of an autoencoder"),
        ({"patch": (4, 4)}, ValueError, "patch of an autoencoder"),
        ({"widths": (8, 4)}, ValueError, r"widths of an autoencoder grow from level to level, got \(8, 4\)"),
        ({"widths": (8, 8)}, ValueError, r"widths of an autoencoder grow from level to level, got \(8, 8\)"),
        ({"widths": ()}, ValueError, r"widths of an autoencoder is made of whole numbers from 1 up, got \(\)"),
        ({"group": 0}, ValueError, "group of an autoencoder is made of whole numbers from 1 up, got 0"),
        ({"blocks": 1.5}, ValueError, "blocks of an autoencoder is made of whole numbers from 1 up, got 1.5"),
        ({"channels": True}, ValueError, "channels of an autoencoder is made of whole numbers from 1 up, got True"),
        ({"dtype": "float16"}, ValueError, "dtype is 'float32' or 'bfloat16', got 'float16'"),
    ],
)
def test_bad_configs_are_refused_by_name(config, error, message):
    with pytest.raises(error, match=message):
        build_autoencoder({**SMALL, **config})


def test_bad_arrays_chunks_and_weights_are_refused_by_name():
    autoencoder, params, *_ = built()
    for shape in [(2, 9, 8, 8, 3), (2, 9, 10, 8, 1), (2, 9, 8, 6, 1), (9, 8, 8, 1), (2, 0, 8, 8, 1), (2, 9, 0, 8, 1)]:
        with pytest.raises(ValueError, match=r"clips \[b, f, h, w, 1\] of a frame or more, with .* 4, got shape"):
            autoencoder.encode(params, jnp.zeros(shape))
    for dtype in ("uint8", "int32", "bool"):
        with pytest.raises(ValueError, match=rf"clips of floats in \[-1, 1\], got {dtype}; of bytes give"):
            jax.eval_shape(autoencoder.encode, params, jax.ShapeDtypeStruct((2, 9, 8, 8, 1), dtype))
    for shape in [(2, 3, 2, 2, 1), (3, 2, 2, 3), (2, 0, 2, 2, 3)]:
        with pytest.raises(ValueError, match=r"decodes latents \[b, n, y, x, 3\] of a frame or more, got shape"):
            autoencoder.decode(params, jnp.zeros(shape))
    for chunk in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match=f"chunk is a number of latent frames from 1 up.*got {chunk}"):
            autoencoder.decode(params, jnp.zeros((2, 3, 2, 2, 3)), chunk=chunk)
    with pytest.raises(ValueError, match="parameter '.*' must have shape"):
        build_autoencoder({**SMALL, "channels": 2}).encode(params, jnp.zeros((1, 9, 8, 8, 1)))
    with pytest.raises(KeyError, match="params lack '.*blocks/0/1/"):
        build_autoencoder({**SMALL, "blocks": 2}).encode(params, jnp.zeros((1, 9, 8, 8, 1)))


KL = 0.1
HYPER = {"learning_rate_scale": jnp.float32(1.0)}


@functools.cache
def trainer():
    """(autoencoder, method, its compiled phase) on 5 of 9 frames: one program serves all the tests of training."""
    autoencoder = built()[0]
    method = training.method(autoencoder, optimiser=optax.adam(1e-2), frames=5, kl=KL)
    return autoencoder, method, jax.jit(method.phases["train"])


def step(params, video, seed=0):
    """(state, metrics) after one step from these weights."""
    _, method, phase = trainer()
    key = jax.random.key(seed)
    state, metrics = phase(method.init(key, params), {}, {"video": video}, key, HYPER)
    return state, {k: float(v) for k, v in metrics.items()}


def quiet(params, log_variance=-30.0):
    """The weights of an encoder whose latents all have this log variance, whatever it sees."""
    last, half = params["encoder"]["last"], SMALL["channels"]
    weight, bias = last["weight"].at[:, half:].set(0.0), last["bias"].at[half:].set(log_variance)
    return {**params, "encoder": {**params["encoder"], "last": {"weight": weight, "bias": bias}}}


def parts(video):
    """Every 5 frames in a row, [starts, b, 5, h, w, c], in [-1, 1]."""
    return np.stack([video[:, i : i + 5] for i in range(FRAMES - 4)]).astype(np.float32) / 127.5 - 1


def nearest(value, choices, rtol=1e-4):
    """The index of the choice that a value is, and no other."""
    near = np.flatnonzero(np.isclose(value, choices, rtol=rtol, atol=0))
    assert len(near) == 1, (value, choices)
    return int(near[0])


def bytes_of(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def test_training_lowers_the_loss_of_clips_of_one_brightness():
    autoencoder, method, phase = trainer()
    key = jax.random.key(1)
    state, losses = method.init(key, built()[1]), []
    for i in range(60):
        assert method.order(i) == ("train",)
        video = np.broadcast_to(bytes_of(0, 1, 1, 1, 1, 1), (4, 9, 8, 8, 1))
        state, metrics = phase(state, {}, {"video": video}, jax.random.fold_in(key, i), HYPER)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 60
    assert 0 < np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3])


def test_a_step_reports_psnr_and_divergence_of_a_drawn_part():
    video = bytes_of(3, 4, 9, 8, 8, 1)
    _, _, encode, decode = built()
    params = quiet(built()[1])
    drawn = parts(video)
    flat = drawn.reshape(-1, *drawn.shape[2:])
    mean, log_variance = encode(params, flat)
    np.testing.assert_array_equal(log_variance, -30.0)
    # Latents without noise: what is decoded is known, but for the part that the step drew.
    error = np.square(np.asarray(decode(params, mean), np.float64) - flat).reshape(len(drawn), -1).mean(1)
    starts = []
    for seed in range(24):
        _, metrics = step(params, video, seed)
        starts.append(nearest(metrics["psnr"], 10 * np.log10(4 / error)))
    assert set(starts) == set(range(FRAMES - 4))  # the first and the last part, too
    # Latents with their own noise: the divergence does not depend on it.
    params = built()[1]
    by_part = divergence(*encode(params, flat)).reshape(len(drawn), -1).mean(1)
    _, metrics = step(params, video, 5)
    assert nearest(metrics["kl"], by_part) == starts[5]
    assert metrics["loss"] == pytest.approx(4 / 10 ** (metrics["psnr"] / 10) + KL * metrics["kl"], rel=1e-5)


def divergence(mean, log_variance):
    """KL(N(m, s^2) || N(0, 1)) of every number, as an integral over 12 s to both sides."""
    z = np.linspace(-12, 12, 2001)
    m, s = (np.asarray(a, np.float64).reshape(-1, 1) for a in (mean, np.exp(0.5 * np.asarray(log_variance))))
    own, other = scipy.stats.norm.logpdf(m + s * z, m, s), scipy.stats.norm.logpdf(m + s * z)
    return scipy.integrate.trapezoid(scipy.stats.norm.pdf(z) * (own - other), z)


def test_latents_are_drawn_with_the_variance_that_the_encoder_tells():
    def encode(params, x):
        return params["gain"] * x, jnp.full_like(x, -1.0)

    stub = Autoencoder(None, encode, lambda params, z: z, (5, 16, 16, 1), (5, 16, 16, 1), 1, 1)
    method = training.method(stub, optimiser=optax.sgd(0.5), kl=0.0)
    state, x = method.init(jax.random.key(0), {"gain": jnp.float32(1.0)}), jnp.asarray(noise(16, 5, 16, 16, 1))
    for seed in (1, 2):
        after, metrics = method.phases["train"](state, {}, {"video": x}, jax.random.key(seed), HYPER)
        # The error is the noise, of variance 1/e; no weight can do better.
        assert float(metrics["psnr"]) == pytest.approx(10 * np.log10(4 * np.e), abs=0.15)
        assert float(metrics["loss"]) == pytest.approx(np.exp(-1), rel=0.04)
        assert float(after.params["gain"]) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("frames", [0, 10, 1.5, True])
def test_frames_that_a_clip_has_not_are_refused(frames):
    with pytest.raises(ValueError, match=f"frames: expected a whole number from 1 to the clip's 9, .* got {frames}"):
        training.method(built()[0], optimiser=optax.adam(1e-3), frames=frames)


def test_a_latent_channel_that_says_nothing_is_named_and_not_made_loud(caplog):
    autoencoder, params, encode, _ = built()
    video = bytes_of(3, 20, FRAMES, 8, 8, 1)
    last = params["encoder"]["last"]
    silent = {**last, "weight": last["weight"].at[:, 1].set(0.0), "bias": last["bias"].at[1].set(0.3)}
    loud = {**silent, "weight": silent["weight"].at[:, [0, 2]].mul(50.0)}
    params = {**params, "encoder": {**params["encoder"], "last": loud}}
    found = training.statistics(params, autoencoder, video, "config.stages.autoencoder")
    z = np.asarray(encode(params, video.astype(np.float32) / 127.5 - 1)[0])
    z = (z - found["latent_mean"]) / found["latent_std"]
    np.testing.assert_allclose(z.mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2, 3)), [1, 0, 1], atol=1e-4)
    assert "config.stages.autoencoder: of 3 latent channels [1] say next to nothing" in caplog.text


PATCH, GROUP = 4, 4
CLIPS = (6, 17, 16, 16, 1)
STILL = np.broadcast_to(np.uint8(128), CLIPS)


def grey(seed=0, shape=CLIPS):
    """Clips of noise in the middle of the range: an error of 90 in 255 is never clipped."""
    return np.random.default_rng(seed).integers(96, 160, shape, dtype=np.uint8)


def normal(scale, shape=CLIPS, seed=1):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def plus(real, error):
    made = np.rint(real + error)
    assert made.min() >= 0 and made.max() <= 255
    return made.astype(np.uint8)


def values(real, made, still=STILL, patch=PATCH, group=GROUP):
    found = training.measure(real, made, still[: len(real)], patch, group, 0, 0)
    return {name: m.value for name, m in found.items()}


def test_white_noise_has_its_psnr_and_no_seams():
    found = values(grey(), plus(grey(), normal(8)))
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 8), abs=0.15)
    assert found["seams_space"] == pytest.approx(1, abs=0.05)
    assert found["seams_time"] == pytest.approx(1, abs=0.05)


def test_psnr_is_a_mean_of_decibels_over_clips():
    real = grey(shape=(2, *CLIPS[1:]))
    error = np.array([1.0, -10.0]).reshape(-1, 1, 1, 1, 1)
    assert values(real, plus(real, error))["psnr"] == pytest.approx(20 * np.log10(255) - 10, abs=1e-3)


# An error that is the same throughout a patch, or a group of frames after the first, of variance 144, and white noise of
# variance 16 (and 1/12 from rounding): its change has the variance of both twice across borders and that of the noise twice
# inside.
CONSTANT = {
    "patches": (normal(12, (6, 17, 4, 4, 1)).repeat(4, 2).repeat(4, 3), "seams_space", 1.0),
    "rows": (normal(12, (6, 17, 4, 1, 1)).repeat(4, 2), "seams_space", 0.5),
    "columns": (normal(12, (6, 17, 1, 4, 1)).repeat(4, 3), "seams_space", 0.5),
    "groups": (normal(12, (6, 5, 16, 16, 1)).repeat(4, 1)[:, 3:], "seams_time", 1.0),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_an_error_that_is_constant_inside_shows_as_seams(name):
    error, seen, share = CONSTANT[name]
    found = values(grey(), plus(grey(), error + normal(4, seed=2)))
    assert found[seen] == pytest.approx(np.sqrt(1 + share * 144 / (16 + 1 / 12)), rel=0.12)
    unseen = {"seams_space": "seams_time", "seams_time": "seams_space"}[seen]
    assert found[unseen] == pytest.approx(1, abs=0.1)


def test_an_error_that_changes_only_inside_has_no_seams():
    mirrored = np.tile([0, 1, 2, 3, 3, 2, 1, 0], 2)
    error = np.rint(normal(10, (6, 17, 4, 4, 1)))[:, :, mirrored][:, :, :, mirrored]
    assert values(grey(), plus(grey(), error))["seams_space"] < 0.01
    error = np.rint(normal(10, (6, 4, 16, 16, 1)))[:, np.concatenate([[0], mirrored])]
    assert values(grey(), plus(grey(), error))["seams_time"] < 0.01
    # Patches of one pixel and groups of one frame have no inside.
    found = values(grey(), plus(grey(), error), patch=1, group=1)
    assert found["seams_space"] == found["seams_time"] == 1


def test_shimmer_is_the_second_difference_in_time():
    real = grey(shape=(6, 19, 16, 16, 1))
    seen = real[:, 1:-1]
    assert values(seen, seen)["shimmer"] == 1
    # Noise of its own in every frame: 1 + 4 + 1 of its variance. Real clips are uniform noise here, of variance 64^2 / 12.
    for scale in (5.0, 20.0):
        rise = np.sqrt(1 + scale**2 / (64**2 / 12))
        assert values(seen, plus(seen, normal(scale)))["shimmer"] == pytest.approx(rise, rel=0.02)
    # Noise that stands still does not shimmer.
    assert values(seen, plus(seen, np.rint(normal(5.0, (6, 1, 16, 16, 1)))))["shimmer"] == pytest.approx(1, rel=1e-5)
    # A binomial blur in time leaves 3/8 of those 6.
    blurred = 0.25 * real[:, :-2] + 0.5 * seen + 0.25 * real[:, 2:]
    assert values(seen, np.rint(blurred).astype(np.uint8))["shimmer"] == pytest.approx(0.25, rel=0.03)


def test_still_is_the_change_of_a_clip_that_stands_still():
    board = 128 + 32 * np.where(np.indices((16, 16)).sum(0) % 2, 1, -1)[:, :, None]
    real = grey()
    real[:, 0] = board
    stopped = np.repeat(real[:, :1], 17, 1)
    assert values(real, real, stopped)["still"] == 0
    # A constant offset stands still, too.
    assert values(real, real, stopped + np.uint8(9))["still"] == 0
    assert values(real, real, plus(stopped, normal(4)))["still"] == pytest.approx(np.sqrt(2) * 4 / 32, rel=0.02)


@pytest.mark.parametrize(
    "frames, patch, absent",
    [
        (1, 4, {"shimmer", "still", "seams_time"}),
        (2, 4, {"shimmer", "seams_time"}),
        (3, 4, set()),
        (3, 16, {"seams_space"}),
        (1, 16, {"shimmer", "still", "seams_time", "seams_space"}),
    ],
)
def test_what_clips_cannot_show_is_left_out(frames, patch, absent):
    """And is no NaN."""
    real = grey(shape=(6, frames, *CLIPS[2:]))
    found = values(real, plus(real, normal(4, real.shape)), STILL[:, :frames], patch)
    assert set(found) == {"psnr", "shimmer", "still", "seams_space", "seams_time"} - absent
    assert np.isfinite(list(found.values())).all()


def test_intervals_are_over_clips_and_repeat():
    real = grey()
    made = plus(real, normal(1) * np.arange(1, 7).reshape(-1, 1, 1, 1, 1))
    still = plus(STILL, normal(2, seed=3))

    def measured(bootstrap, seed):
        return training.measure(real, made, still, PATCH, GROUP, bootstrap, seed)

    once = measured(100, 0)
    assert once == measured(100, 0) != measured(100, 1)
    assert all(m.low < m.value < m.high for m in once.values())
    assert once["psnr"].high - once["psnr"].low > 4  # the clips lie 16 dB apart
    assert all(m.low == m.value == m.high for m in measured(0, 0).values())
    assert {k: m.value for k, m in measured(0, 0).items()} == pytest.approx({k: m.value for k, m in once.items()})
