"""Metrics of moving digits: laws that real clips keep exactly, and known corruptions that each must be seen.

The corruptions are built from the ground truth of the source, so that each breaks one law and no other.
"""

import functools

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from experiments import metrics, weights
from experiments.data import moving_digits
from experiments.metrics import appearance, classifier_training, distances, motion, report
from models.classifier import build_classifier

CLIPS, FRAMES, ROOM, BOX = 160, 8, 8, 8
TIME = np.arange(FRAMES)[:, None]


@functools.cache
def classify():
    params, record = weights.load(weights.find("pretrained:moving_digits/classifier", None))
    return classifier_training.classify_fn(build_classifier(record["model"]), params)


def truths(seed, count=CLIPS, **options):
    source = moving_digits.MovingDigits(seed=seed, split="test", frames=FRAMES, **options)
    return [source.truth(i) for i in range(count)]


def images(seed):
    return moving_digits.handwriting(16).images[np.stack([t.identities for t in truths(seed)])]


def draw(positions, digits):
    """uint8 clips of the digits at given box positions [n, 1, f, 2]."""
    return moving_digits.to_bytes(moving_digits.render(positions, digits, 16)[..., None])


def positions(seed):
    return np.stack([t.positions for t in truths(seed)])


@functools.cache
def real(seed):
    return draw(positions(seed), images(seed))


def fold(x):
    return ROOM - np.abs(x % (2 * ROOM) - ROOM)


def corrupted(name):
    """The clips of seed 0 with one thing wrong."""
    rng = np.random.default_rng(7)
    clips, digits, path = real(0), images(0), positions(0)
    start = path[:, :, :1]
    velocity = np.stack([t.velocities[:, :1] for t in truths(0)])
    others = digits[rng.permutation(CLIPS)]
    light = clips / 255.0
    half = FRAMES // 2

    def to_bytes(values):
        return np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)

    match name:
        case "real":
            return clips
        case "reversed":
            return clips[:, ::-1]
        case "shuffle":
            return np.stack([clip[rng.permutation(FRAMES)] for clip in clips])
        case "noise":
            return to_bytes(light + 0.05 * rng.standard_normal(light.shape))
        case "brightness":
            return to_bytes(light * rng.uniform(0.8, 1, (CLIPS, FRAMES, 1, 1, 1)))
        case "swap":
            return np.concatenate([clips[:, :half], draw(path, others)[:, half:]], 1)
        case "morph":
            share = np.linspace(0, 1, FRAMES)[:, None, None, None]
            return to_bytes((1 - share) * light + share * draw(path, others) / 255.0)
        case "jitter":
            steps = 1 + 0.3 * rng.standard_normal((CLIPS, 1, FRAMES - 1, 1))
            walked = np.concatenate([np.zeros((CLIPS, 1, 1, 1)), np.cumsum(steps, 2)], 2)
            return draw(fold(start + velocity * walked), digits)
        case "gravity":
            return draw(fold(start + velocity * TIME + 0.15 * TIME**2 * np.array([1, 0])), digits)
        case "wrap":
            return draw((start + velocity * TIME) % ROOM, digits)
        case "teleport":
            elsewhere = fold(rng.uniform(0, ROOM, start.shape) + velocity * TIME)
            return draw(np.where(TIME < half, path, elsewhere), digits)
        case "freeze":
            return clips[:, np.minimum(np.arange(FRAMES), half)]
        case "frozen":
            return clips[:, np.zeros(FRAMES, int)]
        case "blur":
            frames = [ndimage.gaussian_filter(light[:, t], (0, 0.2 * t, 0.2 * t, 0)) for t in range(FRAMES)]
            return to_bytes(np.stack(frames, 1))
        case "saturation":
            return to_bytes(light * (1 + 0.1 * np.arange(FRAMES)[:, None, None, None]))
        case "two objects":
            away = (path + np.array([0, ROOM])) % (2 * ROOM)
            return to_bytes(light + moving_digits.render(away, digits, 16)[..., None])
        case "collapse":
            return clips[rng.integers(0, 5, CLIPS)]
        case "black":
            return np.zeros_like(clips)
    raise KeyError(name)


@functools.cache
def sample(name_or_seed):
    clips = real(name_or_seed) if isinstance(name_or_seed, int) else corrupted(name_or_seed)
    labels = np.array([t.labels[0] for t in truths(0)])
    return metrics.describe(clips, classify(), labels)


@functools.cache
def measured(name):
    return metrics.evaluate(sample(name), sample(1), classify=classify(), floor_reference=sample(2), bootstrap=20)


# What must react, and how: the least change of the value against that of the clips before they were
# corrupted.
REACTS = {
    "shuffle": {
        "law_residual": 1, "law_kept": -0.9, "speed_distance": 1, "acceleration": 1, "bounces": 4,
        "change": 0.4,
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
        "frechet_clip": 0, "confidence": -0.01, "precision": -0.3, "recall": -0.3,
    },
    "saturation": {"mass": 0.15, "mass_drift": 0.2, "mass_variation": 0.08, "flicker": 0.04, "change": 0.1},
    "two objects": {"objects": 0.5, "mass": 0.4, "frechet_frame": 0, "frechet_clip": 0},
    "collapse": {
        "diversity": -0.05, "class_entropy": -0.2, "frechet_frame": 0, "frechet_clip": 0, "recall": -0.8,
    },
    "black": {
        "objects": -0.9, "mass": -0.9, "law_kept": -0.9, "diversity": -0.9, "speed_distance": 0.8,
        "frechet_frame": 0,
        "confidence": -0.05, "precision": -0.8, "recall": -0.8,
    },
}  # fmt: skip

# What must not: within this of the uncorrupted clips' value.
MOTION = ("law_residual", "speed_distance", "acceleration")
LOOKS = ("identity_correlation", "mass_variation", "mass_drift", "flicker", "sharpness", "objects")
KEPT = {
    "reversed": dict.fromkeys(metrics.METRICS, 1e-3),
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
    for metric, most in KEPT[name].items():
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
    offset = motion.centroids(light) - positions(0)[:, 0]
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


def test_intervals_are_those_of_the_bootstrap():
    """A mean's interval is 1.96 standard errors wide on both sides; a distance's stands around its value."""
    unlabelled = sample("noise")._replace(labels=None)
    many = metrics.evaluate(unlabelled, sample(1), classify=classify(), floor_reference=sample(2), bootstrap=2000)
    per_clip = motion.mass_variation(sample("noise").mass)
    error = per_clip.std() / np.sqrt(CLIPS)
    measure = many["mass_variation"]
    np.testing.assert_allclose([measure.value - measure.low, measure.high - measure.value], 1.96 * error, rtol=0.15)
    for measure in many.values():
        assert measure.low <= measure.value <= measure.high
    assert report.interval(3.0, np.array([])) == (3.0, 3.0)


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
    labels = np.array([t.labels[0] for t in truths(0, 24)])
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
    assert "label_accuracy" not in halved and set(halved) == set(metrics.METRICS) - {"label_accuracy"}
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
