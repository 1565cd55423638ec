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

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from experiments.metrics import distances
from experiments.metrics.suite import METRICS, Classify, Sample, describe

COVERAGE = 0.95
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
    bootstrap: int = 200,
    seed: int = 0,
) -> dict[str, Measure]:
    """All of METRICS for `videos` against real clips `reference`. Deterministic.

    labels: the classes that were asked for; without them there is no label_accuracy, and without
    `floor_labels`, the true classes of `floor_reference`, label_accuracy has no floor.
    floor_reference: as many real clips as `videos`, none of them in `reference`. Without it one half of the
    reference is judged against the other, which gives distances a floor that is too high.
    classify: see suite.Classify. Any set may be given as the `Sample` that `describe` made of it.

    Raises ValueError for clips that `describe` refuses and for a floor of another size.
    """
    sample = videos if isinstance(videos, Sample) else describe(videos, classify, labels)
    real = reference if isinstance(reference, Sample) else describe(reference, classify)
    n, m = len(sample.light), len(real.light)
    if floor_reference is None:
        floor, floor_real = take(real, slice(m // 2, None)), take(real, slice(0, m // 2))
    else:
        given = isinstance(floor_reference, Sample)
        floor = floor_reference if given else describe(floor_reference, classify, floor_labels)
        floor_real = real
        if len(floor.light) != n:
            raise ValueError(f"the floor of {n} clips needs {n} other real clips, got {len(floor.light)}")
    weights = np.concatenate([distances.equal_weights(n), distances.resampled(n, bootstrap, seed, sample.labels)])
    measures = {}
    for name, metric in METRICS.items():
        if metric.needs_labels and sample.labels is None:
            continue
        value, *others = metric.statistic(sample, real, weights)
        bottom = None
        if not metric.needs_labels or floor.labels is not None:
            bottom = float(metric.statistic(floor, floor_real, distances.equal_weights(len(floor.light)))[0])
        measures[name] = Measure(float(value), *interval(value, np.array(others)), bottom, metric.better)
    return measures


def take(sample: Sample, rows: slice) -> Sample:
    """Some clips of a sample."""
    fields = sample._replace(bounce=type(sample.bounce)(*(field[rows] for field in sample.bounce)))
    return fields._replace(
        **{name: value[rows] for name, value in fields._asdict().items() if isinstance(value, np.ndarray)}
    )


def table(rows: Mapping[str, Mapping[str, Measure]], extra: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Markdown: a line per metric, a column per sampler, the floor in the last column.

    An arrow says which way is better; the brackets hold the interval. extra: further lines, name -> sampler
    -> number, which have no interval and no floor; they come first.
    """
    if not rows:
        raise ValueError("a table needs at least one row of measures")
    names = list(dict.fromkeys(name for measures in rows.values() for name in measures))
    lines = [["metric", *rows, "real"], ["---"] * (len(rows) + 2)]
    for title, numbers in (extra or {}).items():
        lines.append([title, *(_digits(numbers[row]) if row in numbers else "" for row in rows), ""])
    for name in names:
        measures = [measures.get(name) for measures in rows.values()]
        known = next(measure for measure in measures if measure is not None)
        unit = METRICS[name].unit if name in METRICS else ""
        title = name + (f" [{unit}]" if unit else "") + ARROWS[known.better]
        cells = ["" if m is None else f"{_digits(m.value)} [{_digits(m.low)}, {_digits(m.high)}]" for m in measures]
        lines.append([title, *cells, "" if known.floor is None else _digits(known.floor)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(value: float, others: Float[np.ndarray, " k"]) -> tuple[float, float]:
    """The central COVERAGE of the resampled values, moved so that their mean is the value."""
    if not len(others):
        return float(value), float(value)
    low, high = np.quantile(others, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2]) - others.mean() + value
    return float(low), float(high)


def _digits(number: float) -> str:
    """Three significant digits, no exponent for what has a few places."""
    if number == int(number) and abs(number) < 1e6:
        return str(int(number))
    return (
        f"{number:.3g}" if 1e-4 <= abs(number) < 1000 else (f"{number:.0f}" if abs(number) >= 1000 else f"{number:.1e}")
    )
