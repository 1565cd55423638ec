"""Metrics of moving digits: laws that real clips keep exactly, and known corruptions that each must be seen.

The corruptions are built from the ground truth of the source, so that each breaks one law and no other.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import polynomial_kernel

from experiments import metrics, weights
from experiments.data import moving_digits
from experiments.metrics import appearance, classifier_training, corruptions, distances, motion, report, suite
from models.classifier import build_classifier

CLIPS, FRAMES, ROOM, BOX = 160, 8, 8, 8


@functools.cache
def classify():
    params, record = weights.load(weights.find("pretrained:moving_digits/classifier", None))
    return classifier_training.classify_fn(build_classifier(record["model"]), params)


def truths(seed, count=CLIPS):
    source = moving_digits.MovingDigits(seed=seed, split="test", frames=FRAMES)
    return [source.truth(i) for i in range(count)]


@functools.cache
def scene(seed):
    return corruptions.scene(moving_digits.MovingDigits(seed=seed, split="test", frames=FRAMES), 0, CLIPS)


def real(seed):
    return scene(seed).clips


def corrupted(name):
    """The clips of seed 0 with one thing wrong."""
    rng = np.random.default_rng(7)
    clips, path = real(0), scene(0).positions
    match name:
        case "real":
            return clips
        case "frozen":
            return clips[:, np.zeros(FRAMES, int)]
        case "two objects":
            away = scene(0)._replace(positions=(path + np.array([0, ROOM])) % (2 * ROOM))
            return np.maximum(clips, away.draw(away.positions))
        case "collapse":
            return clips[rng.integers(0, 5, CLIPS)]
        case "one way":
            return scene(0).draw(scene(0).fold(path[:, :, :1] + np.abs(scene(0).velocity) * scene(0).time))
        case "black":
            return np.zeros_like(clips)
    return corruptions.CORRUPTIONS[name](scene(0), rng)


@functools.cache
def sample(name_or_seed):
    clips = real(name_or_seed) if isinstance(name_or_seed, int) else corrupted(name_or_seed)
    return metrics.describe(clips, classify(), scene(0).labels)


@functools.cache
def measured(name):
    return metrics.evaluate(sample(name), sample(1), classify=classify(), floor_reference=sample(2), bootstrap=20)


# What must react, and how: the least change of the value against that of the clips before they were
# corrupted.
REACTS = {
    "shuffle": {
        "law_residual": 1, "law_kept": -0.9, "speed_distance": 1, "acceleration": 1, "bounces": 4,
        "change": 0.4, "warping_error": 0.5, "spectrum_time": 1,
    },
    "noise": {
        "flicker": 0.15, "identity_correlation": -0.05, "mass_variation": 0.01, "law_residual": 0.05,
        "change": 0.2,
    },
    "brightness": {"flicker": 0.05, "mass_variation": 0.04, "mass": -0.05},
    "swap": {
        "identity_kept": -0.6, "identity_correlation": -0.1, "flicker": 0.1, "label_accuracy": -0.3,
        "mass_drift": 0.05, "frechet_clip": 0, "precision": -0.5,
    },
    "morph": {
        "identity_kept": -0.6, "identity_correlation": -0.1, "flicker": 0.05, "label_accuracy": -0.3,
        "mass_drift": 0.05, "frechet_clip": 0, "frechet_frame": 0, "sharpness": -0.05,
    },
    "jitter": {"law_residual": 0.1, "law_kept": -0.2, "acceleration": 0.1, "speed_variation": 0.1},
    "gravity": {"law_residual": 0.3, "law_kept": -0.8, "acceleration": 0.1, "speed_distance": 0.1},
    "wrap": {"law_residual": 1, "law_kept": -0.8, "speed_variation": 0.5, "change": 0.1},
    "teleport": {"law_residual": 0.4, "law_kept": -0.8, "speed_variation": 0.2},
    "freeze": {
        "law_residual": 0.3, "law_kept": -0.8, "speed_variation": 0.5, "speed_distance": 0.3, "change": -0.3,
    },
    "frozen": {"speed_distance": 0.8, "change": -0.9, "bounces": -0.9, "frechet_clip": 0, "precision": -0.1},
    "blur": {
        "sharpness": -0.2, "identity_correlation": -0.03, "flicker": 0.04, "change": -0.1, "frechet_frame": 0,
        "frechet_clip": 0, "confidence": -0.01, "precision": -0.3, "recall": -0.3, "mmd_clip": 0.05, "spectrum_space": 1,
    },
    "saturation": {"mass": 0.15, "mass_drift": 0.2, "mass_variation": 0.08, "flicker": 0.04, "change": 0.1},
    "two objects": {"objects": 0.5, "mass": 0.4, "frechet_frame": 0, "frechet_clip": 0},
    "collapse": {
        "diversity": -0.05, "class_entropy": -0.2, "frechet_frame": 0, "frechet_clip": 0, "recall": -0.8,
    },
    "one way": {"heading_distance": 30},
    "black": {
        "spectrum_time": 5, "spectrum_space": 5, "heading_distance": 30, "position_distance": 0.5, "mmd_clip": 0.1,
        "objects": -0.9, "mass": -0.9, "law_kept": -0.9, "diversity": -0.9, "speed_distance": 0.8,
        "frechet_frame": 0,
        "confidence": -0.05, "precision": -0.8, "recall": -0.8,
    },
}  # fmt: skip

# What must not: within this of the uncorrupted clips' value.
MOTION = ("law_residual", "speed_distance", "acceleration")
LOOKS = ("identity_correlation", "mass_variation", "mass_drift", "flicker", "sharpness", "objects")
KEPT = {
    "reversed": dict.fromkeys(metrics.METRICS, 1e-3) | {"heading_distance": 0.5},  # other directions, by the same law
    "shuffle": dict.fromkeys(
        ("confidence", "identity_kept", "label_accuracy", "mass", "mass_variation", "sharpness"), 1e-3
    ) | {"frechet_frame": 1e-3, "flicker": 0.01, "identity_correlation": 0.01},
    "brightness": dict.fromkeys(MOTION, 0.02) | {"identity_correlation": 0.01, "sharpness": 0.01},
    "swap": {"sharpness": 0.05, "change": 0.1, "speed_distance": 0.1, "objects": 0.05},
    "jitter": dict.fromkeys(LOOKS, 0.02),
    "gravity": dict.fromkeys(LOOKS, 0.02),
    "wrap": dict.fromkeys(LOOKS, 0.02),
    "teleport": dict.fromkeys(LOOKS, 0.02),
    "freeze": dict.fromkeys(LOOKS, 0.02),
    "frozen": dict.fromkeys(LOOKS, 0.05) | {"law_residual": 0.03},
    "blur": dict.fromkeys(MOTION, 0.03),
    "saturation": dict.fromkeys(MOTION, 0.03),
    "one way": dict.fromkeys(LOOKS, 0.02) | dict.fromkeys(MOTION, 0.1),
    "collapse": dict.fromkeys(("law_residual", "flicker", "mass_variation"), 0.01) | {"precision": 0.1},
}  # fmt: skip


@pytest.mark.parametrize("name", REACTS)
def test_what_must_react_to_a_corruption_does(name):
    before, after = measured("real"), measured(name)
    for metric, least in REACTS[name].items():
        change = after[metric].value - before[metric].value
        if least == 0:  # a distance in features, whose scale is the network's: farther than real clips are
            assert change > 0.1 * before[metric].floor, f"{metric}: {before[metric]} -> {after[metric]}"
        else:
            assert change / least >= 1, f"{metric}: {before[metric]} -> {after[metric]}"


@pytest.mark.parametrize("name", KEPT)
def test_what_must_not_react_to_a_corruption_does_not(name):
    before, after = measured("real"), measured(name)
    for metric, most in ((m, most) for m, most in KEPT[name].items() if m in before):
        change = after[metric].value - before[metric].value
        assert abs(change) <= most * max(1, abs(before[metric].value)), f"{metric}: {before[metric]} -> {after[metric]}"


def test_real_clips_keep_every_law():
    values = {name: measure.value for name, measure in measured("real").items()}
    assert values["law_residual"] < 0.02 and values["law_kept"] > 0.999 and values["acceleration"] < 0.05
    assert values["mass_variation"] < 1e-3 and values["mass_drift"] < 1e-3 and abs(values["objects"] - 1) < 0.01
    assert values["identity_correlation"] > 0.999 and values["flicker"] < 0.03
    assert values["confidence"] > 0.8 and values["identity_kept"] > 0.9 and values["label_accuracy"] > 0.95
    assert all(abs(values[name] - 1) < 0.1 for name in ("mass", "change", "sharpness", "diversity"))
    for name in ("law_residual", "mass_variation", "flicker", "identity_correlation", "confidence"):
        assert abs(values[name] - measured("real")[name].floor) < 0.02
    assert measured("real")["frechet_clip"].value < 0.2 * measured("collapse")["frechet_clip"].value


def test_real_large_digits_keep_every_law():
    """28x28 digits in 64x64 frames, twice as long: nothing in the laws knows the size of quickstart clips."""
    source = moving_digits.MovingDigits(size=64, frames=16, split="test")
    light = np.stack([source[i]["video"][..., 0] for i in range(12)]) / 255.0
    track = motion.centroids(light)
    fit = motion.fit_bounce(track, room=36, box=28)
    assert motion.law_kept(fit, motion.mass(light)).all() and motion.law_residual(fit).max() < 0.05
    speed = np.abs(np.stack([source.truth(i).velocities[0, 0] for i in range(12)]))
    np.testing.assert_allclose(fit.velocity, speed, atol=0.02)
    assert appearance.flicker(light, track).max() < 0.03
    assert appearance.identity_correlation(light, track).min() > 0.995


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(8, 8, 8), (8, 8, 24), (36, 28, 16)]))
def test_fit_finds_every_elastic_bounce(seed, world):
    room, box, frames = world
    rng = np.random.default_rng(seed)
    n = 20
    start, velocity = rng.uniform(0, room, (n, 2)), rng.uniform(-room / 3, room / 3, (n, 2))
    path, _, _ = moving_digits.bounce(start, velocity, frames, float(room))
    offset = (box - 1) / 2 + rng.uniform(-0.12, 0.12, (n, 1, 2)) * box
    fit = motion.fit_bounce(path + offset, room, box)
    assert fit.residual.max() < 2e-3 * room
    # Where the box stays away from walls the path is a line; elsewhere every turn must come back, too.
    line = np.ptp(np.diff(path, axis=1), axis=1) < 1e-9
    np.testing.assert_allclose(fit.velocity[line], np.abs(velocity)[line], atol=0.02 * room / frames)


def test_a_turn_in_mid_air_is_no_bounce():
    track = np.array([2.5, 4.0, 5.5, 7.0, 5.5, 4.0, 2.5, 1.0])[None, :, None] + np.zeros(2)
    turned = motion.fit_bounce(track + 1.0, ROOM, BOX)  # turns at box position 4.5, four pixels before the wall
    assert motion.law_residual(turned)[0] > 0.5


def test_tracks_follow_the_truth():
    light = real(0)[..., 0] / 255.0
    offset = motion.centroids(light) - scene(0).positions[:, 0]
    assert np.abs(offset - offset.mean(1, keepdims=True)).max() < 0.05
    track = motion.centroids(light)
    hits = np.stack([t.bounces[0] for t in truths(0)])
    seen = motion.bounces(track)
    # A wall that is hit in the first or the last step leaves no reversal between two steps, a slow axis none
    # at all.
    between = (hits[:, 2:-1].sum((1, 2)) <= seen) & (seen <= hits.sum((1, 2)))
    assert between.mean() > 0.9 and np.ptp(seen) >= 2
    np.testing.assert_array_equal(motion.centroids(np.zeros((1, 1, 5, 7))), [[[2, 3]]])


def test_closed_form_tracks():
    line = np.arange(6.0)[None, :, None] * np.array([3.0, 4.0])
    np.testing.assert_allclose(motion.speed(line), 5)
    np.testing.assert_allclose(
        [motion.speed_variation(line), motion.acceleration(line), motion.bounces(line)], 0, atol=1e-12
    )
    zigzag = np.array([0.0, 1, 0, 1, 0])[None, :, None] * np.array([1.0, 0.0])
    assert motion.bounces(zigzag) == 3 and motion.acceleration(zigzag) == 1  # 2 on one axis, 0 on the other


def test_objects_counts_pieces_within_a_frame():
    light = np.zeros((2, 3, 9, 9))
    light[:, :, 1:4, 1:4] = 1
    light[0, :, 6:8, 6:8] = 1  # a second piece in every frame of the first clip
    light[1, 1, 8, 8] = 1  # a speck, with a tenth of the light
    light[1, 2] = 0
    np.testing.assert_allclose(motion.objects(light), [2, 2 / 3])


def test_identity_sees_shape_and_not_position():
    rng = np.random.default_rng(0)
    digits = moving_digits.handwriting(16).images[rng.integers(0, 1797, 40)][:, None]
    path = rng.uniform(0, ROOM, (40, 1, 2, 2))
    light = moving_digits.render(path, digits, 16)
    same = appearance.identity_correlation(light, motion.centroids(light))
    other = np.stack([light[:, 0], np.roll(light[:, 1], 1, 0)], 1)
    different = appearance.identity_correlation(other, motion.centroids(other))
    assert same.min() > 0.995 and np.median(different) < 0.9


def test_frechet_of_known_gaussians():
    """Moments set by hand: the closed form in one dimension after another, and SciPy's matrix square root."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5000, 1, 4))
    mixing = rng.standard_normal((4, 4))
    b = b @ mixing + np.array([1.0, 0, -2, 0])
    got = distances.frechet(a, b, distances.equal_weights(len(a)))[0]
    (m1, s1), (m2, s2) = ((x[:, 0].mean(0), np.cov(x[:, 0].T)) for x in (a, b))
    expected = ((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    truth = 5 + np.trace(np.eye(4) + mixing.T @ mixing) - 2 * np.linalg.svd(mixing)[1].sum()
    np.testing.assert_allclose(got, truth, rtol=0.05)
    # The same set: 0; a shift by one: 1; fewer points than dimensions: still finite.
    equal = distances.equal_weights(len(a))
    np.testing.assert_allclose(distances.frechet(a, a, equal), 0, atol=1e-9)
    np.testing.assert_allclose(distances.frechet(a + np.eye(4)[0], a, equal), 1, rtol=1e-6)
    assert np.isfinite(distances.frechet(a[:3], b[:3], distances.equal_weights(3))).all()
    # Points of one clip share its weight: p frames a clip are p times as many points.
    clips = a.reshape(1000, 5, 4)
    np.testing.assert_allclose(distances.frechet(clips, b, distances.equal_weights(1000))[0], got, rtol=1e-6)


def test_clip_features_tell_order_from_content():
    features = np.random.default_rng(2).standard_normal((7, 5, 3))
    rows = distances.clip_features(features)
    assert rows.shape == (7, 1, 6)
    shuffled = distances.clip_features(features[:, [2, 0, 4, 1, 3]])
    np.testing.assert_allclose(shuffled[..., :3], rows[..., :3])
    assert (np.abs(shuffled[..., 3:] - rows[..., 3:]) > 1e-3).any()
    np.testing.assert_array_equal(distances.clip_features(features[:, :1])[..., 3:], 0)


def test_distances_against_scipy():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal(40), rng.uniform(-1, 3, 25)
    weight = distances.resampled(40, 5, seed=0)
    expected = [scipy.stats.wasserstein_distance(x, y, u_weights=w) for w in weight]
    np.testing.assert_allclose(distances.wasserstein(x, y, weight), expected, rtol=1e-9)
    points = rng.standard_normal((30, 4))
    expected = np.mean(scipy.spatial.distance.pdist(points))
    np.testing.assert_allclose(
        distances.mean_pairwise_distance(points, distances.equal_weights(30)), expected, rtol=1e-6
    )
    many = distances.mean_pairwise_distance(points, distances.resampled(30, 4000, seed=1))
    np.testing.assert_allclose(many.mean(), expected, rtol=0.01)  # a clip drawn twice is no close pair
    classes = np.repeat(np.arange(5), 6)
    equal = distances.equal_weights(30)
    np.testing.assert_allclose(distances.class_entropy(classes, 5, equal), 1)
    np.testing.assert_allclose(distances.class_entropy(classes, 25, equal), 0.5)
    np.testing.assert_allclose(distances.class_entropy(np.zeros(30, int), 5, equal), 0, atol=1e-9)


def covered(point, others):
    """Kynkaanniemi et al. 2019, eq. 1, as it stands there, with k = 3."""
    for i, other in enumerate(others):
        away = sorted(np.linalg.norm(third - other) for j, third in enumerate(others) if j != i)
        if np.linalg.norm(point - other) <= away[min(3, len(away)) - 1]:
            return True
    return False


def test_precision_and_recall_are_the_loop_over_all_points():
    rng = np.random.default_rng(6)
    x, y = 1.5 * rng.standard_normal((25, 3)) + 1, rng.standard_normal((30, 3))
    x[4] = x[9]  # a copy has a neighbour at no distance
    weight = np.concatenate([distances.equal_weights(25), distances.resampled(25, 3, seed=0)])
    inside = [covered(point, y) for point in x]
    assert 0 < sum(inside) < 25
    np.testing.assert_allclose(distances.precision(x, y, weight), weight @ inside)
    expected = [np.mean([covered(point, x[w > 0]) for point in y]) for w in weight]
    assert len(set(expected)) > 1 and 0 < expected[0] < 1
    np.testing.assert_allclose(distances.recall(x, y, weight), expected)
    # Sets of fewer than k + 1 points, and a set against itself.
    assert distances.recall(x[:2], y, distances.equal_weights(2))[0] == np.mean([covered(p, x[:2]) for p in y])
    same = np.repeat(x, 5, axis=0)
    assert distances.precision(same, same, distances.equal_weights(125)) == pytest.approx(1)
    assert distances.recall(same, same, distances.equal_weights(125)) == 1


def test_without_half_of_the_classes_recall_falls_and_precision_does_not():
    labels = sample("real").labels
    kept = np.flatnonzero(labels < 5)
    half, as_many = report.take(sample("real"), kept), report.take(sample("real"), slice(0, len(kept)))
    (precision, recall), (of_all, recall_of_all) = (
        [float(metrics.METRICS[name].statistic(clips, sample(1), distances.equal_weights(len(kept)))[0])
         for name in ("precision", "recall")]
        for clips in (half, as_many)
    )  # fmt: skip
    assert recall < 0.6 and recall_of_all > 0.9 and abs(precision - of_all) < 0.05


def test_spectra_of_known_clips():
    rng = np.random.default_rng(4)
    noise = 0.3 * rng.standard_normal((40, 10, 16, 16))
    for power, bins in ((appearance.power_in_time, 6), (appearance.power_in_space, 9)):
        got = power(noise)
        assert got.shape == (40, bins)
        np.testing.assert_allclose(got.mean(0), 0.09, rtol=0.15)  # the first ring has one frequency
        np.testing.assert_allclose(power(noise[:, ::-1]), got, rtol=1e-9)
    still = appearance.power_in_time(np.broadcast_to(noise[:, :1], noise.shape))
    np.testing.assert_allclose(still[:, 0], 10 * (noise[:, 0] ** 2).mean((1, 2)))
    np.testing.assert_allclose(still[:, 1:], 0, atol=1e-12)
    # A wave along one axis or the other has all of its power, 16² / 2 shared by the ring, in the ring of its frequency.
    wave = np.cos(2 * np.pi * 3 / 16 * np.arange(16))
    ring = np.round(np.hypot(*np.meshgrid(*[16 * np.fft.fftfreq(16)] * 2))) == 3
    for grating in (wave[:, None] + 0 * wave, wave + 0 * wave[:, None]):
        got = appearance.power_in_space(grating[None, None])[0]
        np.testing.assert_allclose(got, np.where(np.arange(9) == 3, 16**2 / 2 / ring.sum(), 0), atol=1e-9)
    # A wave in time.
    beat = np.cos(2 * np.pi * 2 / 10 * np.arange(10))[None, :, None, None] * np.ones((1, 10, 4, 4))
    np.testing.assert_allclose(appearance.power_in_time(beat)[0], [0, 0, 10 / 4, 0, 0, 0], atol=1e-12)


def test_log_spectral_distance_in_decibels():
    power = np.random.default_rng(5).uniform(1, 2, (30, 7))
    equal = distances.equal_weights(30)
    np.testing.assert_allclose(distances.decibels(power, power, equal), 0, atol=1e-12)
    np.testing.assert_allclose(distances.decibels(10 * power, power, equal), 10, rtol=1e-4)
    one = power.copy()
    one[:, 0] *= 100
    np.testing.assert_allclose(distances.decibels(one, power, equal), 20 / 7**0.5, rtol=1e-4)
    assert 50 < distances.decibels(0 * power, power, equal)[0] < 70  # black: as dark as bytes can tell


def test_mmd_is_the_mean_over_pairs_and_has_no_bias():
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal((9, 3)) + 0.3

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    def pairs(points):
        return np.mean([kernel(a, b) for i, a in enumerate(points) for j, b in enumerate(points) if i != j])

    expected = pairs(x) + pairs(y) - 2 * np.mean([kernel(a, b) for a in x for b in y])
    np.testing.assert_allclose(distances.mmd(x, y, distances.equal_weights(12)), expected, rtol=1e-9)
    # With every clip's pair with itself, as JEDi's package does by scikit-learn; 270.7 is the example in its
    # mmd_polynomial.py.
    a, b = np.arange(1.0, 10).reshape(3, 3), np.array([[7.0, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]])
    for degree, constant in ((2, 0.0), (3, 1.0)):
        aa, bb, ab = (polynomial_kernel(*pair, degree, coef0=constant).mean() for pair in ((a, a), (b, b), (a, b)))
        got = distances.mmd(a, b, distances.equal_weights(3), degree=degree, constant=constant, unbiased=False)[0]
        assert got == pytest.approx(aa + bb - 2 * ab) and (degree == 3 or got == pytest.approx(270.7, abs=0.05))
    # No bias: neither over fresh sets, nor over resamples with their copies.
    fresh = [
        distances.mmd(*rng.standard_normal((2, 20, 3)), distances.equal_weights(20))[0] for _ in range(400)
    ]  # fmt: skip
    assert abs(np.mean(fresh)) < 3 * np.std(fresh) / 20
    points = rng.standard_normal((40, 3))
    value = distances.mmd(points, y, distances.equal_weights(40))[0]
    copies = distances.mmd(points, y, distances.resampled(40, 4000, seed=0))
    assert abs(copies.mean() - value) < 3 * copies.std() / 4000**0.5
    assert abs(distances.mmd(points, y, distances.resampled(40, 4000, seed=0), unbiased=False).mean() - value) > 0.1


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 3))
def test_circular_distance_is_the_cheapest_assignment(seed, n, p):
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-180, 540, (2, n, p))
    away = np.abs(a.reshape(-1, 1) - b.ravel()) % 360
    cost = np.minimum(away, 360 - away)
    expected = cost[scipy.optimize.linear_sum_assignment(cost)].mean()
    np.testing.assert_allclose(
        distances.circular_wasserstein(a, b, distances.equal_weights(n)), expected, rtol=1e-6, atol=1e-9
    )


