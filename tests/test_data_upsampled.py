"""Clips made smaller, and what a stage of a cascade makes them from: averages, crops that match, speed's shortcut, refusals."""

import numpy as np
import pytest

from experiments import data
from experiments.data import framing, resized
from experiments.data.source import Damaged, check_example

CLIPS = dict(kind="moving_digits", size=16, frames=8, digits=2, num_clips=64)
FULL = data.build(CLIPS)


def build(split="train", of=CLIPS, **options):
    return data.build(dict(kind="resized", of=of, **options), split)


def rounded_mean(video, size):
    """By a loop over squares, in float64: halves up."""
    frames, rows, columns, channels = video.shape
    made = np.empty((frames, rows // size, columns // size, channels), np.uint8)
    for y, x in np.ndindex(rows // size, columns // size):
        square = video[:, y * size : (y + 1) * size, x * size : (x + 1) * size].astype(np.float64)
        made[:, y, x] = np.floor(square.mean((1, 2)) + 0.5)
    return made


def test_a_small_clip_is_every_nth_frame_averaged_over_squares():
    source = build(time=4, space=2)
    assert source.shape == (2, 8, 8, 1) and source.low_shape is None and source.num_classes == 10 and len(source) == 64
    for index in (0, 17):
        example = check_example(source[index], source)
        np.testing.assert_array_equal(example["video"], rounded_mean(FULL[index]["video"][::4], 2))
        assert example["label"] == FULL[index]["label"]


def test_the_low_clip_of_a_stage_is_the_clip_of_the_stage_before_to_the_bit():
    base, temporal, spatial = build(time=4, space=4), build(space=4, low=(4, 1)), build(low=(1, 4))
    for index in range(8):
        small, middle, large = (check_example(s[index], s) for s in (base, temporal, spatial))
        np.testing.assert_array_equal(middle["low"], small["video"])
        np.testing.assert_array_equal(large["low"], middle["video"])
        np.testing.assert_array_equal(large["video"], FULL[index]["video"])
    assert (base.shape, temporal.shape, spatial.shape) == ((2, 4, 4, 1), (8, 4, 4, 1), (8, 16, 16, 1))
    assert (temporal.low_shape, spatial.low_shape) == ((2, 4, 4, 1), (8, 4, 4, 1))


def test_a_low_clip_of_a_small_one_is_averaged_once():
    """And not of averages that are rounded, which are a level off in places."""
    base, stage = build(time=4, space=8), build(time=2, space=2, low=(2, 4))
    crops = build(time=2, space=2, low=(2, 4), crop=(2, 4))
    for index in range(8):
        low = stage[index]["low"]
        np.testing.assert_array_equal(low, base[index]["video"])
        frames, rows, columns = crops.window(index)
        part = low[frames.start // 2 :, rows.start // 4 :, columns.start // 4 :][:1, :1, :1]
        np.testing.assert_array_equal(crops[index]["low"], part)


@pytest.mark.parametrize("space, low, crop", [(1, (2, 4), (4, 8)), (2, (4, 2), (4, 4)), (1, (1, 1), (3, 5))])
def test_a_crop_is_a_part_of_the_whole_and_its_low_clip_the_same_part(space, low, crop):
    cropped, whole = build(space=space, low=low, crop=crop), build(space=space, low=low)
    assert cropped.shape == (crop[0], crop[1], crop[1], 1)
    places = set()
    for index in range(40):
        part, example = cropped[index], whole[index]
        frames, rows, columns = cropped.window(index)
        np.testing.assert_array_equal(part["video"], example["video"][frames, rows, columns])
        small = example["low"][
            frames.start // low[0] : frames.stop // low[0],
            rows.start // low[1] : rows.stop // low[1],
            columns.start // low[1] : columns.stop // low[1],
        ]
        np.testing.assert_array_equal(part["low"], small)
        places.add((frames.start, rows.start, columns.start))
        assert frames.start % low[0] == rows.start % low[1] == columns.start % low[1] == 0
    # Every place is as likely as any other, up to the last: the whole clip is seen.
    sizes = zip(whole.shape[:3], cropped.shape[:3], (low[0], low[1], low[1]), strict=True)
    starts = [(length - size) // step for length, size, step in sizes]
    assert len(places) > min(20, np.prod(np.add(starts, 1)) // 2)
    last = np.max(list(places), 0) // (low[0], low[1], low[1])
    assert (last == starts).all() and (np.min(list(places), 0) == 0).all()


def test_crops_are_a_function_of_index_and_seed_and_so_is_the_name():
    one, same, other = (build(low=(1, 4), crop=(4, 8), seed=seed) for seed in (0, 0, 1))
    assert repr(one) == repr(same) and len({repr(one), repr(other), repr(build(low=(1, 4))), repr(build(space=2))}) == 4
    assert repr(FULL) in repr(one)
    windows = [[s.window(i) for i in range(16)] for s in (one, same, other)]
    assert windows[0] == windows[1] != windows[2]
    np.testing.assert_array_equal(one[3]["video"], same[3]["video"])
    assert repr(build(split="test", low=(1, 4))) != repr(build(low=(1, 4)))


def test_a_part_that_is_drawn_alone_is_the_part_of_the_whole():
    """Of moving digits, 16 and 64 pixels: with digits that overlap, and at the frame's ends."""
    for size in (16, 64):
        source = data.build(dict(kind="moving_digits", size=size, frames=9, digits=2, num_clips=8))
        for index in range(8):
            whole = source[index]
            for box in (
                (slice(0, 9, 4), slice(None), slice(None)),
                (slice(2, 7), slice(0, 5), slice(size - 3, size)),
                (slice(8, 9), slice(3, 4), slice(size // 2, size)),
            ):
                part = source.cut(index, *box)
                np.testing.assert_array_equal(part["video"], whole["video"][box])
                assert part["label"] == whole["label"] and part["video"].dtype == np.uint8
    with pytest.raises(IndexError):
        FULL.cut(64, slice(None), slice(None), slice(None))


class Still:
    """A source that can't draw parts, of frames that tell their place."""

    shape, num_classes = (4, 4, 6, 2), 0
    longer = 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        video = np.arange(4 * 4 * 6 * 2, dtype=np.uint8).reshape(self.shape) + np.uint8(index)
        return dict(video=np.pad(video, ((0, self.longer), (0, 0), (0, 0), (0, 0))), label=np.int32(0))


def test_other_sources_are_cut_after_they_are_read():
    box = (slice(1, 4, 2), slice(2, 4), slice(0, 3))
    still = Still()
    np.testing.assert_array_equal(resized.cut(still, 2, *box)["video"], still[2]["video"][box])
    still.longer = 1
    with pytest.raises(Damaged, match=r"expected clips of 4 frames, got one of 5 frames \(clip 2\)"):
        resized.cut(still, 2, *box)


def test_floats_are_averaged_as_they_are():
    video = np.random.default_rng(0).standard_normal((2, 6, 6, 1)).astype(np.float32)
    expected = video.reshape(2, 2, 3, 2, 3, 1).mean((2, 4))
    made = resized.averaged(video, 3)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=1e-6)
    law = build(of=dict(kind="exact", name="gaussian_process", size=32), low=(2, 1))
    example = check_example(law[5], law)
    assert example["low"].dtype == np.float32
    np.testing.assert_array_equal(example["low"], example["video"][::2])


def test_bytes_are_rounded_halves_up_and_never_overflow():
    video = np.full((1, 4, 4, 1), 255, np.uint8)
    assert (resized.averaged(video, 4) == 255).all()
    video[0, :2, :2, 0] = [[0, 0], [1, 1]]
    assert resized.averaged(video, 2)[0, 0, 0, 0] == 1


def test_batches_carry_the_low_clip_whatever_the_threads():
    source = build(low=(1, 4), crop=(4, 8))
    batches = [data.Batches(source, 8, seed=3, threads=threads, prefetch=4) for threads in (0, 3)]
    for _ in range(3):
        one, other = (next(b) for b in batches)
        assert one["low"].shape == (8, 4, 2, 2, 1) and one["video"].shape == (8, 4, 8, 8, 1)
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("change, said", [
    (lambda e: {k: e[k] for k in ("video", "label")}, "expected the keys video and label and low, got label, video"),
    (lambda e: {**e, "low": e["low"][:1]}, r"expected low of shape \(8, 4, 4, 1\), uint8, got \(1, 4, 4, 1\)"),
    (lambda e: {**e, "low": e["low"] / 255}, "expected low of shape .* got .* float64"),
])  # fmt: skip
def test_an_example_without_its_low_clip_is_refused(change, said):
    source = build(low=(1, 4))
    with pytest.raises(ValueError, match=said):
        check_example(change(source[0]), source)
    with pytest.raises(ValueError, match="expected the keys video and label, got label, low, video"):
        check_example(source[0], FULL)


@pytest.mark.parametrize("options, said", [
    (dict(space=3), "time, space: 3 does not divide 16 rows; nearest: 2"),
    (dict(time=5), "time, space: 5 does not divide 8 frames; nearest: 4"),
    (dict(space=2, low=(1, 3)), "low: 3 does not divide 8 rows; nearest: 2"),
    (dict(low=(3, 1)), "low: 3 does not divide 8 frames; nearest: 2"),
    (dict(low=(1, 4), crop=(8, 6)), r"crop \(8, 6\): low: 4 does not divide 6 rows; nearest: 3"),
    (dict(low=(2, 1), crop=(3, 8)), r"crop \(3, 8\): low: 2 does not divide 3 frames"),
    (dict(crop=(9, 8)), r"crop \(9, 8\): the clips have 8 frames; nearest: 8"),
    (dict(space=2, crop=(4, 9)), r"crop \(4, 9\): the clips have 8 rows; nearest: 8"),
    (dict(low=4), r"low is \(time, space\), got 4"), (dict(crop=(4,)), r"crop is \(frames, side\), got \(4,\)"),
    (dict(low=(0, 1)), "low must be at least 1"), (dict(space=0), "space must be at least 1"),
    (dict(seed=-1), "seed must be at least 0"), (dict(split="val"), "unknown split"),
])  # fmt: skip
def test_what_does_not_divide_is_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        build(**options)


def test_mistakes_in_the_inner_config_are_told():
    with pytest.raises(KeyError, match="did you mean 'moving_digits'"):
        build(of=dict(kind="moving_digit"))
    with pytest.raises(KeyError, match="lacks the key 'of'"):
        data.build(dict(kind="resized", space=2))
    with pytest.raises(ValueError, match="latents have no pixels to take means of"):
        build(of=dict(kind="latents", path="anywhere"))
    assert framing.placement("random", 0, 1).shape == (3,)
