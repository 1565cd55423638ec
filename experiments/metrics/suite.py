"""What is measured on a set of clips of one moving digit. A new metric is one more entry of METRICS."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, UInt8
from scipy.spatial.distance import cdist

from experiments.figures import to_uint8
from experiments.metrics import appearance, distances, motion

# Frame side -> side of the digit's box: the room to move in is the difference.
BOXES = {16: 8, 64: 28}
# Light and spectra are computed for as many clips at a time as have this many pixels: some hundred megabytes.
BLOCK = 2**20

Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""frames [n, h, w, c], uint8 or floats in [-1, 1] -> (logits [n, k], features [n, d])"""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """A set of clips and what was measured on single clips; what `describe` returns.

    nearest: each clip's distance to the nearest training clip, in `clip_features`; None where none were given.
    """

    pixels: UInt8[np.ndarray, "n f h w"]
    probabilities: Float[np.ndarray, "n f k"]
    features: Float[np.ndarray, "n f d"]
    labels: Int[np.ndarray, " n"] | None
    mass: Float[np.ndarray, "n f"]
    track: Float[np.ndarray, "n f 2"]
    bounce: motion.Bounce
    nearest: Float[np.ndarray, " n"] | None = None
    _known: dict[Callable, np.ndarray] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def light(self) -> Float[np.ndarray, "n f h w"]:
        """8 times as large as `pixels`: for a few clips only."""
        return self.pixels / 255.0

    @property
    def classes(self) -> Int[np.ndarray, " n"]:
        """The class of the clip: the most probable one on average over its frames."""
        return self.probabilities.mean(1).argmax(-1)

    def of(self, measure: Callable[["Sample"], np.ndarray]) -> Float[np.ndarray, "n ..."]:
        """What `measure` makes of every clip, a few of them at a time, and only once: real clips judge every sampler."""
        if measure not in self._known:
            few = max(1, BLOCK // self.pixels[0].size)
            parts = (take(self, slice(i, i + few)) for i in range(0, len(self), few))
            self._known[measure] = np.concatenate([measure(part) for part in parts])
        return self._known[measure]


def take(sample: Sample, rows: slice | np.ndarray) -> Sample:
    """Some clips of a sample."""
    fields = {f.name: getattr(sample, f.name) for f in dataclasses.fields(sample) if f.init}
    bounce = motion.Bounce(*(field[rows] for field in fields.pop("bounce")))
    return Sample(bounce=bounce, **{name: value if value is None else value[rows] for name, value in fields.items()})


Statistic = Callable[[Sample, Sample, distances.Weights], distances.Values]


SHARE = (0.0, 1.0)


class Metric(NamedTuple):
    """statistic(sample, reference, weights [k, n]) -> [k]; see distances.py for the weights. span: the values it can have."""

    statistic: Statistic
    better: str | None
    unit: str = ""
    needs_labels: bool = False
    needs_training: bool = False
    span: tuple[float, float] = (-np.inf, np.inf)


def confidence(sample: Sample) -> Float[np.ndarray, " n"]:
    """Probability of the most probable class, mean over frames. Real: about .9."""
    return sample.probabilities.max(-1).mean(1)


def identity_kept(sample: Sample) -> Float[np.ndarray, " n"]:
    """1 where the predicted class is the same in all frames. Real: about .98 (the classifier's errors)."""
    return (np.ptp(sample.probabilities.argmax(-1), axis=1) == 0).astype(float)


def label_accuracy(sample: Sample) -> Float[np.ndarray, " n"]:
    """Share of frames that show the class that was asked for. Real: about .99."""
    return (sample.probabilities.argmax(-1) == np.asarray(sample.labels)[:, None]).mean(1)


def clip_features(sample: Sample) -> Float[np.ndarray, "n d"]:
    """A point for every clip in the metric network's features; see distances.clip_features."""
    return distances.clip_features(sample.features)[:, 0]


def warping_error(sample: Sample) -> Float[np.ndarray, " n"]:
    """appearance.warping_error along the best bounce through the track: the law's motion is the one that is known."""
    _, frames, side, _ = sample.pixels.shape
    return appearance.warping_error(sample.light, motion.path(sample.bounce, frames, side - BOXES[side]))


def _mean(per_clip: Callable[[Sample], np.ndarray]) -> Statistic:
    return lambda sample, reference, weights: weights @ sample.of(per_clip)


def _ratio(per_clip: Callable[[Sample], np.ndarray]) -> Statistic:
    return lambda sample, reference, weights: weights @ sample.of(per_clip) / reference.of(per_clip).mean()


def _against(distance: Callable[..., distances.Values], per_clip: Callable[[Sample], np.ndarray]) -> Statistic:
    """A distance of what is measured on the clips to what is measured on the reference's."""
    return lambda sample, reference, weights: distance(sample.of(per_clip), reference.of(per_clip), weights)


def _diversity(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    equal = distances.equal_weights(len(reference))
    real = distances.mean_pairwise_distance(reference.features.mean(1), equal)
    return distances.mean_pairwise_distance(sample.features.mean(1), weights) / real


def _entropy(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    return distances.class_entropy(sample.classes, sample.probabilities.shape[-1], weights)


def _position(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    axes = (distances.wasserstein(sample.track[..., a], reference.track[..., a], weights) for a in (0, 1))
    return sum(axes) / 2


def _frechet_frame(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    return distances.frechet(sample.features, reference.features, weights)


def _frechet_clip(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    clips, real = (s.of(clip_features)[:, None] for s in (sample, reference))
    return distances.frechet(clips, real, weights)


def _memorisation(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    return weights @ np.asarray(sample.nearest) / np.asarray(reference.nearest).mean()


METRICS: dict[str, Metric] = {
    "confidence": Metric(_mean(confidence), "higher", span=SHARE),
    "label_accuracy": Metric(_mean(label_accuracy), "higher", needs_labels=True, span=SHARE),
    "identity_kept": Metric(_mean(identity_kept), "higher", span=SHARE),
    "identity_correlation": Metric(_mean(lambda s: appearance.identity_correlation(s.light, s.track)), "higher"),
    "objects": Metric(_mean(lambda s: motion.objects(s.light)), None),
    "mass": Metric(_ratio(lambda s: s.mass.mean(1)), None),
    "mass_variation": Metric(_mean(lambda s: motion.mass_variation(s.mass)), "lower"),
    "mass_drift": Metric(_mean(lambda s: motion.mass_drift(s.mass)), "lower"),
    "law_residual": Metric(_mean(lambda s: motion.law_residual(s.bounce)), "lower", "px"),
    "law_kept": Metric(_mean(lambda s: motion.law_kept(s.bounce, s.mass)), "higher", span=SHARE),
    "position_distance": Metric(_position, "lower", "px"),
    "heading_distance": Metric(
        _against(distances.circular_wasserstein, lambda s: motion.heading(s.track)), "lower", "degrees"
    ),
    "speed_distance": Metric(_against(distances.wasserstein, lambda s: motion.speed(s.track)), "lower", "px/frame"),
    "speed_variation": Metric(_mean(lambda s: motion.speed_variation(s.track)), None),
    "acceleration": Metric(_mean(lambda s: motion.acceleration(s.track)), "lower", "px/frame²"),
    "bounces": Metric(_mean(lambda s: motion.bounces(s.track)), None),
    "flicker": Metric(_mean(lambda s: appearance.flicker(s.light, s.track)), "lower"),
    "warping_error": Metric(_mean(warping_error), "lower"),
    "change": Metric(_ratio(lambda s: appearance.change(s.light)), None),
    "sharpness": Metric(_ratio(lambda s: appearance.sharpness(s.light)), None),
    "spectrum_time": Metric(_against(distances.decibels, lambda s: appearance.power_in_time(s.light)), "lower", "dB"),
    "spectrum_space": Metric(_against(distances.decibels, lambda s: appearance.power_in_space(s.light)), "lower", "dB"),
    "diversity": Metric(_diversity, "higher"),
    "class_entropy": Metric(_entropy, "higher"),
    "frechet_frame": Metric(_frechet_frame, "lower"),
    "frechet_clip": Metric(_frechet_clip, "lower"),
    "mmd_clip": Metric(_against(distances.mmd, clip_features), "lower"),
    "precision": Metric(_against(distances.precision, clip_features), "higher", span=SHARE),
    "recall": Metric(_against(distances.recall, clip_features), "higher", span=SHARE),
    "memorisation": Metric(_memorisation, None, needs_training=True),
}
"""name -> what is measured; the function behind a name tells what it means. `change` and `sharpness` are
ratios to the reference's mean, `diversity` to the reference's distance, `memorisation` the distance to the nearest training
clip to that of the reference; of `objects`, `speed_variation`, `bounces`, `change`, `sharpness` and `memorisation` neither
more nor less is better: the floor is where they should be. docs/metrics.md has all of them and what each reacts to."""


def describe(
    videos: Num[np.ndarray, "n f h w 1"],
    classify: Classify,
    labels: Int[np.ndarray, " n"] | None = None,
    training: Sample | None = None,
) -> Sample:
    """Everything that `evaluate` needs to know of a set of clips, uint8 or floats in [-1, 1].

    training: clips that a generator was trained on, none of these, for `memorisation`.

    Raises ValueError for another shape, for values that are not finite, and for labels that do not fit.
    """
    videos = np.asarray(videos)
    if videos.ndim != 5 or videos.shape[-1] != 1 or videos.shape[1] < 3 or len(videos) < 2:
        raise ValueError(
            f"metrics take clips [n, f, h, w, 1], at least 2 of at least 3 frames, got {list(videos.shape)}"
        )
    n, f, h, w, _ = videos.shape
    if h != w or h not in BOXES:
        raise ValueError(f"the law of motion is known for frames of {sorted(BOXES)} pixels, got {h}x{w}")
    if videos.dtype != np.uint8:
        broken = ~np.isfinite(videos).all((1, 2, 3, 4))
        if broken.any():
            raise ValueError(
                f"{broken.sum()} of {n} clips have values that are not finite, the first is {broken.argmax()}"
            )
    if labels is not None and np.shape(labels) != (n,):
        raise ValueError(f"{n} clips need {n} labels, got labels of shape {list(np.shape(labels))}")
    pixels, track, mass = np.empty((n, f, h, w), np.uint8), np.empty((n, f, 2)), np.empty((n, f))
    few = max(1, BLOCK // (f * h * w))
    for rows in (slice(i, i + few) for i in range(0, n, few)):
        pixels[rows] = to_uint8(videos[rows, ..., 0])
        light = pixels[rows] / 255.0
        track[rows], mass[rows] = motion.centroids(light), motion.mass(light)
    logits, features = classify(pixels.reshape(n * f, h, w, 1))
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    features = features.reshape(n, f, -1)
    nearest = None
    if training is not None:
        nearest = cdist(distances.clip_features(features)[:, 0], training.of(clip_features)).min(1)
    return Sample(
        pixels=pixels,
        probabilities=probabilities.reshape(n, f, -1),
        features=features,
        labels=None if labels is None else np.asarray(labels),
        mass=mass,
        track=track,
        bounce=motion.fit_bounce(track, room=h - BOXES[h], box=BOXES[h]),
        nearest=nearest,
    )
