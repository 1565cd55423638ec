"""Discriminator heads on feature maps: what each kind sees, labels by projection, derivatives of derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill.adversarial import of_heads
from models import build, build_heads

pytestmark = pytest.mark.usefixtures("quick_compilation")

CHANNELS, CLASSES, BATCH = (3, 5), 4, 2
BOTH = ("spatial", "temporal")


def maps(seed=0, batch=BATCH):
    """Two maps of different sizes: [b, 4, 3, 3, 3] and [b, 4, 2, 2, 5]."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, 4, 3, 3, CHANNELS[0]), (batch, 4, 2, 2, CHANNELS[1]))
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


@functools.cache
def heads(num_classes=0, **config):
    """(definition, weights moved off their zeros, the compiled call)."""
    made = build_heads(dict(width=8) | config, CHANNELS, num_classes)
    params = made.init(jax.random.key(0))
    moved = jax.tree.map(lambda leaf, noise: leaf + 0.1 * noise, params, normal_like(params))
    return made, moved, jax.jit(made.apply)


def normal_like(tree):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), tree)


def flat(tree, path=()):
    if type(tree) is not dict:
        return {path: tree}
    assert all(type(name) is str for name in tree)
    return {at: leaf for name, sub in tree.items() for at, leaf in flat(sub, (*path, name)).items()}


@pytest.mark.parametrize("kinds", [BOTH, ("temporal",), ("spatial",)])
def test_there_is_a_head_for_every_map_and_kind(kinds):
    made, _, apply = heads(kinds=kinds)
    params = made.init(jax.random.key(0))
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in flat(params).values())
    assert set(params) == {f"{kind}{i}" for i in range(2) for kind in kinds}
    logits = apply(params, maps())
    assert logits.shape == (BATCH, 2 * len(kinds)) and logits.dtype == jnp.float32
    # Map by map, then kind by kind: a change of the second map shows in the second half alone.
    first, second = maps()
    moved = np.abs(apply(params, (first, second + 1.0)) - logits).min(0) > 1e-4
    assert moved.tolist() == [False] * len(kinds) + [True] * len(kinds)
    if kinds == BOTH:
        reversed_in_time = np.abs(apply(params, (first[:, ::-1], second[:, ::-1])) - logits).max(0) > 1e-4
        assert reversed_in_time.tolist() == [False, True] * 2


