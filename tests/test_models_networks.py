"""All networks behind ModelDef: levels, labels, jumps and scales, conditioning per frame, kinds of attention, precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import build, inherit
from models.definition import INPUTS, frame_level
from models.dit import REMAT
from models.layers import LEVELS, rms_normalise
from models.unet import Block, depth_to_space

BATCH, SHAPE, CLASSES = 2, (4, 8, 8, 1), 3
TINY = {
    "unet": dict(kind="unet", widths=(8, 12), blocks=(1, 1), embed=16, head_dim=6),
    "dit": dict(kind="dit", patch=4, width=16, depth=2, head_dim=8, mlp_ratio=2),
    "mlp": dict(kind="mlp", width=16, depth=2),
}
every = pytest.mark.parametrize("kind", TINY)
video = pytest.mark.parametrize("kind", ["unet", "dit"])


def model(kind, attention=None, **options):
    return build(dict(shape=SHAPE, num_classes=CLASSES) | TINY[kind] | options, attention)


@functools.cache
def weights(kind):
    """Weights moved off their zeros, so that every part of the network shows in its output."""
    params = model(kind).init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, moved)


@functools.cache
def compiled(kind, attention=None, **options):
    return jax.jit(model(kind, attention, **options).apply, static_argnames="train")


def clip(batch=BATCH, frames=SHAPE[0]):
    rng = np.random.default_rng(batch * 100 + frames)
    return jnp.asarray(rng.standard_normal((batch, frames, *SHAPE[1:])), jnp.float32)


def run(kind, x, level, label=CLASSES, **options):
    """One signature for most tests, so that they share a compiled program: level [b, f], label [b]."""
    level = jnp.broadcast_to(jnp.asarray(level, jnp.float32), x.shape[:2])
    cond = {"label": jnp.broadcast_to(jnp.asarray(label, jnp.int32), x.shape[:1])}
    return np.asarray(compiled(kind, **options)(weights(kind), x, level, cond))


@every
def test_prediction_is_zero_at_initialisation_and_float32(kind):
    params = model(kind).init(jax.random.key(0))
    out = compiled(kind)(params, clip(), jnp.zeros((BATCH, 4)), {"label": jnp.array([0, 1])})
    assert out.shape == (BATCH, *SHAPE) and out.dtype == jnp.float32
    assert not np.any(out)


@every
@pytest.mark.parametrize("shape", [(), (1, 4)])
def test_a_constant_level_of_another_shape_is_the_same_level(kind, shape):
    x = clip()
    want = run(kind, x, 1.5)
    assert np.abs(want).max() > 0.01
    got = compiled(kind)(weights(kind), x, jnp.full(shape, 1.5), {"label": jnp.full(BATCH, CLASSES)})
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(), (1,), (BATCH,), (1, 1), (1, 4), (BATCH, 1), (BATCH, 4), (BATCH, 4, 1, 1, 1), (1, 1, 1, 1, 1)]
)
def test_a_level_broadcasts_from_its_left(shape):
    rng = np.random.default_rng(0)
    level = rng.standard_normal(shape).astype(np.float32)
    padded = level.reshape(*shape, *(1,) * (5 - len(shape)))
    want = np.broadcast_to(padded, (BATCH, 4, 1, 1, 1))[:, :, 0, 0, 0]
    got = frame_level(level, BATCH, 4)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(np.broadcast_to(got, want.shape), want)


@every
def test_each_frame_is_conditioned_on_its_own_level(kind):
    x = clip()
    base = np.full((BATCH, 4), 1.0, np.float32)
    out = run(kind, x, base)
    changes = []
    for frame in (1, 2):
        moved = base.copy()
        moved[0, frame] = -6.0
        change = np.abs(run(kind, x, moved) - out).max(axis=(2, 3, 4))
        assert change[0, frame] > 1e-3
        assert change[1].max() == 0, "the other clip of the batch does not change"
        changes.append(change)
    assert np.abs(changes[0] - changes[1]).max() > 1e-3


@every
@pytest.mark.parametrize(
    "shape, message",
    [
        ((4,), r"leading length must be 1 or the batch's 2, got shape \(4,\); levels per frame are \[1, f\]"),
        ((3, 4), r"leading length must be 1 or the batch's 2, got shape \(3, 4\)"),
        ((2, 3), r"axis 1 must have length 1 or the clip's 4 frames, got \(2, 3\)"),
        ((1, 4, 8, 7), r"axis 3 must have length 1 or the clip's 8 columns|takes one level per frame"),
        ((1, 4, 8, 8, 1, 1), r"takes one level per frame, \[b\|1, f\], got shape \(1, 4, 8, 8, 1, 1\)"),
        ((0,), r"leading length must be 1 or the batch's 2, got shape \(0,\)"),
    ],
)
def test_levels_of_a_wrong_shape_are_refused(kind, shape, message):
    with pytest.raises(ValueError, match=message):
        model(kind).apply(weights(kind), clip(), jnp.zeros(shape), {})


@every
def test_infinite_levels_are_the_clipped_ones_and_finite(kind):
    x = clip()
    infinite = run(kind, x, [[np.inf, -np.inf, 25.0, 0.0]])
    assert np.isfinite(infinite).all()
    np.testing.assert_array_equal(infinite, run(kind, x, [[20.0, -20.0, 20.0, 0.0]]))


@every
def test_no_class_is_the_index_after_the_last_and_the_default(kind):
    x, level = clip(), 0.5
    default = run(kind, x, level, CLASSES)
    for cond in ({}, None, {"label": None}):
        got = compiled(kind)(weights(kind), x, jnp.full((BATCH, 4), level), cond)
        np.testing.assert_allclose(got, default, atol=1e-6)
    first = run(kind, x, level, [0, CLASSES])
    np.testing.assert_allclose(first[1], default[1], atol=1e-6)
    assert np.abs(first[0] - default[0]).max() > 1e-3


@every
def test_a_label_out_of_range_shows(kind):
    out = run(kind, clip(), 0.0, [1, CLASSES + 1])
    assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()


@every
def test_the_batch_is_a_batch(kind):
    x, levels, labels = clip(), np.array([[0.0, 1, 2, 3], [-4, -3, -2, -1]]), np.array([0, 2])
    out = run(kind, x, levels, labels)
    swapped = run(kind, x[::-1], levels[::-1], labels[::-1])
    np.testing.assert_allclose(swapped[::-1], out, atol=1e-5)


@every
def test_time_has_an_order_and_both_neighbours_are_seen(kind):
    x = clip()
    out = run(kind, x, 0.0)
    assert np.abs(run(kind, x[:, ::-1], 0.0)[:, ::-1] - out).max() > 1e-3, "reversed clips are other clips"
    for frame in (0, 3):
        change = np.abs(run(kind, x.at[:, frame].add(1.0), 0.0) - out).max(axis=(0, 2, 3, 4))
        assert (change > 1e-5).all(), "every frame sees every other"


@video
def test_clips_may_be_longer_than_in_training(kind):
    x = clip(frames=6)
    assert np.isfinite(run(kind, x, np.zeros((1, 6)))).all()


@video
@pytest.mark.parametrize("attention", ["checkpoint", "fused"])
def test_attention_kinds_share_params_values_and_gradients(kind, attention):
    x, params = clip(), weights(kind)
    assert jax.tree.structure(model(kind, attention).init(jax.random.key(0))) == jax.tree.structure(params)

    def loss(name, x):
        out = model(kind, name).apply(params, x, jnp.array([1.0, -2.0]), {"label": jnp.array([0, 1])})
        return jnp.mean(out**2)

    want, want_grad = jax.jit(jax.value_and_grad(functools.partial(loss, None)))(x)
    got, got_grad = jax.jit(jax.value_and_grad(functools.partial(loss, attention)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got_grad, want_grad, atol=1e-6)


@every
def test_jvp_is_promised_and_kept(kind):
    """The derivative by x and by the level against a central difference of the same network."""
    attends = kind != "mlp"
    assert [model(kind, name).jvp for name in ("xla", "checkpoint", "fused")] == [True, True, not attends]
    assert model(kind, "fused").attention == ("fused" if attends else "none")
    params, x, direction = weights(kind), clip(), clip()[:, ::-1]

    def along(s):
        return model(kind).apply(params, x + s * direction, 0.5 + s * jnp.ones(BATCH), {})

    value, tangent = jax.jit(lambda s: jax.jvp(along, (s,), (jnp.ones(()),)))(jnp.zeros(()))
    step, forward = 1e-2, jax.jit(along)
    slope = (forward(step) - forward(-step)) / (2 * step)
    np.testing.assert_allclose(value, forward(0.0), atol=1e-5)
    scale = np.abs(slope).max()
    np.testing.assert_allclose(tangent / scale, slope / scale, atol=5e-3)


@functools.cache
def student(kind, level="logsnr"):
    """(network that takes every input, the weights of one that takes none, completed; the same, moved off their zeros)."""
    net = model(kind, cond=INPUTS, level=level)
    params = inherit(weights(kind), net, jax.random.key(1))
    rng = np.random.default_rng(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), params)
    return net, params, moved, jax.jit(net.apply)


LOW = np.random.default_rng(5).standard_normal((BATCH, *SHAPE)).astype(np.float32)


@every
def test_a_student_starts_as_its_teacher_wherever_it_jumps(kind):
    net, params, moved, apply = student(kind)
    assert net.cond_keys == ("label", *INPUTS)
    x, level, label = clip(), np.array([[-3.0, 0, 1, 5], [2, 2, 2, 2]]), jnp.array([0, 2])
    want = run(kind, x, level, label)
    for to, scale in ((level + 3, 7.5), (np.inf, [0.0, 4.0]), (-2.0, 1.0)):
        to, scale = np.broadcast_to(np.float32(to), (BATCH, 4)), np.broadcast_to(np.float32(scale), (BATCH,))
        cond = {"label": label, "logsnr_to": to, "guidance": scale, "low": LOW, "aug_logsnr": scale}
        got = apply(params, x, jnp.asarray(level, jnp.float32), cond)
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_inputs_left_out_are_a_jump_of_no_length_and_no_guidance():
    _, _, moved, apply = student("mlp")
    x, level = clip(), jnp.array([[-3.0, 0, 1, 5], [2, 2, 2, 2]])
    apply = functools.partial(call_with, apply, moved, x, level)
    out = apply()
    np.testing.assert_allclose(apply(logsnr_to=level, guidance=1.0, aug_logsnr=np.inf), out, atol=1e-6)
    ones = jnp.ones(BATCH)
    shaped = {"logsnr_to": level[..., None, None, None], "guidance": ones, "aug_logsnr": np.inf * ones[:, None]}
    np.testing.assert_allclose(apply(**shaped), out, atol=1e-6)
    for cond in ({"logsnr_to": level + 1.0}, {"guidance": 2.0}, {"aug_logsnr": 3.0}, {"low": LOW[::-1]}):
        assert np.abs(apply(**cond) - out).max() > 1e-3
    # A scale per clip, or a level of the low clip's noise, moves that clip alone.
    for cond in ({"guidance": jnp.array([1.0, 3.0])}, {"aug_logsnr": jnp.array([np.inf, 3.0])}):
        change = np.abs(apply(**cond) - out).max(axis=(1, 2, 3, 4))
        assert change[0] < 1e-5 < 1e-3 < change[1]


def call_with(apply, params, x, level, **cond):
    return apply(params, x, level, {"low": LOW, **cond})


@every
def test_the_low_clip_is_as_channels_beside_those_of_x(kind):
    """One stem of both clips is two stems, added: the low clip through the weights of x's own is x + low through them."""
    net = model(kind, cond=("low",))
    params = inherit(weights(kind), net, jax.random.key(1))
    stem = {"unet": "stem", "dit": "embed", "mlp": "stem"}[kind]
    params["low"] = {**params[stem], "bias": jnp.zeros_like(params[stem]["bias"])}
    if kind == "mlp":  # what it sees is squashed first: equal clips are one clip through twice the weights
        twice = {**weights(kind), stem: {**params[stem], "weight": 2 * params[stem]["weight"]}}
        want = compiled(kind)(twice, clip(), jnp.zeros(()), {})
        np.testing.assert_allclose(net.apply(params, clip(), 0.0, {"low": clip()}), want, atol=1e-5)
        return
    want = compiled(kind)(weights(kind), clip() + LOW, jnp.zeros(()), {})
    np.testing.assert_allclose(net.apply(params, clip(), 0.0, {"low": LOW}), want, atol=1e-5)