def test_values_of_one_clip_share_its_weight():
    rng = np.random.default_rng(9)
    x, y = rng.standard_normal((10, 4)), rng.uniform(-1, 3, (7, 4))
    weight = distances.resampled(10, 5, seed=0)
    expected = [scipy.stats.wasserstein_distance(x.ravel(), y.ravel(), u_weights=np.repeat(w, 4)) for w in weight]
    np.testing.assert_allclose(distances.wasserstein(x, y, weight), expected, rtol=1e-9)
    # Twice every clip is the same as every clip twice as heavy.
    twice = distances.circular_wasserstein(np.repeat(90 * x, 2, 0), 90 * y, np.repeat(weight, 2, 1) / 2)
    np.testing.assert_allclose(distances.circular_wasserstein(90 * x, 90 * y, weight), twice, rtol=1e-9)


def test_headings_and_fitted_paths():
    steps = np.array([[0.0, 2], [3, 0], [0, -1], [-1, -1], [0, 0]])
    track = np.stack([np.zeros_like(steps), steps, 2 * steps], 1)
    np.testing.assert_allclose(motion.heading(track), [0, 90, 180, -135, 0])
    light = real(0)[..., 0] / 255.0
    track = motion.centroids(light)
    path = motion.path(motion.fit_bounce(track, ROOM, BOX), FRAMES, ROOM)
    assert np.abs(path - track).max() < 0.1
    along = appearance.warping_error(light, path)
    assert along.max() < 0.05
    np.testing.assert_allclose(appearance.warping_error(light, path + 1.0), along, rtol=1e-6)
    assert appearance.warping_error(light, path + np.arange(FRAMES)[:, None] * np.array([1.0, 0])).min() > 0.3


