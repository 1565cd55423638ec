"""The metric classifier: a pure function with plain weights, trained by this repository's own code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.moving_digits import classifier as classifier_config
from distill.method import optimiser
from experiments import data, weights
from experiments.metrics import classifier_training as training
from models.classifier import build_classifier

SMALL = {"widths": (12, 24), "features": 32}


def frames(n, size=16, channels=1, seed=0):
    return jax.random.uniform(jax.random.key(seed), (n, size, size, channels), minval=-1.0)


def leaves(params, prefix=()):
    for name, value in params.items():
        assert type(name) is str
        yield from leaves(value, (*prefix, name)) if isinstance(value, dict) else [((*prefix, name), value)]


def test_weights_are_a_plain_dict_of_arrays():
    classifier = build_classifier({})
    params = classifier.init(jax.random.key(0))
    named = dict(leaves(params))
    assert all(isinstance(v, jax.Array) and v.dtype == jnp.float32 for v in named.values())
    assert 50_000 < sum(v.size for v in named.values()) < 150_000
    again = classifier.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, again)


@pytest.mark.parametrize(
    "config, size, channels",
    [
        ({}, 16, 1),
        ({"shape": (64, 64, 3), "widths": (8, 16, 16, 32, 32), "num_classes": 3, "features": 20}, 64, 3),
    ],
)
def test_shapes_and_purity(config, size, channels):
    classifier = build_classifier(config)
    params, apply = classifier.init(jax.random.key(1)), jax.jit(classifier.apply)
    x = frames(5, size, channels)
    logits, features = apply(params, x)
    assert logits.shape == (5, config.get("num_classes", 10)) and features.shape == (5, config.get("features", 64))
    assert logits.dtype == features.dtype == jnp.float32
    # Frames do not see each other, weights are arguments, and nothing is kept between calls.
    np.testing.assert_allclose(apply(params, x[::-1])[1], features[::-1], atol=1e-5)
    doubled = apply(jax.tree.map(lambda p: 2 * p, params), x)[0]
    assert np.abs(doubled - logits).max() > 1e-4
    np.testing.assert_array_equal(apply(params, x)[0], logits)


def test_taps_are_the_maps_of_every_level():
    classifier = build_classifier(SMALL)
    params, taps = classifier.init(jax.random.key(1)), jax.jit(classifier.taps)
    clips = frames(6).reshape(2, 3, 16, 16, 1)
    maps = taps(params, clips)
    assert tuple(m.shape for m in maps) == ((2, 3, 16, 16, 12), (2, 3, 8, 8, 24)) and classifier.channels == (12, 24)
    assert all(m.dtype == jnp.float32 for m in maps)
    # Frames do not see each other, whichever clip they stand in.
    moved = taps(params, clips.at[1, 2].add(0.3))
    for a, b in zip(maps, moved, strict=True):
        change = np.abs(a - b).max((2, 3, 4))
        assert change[1, 2] > 1e-3 and np.count_nonzero(change) == 1
    # The last level's map is the one that the features are made from.
    last = maps[-1].reshape(6, 8, 8, 24).mean((1, 2))
    features = jax.nn.silu(last @ params["features"]["weight"] + params["features"]["bias"])
    want = jax.jit(classifier.apply)(params, clips.reshape(6, 16, 16, 1))[1]
    np.testing.assert_allclose(features, want, atol=1e-5)
    with pytest.raises(ValueError, match=r"takes clips \[b, f, 16, 16, 1\], got \(6, 16, 16, 1\)"):
        classifier.taps(params, clips.reshape(6, 16, 16, 1))


def test_bad_configs_and_frames_are_refused():
    with pytest.raises(KeyError, match="unknown key 'width'.*did you mean 'widths'"):
        build_classifier({"width": (8,)})
    with pytest.raises(ValueError, match="20x20 can't be halved 3 times"):
        build_classifier({"shape": (20, 20, 1), "widths": (8, 8, 8, 8)})
    with pytest.raises(ValueError, match=r"shape \(h, w, c\)"):
        build_classifier({"shape": (16, 16)})
    for key, value in (("features", 0), ("features", "64"), ("num_classes", 2.5)):
        with pytest.raises(ValueError, match=f"{key} is a whole number from 1 up, got {value!r}"):
            build_classifier({key: value})
    classifier = build_classifier(SMALL)
    params = classifier.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"takes frames \[n, 16, 16, 1\], got \(2, 8, 8, 1\)"):
        classifier.apply(params, jnp.zeros((2, 8, 8, 1)))


def test_augmentation_by_its_parts():
    key, x = jax.random.key(3), frames(64, 8)
    augment = jax.jit(training.augment)  # the amounts are traced: one program for each shape
    np.testing.assert_allclose(augment(key, x, training.Augmentation(0, 0, 0)), x, atol=1e-6)
    # Gain acts on the light above black: black stays black.
    black = -jnp.ones((64, 8, 8, 1))
    np.testing.assert_allclose(augment(key, black, training.Augmentation(0.5, 0.5, 0)), black, atol=1e-6)
    gains = (augment(key, -black * 0, training.Augmentation(0.5, 0, 0)) + 1)[:, 0, 0, 0]
    assert 0.5 <= gains.min() < 0.6 and 1.4 < gains.max() <= 1.5
    # A full blur of a point is the binomial kernel, and keeps its light.
    point = black.at[:, 4, 4].set(1.0)
    blurred = augment(key, point, training.Augmentation(0, 1, 0)) + 1
    np.testing.assert_allclose(blurred.sum((1, 2, 3)), 2.0, rtol=1e-5)
    share = (2 - blurred[:, 4, 4, 0]) / 1.5  # the centre keeps a quarter of what is blurred
    np.testing.assert_allclose(blurred[:, 3, 4, 0], share * 2 / 8, atol=1e-5)
    np.testing.assert_allclose(blurred[:, 3, 3, 0], share * 2 / 16, atol=1e-5)
    # Noise: each frame its own level, uniform up to the largest, so that the mean square is a third of its
    # square.
    noise = augment(key, jnp.zeros((2000, 8, 8, 1)), training.Augmentation(0, 0, 0.3))
    assert abs(float(jnp.mean(noise**2)) - 0.03) < 0.003


@functools.cache
def trainer():
    """(classifier, method, its compiled phase): one program serves all the tests of training."""
    classifier = build_classifier(SMALL)
    options = dict(classifier_config.get_config().stages.classifier.options)
    method = training.method(classifier, optimiser=optimiser(1e-2, steps=250, decay="cosine"), **options)
    return classifier, method, jax.jit(method.phases["train"], donate_argnums=0)


def train(steps, seed=0, scale=1.0):
    """A small classifier on moving digits; the loop of a stage without its files."""
    classifier, method, phase = trainer()
    key = jax.random.key(seed)
    state = method.init(key, classifier.init(key))
    source = data.build({"kind": "moving_digits", "num_clips": 4096})
    batches, losses = data.Batches(source, 32, seed=seed), []
    hyper = {"learning_rate_scale": jnp.float32(scale)}
    for step in range(steps):
        assert method.order(step) == ("train",)
        state, metrics = phase(state, {}, next(batches), jax.random.fold_in(key, step), hyper)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == steps
    return state, losses


def test_training_learns_digits():
    state, losses = train(250)
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:20])
    accuracy = digit_accuracy(training.classify_fn(trainer()[0], state.ema), num_clips=100)
    assert accuracy > 0.6  # six times chance after seconds


def test_training_repeats_itself_and_compiles_once():
    first, second, still = train(3)[0], train(3)[0], train(3, scale=0.0)[0]
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (first.params, still.params)), strict=True))
    # The scale is traced: at 0 the weights stay where they began, and the program is the same.
    jax.tree.map(np.testing.assert_array_equal, still.params, trainer()[0].init(jax.random.key(0)))
    assert trainer()[2]._cache_size() == 1


def digit_accuracy(classify, num_clips):
    source = data.build({"kind": "moving_digits", "seed": 3}, "test")
    clips = [source[i] for i in range(num_clips)]
    videos, labels = np.stack([c["video"] for c in clips]), np.stack([c["label"] for c in clips])
    predicted = classify(videos.reshape(-1, *videos.shape[2:]))[0].argmax(-1).reshape(num_clips, -1)
    return (predicted == labels[:, None]).mean()


def test_the_shipped_classifier_knows_held_out_digits():
    params, record = weights.load(weights.find("pretrained:moving_digits/classifier", None))
    assert digit_accuracy(training.classify_fn(build_classifier(record["model"]), params), num_clips=500) > 0.97


def test_classify_fn_takes_any_number_of_frames_and_bytes():
    classifier = build_classifier(SMALL)
    params = classifier.init(jax.random.key(0))
    pixels = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 1), dtype=np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    logits, features = jax.jit(classifier.apply)(params, floats)
    for chunk in (4, 11, 64):
        got = training.classify_fn(classifier, params, chunk=chunk)(pixels)
        np.testing.assert_allclose(got[0], logits, atol=1e-5)
        np.testing.assert_allclose(got[1], features, atol=1e-5)
    np.testing.assert_allclose(training.classify_fn(classifier, params)(floats)[0], logits, atol=1e-5)
    with pytest.raises(ValueError, match="no frame"):
        training.classify_fn(classifier, params)(pixels[:0])


def test_the_shipped_config_fits_its_constructors():
    stage = classifier_config.get_config().stages.classifier
    training.method(
        build_classifier(stage.get("model", {})),
        optimiser=optimiser(**stage.optimiser, steps=stage.steps),
        **stage.options,
    )
