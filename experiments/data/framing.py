"""Cutting a clip out of a longer, larger video: which frames, which box, which size."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from experiments.data.source import nearest

CROPS = ("centre", "random")


def check_crop(crop: str) -> None:
    """Raises ValueError for a crop other than centre and random."""
    if crop not in CROPS:
        raise ValueError(f"unknown crop {crop!r}; {nearest(crop, CROPS)}")


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """`size` as (height, width); a single number is a square. Raises ValueError if not positive integers."""
    sides = tuple(size) if np.iterable(size) and not isinstance(size, str) else (size, size)
    if len(sides) != 2 or not all(isinstance(s, int | np.integer) and s > 0 for s in sides):
        raise ValueError(f"size must be a positive whole number or (height, width), got {size!r}")
    return int(sides[0]), int(sides[1])


def placement(crop: str, seed: int, index: int) -> np.ndarray:
    """Where a crop lies in the room that it has: three fractions in [0, 1], for (frame, row, column).

    One half each for the centre; for a random crop a pure function of (seed, index).
    """
    if crop == "centre":
        return np.full(3, 0.5)
    words = np.random.SeedSequence((seed, index)).generate_state(3, np.uint64)
    return (words >> np.uint64(11)) * 2.0**-53


def window(length: int, frames: int, where: float) -> slice:
    """`frames` frames in a row out of `length`; `where` 0 takes the first ones, 1 the last."""
    start = min(int(where * (length - frames + 1)), length - frames)
    return slice(start, start + frames)


def crop_and_resize(
    video: UInt8[np.ndarray, "f h w c"], size: tuple[int, int], where: np.ndarray
) -> UInt8[np.ndarray, "f size_h size_w c"]:
    """The largest box with the aspect of `size`, at `where` = (row, column) fractions, resized (bicubic).

    The box may start between two pixels; every frame gets the same one. When it shrinks, the filter widens
    with the factor, so that nothing aliases.
    """
    height, width = video.shape[1:3]
    if (height, width) == size:
        return video
    scale = min(height / size[0], width / size[1])
    # At most the video's: a rounding more, and the box would start outside.
    box_height, box_width = min(size[0] * scale, height), min(size[1] * scale, width)
    top, left = (height - box_height) * where[0], (width - box_width) * where[1]
    box = (left, top, min(left + box_width, width), min(top + box_height, height))
    resized = np.empty((len(video), *size, video.shape[-1]), np.uint8)
    for frame, channel in np.ndindex(len(video), video.shape[-1]):
        plane = Image.fromarray(video[frame, :, :, channel])
        plane = plane.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
        resized[frame, :, :, channel] = np.asarray(plane)
    return resized