def test_memorisation_is_the_distance_to_training_clips_relative_to_that_of_held_out_ones():
    source = moving_digits.MovingDigits(seed=0, split="train", frames=FRAMES)
    training = np.stack([source[i]["video"] for i in range(60)])
    seen = metrics.describe(training, classify())
    clips = np.concatenate([training[:20], real(0)[:20]])
    options = dict(classify=classify(), training=seen, bootstrap=50)
    got = metrics.evaluate(clips, real(1)[:40], floor_reference=real(2)[:40], **options)["memorisation"]
    copied = metrics.evaluate(training[:40], real(1)[:40], floor_reference=real(2)[:40], **options)["memorisation"]
    assert copied.value < 1e-6 and 0.35 < got.value < 0.65 and 0.8 < got.floor < 1.2
    assert got.low < got.value < got.high < 0.9
    given = metrics.describe(real(1)[:40], classify(), training=seen)
    points, others = (suite.clip_features(s) for s in (given, seen))
    np.testing.assert_allclose(
        given.nearest, np.linalg.norm(points[:, None] - others, axis=-1).min(1), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="memorisation needs training clips in every describe, videos, floor had none"):
        metrics.evaluate(sample("real"), given, floor_reference=sample(2), classify=classify())


def test_what_is_measured_clip_by_clip_does_not_depend_on_the_others(monkeypatch):
    """Nor on how many clips are looked at together; and nothing is measured twice."""
    calls = []

    def measure(part):
        calls.append(len(part))
        return suite.warping_error(part)

    whole = metrics.describe(real(0)[:10], classify(), scene(0).labels[:10])
    monkeypatch.setattr(suite, "BLOCK", 3 * FRAMES * 16 * 16)
    few = metrics.describe(real(0)[:10], classify(), scene(0).labels[:10])
    np.testing.assert_array_equal(whole.track, few.track)
    np.testing.assert_array_equal(whole.mass, few.mass)
    got = few.of(measure)
    assert calls == [3, 3, 3, 1] and few.of(measure) is got and len(calls) == 4
    np.testing.assert_allclose(got, whole.of(suite.warping_error), rtol=1e-9)
    part = suite.take(whole, np.array([7, 2]))
    np.testing.assert_allclose(part.of(suite.warping_error), got[[7, 2]], rtol=1e-9)
    np.testing.assert_array_equal(part.labels, whole.labels[[7, 2]])


