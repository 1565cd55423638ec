"""Numbers with 95 % intervals: what claims and sweeps are judged by."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.ablations import mixture, page


class Number(NamedTuple):
    """A value and its interval; of zero width where it was computed exactly."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        numbers = Number(*map(float, self))
        return page.cell(numbers.value) if self.low == self.high else page.interval(numbers)


def exact(value: Any) -> Number:
    return Number(float(value), float(value), float(value))


def of(triple: Sequence[float]) -> Number:
    """(value, low, high), as reports have it."""
    value, low, high = (float(number) for number in triple[:3])
    return Number(value, low, high)


def over_seeds(triples: Sequence[Sequence[float]]) -> Number:
    """Mean of the values with its t-interval; of one seed the value with its own interval."""
    found = mixture.over_seeds(triples)
    low = triples[0][1] if found.half is None else found.mean - found.half
    return Number(found.mean, float(low), float(found.high))


def ratio(above: Number, below: Number) -> Number:
    """above / below of independent positive numbers: the widths of their logarithms add in squares, each side by itself."""
    if not min(above.value, below.value) > 0:
        raise ValueError(f"a ratio is of positive numbers, got {above} and {below}")
    value = above.value / below.value

    def far(*sides: tuple[float, float]) -> float:
        # A bound at or below 0 leaves a ratio open on that side.
        return math.hypot(*(math.log(a / b) if min(a, b) > 0 else math.inf for a, b in sides))

    down = far((above.value, above.low), (below.high, below.value))
    up = far((above.high, above.value), (below.value, below.low))
    return Number(value, value * math.exp(-down), value * math.exp(up))


def difference(first: Number, second: Number) -> Number:
    """first - second of independent numbers."""
    value = first.value - second.value
    down = math.hypot(first.value - first.low, second.high - second.value)
    up = math.hypot(first.high - first.value, second.value - second.low)
    return Number(value, value - down, value + up)


def bootstrap(statistic: Callable[..., float], *samples: np.ndarray, draws: int = 200, seed: int = 0) -> Number:
    """statistic(*samples) with its interval over clips, which are drawn again together from all the samples."""
    rng, count = np.random.default_rng(seed), len(samples[0])
    rows = (rng.integers(0, count, count) for _ in range(draws))
    low, high = np.quantile([statistic(*(s[r] for s in samples)) for r in rows], (0.025, 0.975))
    value = float(statistic(*samples))
    # Around the value: a statistic of few draws may have a bias that its interval would miss it by.
    return Number(value, min(value, float(low)), max(value, float(high)))
