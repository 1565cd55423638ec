"""Real clips with one thing wrong, and which metric sees it: the test of the metrics, and the table in docs/metrics.md.

Each corruption is a pure function of clips with their ground truth, so that it breaks what it is meant to break and nothing
else: the digit is drawn again on another path, or another digit on the same one.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from scipy import ndimage

from experiments import weights as weights_lib
from experiments.data import moving_digits
from experiments.metrics import appearance, distances, report
from experiments.metrics.classifier_training import classify_fn
from experiments.metrics.suite import METRICS, Classify, Metric, Sample, describe
from models.classifier import build_classifier


class Scene(NamedTuple):
    """Clips of one digit with their truth. The digit's box moves in [0, room] on both axes."""

    clips: UInt8[np.ndarray, "n f h w 1"]
    labels: Int[np.ndarray, " n"]
    images: Float[np.ndarray, "n 1 b b"]
    positions: Float[np.ndarray, "n 1 f 2"]
    velocity: Float[np.ndarray, "n 1 1 2"]

    @property
    def room(self) -> int:
        return self.clips.shape[2] - self.images.shape[-1]

    @property
    def time(self) -> Int[np.ndarray, "f 1"]:
        return np.arange(self.clips.shape[1])[:, None]

    @property
    def light(self) -> Float[np.ndarray, "n f h w"]:
        return self.clips[..., 0] / 255.0

    @property
    def others(self) -> Float[np.ndarray, "n 1 b b"]:
        """Another digit for every clip: the next one's."""
        return np.roll(self.images, 1, 0)

    def fold(self, straight: np.ndarray) -> np.ndarray:
        """A straight path between elastic walls."""
        return self.room - np.abs(straight % (2 * self.room) - self.room)

    def draw(self, positions: np.ndarray, images: np.ndarray | None = None) -> UInt8[np.ndarray, "n f h w 1"]:
        images = self.images if images is None else images
        return moving_digits.to_bytes(moving_digits.render(positions, images, self.clips.shape[2])[..., None])


def scene(source: moving_digits.MovingDigits, start: int, stop: int) -> Scene:
    """Clips `start` to `stop` of a source of one digit."""
    truths = [source.truth(i) for i in range(start, stop)]
    positions = np.stack([truth.positions for truth in truths])
    images = moving_digits.handwriting(source.size).images[np.stack([truth.identities for truth in truths])]
    return Scene(
        moving_digits.to_bytes(moving_digits.render(positions, images, source.size)[..., None]),
        np.array([truth.labels[0] for truth in truths]),
        images,
        positions,
        np.stack([truth.velocities[:, :1] for truth in truths]),
    )


Corrupt = Callable[[Scene, np.random.Generator], UInt8[np.ndarray, "n f h w 1"]]


def reverse(real: Scene, rng: np.random.Generator):
    """Time runs backwards. The law is the same: no metric may react."""
    return real.clips[:, ::-1]


def shuffle(real: Scene, rng: np.random.Generator):
    """The frames in any order."""
    order = rng.permuted(np.tile(real.time[:, 0], (len(real.clips), 1)), axis=1)
    return np.take_along_axis(real.clips, order[..., None, None, None], 1)


def noise(real: Scene, rng: np.random.Generator):
    """White noise of standard deviation .05 on the light."""
    return _bytes(real.light + 0.05 * rng.standard_normal(real.light.shape))


def brightness(real: Scene, rng: np.random.Generator):
    """Every frame darker by a random part, of standard deviation 10 %. (Strokes are white: they cannot be lighter.)"""
    return _bytes(real.light * rng.uniform(1 - 0.1 * 12**0.5, 1, (*real.light.shape[:2], 1, 1)))


def swap(real: Scene, rng: np.random.Generator):
    """Another digit from the middle on."""
    return np.where(_late(real)[..., None, None], real.draw(real.positions, real.others), real.clips)


def morph(real: Scene, rng: np.random.Generator):
    """Fades over to another digit from the first frame to the last."""
    share = _progress(real)
    return _bytes((1 - share) * real.light + share * real.draw(real.positions, real.others)[..., 0] / 255.0)


def jitter(real: Scene, rng: np.random.Generator):
    """The length of every step with a random part, of standard deviation 30 %."""
    steps = 1 + 0.3 * rng.standard_normal((len(real.clips), 1, len(real.time) - 1, 1))
    walked = np.concatenate([np.zeros_like(steps[:, :, :1]), np.cumsum(steps, 2)], 2)
    return real.draw(real.fold(real.positions[:, :, :1] + real.velocity * walked))


def gravity(real: Scene, rng: np.random.Generator):
    """Falls: .3 pixels per frame² downwards."""
    fall = 0.15 * real.time**2 * np.array([1, 0])
    return real.draw(real.fold(real.positions[:, :, :1] + real.velocity * real.time + fall))