def test_intervals_are_those_of_the_bootstrap():
    """A mean's interval is 1.96 standard errors wide on both sides; a distance's stands around its value."""
    unlabelled = dataclasses.replace(sample("noise"), labels=None)
    many = metrics.evaluate(unlabelled, sample(1), classify=classify(), floor_reference=sample(2), bootstrap=2000)
    per_clip = motion.mass_variation(sample("noise").mass)
    error = per_clip.std() / np.sqrt(CLIPS)
    measure = many["mass_variation"]
    np.testing.assert_allclose([measure.value - measure.low, measure.high - measure.value], 1.96 * error, rtol=0.15)
    for measure in many.values():
        assert measure.low <= measure.value <= measure.high
    assert report.interval(3.0, np.array([])) == (3.0, 3.0)


@pytest.mark.parametrize("resamples", [10, 100])
@pytest.mark.parametrize("name", [name for name, metric in suite.METRICS.items() if metric.span == suite.SHARE])
def test_intervals_of_shares_are_shares(name, resamples):
    """One clip of 64 for or against: half of such intervals would end beyond 0 or 1."""
    rng = np.random.default_rng(0)
    for clips in (np.arange(64) == 0, np.arange(64) > 0):
        low, high = report.interval(
            clips.mean(), clips[rng.integers(0, 64, (resamples, 64))].mean(1), suite.METRICS[name].span
        )
        assert 0 <= low <= clips.mean() <= high <= 1