@every
def test_the_clip_to_upsample_is_asked_for_by_name(kind):
    net = model(kind, cond=("low", "aug_logsnr"))
    params = net.init(jax.random.key(0))
    with pytest.raises(ValueError, match="cond lacks 'low', the clip to upsample"):
        net.apply(params, clip(), 0.0, {"aug_logsnr": 1.0})
    with pytest.raises(ValueError, match=r"a clip of x's shape \(2, 4, 8, 8, 1\), got \(2, 2, 8, 8, 1\)"):
        net.apply(params, clip(), 0.0, {"low": LOW[:, :2]})
    with pytest.raises(ValueError, match="'aug_logsnr', the level of the noise in 'low', and not 'low'"):
        model(kind, cond=("aug_logsnr",))


def test_a_unet_without_attention_looks_no_further_than_its_convolutions_reach():
    """So what it learns on crops holds for whole clips: a far pixel, or a far frame, changes nothing."""
    config = dict(shape=SHAPE, num_classes=CLASSES, **TINY["unet"], attention="none") | dict(head_dim=32)
    net = build(config)
    assert net.jvp and net.attention == "none" and "attention" not in net.init(jax.random.key(0))
    assert build(config, "fused") is net
    params = {k: v for k, v in weights("unet").items() if k != "attention"}
    apply = jax.jit(net.apply)
    x = jax.random.normal(jax.random.key(2), (1, 24, 64, 64, 1))
    moved = apply(params, x.at[0, 0, 0, 0].add(1.0), 0.0, {}) - apply(params, x, 0.0, {})
    reached = np.nonzero(np.abs(moved) > 1e-6)
    assert 0 < reached[1].max() < 12 and 0 < reached[2].max() < 40 and 0 < reached[3].max() < 40
    with pytest.raises(KeyError, match="unknown attention kind 'none'"):
        build(dict(shape=SHAPE, num_classes=CLASSES, **TINY["dit"], attention="none"))


