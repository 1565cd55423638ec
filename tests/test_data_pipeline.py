"""Batches: the global-index rule, exact resume, and errors that say what was expected."""

import dataclasses
import json
import time

import numpy as np
import pytest

from experiments import data
from experiments.data import source as source_lib
from experiments.data.moving_digits import MovingDigits


@dataclasses.dataclass(frozen=True)
class Counting:
    """Clip i is filled with i."""

    length: int = 20
    shape: tuple = (2, 3, 3, 1)
    num_classes: int = 100
    frames: int = 2
    label: object = None
    dtype: type = np.uint8

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        video = np.full((self.frames, *self.shape[1:]), index, self.dtype)
        return dict(video=video, label=np.int32(index) if self.label is None else self.label)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("processes", [2, 4, 8])
def test_the_parts_of_all_processes_are_the_batch_of_one(processes, shuffle):
    source = MovingDigits(num_clips=50)  # 50 is no multiple of 8: batches cross epochs
    whole = take(data.Batches(source, 8, 3, shuffle=shuffle), 15)
    parts = [data.Batches(source, 8, 3, p, processes, shuffle=shuffle) for p in range(processes)]
    for batch in whole:
        read = [next(part) for part in parts]
        assert all(len(r["label"]) == 8 // processes for r in read)
        assert equal(batch, {key: np.concatenate([r[key] for r in read]) for key in batch})


@pytest.mark.parametrize("threads", [0, 1])
def test_batches_of_one_clip_are_read_in_the_same_order(threads):
    ones = [b["label"] for b in take(data.Batches(Counting(), 1, 3, threads=threads), 45)]
    fives = [b["label"] for b in take(data.Batches(Counting(), 5, 3, threads=threads), 9)]
    np.testing.assert_array_equal(np.concatenate(ones), np.concatenate(fives))


def test_a_batch_is_stacked_examples_of_the_source():
    source = Counting()
    batch = next(data.Batches(source, 4))
    assert batch["video"].shape == (4, 2, 3, 3, 1) and batch["video"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["video"][:, 0, 0, 0, 0], batch["label"])


def test_a_source_that_reads_many_at_once_gives_the_same_batches():
    class Many(Counting):
        def take(self, indices):
            return dict(video=np.stack([self[i]["video"] for i in indices]), label=np.asarray(indices, np.int32))

    for one, many in zip(take(data.Batches(Counting(), 8), 5), take(data.Batches(Many(), 8), 5), strict=True):
        assert equal(one, many)
    with pytest.raises(ValueError, match="expected clips of 2 frames, got one of 3 frames"):
        next(data.Batches(Many(frames=3), 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(label=np.int32([0, 1, 2, 100])), r"expected a label below 100, got 100 \(clip 7\)"),
        (dict(label=np.int32([0, -1, 2, 3])), r"expected a label below 100, got -1 \(clip 5\)"),
        (dict(label=np.int32([0, 1, 2])), r"expected 4 clips at once, got label of shape \(3,\)"),
        (dict(label=np.int32(0)), r"expected 4 clips at once, got label of shape \(\)"),
        (
            dict(label=np.zeros((4, 2), np.int32)),
            r"expected a scalar int32 label, got int32 of shape \(2,\) \(clip 4\)",
        ),
        (dict(vid=np.zeros(4)), "expected the keys video and label, got label, vid, video"),
    ],
)
def test_every_clip_of_many_read_at_once_is_checked(change, message):
    class Many(Counting):
        def take(self, indices):
            return dict(video=np.zeros((4, *self.shape), np.uint8), label=np.zeros(4, np.int32)) | change

    with pytest.raises(source_lib.Damaged, match=r"Many\(.*\): " + message):
        data.read(Many(), np.arange(4, 8))


def test_every_epoch_is_a_permutation_of_its_own():
    orders = np.concatenate([b["label"] for b in take(data.Batches(Counting(20), 8, 0), 10)]).reshape(4, 20)
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(20), (4, 1)))
    assert len({tuple(order) for order in orders}) == 4
    unshuffled = np.concatenate([b["label"] for b in take(data.Batches(Counting(20), 8, shuffle=False), 5)])
    np.testing.assert_array_equal(unshuffled, np.tile(np.arange(20), 2))


