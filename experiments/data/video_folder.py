"""A folder of video files, decoded by PyAV, as a source of clips."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from typing import NamedTuple

import av
import av.error
import numpy as np
from absl import logging
from jaxtyping import UInt8

from experiments.data import framing
from experiments.data import source as source_lib

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".y4m")
LABELS = ("none", "folder")
ON_ERROR = ("raise", "skip")
# What reading a file can raise: PyAV's errors (damaged data), the system's, and our own remarks.
_UNREADABLE = (av.error.FFmpegError, OSError, ValueError)


class VideoFile(NamedTuple):
    """A file of the index: `ticks` are the time stamps, in the stream's time base, of the frames to show."""

    name: str  # relative to the folder, with '/'
    path: str  # real, all links resolved
    ticks: np.ndarray
    label: int


class Index(NamedTuple):
    """All that there is to read."""

    files: list[VideoFile]
    clips: np.ndarray  # [clips, 2]: the file, and the first of its ticks
    classes: list[str]
    skipped: list[str]


@dataclasses.dataclass(frozen=True, repr=False)
class VideoFolder:
    """The source: every `frames` frames in a row, `stride` apart, of every video file below `path`.

    The list of clips is made once, in the order of the files' names: files are opened, their time stamps read
    and one frame decoded. If `path` has folders train/ or test/, they are the splits; else every
    `test_every`-th file belongs to the test split.

    Args:
        path: the folder. Links that lead out of it, and linked folders, are refused.
        frames: frames per clip.
        size: frame side or (height, width): the largest box of that aspect, resized.
        fps: frames per second: at each instant the frame that a player would show; None: every frame.
        stride: frames (at `fps`) from the beginning of a clip to the next one's; None: `frames`, no overlap.
        crop: where the box lies: 'centre', or 'random', a pure function of (seed, clip).
        crops: how often each clip is listed; with random crops each time another one.
        channels: 3 (RGB) or 1 (grey).
        labels: 'none', or 'folder': the class is the first folder of the file's name, in alphabetical order.
        on_error: what to do with files that can't be read or are too short: 'raise' one ValueError that names
            them, or 'skip' them (see `skipped`). A file found damaged further on, when a clip is decoded, is
            always a ValueError.
        test_every: every so many files one is for the test split; 0: none.

    Raises ValueError for a missing folder, no video files, unreadable files and options out of range.
    """

    path: str
    frames: int
    size: int | tuple[int, int]
    fps: float | int | None = None
    stride: int | None = None
    crop: str = "centre"
    crops: int = 1
    channels: int = 3
    labels: str = "none"
    on_error: str = "raise"
    test_every: int = 0
    seed: int = 0
    split: str = "train"

    def __post_init__(self):
        source_lib.check_split(self.split)
        source_lib.check_whole("frames", self.frames, 1)
        source_lib.check_whole("crops", self.crops, 1)
        source_lib.check_whole("test_every", self.test_every, 0)
        source_lib.check_whole("seed", self.seed, 0)
        framing.check_crop(self.crop)
        object.__setattr__(self, "size", framing.check_size(self.size))
        if self.stride is not None:
            source_lib.check_whole("stride", self.stride, 1)
        if self.fps is not None and not 0 < self.fps < np.inf:
            raise ValueError(f"fps must be positive, got {self.fps!r}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {self.channels!r}")
        for name, value, valid in (("labels", self.labels, LABELS), ("on_error", self.on_error, ON_ERROR)):
            if value not in valid:
                raise ValueError(f"unknown {name} {value!r}; {source_lib.nearest(value, valid)}")
        _ = self._index  # built here and now, so that every problem shows before training starts

    @functools.cached_property
    def _index(self) -> Index:
        root = pathlib.Path(self.path).expanduser()
        if not root.is_dir():
            raise ValueError(f"config.data.path {str(self.path)!r} is not a folder")
        names, problems = list_videos(root)
        if not names:
            found = "; ".join(problems[:5]) or f"none of its files ends in {' '.join(SUFFIXES)}"
            raise ValueError(f"{str(self.path)!r} has no video file: {found}")
        classes = sorted({_class(name) for name in names}) if self.labels == "folder" else []
        if "" in classes:
            loose = next(name for name in names if not _class(name))
            raise ValueError(f"labels='folder' expects every file in its class's folder, {loose} is in none")
        files = []
        for name in self._of_split(names):
            path = os.path.realpath(root / name)
            try:
                ticks = self._probe(path)
            except _UNREADABLE as error:
                problems.append(f"{name} ({error})")
            else:
                files.append(VideoFile(name, path, ticks, classes.index(_class(name)) if classes else 0))
        told = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        if problems and self.on_error == "raise":
            what = f"{len(problems)} unusable files (on_error='skip' leaves them out)"
            raise ValueError(f"{str(self.path)!r} has {what}: {told}")
        if not files:
            raise ValueError(f"{str(self.path)!r} has no usable video file: {told}")
        if problems:
            logging.warning("%s: skipped %d files: %s", self.path, len(problems), told)
        stride = self.frames if self.stride is None else self.stride
        lasts = [len(file.ticks) - self.frames for file in files]
        clips = [(i, first) for i, last in enumerate(lasts) for first in range(0, last + 1, stride)]
        return Index(files, np.asarray(clips, np.int64), classes, problems)

    def _of_split(self, names: list[str]) -> list[str]:
        if any(name.split("/")[0] in source_lib.SPLITS for name in names):
            chosen = [name for name in names if name.split("/")[0] == self.split]
            expected = f"a folder {self.split}/ with video files"
        else:
            test = set(names[:: self.test_every]) if self.test_every else set()
            chosen = [name for name in names if (name in test) == (self.split == "test")]
            expected = "folders train/ and test/, or a test_every that leaves files for it"
        if not chosen:
            what = f"no video file for split {self.split!r}"
            raise ValueError(f"{str(self.path)!r} has {what}: expected {expected}")
        return chosen

    def _probe(self, path: str) -> np.ndarray:
        """The time stamps of the frames to show. Raises one of _UNREADABLE."""
        with av.open(path) as container:
            stream = _video_stream(container)
            packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
            stamps = [packet.dts if packet.pts is None else packet.pts for packet in packets]
            if not stamps or None in stamps or stream.time_base is None:
                raise ValueError("it has no time stamps" if stamps else "it has no frames")
            step = None if self.fps is None else float(1 / (self.fps * stream.time_base))
        with av.open(path) as container:
            _video_stream(container)
            if next(container.decode(video=0), None) is None:
                raise ValueError("no frame of it can be decoded")
        ticks = resample(np.unique(np.asarray(stamps, np.int64)), step)
        if len(ticks) < self.frames:
            rate = "" if self.fps is None else f" at {self.fps:g} frames a second"
            raise ValueError(f"expected at least {self.frames} frames{rate}, it has {len(ticks)}")
        return ticks

    @property
    def skipped(self) -> tuple[str, ...]:
        """The files left out, with the reasons."""
        return tuple(self._index.skipped)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        height, width = framing.check_size(self.size)
        return self.frames, height, width, self.channels

    @property
    def num_classes(self) -> int:
        return len(self._index.classes)

    def __len__(self) -> int:
        return len(self._index.clips) * self.crops

    def __repr__(self) -> str:
        # Names and lengths instead of the folder: it may be moved between two runs, but not changed.
        content = [(file.name, len(file.ticks)) for file in self._index.files]
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        hidden = ("path", "on_error", "test_every")
        options = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.name not in hidden]
        return f"VideoFolder({', '.join(options)}, clips={len(self)}, content={digest!r})"

    def __getitem__(self, index: int) -> source_lib.Example:
        index = source_lib.check_index(index, len(self))
        file_index, first = self._index.clips[index % len(self._index.clips)]
        file = self._index.files[file_index]
        try:
            video = decode(file.path, file.ticks[first : first + self.frames], self.channels)
        except _UNREADABLE as error:
            raise source_lib.Damaged(f"unreadable clip {index}, {file.name} from frame {first}: {error}") from error
        where = framing.placement(self.crop, self.seed, index)
        return dict(video=framing.crop_and_resize(video, self.shape[1:3], where[1:]), label=np.int32(file.label))