@pytest.mark.parametrize("kind, level", [("unet", "logsnr"), ("dit", "angle"), ("mlp", "logsnr"), ("mlp", "angle")])
def test_derivatives_by_every_level_are_finite_up_to_the_infinite_ends(kind, level):
    _, _, moved, apply = student(kind, level)
    x = clip()

    def derivative(here, to):
        inputs = (x, here, to)
        call = lambda x, here, to: apply(moved, x, here, {"logsnr_to": to, "low": LOW, "aug_logsnr": to})  # noqa: E731
        return jax.jvp(call, inputs, (jnp.ones_like(x), jnp.ones_like(here), -jnp.ones_like(to)))

    ends = jnp.array([[-np.inf, -20.0, 20.0, np.inf], [-25.0, 0.0, 3.0, 25.0]])
    for here in (ends, ends[:, ::-1]):
        assert all(np.isfinite(part).all() for part in jax.jit(derivative)(here, ends))


def test_at_its_limit_a_level_moves_as_it_does_inside():
    """A trajectory begins at -20: half a derivative there would be wrong in every objective in continuous time."""
    for kind in LEVELS.values():
        slope = jax.vmap(jax.grad(kind[0]))(jnp.array([-20.0, -19.999, 19.999, 20.0]))
        np.testing.assert_allclose(slope[jnp.array([0, 3])], slope[jnp.array([1, 2])], rtol=2e-3)
        np.testing.assert_array_equal(jax.vmap(jax.grad(kind[0]))(jnp.array([-21.0, 21.0, np.inf])), 0)


