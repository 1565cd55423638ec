"""Drift: what becomes of long clips, chunk by chunk.

A roll-out that only ever looks at its last frames may keep every law within a chunk and still fade, blur, slow down or turn
into another digit over many of them. So metrics are measured on one chunk after another, against real clips of a chunk's
length, and the last chunk is held against the first (start-end contrast: Zhang & Agrawala 2025, arXiv 2504.12626, signed).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Num

from experiments.metrics import appearance, distances
from experiments.metrics.report import Measure, interval, statistics
from experiments.metrics.suite import METRICS, Classify, Metric, Sample, describe

CURVES = (
    "confidence", "identity_kept", "mass", "law_residual", "speed_distance", "flicker", "change", "sharpness", "frechet_clip",
)  # fmt: skip
CONTRAST = "last - first"
IDENTITY = "identity_from_start"


def drift(
    videos: Num[np.ndarray, "n f h w 1"],
    reference: Num[np.ndarray, "m g h w 1"],
    *,
    chunk: int,
    classify: Classify,
    labels: Int[np.ndarray, " n"] | None = None,
    floor_reference: Num[np.ndarray, "n f h w 1"] | None = None,
    names: Sequence[str] = CURVES,
    bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, dict[str, Measure]]:
    """The named METRICS of every `chunk` frames, as rows that `table` prints: "0-7", "8-15", .., and "last - first".

    `identity_from_start` comes with them: the aligned correlation of the chunk's last frame with the clip's first, which is
    blind to no slow change. The intervals are those of `evaluate`; the contrast resamples the same clips in both chunks.

    reference: real clips of `chunk` or more frames, of which the first `chunk` count: the law is the same at all times.
    floor_reference: as many other real clips as videos and as long, cut alike; without them there is no floor.

    Raises ValueError for clips that aren't cut evenly, for an unknown name and for one that needs what isn't there.
    """
    n, frames = videos.shape[:2]
    if chunk < 3 or frames % chunk or frames < 2 * chunk:
        raise ValueError(f"clips of {frames} frames are not cut into two or more chunks of {chunk} >= 3 frames")
    if reference.shape[1] < chunk:
        raise ValueError(f"the reference needs {chunk} frames, a chunk, or more, got {reference.shape[1]}")
    if floor_reference is not None and floor_reference.shape[:2] != (n, frames):
        raise ValueError(f"the floor of {n} clips of {frames} frames needs as many, got {floor_reference.shape[:2]}")
    chosen = {name: _metric(name, labels) for name in names}
    real = describe(reference[:, :chunk], classify)
    weights = np.concatenate([distances.equal_weights(n), distances.resampled(n, bootstrap, seed, labels)])

    def curves(clips, labels, weights) -> list[dict[str, np.ndarray]]:
        parts = [describe(clips[:, i : i + chunk], classify, labels) for i in range(0, frames, chunk)]
        return [
            statistics(part, real, weights, chosen) | {IDENTITY: weights @ _correlation(parts[0], part)}
            for part in parts
        ]

    values = curves(videos, labels, weights)
    floors = None if floor_reference is None else curves(floor_reference, None, distances.equal_weights(n))
    rows = [f"{i}-{i + chunk - 1}" for i in range(0, frames, chunk)]
    values = dict(zip([*rows, CONTRAST], [*values, _difference(values)], strict=True))
    bottoms = {} if floors is None else dict(zip([*rows, CONTRAST], [*floors, _difference(floors)], strict=True))
    return {
        row: {name: _measure(name, row, value, bottoms.get(row, {}).get(name)) for name, value in found.items()}
        for row, found in values.items()
    }


def _metric(name: str, labels: np.ndarray | None) -> Metric:
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}; the metrics are {', '.join(METRICS)}")
    if METRICS[name].needs_training or (METRICS[name].needs_labels and labels is None):
        raise ValueError(
            f"{name} needs {'training clips' if METRICS[name].needs_training else 'labels'}: drift has none"
        )
    return METRICS[name]


def _correlation(first: Sample, part: Sample) -> np.ndarray:
    light = np.stack([first.pixels[:, 0], part.pixels[:, -1]], 1) / 255.0
    return appearance.identity_correlation(light, np.stack([first.track[:, 0], part.track[:, -1]], 1))


def _difference(curve: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: curve[-1][name] - curve[0][name] for name in curve[0]}


def _measure(name: str, row: str, values: np.ndarray, floor: np.ndarray | None) -> Measure:
    better = "higher" if name == IDENTITY else METRICS[name].better
    bottom = None if floor is None else float(floor[0])
    span = METRICS[name].span if name in METRICS and row != CONTRAST else (-np.inf, np.inf)
    return Measure(
        float(values[0]), *interval(float(values[0]), values[1:], span), bottom, None if row == CONTRAST else better
    )
