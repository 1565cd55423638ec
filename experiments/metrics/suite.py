"""What is measured on a set of clips of one moving digit. A new metric is one more entry of METRICS."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from experiments.metrics import appearance, distances, motion

# Frame side -> side of the digit's box: the room to move in is the difference.
BOXES = {16: 8, 64: 28}

Classify = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""frames [n, h, w, c], uint8 or floats in [-1, 1] -> (logits [n, k], features [n, d])"""


class Sample(NamedTuple):
    """A set of clips and all that is measured on single clips; what `describe` returns."""

    light: Float[np.ndarray, "n f h w"]
    probabilities: Float[np.ndarray, "n f k"]
    features: Float[np.ndarray, "n f d"]
    labels: Int[np.ndarray, " n"] | None
    mass: Float[np.ndarray, "n f"]
    track: Float[np.ndarray, "n f 2"]
    bounce: motion.Bounce

    @property
    def classes(self) -> Int[np.ndarray, " n"]:
        """The class of the clip: the most probable one on average over its frames."""
        return self.probabilities.mean(1).argmax(-1)


Statistic = Callable[[Sample, Sample, distances.Weights], distances.Values]


class Metric(NamedTuple):
    """statistic(sample, reference, weights [k, n]) -> [k]; see distances.py for the weights."""

    statistic: Statistic
    better: str | None
    unit: str = ""
    needs_labels: bool = False


def confidence(sample: Sample) -> Float[np.ndarray, " n"]:
    """Probability of the most probable class, mean over frames. Real: about .9."""
    return sample.probabilities.max(-1).mean(1)


def identity_kept(sample: Sample) -> Float[np.ndarray, " n"]:
    """1 where the predicted class is the same in all frames. Real: about .98 (the classifier's errors)."""
    return (np.ptp(sample.probabilities.argmax(-1), axis=1) == 0).astype(float)


def label_accuracy(sample: Sample) -> Float[np.ndarray, " n"]:
    """Share of frames that show the class that was asked for. Real: about .99."""
    return (sample.probabilities.argmax(-1) == np.asarray(sample.labels)[:, None]).mean(1)


def _mean(per_clip: Callable[[Sample], np.ndarray]) -> Statistic:
    return lambda sample, reference, weights: weights @ per_clip(sample)


def _ratio(per_clip: Callable[[Sample], np.ndarray]) -> Statistic:
    return lambda sample, reference, weights: weights @ per_clip(sample) / per_clip(reference).mean()


def _diversity(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    equal = distances.equal_weights(len(reference.light))
    real = distances.mean_pairwise_distance(reference.features.mean(1), equal)
    return distances.mean_pairwise_distance(sample.features.mean(1), weights) / real


def _entropy(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    return distances.class_entropy(sample.classes, sample.probabilities.shape[-1], weights)


def _speed(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    return distances.wasserstein(motion.speed(sample.track), motion.speed(reference.track), weights)


def _frechet_frame(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    return distances.frechet(sample.features, reference.features, weights)


def _frechet_clip(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
    clips, real = (distances.clip_features(s.features) for s in (sample, reference))
    return distances.frechet(clips, real, weights)


def _by_clip(statistic: Callable[..., distances.Values]) -> Statistic:
    """Of a statistic of two sets of points, one point a clip."""

    def of(sample: Sample, reference: Sample, weights: distances.Weights) -> distances.Values:
        clips, real = (distances.clip_features(s.features)[:, 0] for s in (sample, reference))
        return statistic(clips, real, weights)

    return of


METRICS: dict[str, Metric] = {
    "confidence": Metric(_mean(confidence), "higher"),
    "label_accuracy": Metric(_mean(label_accuracy), "higher", needs_labels=True),
    "identity_kept": Metric(_mean(identity_kept), "higher"),
    "identity_correlation": Metric(_mean(lambda s: appearance.identity_correlation(s.light, s.track)), "higher"),
    "objects": Metric(_mean(lambda s: motion.objects(s.light)), None),
    "mass": Metric(_ratio(lambda s: s.mass.mean(1)), None),
    "mass_variation": Metric(_mean(lambda s: motion.mass_variation(s.mass)), "lower"),
    "mass_drift": Metric(_mean(lambda s: motion.mass_drift(s.mass)), "lower"),
    "law_residual": Metric(_mean(lambda s: motion.law_residual(s.bounce)), "lower", "px"),
    "law_kept": Metric(_mean(lambda s: motion.law_kept(s.bounce, s.mass)), "higher"),
    "speed_distance": Metric(_speed, "lower", "px/frame"),
    "speed_variation": Metric(_mean(lambda s: motion.speed_variation(s.track)), None),
    "acceleration": Metric(_mean(lambda s: motion.acceleration(s.track)), "lower", "px/frame²"),
    "bounces": Metric(_mean(lambda s: motion.bounces(s.track)), None),
    "flicker": Metric(_mean(lambda s: appearance.flicker(s.light, s.track)), "lower"),
    "change": Metric(_ratio(lambda s: appearance.change(s.light)), None),
    "sharpness": Metric(_ratio(lambda s: appearance.sharpness(s.light)), None),
    "diversity": Metric(_diversity, "higher"),
    "class_entropy": Metric(_entropy, "higher"),
    "frechet_frame": Metric(_frechet_frame, "lower"),
    "frechet_clip": Metric(_frechet_clip, "lower"),
    "precision": Metric(_by_clip(distances.precision), "higher"),
    "recall": Metric(_by_clip(distances.recall), "higher"),
}
"""name -> what is measured; the function behind a name tells what it means. `change` and `sharpness` are
ratios to the reference's mean, `diversity` to the reference's distance; of `objects`, `speed_variation`,
`bounces`, `change` and `sharpness` neither more nor less is better: the floor is where they should be."""


def describe(
    videos: Num[np.ndarray, "n f h w 1"], classify: Classify, labels: Int[np.ndarray, " n"] | None = None
) -> Sample:
    """Everything that `evaluate` needs to know of a set of clips, uint8 or floats in [-1, 1].

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
        videos = np.rint((np.clip(videos.astype(np.float64), -1, 1) + 1) * 127.5).astype(np.uint8)
    if labels is not None and np.shape(labels) != (n,):
        raise ValueError(f"{n} clips need {n} labels, got labels of shape {list(np.shape(labels))}")
    logits, features = classify(videos.reshape(n * f, h, w, 1))
    logits = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    light = videos[..., 0] / 255.0
    track = motion.centroids(light)
    return Sample(
        light,
        probabilities.reshape(n, f, -1),
        features.reshape(n, f, -1),
        None if labels is None else np.asarray(labels),
        motion.mass(light),
        track,
        motion.fit_bounce(track, room=h - BOXES[h], box=BOXES[h]),
    )
