"""Evaluation of clips of one moving digit: every metric with its interval and what real clips get.

The protocol, fixed so that figures stay comparable:

- Clips are judged as the bytes that a viewer gets: floats are clipped to [-1, 1] and rounded to 256 levels.
- The value is that of all n clips. The interval is the central 95 % of the bootstrap over the clips, moved by
  the bias that resampling has (for a Fréchet distance it has one); the reference stays as it is. Clips with
  labels are resampled class by class: how many of each class were asked for is no chance.
- The floor is the same statistic of n other real clips against the same reference: what a perfect generator
  gets. A value better than its floor is luck or a leak.
- Distances depend on n and on the reference's size: compare figures of equal sizes only.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num
from scipy import stats

from experiments.metrics import distances
from experiments.metrics.suite import METRICS, Classify, Metric, Sample, describe, take

COVERAGE = 0.95
FEW = 40
ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


class Measure(NamedTuple):
    """A metric's value, its interval, what real clips get (None: unknown), and which way is better (None:
    neither)."""

    value: float
    low: float
    high: float
    floor: float | None
    better: str | None


def evaluate(
    videos: Num[np.ndarray, "n f h w 1"] | Sample,
    reference: Num[np.ndarray, "m f h w 1"] | Sample,
    *,
    labels: Int[np.ndarray, " n"] | None = None,
    classify: Classify,
    floor_reference: Num[np.ndarray, "n f h w 1"] | Sample | None = None,
    floor_labels: Int[np.ndarray, " n"] | None = None,
    training: Sample | None = None,
    bootstrap: int = 200,
    seed: int = 0,
    metrics: Mapping[str, Metric] = METRICS,
) -> dict[str, Measure]:
    """All `metrics` of `videos` against real clips `reference`. Deterministic.

    labels: the classes that were asked for; without them there is no label_accuracy, and without
    `floor_labels`, the true classes of `floor_reference`, label_accuracy has no floor.
    floor_reference: as many real clips as `videos`, none of them in `reference`. Without it one half of the
    reference is judged against the other, which gives distances a floor that is too high.
    training: clips that the generator was trained on; without them there is no memorisation.
    classify: see suite.Classify. Any set may be given as the `Sample` that `describe` made of it; for memorisation
    made with the same training clips.

    Raises ValueError for clips that `describe` refuses, for a floor of another size and where only some of the sets were
    described with training clips.
    """

    def described(clips, labels=None) -> Sample:
        return clips if isinstance(clips, Sample) else describe(clips, classify, labels, training)

    sample, real = described(videos, labels), described(reference)
    n, m = len(sample), len(real)
    if floor_reference is None:
        floor, floor_real = take(real, slice(m // 2, None)), take(real, slice(0, m // 2))
    else:
        floor, floor_real = described(floor_reference, floor_labels), real
        if len(floor) != n:
            raise ValueError(f"the floor of {n} clips needs {n} other real clips, got {len(floor)}")
    known = {name: s.nearest is not None for name, s in {"videos": sample, "reference": real, "floor": floor}.items()}
    if len(set(known.values())) > 1:
        lacking = ", ".join(name for name, has in known.items() if not has)
        raise ValueError(f"memorisation needs training clips in every describe, {lacking} had none")
    weights = np.concatenate([distances.equal_weights(n), distances.resampled(n, bootstrap, seed, sample.labels)])
    bottoms = statistics(floor, floor_real, distances.equal_weights(len(floor)), metrics)
    return {
        name: Measure(
            float(value), *interval(value, others, metrics[name].span), float(bottoms[name][0]) if name in bottoms else None,
            metrics[name].better,
        )
        for name, (value, *others) in statistics(sample, real, weights, metrics).items()
    }  # fmt: skip


def statistics(
    sample: Sample, real: Sample, weights: distances.Weights, metrics: Mapping[str, Metric] = METRICS
) -> dict[str, distances.Values]:
    """The metrics under every weighting [k, n], but those that need labels or training clips that aren't there."""
    return {
        name: metric.statistic(sample, real, weights)
        for name, metric in metrics.items()
        if (sample.labels is not None or not metric.needs_labels)
        and (sample.nearest is not None or not metric.needs_training)
    }


def table(rows: Mapping[str, Mapping[str, Measure]], extra: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Markdown: a line per metric, a column per sampler, the floor in the last column.

    An arrow says which way is better; the brackets hold the interval. extra: further lines, name -> sampler
    -> number, which have no interval and no floor; they come first.
    """
    if not rows:
        raise ValueError("a table needs at least one row of measures")
    names = list(dict.fromkeys(name for measures in rows.values() for name in measures))
    lines = [["metric", *rows, "real"], ["---"] * (len(rows) + 2)]
    for name, numbers in (extra or {}).items():
        lines.append([name, *(digits(numbers[row]) if row in numbers else "" for row in rows), ""])
    for name in names:
        measures = [measures.get(name) for measures in rows.values()]
        known = next(measure for measure in measures if measure is not None)
        cells = ["" if m is None else f"{digits(m.value)} [{digits(m.low)}, {digits(m.high)}]" for m in measures]
        lines.append([title(name, known), *cells, "" if known.floor is None else digits(known.floor)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def title(name: str, measure: Measure) -> str:
    """The metric with its unit, and an arrow to where it is better."""
    unit = METRICS[name].unit if name in METRICS else ""
    return name + (f" [{unit}]" if unit else "") + ARROWS[measure.better]


def interval(
    value: float, others: Sequence[float] | Float[np.ndarray, " k"], span: tuple[float, float] = (-np.inf, np.inf)
) -> tuple[float, float]:
    """The central COVERAGE of the resampled values, moved so that their mean is the value. Fewer than FEW have no such
    quantiles (the range of ten covers 82 %): Student's t times their standard deviation, both ways.
    Neither leaves `span`, the values that there can be.
    """
    others = np.asarray(others)
    if len(others) < 2:
        return float(value), float(value)
    if len(others) < FEW:
        half = stats.t.ppf((1 + COVERAGE) / 2, len(others) - 1) * others.std(ddof=1)
        low, high = value - half, value + half
    else:
        low, high = np.quantile(others, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]) - others.mean() + value
    return float(np.clip(low, *span)), float(np.clip(high, *span))


def digits(number: float) -> str:
    """Three significant digits, no exponent for what has a few places."""
    if not np.isfinite(number):
        return "NaN" if np.isnan(number) else str(number)
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    return (
        f"{number:.3g}" if 1e-4 <= abs(number) < 1000 else (f"{number:.0f}" if abs(number) >= 1000 else f"{number:.1e}")
    )