@pytest.mark.parametrize("resamples", [10, 200])
def test_intervals_hold_the_truth_as_often_as_they_say(resamples):
    """The mean of 200 numbers from N(0, 1), whatever the number of resamples."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(1000):
        clips = rng.standard_normal(200)
        low, high = report.interval(clips.mean(), clips[rng.integers(0, 200, (resamples, 200))].mean(1))
        held += low <= 0 <= high
    assert 0.92 <= held / 1000 <= 0.98


def test_labelled_clips_are_resampled_class_by_class():
    labels = np.array([0, 1, 1, 2, 2, 2, 2, 2])
    weights = distances.resampled(8, 400, seed=0, strata=labels)
    shares = weights @ np.eye(3)[labels]
    np.testing.assert_allclose(shares, np.tile([1 / 8, 2 / 8, 5 / 8], (400, 1)))
    free = distances.resampled(8, 400, seed=0)
    np.testing.assert_allclose(free.sum(1), 1)
    np.testing.assert_allclose([weights.mean(0), free.mean(0)], 1 / 8, atol=0.02)
    assert (free @ np.eye(3)[labels]).std(0).min() > 0.05


def test_evaluate_is_deterministic_and_takes_any_form():
    clips, reference, floor = real(0)[:24], real(1)[:24], real(2)[:24]
    labels = scene(0).labels[:24]
    options = dict(classify=classify(), bootstrap=8, seed=4)
    first = metrics.evaluate(clips, reference, labels=labels, floor_reference=floor, **options)
    assert first == metrics.evaluate(clips, reference, labels=labels, floor_reference=floor, **options)
    floats = clips.astype(np.float32) / 127.5 - 1
    assert first == metrics.evaluate(floats, reference, labels=labels, floor_reference=floor, **options)
    given = metrics.describe(reference, classify())
    assert first == metrics.evaluate(clips, given, labels=labels, floor_reference=floor, **options)
    other = metrics.evaluate(clips, reference, labels=labels, floor_reference=floor, **options | {"seed": 5})
    assert other["confidence"].value == first["confidence"].value and other["confidence"].low != first["confidence"].low
    assert first["label_accuracy"].floor is None
    known = metrics.evaluate(clips, reference, labels=labels, floor_reference=floor, floor_labels=labels, **options)
    assert known["label_accuracy"].floor is not None
    halved = metrics.evaluate(clips, reference, **options)
    assert set(halved) == set(metrics.METRICS) - {"label_accuracy", "memorisation"}
    half = metrics.evaluate(reference[12:], reference[:12], floor_reference=floor[:12], **options)
    for name, measure in halved.items():
        assert measure.floor == pytest.approx(half[name].value), name


def test_bad_input_is_refused():
    clips, options = real(0)[:4], dict(classify=lambda frames: 1 / 0)
    broken = clips.astype(np.float32) / 127.5 - 1
    broken[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 of 4 clips have values that are not finite, the first is 2"):
        metrics.evaluate(broken, clips, **options)
    with pytest.raises(ValueError, match=r"clips \[n, f, h, w, 1\].*got \[4, 8, 16, 16\]"):
        metrics.evaluate(clips[..., 0], clips, **options)
    with pytest.raises(ValueError, match=r"frames of \[16, 64\] pixels, got 8x8"):
        metrics.evaluate(clips[:, :, :8, :8], clips, **options)
    with pytest.raises(ValueError, match=r"4 clips need 4 labels, got labels of shape \[3\]"):
        metrics.evaluate(clips, clips, labels=np.zeros(3, int), **options)
    with pytest.raises(ValueError, match="the floor of 4 clips needs 4 other real clips, got 3"):
        metrics.evaluate(clips, clips, floor_reference=clips[:3], classify=classify())


def test_numbers_have_three_digits_whatever_they_are():
    numbers = {
        0.0: "0",
        12.0: "12",
        0.12345: "0.123",
        12345.6: "12346",
        1.2e-5: "1.2e-05",
        math.inf: "inf",
        math.nan: "NaN",
    }
    assert [report.digits(number) for number in numbers] == list(numbers.values())


def test_table_is_markdown_with_units_arrows_intervals_and_floor():
    rows = {
        "teacher": {
            "law_residual": metrics.Measure(0.0123456, 0.01, 0.02, 0.011, "lower"),
            "bounces": metrics.Measure(1.25, 1.0, 1.5, 1.2, None),
        },
        "student": {
            "law_residual": metrics.Measure(1234.5, 1000.0, 2000.25, 0.011, "lower"),
            "label_accuracy": metrics.Measure(1.0, 0.99, 1.0, None, "higher"),
        },
    }
    text = metrics.table(rows, extra={"calls": {"teacher": 50, "student": 4}})
    assert text.splitlines() == [
        "| metric | teacher | student | real |",
        "| --- | --- | --- | --- |",
        "| calls | 50 | 4 |  |",
        "| law_residual [px] ↓ | 0.0123 [0.01, 0.02] | 1234 [1000, 2000] | 0.011 |",
        "| bounces | 1.25 [1, 1.5] |  | 1.2 |",
        "| label_accuracy ↑ |  | 1 [0.99, 1] |  |",
    ]
    with pytest.raises(ValueError, match="at least one row"):
        metrics.table({})