def list_videos(root: pathlib.Path) -> tuple[list[str], list[str]]:
    """The names of the video files below `root`, sorted; and the links and folders that are refused, with the reason."""
    names, refused = [], []
    real_root = os.path.realpath(root)

    def unreadable(error: OSError) -> None:
        refused.append(f"{pathlib.Path(error.filename).relative_to(root).as_posix()} ({error.strerror})")

    for folder, folders, files in os.walk(root, onerror=unreadable):
        for entry in folders + files:
            path = os.path.join(folder, entry)
            name = pathlib.Path(path).relative_to(root).as_posix()
            if entry in folders:
                if os.path.islink(path):
                    refused.append(f"{name} (a link to a folder)")
            elif entry.lower().endswith(SUFFIXES):
                if os.path.commonpath([real_root, os.path.realpath(path)]) != real_root:
                    refused.append(f"{name} (a link that leads out of the folder)")
                else:
                    names.append(name)
    return sorted(names), sorted(refused)


def resample(stamps: np.ndarray, step: float | None) -> np.ndarray:
    """The stamp shown at every multiple of `step` after the first: the last one not later than it.

    The last frame is taken to last as long as the one before it. None keeps every stamp.
    """
    if step is None or len(stamps) < 2:
        return stamps
    # Times are compared with half a tick to spare, for steps that are not whole numbers of ticks.
    end = stamps[-1] + (stamps[-1] - stamps[-2]) - 0.5
    times = stamps[0] + step * np.arange(int((end - stamps[0]) / step) + 1)
    return stamps[np.searchsorted(stamps, times + 0.5, side="right") - 1]


