"""Known corruptions of real clips: each metric sees what it must see and nothing else (64x64 digits, 20 frames, 2-4 px/frame).

The clips are the same before and after, so that most of the chance between two sets cancels; what counts is the interval that
chance gives to real clips.
"""

import functools

import numpy as np
import pytest

from experiments import weights
from experiments.data import moving_digits
from experiments.metrics import METRICS, classifier_training, corruptions
from models.classifier import build_classifier

CLIPS = 48


@functools.cache
def readings():
    params, record = weights.load(weights.find("pretrained:moving_digits_64/classifier", None))
    return corruptions.read(classifier_training.classify_fn(build_classifier(record["model"]), params), clips=CLIPS)


@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_metrics_react_to_what_is_wrong_and_to_nothing_else(name):
    found = readings()[1][name]
    blind = {m: found[m] for m in corruptions.MUST_REACT[name] if abs(found[m].score) < corruptions.REACTS}
    nervous = {m: found[m] for m in corruptions.MUST_NOT_REACT[name] if abs(found[m].score) > 1}
    assert not blind and not nervous


def test_every_corruption_is_seen_and_every_metric_has_its_lines():
    seen = {metric for metrics in corruptions.MUST_REACT.values() for metric in metrics}
    silent = {metric for metrics in corruptions.MUST_NOT_REACT.values() for metric in metrics}
    assert set(corruptions.MUST_REACT) == set(corruptions.MUST_NOT_REACT) == set(corruptions.CORRUPTIONS)
    assert all(metrics for name, metrics in corruptions.MUST_REACT.items() if name != "reversed")
    assert seen | silent == set(METRICS) - {"memorisation"}
    for name in corruptions.CORRUPTIONS:
        assert not set(corruptions.MUST_REACT[name]) & set(corruptions.MUST_NOT_REACT[name])


def test_every_corruption_is_caught_by_a_metric_that_knows_no_network():
    learnt = {"confidence", "label_accuracy", "identity_kept", *corruptions.SETS}
    for name, metrics in corruptions.MUST_REACT.items():
        assert name == "reversed" or set(metrics) - learnt


def test_plain_flickering_rewards_what_freezes_and_blurs():
    known, found = readings()
    real, score = known["VBench flickering"], {name: r["VBench flickering"].score for name, r in found.items()}
    assert 0.96 < real.value < 0.98
    assert score["freeze"] > 2 and score["blur"] > 1  # better than real clips
    assert all(abs(score[name]) < 1 for name in ("swap", "jitter", "gravity", "teleport"))  # and blind


def test_real_clips_are_what_other_real_clips_are():
    known, _ = readings()
    for name, measure in known.items():
        half = max((measure.high - measure.low) / 2, corruptions.RESOLUTION.get(name, 0))
        # Two sets of clips, and 30 metrics: three half intervals are six standard errors of one set.
        assert abs(measure.floor - measure.value) < 3 * half, name


def test_corruptions_break_what_they_say():
    source = moving_digits.MovingDigits(size=16, frames=10, split="test")
    real = corruptions.scene(source, 0, 6)
    np.testing.assert_array_equal(real.clips, np.stack([source[i]["video"] for i in range(6)]))
    np.testing.assert_array_equal(real.labels, [source[i]["label"] for i in range(6)])
    for seed, (name, corrupt) in enumerate(corruptions.CORRUPTIONS.items()):
        made = corrupt(real, np.random.default_rng(seed))
        assert made.dtype == np.uint8 and made.shape == real.clips.shape, name
        assert (made != real.clips).any(), name
        np.testing.assert_array_equal(made, corrupt(real, np.random.default_rng(seed)), err_msg=name)
        if name in ("swap", "teleport", "freeze"):
            half = 5 + (name == "freeze")  # the frame that stays
            np.testing.assert_array_equal(made[:, :half], real.clips[:, :half], err_msg=name)
            changed = (made[:, half:] != real.clips[:, half:]).any((1, 2, 3, 4))
            assert changed.sum() >= 5, name  # two clips may show the same digit
        if name in ("morph", "jitter", "gravity", "blur", "saturation", "wrap"):
            assert (np.abs(made[:, 0].astype(int) - real.clips[:, 0]) <= 1).all(), name
    swapped = corruptions.swap(real, np.random.default_rng(0))
    np.testing.assert_array_equal(swapped[:, 5:], real.draw(real.positions, real.others)[:, 5:])