def test_the_angle_keeps_derivatives_by_flow_time_bounded():
    """d/dt = (dl/dt) d/dl with dl/dt = -2 / (t (1 - t)): 40,000 near the ends, where the angle's own slope makes up for it."""
    level = jnp.linspace(-19.9, 19.9, 101)
    t = jax.nn.sigmoid(-level / 2)
    slope = jax.vmap(jax.grad(LEVELS["angle"][0]))(level) * -2 / (t * (1 - t))
    # arctan(t / (1 - t)) by t is 1 / (t^2 + (1 - t)^2).
    np.testing.assert_allclose(slope, 1 / (t**2 + (1 - t) ** 2), rtol=3e-3)


def test_scanned_layers_equal_unrolled_ones():
    x, params, cond = clip(), weights("dit"), {"label": jnp.array([0, 1])}

    def gradient(scan):
        net = model("dit", scan=scan)
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(net.apply(p, x, 0.5, cond) ** 2)))(params)

    for a, b in zip(jax.tree.leaves(gradient(True)), jax.tree.leaves(gradient(False)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@every
def test_bfloat16_is_finite_and_near_float32(kind):
    x, level = clip(), [[-3.0, 0.0, 3.0, np.inf]]
    wide = run(kind, x, level)
    half = run(kind, x, level, dtype="bfloat16")
    assert half.dtype == np.float32 and np.isfinite(half).all()
    assert 0 < np.abs(half - wide).max() < 0.06 * np.abs(wide).max()


@every
def test_dropout_follows_its_key(kind):
    net, params, x = model(kind, dropout=0.5), weights(kind), clip()
    apply = compiled(kind, dropout=0.5)
    still = apply(params, x, jnp.zeros(()), {}, key=jax.random.key(1))
    np.testing.assert_allclose(still, run(kind, x, 0.0), atol=1e-5)
    once, again, other = (
        apply(params, x, jnp.zeros(()), {}, key=jax.random.key(seed), train=True) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 1e-3 and np.abs(once - still).max() > 1e-3
    with pytest.raises(ValueError, match="dropout 0.5 needs a key"):
        net.apply(params, x, jnp.zeros(()), {}, train=True)


FEATURES = {"unet": ((4, 4, 4, 12),), "dit": ((4, 2, 2, 16),) * 2, "mlp": ((1, 1, 1, 16),)}


def features(kind, x, params=None, level=0.5, label=CLASSES, **options):
    cond = {"label": jnp.broadcast_to(jnp.asarray(label, jnp.int32), x.shape[:1])}
    params = weights(kind) if params is None else params
    return jax.jit(model(kind, **options).features)(params, x, jnp.broadcast_to(level, x.shape[:2]), cond)


@every
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_features_are_float32_maps_of_the_channels_that_are_promised(kind, dtype):
    net = model(kind, dtype=dtype)
    maps = jax.eval_shape(net.features, weights(kind), clip(), 0.0)
    assert type(maps) is tuple and [m.dtype for m in maps] == [jnp.float32] * len(maps)
    assert tuple(m.shape for m in maps) == tuple((BATCH, *shape) for shape in FEATURES[kind])
    assert net.channels == tuple(shape[-1] for shape in FEATURES[kind])


@every
def test_features_see_the_clip_its_level_and_its_class(kind):
    x = clip()
    maps = features(kind, x)
    for other in (
        features(kind, x.at[0].add(1.0)),
        features(kind, x, level=jnp.array([[-2.0], [0.5]])),
        features(kind, x, label=[1, CLASSES]),
    ):
        for a, b in zip(maps, other, strict=True):
            change = np.abs(a - b).max(axis=(1, 2, 3, 4))
            assert change[0] > 1e-3 and change[1] < 1e-5


def test_features_of_a_unet_are_what_its_decoder_is_given():
    """With one level the decoder is the head alone: the answer is head(silu(norm(bottleneck)))."""
    net = model("unet", widths=(12,), blocks=(1,))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), net.init(jax.random.key(0))
    )
    x, cond = clip(), {"label": jnp.array([0, 2])}
    (bottleneck,) = jax.jit(net.features)(params, x, 0.5, cond)
    h = jax.nn.silu(rms_normalise(bottleneck) * params["norm"]["gain"]).reshape(-1, 8, 8, 12)
    kernel = params["head"]["weight"]
    out = jax.lax.conv_general_dilated(h, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    want = jax.jit(net.apply)(params, x, 0.5, cond)
    np.testing.assert_allclose(out.reshape(x.shape) + params["head"]["bias"], want, atol=1e-5)


def test_features_of_a_unet_leave_its_decoder_alone():
    params, x = weights("unet"), clip()
    decoder = {"grow", "up", "norm", "head"}
    changed = {name: jax.tree.map(jnp.negative, leaf) if name in decoder else leaf for name, leaf in params.items()}
    np.testing.assert_array_equal(features("unet", x, changed)[0], features("unet", x)[0])
    cond = {"label": jnp.array([0, 2])}
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(model("unet").features(p, x, 0.5, cond)[0] ** 2)))(params)
    assert decoder < gradient.keys()
    for name, part in gradient.items():
        largest = [np.abs(leaf).max() for leaf in jax.tree.leaves(part)]
        assert max(largest) == 0 if name in decoder else min(largest) > 1e-4, name
    # Nor is it computed: two convolutions a block and the stem's, of one block above and two at the bottom.
    count = str(jax.make_jaxpr(model("unet").features)(params, x, 0.5)).count("conv_general_dilated[")
    assert count == 7