def decode(path: str, ticks: np.ndarray, channels: int) -> UInt8[np.ndarray, "f h w c"]:
    """The frames of a file with the time stamps `ticks` (rising; a stamp may come again), in uint8.

    Raises ValueError if the file ends before them, or one of PyAV's errors if it is damaged.
    """
    with av.open(path) as container:
        stream = _video_stream(container)
        container.seek(int(ticks[0]), stream=stream, backward=True)
        found = _collect(container, stream, ticks, channels)
        if found is None:  # the key frame that the seek found comes too late
            container.seek(0, stream=stream, backward=True)
            found = _collect(container, stream, ticks, channels)
    found = found or []
    if len(found) < len(ticks):
        raise ValueError(f"expected {len(ticks)} frames, {len(found)} could be decoded")
    return np.stack(found)


def _collect(container, stream, ticks: np.ndarray, channels: int) -> list[np.ndarray] | None:
    """The frames wanted, from where the container stands; None if it stands behind the first of them."""
    pixels, frames = "rgb24" if channels == 3 else "gray", []
    for frame in container.decode(stream):
        stamp = frame.dts if frame.pts is None else frame.pts
        if not frames and stamp > ticks[0]:
            return None
        if stamp == ticks[len(frames)]:
            array = frame.to_ndarray(format=pixels)
            array = array if channels == 3 else array[..., None]
            while len(frames) < len(ticks) and ticks[len(frames)] == stamp:
                frames.append(array)
        if len(frames) == len(ticks):
            break
    return frames


def _video_stream(container):
    if not container.streams.video:
        raise ValueError("it has no video stream")
    return container.streams.video[0]


def _class(name: str) -> str:
    """The class of a file: the first folder of its name, below train/ or test/; '' if there is none."""
    folders = name.split("/")[:-1]
    folders = folders[1:] if folders and folders[0] in source_lib.SPLITS else folders
    return folders[0] if folders else ""