def wrap(real: Scene, rng: np.random.Generator):
    """Leaves through one wall and comes in through the other."""
    return real.draw((real.positions[:, :, :1] + real.velocity * real.time) % real.room)


def teleport(real: Scene, rng: np.random.Generator):
    """Is somewhere else from the middle on."""
    start = rng.uniform(0, real.room, real.positions[:, :, :1].shape)
    return real.draw(np.where(_late(real), real.fold(start + real.velocity * real.time), real.positions))


def freeze(real: Scene, rng: np.random.Generator):
    """Stands still from the middle on."""
    return real.clips[:, np.minimum(real.time[:, 0], len(real.time) // 2)]


def blur(real: Scene, rng: np.random.Generator):
    """Ever more blurred, to a Gaussian of 1.4 pixels in the last frame."""
    sigmas = 1.4 * _progress(real).ravel()
    return _bytes(np.stack([ndimage.gaussian_filter(real.light[:, t], (0, s, s)) for t, s in enumerate(sigmas)], 1))


def saturation(real: Scene, rng: np.random.Generator):
    """Ever brighter, to 1.7 times the light in the last frame."""
    return _bytes(real.light * (1 + 0.7 * _progress(real)))


CORRUPTIONS: dict[str, Corrupt] = {
    "reversed": reverse,
    "shuffle": shuffle,
    "noise": noise,
    "brightness": brightness,
    "swap": swap,
    "morph": morph,
    "jitter": jitter,
    "gravity": gravity,
    "wrap": wrap,
    "teleport": teleport,
    "freeze": freeze,
    "blur": blur,
    "saturation": saturation,
}


# Less than this is no change of the metric, however small the chance in it: many are exact on real clips.
RESOLUTION = {
    "confidence": 0.01, "label_accuracy": 0.02, "identity_kept": 0.02, "identity_correlation": 0.005, "objects": 0.02,
    "mass_variation": 0.005, "mass_drift": 0.01, "law_residual": 0.03, "law_kept": 0.05, "speed_variation": 0.02,
    "acceleration": 0.03, "flicker": 0.005, "warping_error": 0.005, "class_entropy": 0.02,
}  # fmt: skip
# A metric reacts when it is this many half intervals off, and does not when it is within one.
REACTS = 2.0

LAW = ("law_residual", "law_kept", "warping_error", "speed_variation")
WAYS = ("position_distance", "speed_distance", "bounces")
INK = ("mass_variation", "mass_drift", "flicker", "warping_error")
IDENTITY = ("label_accuracy", "identity_kept", "identity_correlation")
LOOKS = ("confidence", *IDENTITY, "objects", "mass", "mass_variation", "mass_drift", "flicker", "sharpness")
CLASSES = ("diversity", "class_entropy")
SETS = (*CLASSES, "frechet_frame", "frechet_clip", "mmd_clip", "precision", "recall")
MOTION = ("law_residual", "law_kept", "speed_variation", "acceleration", *WAYS)

MUST_REACT: dict[str, tuple[str, ...]] = {
    "reversed": (),
    "shuffle": (*LAW, "speed_distance", "acceleration", "bounces", "change", "spectrum_time"),
    "noise": ("identity_correlation", "mass", "law_residual", "law_kept", "acceleration", "flicker", "warping_error",
              "change", "sharpness", "spectrum_space"),
    "brightness": (*INK, "mass", "spectrum_time", "spectrum_space"),
    "swap": (*INK, *IDENTITY, "frechet_clip", "precision", "recall"),
    "morph": (*INK, *IDENTITY, "sharpness", "spectrum_time", "spectrum_space", "frechet_clip", "precision", "recall"),
    "jitter": (*LAW, "acceleration"),
    "gravity": (*LAW, "speed_distance", "acceleration", "bounces"),
    "wrap": (*LAW, "speed_distance", "bounces"),
    "teleport": (*LAW, "speed_distance", "bounces"),
    "freeze": (*LAW, "speed_distance", "bounces", "change", "spectrum_time"),
    "blur": ("identity_correlation", "flicker", "warping_error", "sharpness", "spectrum_time", "spectrum_space"),
    "saturation": (*INK, "mass", "spectrum_time", "spectrum_space"),
}  # fmt: skip
MUST_NOT_REACT: dict[str, tuple[str, ...]] = {
    # The headings of reversed clips are others, if by the same law.
    "reversed": (*MOTION, *LOOKS, *SETS, "warping_error", "change", "spectrum_time", "spectrum_space"),
    "shuffle": (*LOOKS, "spectrum_space", "position_distance", "diversity", "class_entropy", "frechet_frame"),
    "noise": ("label_accuracy", "identity_kept", "objects", "diversity", "class_entropy"),
    "brightness": (*MOTION, *IDENTITY, "heading_distance", "objects", "sharpness", "diversity", "class_entropy"),
    "swap": (*WAYS, "heading_distance", "objects", "mass", "sharpness", "spectrum_time", "spectrum_space", "frechet_frame"),
    "morph": (*WAYS, "heading_distance", "law_kept", "objects", "mass"),
    "jitter": (*LOOKS, *SETS, "position_distance", "heading_distance", "change", "spectrum_time", "spectrum_space"),
    "gravity": (*LOOKS, *SETS, "heading_distance", "change", "spectrum_space"),
    "wrap": (*LOOKS, *SETS, "acceleration", "spectrum_space"),
    "teleport": (*LOOKS, *SETS, "acceleration", "heading_distance", "spectrum_space"),
    "freeze": (*LOOKS, *CLASSES, "frechet_frame", "frechet_clip", "mmd_clip", "recall", "position_distance",
               "heading_distance", "spectrum_space"),
    "blur": (*MOTION, "heading_distance", "label_accuracy", "identity_kept", "objects", "mass", "mass_variation",
             "mass_drift", "class_entropy"),
    "saturation": (*MOTION, "heading_distance", "label_accuracy", "identity_kept", "objects", "sharpness", "class_entropy"),
}  # fmt: skip


def _change(sample: Sample) -> Float[np.ndarray, " n"]:
    return appearance.change(sample.light)


# VBench's temporal flickering (Huang et al. 2024, arXiv 2311.17982), 1 - mean |x_{t+1} - x_t|: 1 where nothing moves. No
# metric of quality: it is here to be seen beside the others.
FLICKERING = {"VBench flickering": Metric(lambda s, reference, weights: 1 - weights @ s.of(_change), None)}


class Reading(NamedTuple):
    """A metric of corrupted clips, and how far it is from that of the same clips before, in half intervals of the latter."""

    value: float
    score: float


def read(
    classify: Classify, *, size: int = 64, frames: int = 20, speed: tuple[float, float] = (2.0, 4.0), clips: int = 48
) -> tuple[dict[str, report.Measure], dict[str, dict[str, Reading]]]:
    """(metric -> what real clips get, corruption -> metric -> Reading), all of test digits. Deterministic.

    The reference has twice as many clips. The half interval is that of the bootstrap over the real clips, the reference staying
    as it is, or RESOLUTION where that is more; the floor is the statistic of as many other real clips.
    """
    source = moving_digits.MovingDigits(size=size, frames=frames, speed=speed, split="test")
    real, other, reference = (scene(source, *ends) for ends in ((0, clips), (clips, 2 * clips), (2 * clips, 4 * clips)))
    against = describe(reference.clips, classify)
    metrics = METRICS | FLICKERING

    def values(made: np.ndarray, labels: np.ndarray, weights: distances.Weights) -> dict[str, np.ndarray]:
        return report.statistics(describe(made, classify, labels), against, weights, metrics)

    equal = distances.equal_weights(clips)
    weights = np.concatenate([equal, distances.resampled(clips, 200, 0, real.labels)])
    floors = values(other.clips, other.labels, equal)
    known, half = {}, {}
    for name, (value, *others) in values(real.clips, real.labels, weights).items():
        low, high = report.interval(float(value), others)
        known[name] = report.Measure(float(value), low, high, float(floors[name][0]), metrics[name].better)
        half[name] = max((high - low) / 2, RESOLUTION.get(name, 0.0))
    readings = {}
    for seed, (title, corrupt) in enumerate(CORRUPTIONS.items()):
        got = values(corrupt(real, np.random.default_rng(seed)), real.labels, equal)
        readings[title] = {
            name: Reading(float(value), (float(value) - known[name].value) / half[name])
            for name, (value,) in got.items()
        }
    return known, readings


def shipped(clips: int = 192) -> tuple[dict[str, report.Measure], dict[str, dict[str, Reading]]]:
    """`read` with the shipped classifier of 64x64 frames."""
    params, record = weights_lib.load(weights_lib.find("pretrained:moving_digits_64/classifier", None))
    return read(classify_fn(build_classifier(record["model"]), params), clips=clips)


def table(clips: int = 192) -> str:
    """Markdown: a line per metric, a column per corruption, bold where the metric reacts. 64x64 digits, 20 frames."""
    known, readings = shipped(clips)
    lines = [["metric", "real", "real, others", *readings], ["---", *["---:"] * (len(readings) + 2)]]
    for name, measure in known.items():
        cells = [report.digits(n) for n in (measure.value, measure.floor)]
        for reading in (column[name] for column in readings.values()):
            text = report.digits(reading.value)
            cells.append(f"**{text}**" if abs(reading.score) >= REACTS else text)
        lines.append([report.title(name, measure), *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _progress(real: Scene) -> Float[np.ndarray, "f 1 1"]:
    """0 in the first frame, 1 in the last."""
    return (real.time / real.time[-1])[..., None]


def _late(real: Scene):
    """[f, 1]: the second half."""
    return real.time >= len(real.time) // 2


def _bytes(light: Float[np.ndarray, "n f h w"]) -> UInt8[np.ndarray, "n f h w 1"]:
    return moving_digits.to_bytes(light[..., None])