def test_maps_of_a_unet_are_what_its_levels_hand_on(monkeypatch):
    """Against what its blocks return, one after the other, in a call of the network; the last of a level is its map."""
    net = model("unet", widths=(6, 8, 12), blocks=(2, 1, 1))
    params = jax.tree.map(lambda leaf: leaf + 0.1, net.init(jax.random.key(0)))
    x, cond, heard, call = clip(), {"label": jnp.array([0, 2])}, [], Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda *told: heard.append(call(*told)) or heard[-1])
    net.apply(params, x, 0.5, cond)
    whole, lasts = list(heard), (1, 2, 4, 5, 7)  # two down, one down, two at the bottom, one up, two up
    assert net.hidden == (6, 8, 12, 8, 6) and net.channels == (12,)
    for got, at in zip(net.features(params, x, 0.5, cond, "all"), lasts, strict=True):
        np.testing.assert_array_equal(got, whole[at])
    # Some of them, in any order, of which nothing is computed beyond the last.
    heard.clear()
    for got, at in zip(net.features(params, x, 0.5, cond, layers=(3, 0)), (5, 1), strict=True):
        np.testing.assert_array_equal(got, whole[at])
    assert len(heard) == 6
    np.testing.assert_array_equal(net.features(params, x, 0.5, cond)[0], whole[4])