def test_init_is_a_function_of_the_key_and_depth_and_width_are_the_hidden_layers():
    made, _, _ = heads(depth=2)
    params, again, other = (made.init(jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    first, second = (p["spatial0"]["hidden"]["0"]["weight"] for p in (params, other))
    assert np.abs(first - second).max() > 1e-3
    shapes = {path: leaf.shape for path, leaf in flat(params["spatial0"]).items() if path[-1] == "weight"}
    assert shapes == {
        ("hidden", "0", "weight"): (3, 3, 6, 8),
        ("hidden", "1", "weight"): (3, 3, 8, 8),
        ("logit", "weight"): (8, 1),
    }


def test_equal_arguments_give_the_same_definition():
    made = build_heads({"kinds": ["spatial"], "width": 8}, [3, 5], 2)
    assert made is build_heads({"width": 8, "kinds": ("spatial",), "depth": 1}, (3, 5), 2)
    assert made is not build_heads({"width": 8, "kinds": ("spatial",)}, (3, 5), 3)


def test_a_spatial_head_judges_frame_by_frame_and_sees_shapes():
    _, params, apply = heads(kinds=("spatial",), depth=2)
    x = maps()
    logits = apply(params, x)
    each = [apply(params, tuple(m[:, i : i + 1] for m in x)) for i in range(4)]
    assert np.std(each, axis=0).min() > 1e-3
    np.testing.assert_allclose(logits, np.mean(each, axis=0), atol=1e-5)
    assert np.abs(apply(params, tuple(m[:, :, ::-1] for m in x)) - logits).min() > 1e-4


def test_a_temporal_head_judges_pixel_by_pixel_and_sees_the_order():
    _, params, apply = heads(kinds=("temporal",), depth=2)
    x = maps()
    logits = apply(params, x)
    # The pixels of a row each, as clips of one pixel.
    each = []
    for m in x:
        h, w = m.shape[2:4]
        each.append([m[:, :, i : i + 1, j : j + 1] for i in range(h) for j in range(w)])
    first = np.mean([apply(params, (m, each[1][0])) for m in each[0]], axis=0)[:, 0]
    second = np.mean([apply(params, (each[0][0], m)) for m in each[1]], axis=0)[:, 1]
    np.testing.assert_allclose(logits, np.stack([first, second], axis=-1), atol=1e-5)
    swapped = tuple(m[:, jnp.array([1, 0, 2, 3])] for m in x)
    assert np.abs(apply(params, swapped) - logits).min() > 1e-4


def test_points_of_a_plane_are_told_apart_by_direction_and_by_length():
    """Maps of one frame and one pixel, as an MLP gives them, of any size; the norm alone would lose the length."""
    made = build_heads({"width": 8}, (2,), 0)
    params, apply = made.init(jax.random.key(0)), jax.jit(made.apply)
    points = jnp.array([[1.0, 2.0], [3.0, 6.0], [2.0, -1.0], [0.0, 0.0], [1e4, 2e4], [1e-4, 2e-4]])
    logits = apply(params, (points.reshape(6, 1, 1, 1, 2),))
    assert logits.shape == (6, 2) and np.isfinite(logits).all() and np.abs(logits).max() < 50
    for i in range(6):
        for j in range(i):
            assert np.abs(logits[i] - logits[j]).max() > 1e-3, (i, j)


def test_a_label_is_projected_on_the_mean_of_the_last_hidden_map():
    made, params, apply = heads(CLASSES)
    x = maps()
    none = apply(params, x)
    np.testing.assert_allclose(apply(params, x, jnp.full(BATCH, CLASSES)), none, atol=1e-6)
    np.testing.assert_allclose(apply(params, x, jnp.array([CLASSES])), none, atol=1e-6)
    some = apply(params, x, jnp.array([1, CLASSES]))
    assert np.abs(some[0] - none[0]).min() > 1e-3
    np.testing.assert_allclose(some[1], none[1], atol=1e-6)
    assert np.isnan(apply(params, x, jnp.array([0, CLASSES + 1]))[1]).all(), "a label out of range shows"

    # An embedding of 0 leaves the logit itself; one of sqrt(width) times the logit's weights doubles it, less its bias.
    def head(part):
        weight = part["logit"]["weight"][:, 0]
        table = jnp.stack([0 * weight, weight * 8**0.5, 0 * weight, weight, weight])
        return part | {"label": {"table": table}, "logit": part["logit"] | {"bias": jnp.zeros(1)}}

    crafted = {name: head(part) for name, part in params.items()}
    plain = apply(crafted, x, jnp.array([0, 2]))
    assert np.abs(plain).min() > 1e-4
    np.testing.assert_allclose(apply(crafted, x, jnp.array([1, 1])), 2 * plain, rtol=1e-4, atol=1e-6)
    unlabelled, _, plainly = heads()
    bare = {name: {key: leaf for key, leaf in part.items() if key != "label"} for name, part in crafted.items()}
    assert jax.tree.structure(bare) == jax.tree.structure(unlabelled.init(jax.random.key(0)))
    np.testing.assert_allclose(plainly(bare, x), plain, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_mean_over_places_is_the_whole_maps_logit(depth):
    """Heads that judge places have the weights of those that don't, and logits that average to theirs: all is linear behind the
    hidden layers.
    """
    whole, params, apply = heads(CLASSES, depth=depth, level=True)
    by_place, own, apply_by_place = heads(CLASSES, depth=depth, level=True, places=True)
    jax.tree.map(np.testing.assert_array_equal, own, params)
    for label in (None, jnp.array([1, CLASSES]), jnp.array([2])):
        got = apply_by_place(params, maps(), label, jnp.array([-3.0, 1.0]))
        assert [m.shape for m in got] == [(BATCH, *m.shape[1:4]) for m in maps() for _ in BOTH]
        assert all(np.std(m, axis=(1, 2, 3)).min() > 1e-3 for m in got)
        means = np.stack([m.mean((1, 2, 3)) for m in got], axis=-1)
        np.testing.assert_allclose(means, apply(params, maps(), label, jnp.array([-3.0, 1.0])), atol=1e-5)


def test_a_place_is_judged_by_what_is_around_it():
    """A change of one place moves a spatial head's logits of that frame around it, a temporal head's of that place around
    then.
    """
    _, params, apply = heads(CLASSES, places=True)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 6, 5, 5, CHANNELS[0])), jnp.float32)
    other = jnp.zeros((1, 1, 1, 1, CHANNELS[1]))
    before, after = (apply(params, (m, other), jnp.array([1])) for m in (x, x.at[0, 2, 3, 1].add(2.0)))
    space, time, *rest = (np.abs(a - b)[0] > 1e-6 for a, b in zip(before, after, strict=True))
    around = np.zeros((6, 5, 5), bool)
    around[2, 2:5, 0:3] = True
    np.testing.assert_array_equal(space, around)
    around[:] = False
    around[1:4, 3, 1] = True
    np.testing.assert_array_equal(time, around)
    assert not np.any(rest)


