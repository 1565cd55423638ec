"""Clips made smaller by area averages, and what a stage of a cascade makes them from: the same clips, smaller still.

For training a random crop in space and time will do: the network of a stage is one that runs on any size.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Num

from experiments import data
from experiments.data import framing
from experiments.data import source as source_lib

Video = Num[np.ndarray, "f h w c"]


@dataclasses.dataclass(frozen=True)
class Resized:
    """The source: every `time`-th frame of another source's clips, in space the mean over squares of `space` pixels.

    Examples have `low` beside `video` and `label`: the video made smaller in the same way by `low` = (time, space), of
    which a clip is upsampled. Its pixels are those of another `Resized` of the same clips, to the bit: means of
    the clips' own pixels, and not of the video's, which are rounded.

    Args:
        of: the config of the clips, as `config.data`.
        time, space: how many times fewer frames, and rows and columns, the video has.
        low: (time, space), how many times fewer `low` has than the video; None: there is none.
        crop: (frames, side) of a crop, at a place that is a pure function of (seed, index); None: whole clips.
        seed: of the crops.
        split: 'train' or 'test'.

    Raises ValueError for latents, for factors that don't divide, and for a crop that isn't made of whole frames and squares of
    `low`.
    """

    of: Mapping[str, Any] = dataclasses.field(hash=False)
    time: int = 1
    space: int = 1
    low: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    seed: int = 0
    split: str = "train"

    def __post_init__(self):
        for name in ("low", "crop"):
            pair = getattr(self, name)
            if pair is not None:
                if not isinstance(pair, Sequence) or len(pair) != 2:
                    raise ValueError(
                        f"{name} is {'(time, space)' if name == 'low' else '(frames, side)'}, got {pair!r}"
                    )
                for value in pair:
                    source_lib.check_whole(name, value, 1)
                object.__setattr__(self, name, tuple(pair))
        for name in ("time", "space"):
            source_lib.check_whole(name, getattr(self, name), 1)
        source_lib.check_whole("seed", self.seed, 0)
        if self.of.get("kind") == "latents":
            raise ValueError("of: latents have no pixels to take means of; resize the clips that are encoded")
        inner = tuple(self._inner.shape)
        check_divides(inner, (self.time, self.space), "time, space")
        if self.crop is not None:
            frames, side = self.crop
            for length, whole, axis in zip(
                (frames, side, side), self.whole, ("frames", "rows", "columns"), strict=False
            ):
                if length > whole:
                    raise ValueError(f"crop {self.crop}: the clips have {whole} {axis}; nearest: {whole}")
        check_divides(self.whole, self.low or (1, 1), "low")
        check_divides(self.shape, self.low or (1, 1), f"crop {self.crop}: low")

    @functools.cached_property
    def _inner(self) -> source_lib.Source:
        return data.build(self.of, self.split)

    @property
    def whole(self) -> tuple[int, int, int, int]:
        """The shape of the videos before they are cropped."""
        frames, rows, columns, channels = self._inner.shape
        return frames // self.time, rows // self.space, columns // self.space, channels

    @property
    def shape(self) -> tuple[int, int, int, int]:
        frames, rows, columns, channels = self.whole
        return (frames, rows, columns, channels) if self.crop is None else (self.crop[0], *[self.crop[1]] * 2, channels)

    @property
    def low_shape(self) -> tuple[int, int, int, int] | None:
        if self.low is None:
            return None
        (time, space), (frames, rows, columns, channels) = self.low, self.shape
        return frames // time, rows // space, columns // space, channels

    @property
    def num_classes(self) -> int:
        return self._inner.num_classes

    @property
    def video_dtype(self) -> Any:
        return getattr(self._inner, "video_dtype", np.uint8)

    def __len__(self) -> int:
        return len(self._inner)

    def __repr__(self) -> str:
        sizes = f"time={self.time}, space={self.space}, low={self.low}, crop={self.crop}, seed={self.seed}"
        return f"Resized({self._inner!r}, {sizes})"

    def __getitem__(self, index: int) -> source_lib.Example:
        index = source_lib.check_index(index, len(self))
        frames, rows, columns = self.window(index)
        times, squares = self.time, self.space
        box = (
            slice(frames.start * times, (frames.stop - 1) * times + 1, times),
            slice(rows.start * squares, rows.stop * squares),
            slice(columns.start * squares, columns.stop * squares),
        )
        example = cut(self._inner, index, *box)
        made = dict(video=averaged(example["video"], squares), label=example["label"])
        if self.low is None:
            return made
        return {**made, "low": averaged(example["video"][:: self.low[0]], squares * self.low[1])}

    def window(self, index: int) -> tuple[slice, slice, slice]:
        """Frames, rows and columns that are the example `index`: a crop begins where a frame and a square of `low` do."""
        if self.crop is None:
            return slice(0, self.whole[0]), slice(0, self.whole[1]), slice(0, self.whole[2])
        (time, space), where = self.low or (1, 1), framing.placement("random", self.seed, index)
        lengths, steps = (self.crop[0], self.crop[1], self.crop[1]), (time, space, space)
        windows = (
            framing.window(whole // step, length // step, place)
            for whole, length, step, place in zip(self.whole[:3], lengths, steps, where, strict=True)
        )
        frames, rows, columns = (
            slice(part.start * step, part.stop * step) for part, step in zip(windows, steps, strict=True)
        )
        return frames, rows, columns


def check_divides(shape: Sequence[int], factors: tuple[int, int], what: str) -> None:
    time, space = factors
    for name, length, factor in zip(("frames", "rows", "columns"), shape, (time, space, space), strict=False):
        if length % factor:
            near = min((n for n in range(1, length + 1) if length % n == 0), key=lambda n: abs(n - factor))
            raise ValueError(f"{what}: {factor} does not divide {length} {name}; nearest: {near}")


def cut(source: source_lib.Source, index: int, frames: slice, rows: slice, columns: slice) -> source_lib.Example:
    """A part of clip `index`: by the source's own `cut`, where it needn't draw the whole clip for it."""
    if hasattr(source, "cut"):
        return source.cut(index, frames, rows, columns)
    # Checked whole: of a larger clip than the source says a part would pass.
    example = source_lib.check_example(source[index], source, index)
    return dict(video=example["video"][frames, rows, columns], label=example["label"])


def averaged(video: Video, size: int) -> Video:
    """The mean over squares of size x size pixels; bytes are rounded to the nearest, halves up."""
    if size == 1:
        return video
    whole = video.dtype == np.uint8
    wide = video.astype(np.uint32) if whole else video
    # Sums of strided slices: a reduction over two short axes takes ten times as long.
    wide = sum(wide[:, i::size] for i in range(size))
    wide = sum(wide[:, :, i::size] for i in range(size))
    if not whole:
        return (wide / size**2).astype(video.dtype)
    return ((2 * wide + size**2) // (2 * size**2)).astype(np.uint8)