@pytest.mark.parametrize("scan", [True, False])
def test_maps_of_a_dit_are_those_of_its_blocks_and_leave_later_ones_alone(scan):
    net, params, x = model("dit", depth=3, scan=scan), model("dit", depth=3).init(jax.random.key(0)), clip()
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    every = jax.jit(net.features)(params, x, 0.5)
    assert net.hidden == net.channels == (16,) * 3
    features = jax.jit(net.features, static_argnames="layers")
    for layers in ((2, 0), (1,)):
        for got, at in zip(features(params, x, 0.5, layers=layers), layers, strict=True):
            np.testing.assert_allclose(got, every[at], atol=1e-5)
    # A layer that isn't read isn't run: all its weights may be nothing at all.
    lost = params | {"layers": jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), params["layers"])}
    np.testing.assert_array_equal(features(lost, x, 0.5, layers=(1,))[0], features(params, x, 0.5, layers=(1,))[0])
    some, whole = (
        str(jax.make_jaxpr(lambda p, layers=layers: net.features(p, x, 0.5, layers=layers))(params))
        for layers in ((1,), None)
    )
    assert "length=2" in some and "length=3" in whole if scan else len(some) < 0.75 * len(whole)


@pytest.mark.parametrize("layers", ["al", (), (3,), (-1,), (1, 1), (1.0,), 1])
def test_maps_that_there_are_not_are_refused(layers):
    with pytest.raises(ValueError, match="layers is 'all' or different whole numbers from 0 to 2, got"):
        model("unet").features(weights("unet"), clip(), 0.5, {}, layers)