def flawed(seed, n):
    """[2n, 4, 8, 8, 1]: noise, and noise of which two neighbours in one frame, somewhere, are +-3: their mean says nothing."""
    rng = np.random.default_rng(seed)
    x = 0.3 * rng.standard_normal((2 * n, 4, 8, 8, 1))
    for clip in x[n:]:
        frame, row, column = rng.integers(4), rng.integers(8), 2 * rng.integers(4)
        clip[frame, row, column : column + 2, 0] += (3, -3)
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("coarse, places", [(False, True), (True, False)])
def test_a_flaw_at_one_place_is_found_by_place_and_not_through_a_bottleneck(coarse, places):
    """Hinge losses; the bottleneck holds means of 2x2 places, in which the flaw isn't."""
    made = build_heads({"width": 8, "kinds": ("spatial",), "places": places}, (1,), 0)
    params, optimiser = made.init(jax.random.key(0)), optax.adam(2e-2)

    def judged(params, x):
        x = x.reshape(len(x), 4, 4, 2, 4, 2, 1).mean((3, 5)) if coarse else x
        return made.apply(params, (x,))

    def loss(params, x):
        real, fake = (judged(params, part) for part in jnp.split(x, 2))
        each = of_heads(lambda m: jax.nn.relu(1 - m), real) + of_heads(lambda m: jax.nn.relu(1 + m), fake)
        return jnp.mean(each)

    @jax.jit
    def step(params, state, x):
        updates, state = optimiser.update(jax.grad(loss)(params, x), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for i in range(150):
        params, state = step(params, state, flawed(i, 16))
    logits = judged(params, flawed(1000, 100))
    # A clip is as bad as its worst place.
    worst = np.asarray(logits[0].min((1, 2, 3)) if places else logits[:, 0])
    right = np.mean(worst[:100, None] > worst[None, 100:])
    assert right > 0.95 if places else 0.35 < right < 0.65


def test_a_gradient_penalty_has_a_gradient():
    """R1, the squared gradient by the features, differentiated by the weights, against a central difference."""
    made, params, _ = heads(CLASSES)
    x, label = maps(), jnp.array([1, CLASSES])

    @jax.jit
    def penalty(params):
        gradient = jax.grad(lambda x: jnp.sum(made.apply(params, x, label)))(x)
        return sum(jnp.sum(g * g) for g in gradient)

    gradient = jax.jit(jax.grad(penalty))(params)
    step = 1e-2
    for name in ("spatial0", "temporal1"):
        along = jax.tree.map(jnp.zeros_like, params) | {name: normal_like(params[name])}
        ahead, behind = (penalty(jax.tree.map(lambda p, a, s=s: p + s * a, params, along)) for s in (step, -step))
        want = (ahead - behind) / (2 * step)
        got = sum(jnp.sum(g * a) for g, a in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
        assert abs(want) > 1e-2
        np.testing.assert_allclose(got, want, rtol=2e-2)


def test_gradients_reach_the_clip_through_a_network():
    net = build(dict(kind="mlp", shape=(1, 1, 1, 2), num_classes=CLASSES, width=8, depth=1))
    made = build_heads({"width": 8}, net.channels, net.num_classes)
    params, weights = net.init(jax.random.key(0)), made.init(jax.random.key(1))

    @jax.jit
    @jax.grad
    def slope(x, label):
        return jnp.sum(made.apply(weights, net.features(params, x, 0.5, {"label": label}), label))

    got = slope(jnp.ones((2, 1, 1, 1, 2)), jnp.array([0, 1]))
    assert np.isfinite(got).all() and np.abs(got).min() > 1e-4 and np.abs(got[0] - got[1]).max() > 1e-3


def comets(seed, n):
    """[2n, 6, 1, 6, 2]: dots with a tail on a ring, then the same clips backwards; the second channel is constant."""
    rng = np.random.default_rng(seed)
    head = (rng.integers(6, size=n)[:, None] + np.arange(6)) % 6
    ring = np.eye(6)[head] + 0.5 * np.eye(6)[(head - 1) % 6]
    x = np.stack([ring, np.ones_like(ring)], axis=-1)[:, :, None]
    x = x + 0.05 * rng.standard_normal(x.shape)
    return jnp.asarray(np.concatenate([x, x[:, ::-1]]), jnp.float32)


def test_a_temporal_head_learns_the_direction_of_time_and_a_spatial_head_cannot():
    made = build_heads({"width": 8}, (2,), 0)
    params, optimiser = made.init(jax.random.key(0)), optax.adam(3e-2)
    sign = jnp.repeat(jnp.array([1.0, -1.0]), 16)[:, None]

    @jax.jit
    def step(params, state, x):
        loss = lambda p: jnp.mean(jax.nn.softplus(-sign * made.apply(p, (x,))))  # noqa: E731
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for i in range(150):
        params, state = step(params, state, comets(i, 16))
    spatial, temporal = np.asarray(sign * made.apply(params, (comets(1000, 16),))).T
    assert (temporal > 0).all() and temporal.mean() > 1
    # For it a clip and its reverse are the same.
    np.testing.assert_allclose(spatial[:16], -spatial[16:], atol=1e-5)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (dict(widht=8), KeyError, "unknown key 'widht' for heads; did you mean 'width'"),
        (dict(kinds=("spatial", "temporel")), ValueError, "got 'temporel'; did you mean 'temporal'"),
        (dict(kinds="spatial"), ValueError, r"kinds is a tuple of different names among .*, got 'spatial'"),
        (dict(kinds=()), ValueError, r"kinds is a tuple of different names among .*, got \(\)"),
        (dict(kinds=("spatial", "spatial")), ValueError, "kinds is a tuple of different names"),
        (dict(width=0), ValueError, "width is a whole number from 1 up, got 0"),
        (dict(depth=True), ValueError, "depth is a whole number from 1 up, got True"),
        (dict(depth=1.5), ValueError, "depth is a whole number from 1 up, got 1.5"),
        (dict(places=1), ValueError, "places is True or False, got 1"),
    ],
)
def test_a_config_that_makes_no_heads_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        build_heads(change, CHANNELS, 0)


def test_maps_labels_and_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"heads need the channels of each map, .*, got \(\)"):
        build_heads({}, (), 0)
    with pytest.raises(ValueError, match="num_classes is the number of classes or 0 for none, got -1"):
        build_heads({}, CHANNELS, -1)
    made, params, _ = heads()
    first, second = maps()
    for wrong in ((first,), (second, first), (first[0], second)):
        with pytest.raises(ValueError, match=r"these heads take maps \[b, f, h, w, c\] with c of \(3, 5\), got shapes"):
            made.apply(params, wrong)
    with pytest.raises(ValueError, match="num_classes 0 and take no label"):
        made.apply(params, maps(), jnp.array([0, 1]))
    labelled, weights, _ = heads(CLASSES)
    with pytest.raises(ValueError, match=r"label is integers \[2\], got int32 of shape \(3,\)"):
        labelled.apply(weights, maps(), jnp.array([0, 1, 2]))
    with pytest.raises(KeyError, match="params lack 'spatial0/label/table'"):
        labelled.apply(params, maps())
