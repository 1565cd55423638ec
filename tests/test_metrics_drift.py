"""Drift curves: what fades, slows down or turns into something else over many chunks, and what stays as it is."""

import functools

import numpy as np
import pytest

from experiments import metrics, weights
from experiments.data import moving_digits
from experiments.metrics import classifier_training, corruptions
from experiments.metrics.drift import CONTRAST, CURVES, IDENTITY, drift
from models.classifier import build_classifier

CLIPS, CHUNK, CHUNKS = 48, 8, 3


@functools.cache
def classify():
    params, record = weights.load(weights.find("pretrained:moving_digits/classifier", None))
    return classifier_training.classify_fn(build_classifier(record["model"]), params)


@functools.cache
def scene(start, frames=CHUNK * CHUNKS):
    source = moving_digits.MovingDigits(split="test", frames=frames)
    return corruptions.scene(source, start, start + CLIPS)


@functools.cache
def rows(name):
    clips = scene(0).clips
    time = scene(0).time[:, 0] / (len(scene(0).time) - 1)
    match name:
        case "fades":
            clips = np.rint(clips * (1 - 0.3 * time[:, None, None, None])).astype(np.uint8)
        case "turns":  # slowly into another digit
            clips = corruptions.morph(scene(0), np.random.default_rng(0))
        case "stops":
            clips = clips[:, np.minimum(np.arange(len(time)), 2 * CHUNK)]
    return drift(
        clips, scene(100).clips, chunk=CHUNK, classify=classify(), floor_reference=scene(200).clips, bootstrap=100
    )  # fmt: skip


def curve(name, metric):
    return [measures[metric] for row, measures in rows(name).items() if row != CONTRAST]


def test_real_clips_do_not_drift():
    found = rows("real")
    assert list(found) == ["0-7", "8-15", "16-23", CONTRAST]
    for name in (*CURVES, IDENTITY):
        contrast = found[CONTRAST][name]
        half = max((contrast.high - contrast.low) / 2, 0.02)
        assert abs(contrast.value) < 2 * half and abs(contrast.floor) < 2 * half, name
        assert contrast.value == pytest.approx(found["16-23"][name].value - found["0-7"][name].value), name
        assert all(m.low <= m.value <= m.high and m.floor is not None for m in curve("real", name)), name
    assert min(m.value for m in curve("real", IDENTITY)) > 0.99


def test_the_first_chunk_is_what_evaluate_says_of_it():
    first = metrics.evaluate(
        scene(0).clips[:, :CHUNK], scene(100).clips[:, :CHUNK], classify=classify(),
        floor_reference=scene(200).clips[:, :CHUNK], bootstrap=100,
    )  # fmt: skip
    for name in CURVES:
        assert rows("real")["0-7"][name] == first[name], name


def test_fading_is_seen_and_its_interval_excludes_chance():
    mass = curve("fades", "mass")
    assert mass[0].value > mass[1].value > mass[2].value
    contrast = rows("fades")[CONTRAST]["mass"]
    assert contrast.high < -0.1 and contrast.better is None
    # The same clips in both chunks: the contrast is far surer than either end.
    assert contrast.high - contrast.low < 0.5 * (mass[0].high - mass[0].low)
    assert abs(rows("fades")[CONTRAST]["law_residual"].value) < 0.03


def test_a_slow_change_of_identity_is_seen_from_the_start():
    values = [m.value for m in curve("turns", IDENTITY)]
    assert values[0] > values[1] > values[2] and values[2] < 0.85
    assert rows("turns")[CONTRAST][IDENTITY].high < -0.05


def test_standing_still_is_seen():
    assert curve("stops", "change")[2].value < 0.2 < 0.8 < curve("stops", "change")[1].value
    assert curve("stops", "speed_distance")[2].value > 0.8


def test_rows_are_printed_by_table():
    lines = metrics.table(rows("fades")).splitlines()
    assert lines[0] == "| metric | 0-7 | 8-15 | 16-23 | last - first | real |"
    assert len(lines) == 2 + len(CURVES) + 1


def test_bad_input_is_refused():
    clips, options = scene(0).clips, dict(classify=lambda frames: 1 / 0)
    for chunk in (7, 2, 24):
        with pytest.raises(ValueError, match=f"24 frames are not cut into two or more chunks of {chunk}"):
            drift(clips, clips, chunk=chunk, **options)
    with pytest.raises(ValueError, match="the reference needs 8 frames, a chunk, or more, got 6"):
        drift(clips, clips[:, :6], chunk=8, **options)
    with pytest.raises(ValueError, match=r"floor of 48 clips of 24 frames needs as many, got \(48, 8\)"):
        drift(clips, clips, chunk=8, floor_reference=clips[:, :8], **options)
    with pytest.raises(ValueError, match="there is no metric 'flickr'"):
        drift(clips, clips, chunk=8, names=["flickr"], **options)
    with pytest.raises(ValueError, match="label_accuracy needs labels"):
        drift(clips, clips, chunk=8, names=["label_accuracy"], **options)
    with pytest.raises(ValueError, match="memorisation needs training clips"):
        drift(clips, clips, chunk=8, names=["memorisation"], **options)