def test_features_of_a_dit_are_what_its_blocks_hand_on():
    x, level, params = clip(), jnp.full((BATCH, 4), 0.5), weights("dit")
    first, last = features("dit", x)
    # The first map is all that a network of the first block alone has.
    shallow = params | {"layers": jax.tree.map(lambda leaf: leaf[:1], params["layers"])}
    np.testing.assert_allclose(features("dit", x, shallow, depth=1)[0], first, atol=1e-5)
    # The last is what the answer is read from; without an embedding the last norm has its table only.
    silent = {"level": params["level"] | {"out": jax.tree.map(jnp.zeros_like, params["level"]["out"])}}
    params = params | silent | {"label": jax.tree.map(jnp.zeros_like, params["label"])}
    shift, scale = params["final_table"]
    h = rms_normalise(features("dit", x, params)[-1]) * (1 + scale) + shift
    out = h @ params["head"]["weight"] + params["head"]["bias"]
    want = compiled("dit")(params, x, level, {"label": jnp.full(BATCH, CLASSES)})
    np.testing.assert_allclose(depth_to_space(out, 4), want, atol=1e-5)
    for a, b in zip(features("dit", x, scan=False), (first, last), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_features_of_an_mlp_are_what_its_head_is_given():
    x, params = clip(), weights("mlp")
    out = jax.nn.silu(features("mlp", x)[0][:, 0, 0, 0]) @ params["head"]["weight"] + params["head"]["bias"]
    np.testing.assert_allclose(out.reshape(x.shape), run("mlp", x, 0.5), atol=1e-5)


@every
def test_features_have_no_dropout_and_refuse_what_apply_refuses(kind):
    net, params, x = model(kind), weights(kind), clip()
    programs = [str(jax.make_jaxpr(m.features)(params, x, 0.0)) for m in (net, model(kind, dropout=0.5))]
    assert programs[0] == programs[1]
    with pytest.raises(ValueError, match=r"takes clips \[b, f, h, w, 1\], got shape"):
        net.features(params, x[0], 0.0)
    with pytest.raises(ValueError, match=r"leading length must be 1 or the batch's 2, got shape \(3, 4\)"):
        net.features(params, x, jnp.zeros((3, 4)))
    with pytest.raises(ValueError, match="takes cond keys .*, got 'low'"):
        net.features(params, x, 0.0, {"low": 0})
    with pytest.raises(KeyError, match="params lack"):
        net.features({name: leaf for name, leaf in params.items() if name != "head"}, x, 0.0)


def test_what_is_computed_again_is_the_same_and_saves_memory():
    """Gradients of a DiT; what the backward pass keeps shrinks from `none` over `matmuls` to `layers`."""
    options = dict(kind="dit", shape=(2, 8, 8, 1), num_classes=0, width=24, depth=2, head_dim=12)
    x, kept, gradients = jax.random.normal(jax.random.key(1), (2, 2, 8, 8, 1)), [], []
    for name in REMAT:
        other = build({**options, "remat": name})
        params = jax.tree.map(lambda p: p + 0.1, other.init(jax.random.key(0)))

        def loss(params, other=other):
            return jnp.sum(jnp.square(other.apply(params, x, jnp.float32(0.5))))

        pullback = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(pullback)))
        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
    for other in gradients[1:]:
        for a, b in zip(other, gradients[0], strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * float(np.abs(b).max()))
    assert kept[1] < 0.8 * kept[0] and kept[2] < 0.8 * kept[1]


def test_an_unknown_remat_is_refused_by_name():
    with pytest.raises(ValueError, match="remat is one of .*did you mean 'matmuls'"):
        build(dict(kind="dit", shape=(2, 8, 8, 1), num_classes=0, remat="matmul"))