def test_the_seed_alone_gives_the_order():
    first, again, other = (take(data.Batches(Counting(), 4, seed), 5) for seed in (1, 1, 2))
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_resume_is_exact_through_json_and_on_another_number_of_processes(threads):
    source = Counting(30)
    straight = take(data.Batches(source, 8, 7), 12)
    batches = data.Batches(source, 8, 7, threads=threads)
    for stop in (0, 1, 5):
        batches.set_state(dict(step=0))
        take(batches, stop)
        state = json.loads(json.dumps(batches.get_state()))
        assert state["step"] == stop
        for processes in (1, 2):
            resumed = [data.Batches(source, 8, 7, p, processes, threads=threads) for p in range(processes)]
            for part in resumed:
                part.set_state(state)
                assert part.get_state() == state
            for batch in straight[stop:]:
                read = [next(part) for part in resumed]
                assert equal(batch, {key: np.concatenate([r[key] for r in read]) for key in batch})


def test_any_batch_can_be_read_without_moving():
    batches = data.Batches(Counting(), 4, 5, 1, 2)
    assert equal(batches.batch_at(7), batches.batch_at(7))
    assert batches.get_state()["step"] == 0
    steps = take(batches, 9)
    assert all(equal(batch, batches.batch_at(step)) for step, batch in enumerate(steps))
    batches.set_state(dict(step=3))
    assert equal(next(batches), steps[3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(batch_size=6, process_count=4), "batch_size 6 is not divisible by process_count 4"),
        (dict(batch_size=21), "Counting.* has 20 clips, fewer than one batch of 21"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(batch_size=4.0), "batch_size must be an integer, got 4.0"),
        (
            dict(batch_size=4, process_index=2, process_count=2),
            "process_index must be at least 0 and at most 1",
        ),
        (dict(batch_size=4, seed=2**32), "seed must be at least 0 and at most"),
        (dict(batch_size=4, threads=-1), "threads must be at least 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        data.Batches(Counting(), **options)


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Counting(frames=3), r"Counting\(.*\): expected clips of 2 frames, got one of 3 frames"),
        (Counting(dtype=np.float32), "expected a uint8 video, got float32"),
        (Counting(label=5), "expected a scalar int32 label, got int64"),
        (Counting(label=np.int32(100)), "expected a label below 100, got 100"),
        (Counting(num_classes=0, label=np.int32(1)), "expected a label below 1, got 1"),
    ],
)
def test_a_source_that_breaks_its_word_is_named(source, message, threads):
    batches = data.Batches(source, 4, threads=threads)
    with pytest.raises(source_lib.Damaged, match=message):
        next(batches)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_clip_that_breaks_its_sources_word_later_on_is_damage_and_named(threads):
    batches = data.Batches(Counting(num_classes=13), 4, shuffle=False, threads=threads)
    take(batches, 3)
    with pytest.raises(source_lib.Damaged, match=r"Counting\(.*\): expected a label below 13, got 13 \(clip 13\)"):
        next(batches)


def test_a_source_without_clips_is_refused_by_name():
    assert source_lib.checked(Counting()) == Counting()
    with pytest.raises(ValueError, match=r"Counting\(length=0, .*\) has no clips"):
        source_lib.checked(Counting(length=0))


def test_a_wrong_shape_or_key_is_named():
    good = Counting()[0]
    assert source_lib.check_example(good, Counting()) is good
    with pytest.raises(ValueError, match=r"expected a video of shape \(2, 3, 3, 1\), got \(2, 3, 4, 1\)"):
        source_lib.check_example(dict(good, video=np.zeros((2, 3, 4, 1), np.uint8)), Counting())
    with pytest.raises(ValueError, match="expected the keys video and label, got label, vid"):
        source_lib.check_example(dict(vid=0, label=0), Counting())
    with pytest.raises(ValueError, match="expected a dict with video and label, got a tuple"):
        source_lib.check_example((good["video"], good["label"]), Counting())


def test_a_state_of_another_run_is_refused():
    batches = data.Batches(Counting(), 4, 1)
    state = data.Batches(Counting(), 4, 2).get_state()
    with pytest.raises(ValueError, match="data state is of seed 2, this run has seed 1"):
        batches.set_state(state)
    with pytest.raises(ValueError, match="data state is of batch_size 5, this run has batch_size 4"):
        batches.set_state(data.Batches(Counting(), 5, 1).get_state())
    with pytest.raises(ValueError, match="data state is of source .Counting.length=21"):
        batches.set_state(data.Batches(Counting(21), 4, 1).get_state())
    with pytest.raises(KeyError, match="needs the key step, got next"):
        batches.set_state(dict(next=1))
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        batches.set_state(dict(step=-1))


def test_a_batch_of_sixteen_small_clips_takes_milliseconds():
    batches = data.Batches(MovingDigits(), 16, threads=0)
    next(batches)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - begin)
    assert np.median(seconds) < 0.05  # 2 ms on an idle core
