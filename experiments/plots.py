"""Plots as inline SVG for a web page: in the page's own colours, light or dark, with the numbers for its pointer to read.

Curve i is drawn in the class `si`: the style sheet gives its colour, DEFINITIONS its mark. Text is escaped here.
"""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 12, 42
LOOKS = 7
"""Colours and marks that are told apart; curve 7 has the look of curve 0 and is dashed."""
MOST = 400
"""Points of a curve: more than a plot has room for are thinned evenly."""
SHAPES = (
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0", "M-3.5-3.5H3.5V3.5H-3.5Z", "M0-4.5L4.3 3.2H-4.3Z", "M0-5L4 0 0 5-4 0Z",
    "M0 4.5L4.3-3.2H-4.3Z", "M-1.5-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "M-4-2.5L-2.5-4 0-1.5 2.5-4 4-2.5 1.5 0 4 2.5 2.5 4 0 1.5-2.5 4-4 2.5-1.5 0Z",
)  # fmt: skip
DEFINITIONS = (
    '<svg width="0" height="0" class="definitions" aria-hidden="true"><defs>'
    + "".join(
        f'<marker id="mark{i}" viewBox="-6 -6 12 12" markerWidth="12" markerHeight="12" markerUnits="userSpaceOnUse">'
        f'<path class="s{i} mark" d="{shape}"/></marker>'
        for i, shape in enumerate(SHAPES)
    )
    + "</defs></svg>"
)
"""Stands once in a page that has plots."""


class Point(NamedTuple):
    """low, high: an interval of y. label: a word beside the point."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    label: str = ""


class Series(NamedTuple):
    """A curve. style: "marks" at every point, "thin" or "thick" for a line without; look: of which curve it has the colour."""

    name: str
    points: Sequence[Point]
    style: str = "marks"
    look: int | None = None


class Axis(NamedTuple):
    """A scale from low to high, both inside the plot."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        """0 at low, 1 at high."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round numbers from low to high: powers of ten, or 1, 2 and 5 of each where they span few."""
        decades = math.log10(self.high / self.low) if self.log else 0.0
        if decades < 0.7:
            return _round_numbers(self.low, self.high)
        every = max(1, round(decades / 5))
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        multiples = (1, 2, 5) if decades < 2.5 else (1,)
        values = [m * 10.0**e for e in exponents if e % every == 0 for m in multiples]
        return [v for v in values if self.low <= v <= self.high]


def axis(values: Sequence[float], log: bool = False) -> Axis:
    """The scale that holds the finite values with a little room; logarithmic only where all are positive."""
    values = [v for v in values if math.isfinite(v)]
    if not values:
        return Axis(0.0, 1.0, False)
    low, high = min(values), max(values)
    if log and low > 0:
        room = max((high / low) ** 0.06, 1.05)
        return Axis(low / room, high * room, True)
    room = 0.06 * (high - low) or max(abs(high) * 0.1, 1e-9)
    return Axis(low - room, high + room, False)


def number(value: Any) -> str:
    """Three significant digits; whole numbers below a million as they are."""
    if not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{value}"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:.2e}"


def plot(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
    floor: float | None = None,
) -> str:
    """A `<figure>` with the curves, their legend and a line for the pointer's numbers.

    A value that isn't finite interrupts its curve and is marked by a cross on the upper edge. floor: a dashed line, what
    real clips get.
    """
    series = [one._replace(points=_thinned(one.points), look=i if one.look is None else one.look)
              for i, one in enumerate(series)]  # fmt: skip
    points = [p for one in series for p in one.points]
    heights = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    across = axis([p.x for p in points], log_x)
    up = axis([*heights, *([] if floor is None else [floor])], log_y)
    parts = [_grid(across, up, x, y)]
    if floor is not None and math.isfinite(floor):
        height = _y(up, floor)
        parts.append(f'<path class="floor" d="M{LEFT} {height}H{WIDTH - RIGHT}"/>')
    parts += [_curve(one, across, up) for one in series]
    named = [one for one in series if one.name]
    legend = "".join(f"<li>{_swatch(one)}{html.escape(one.name)}</li>" for one in named)
    if floor is not None:
        dashes = '<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><path class="floor" d="M0 6H28"/></svg>'
        legend += f"<li>{dashes}real clips</li>"
    label = html.escape(f"{title}: {y} against {x}" + (f"; {', '.join(s.name for s in named)}" if named else ""), True)
    return (
        f'<figure class="plot"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}" data-x="{html.escape(x, True)}">'
        f"{''.join(parts)}</svg>"
        f'<p class="readout" aria-hidden="true">&nbsp;</p><ul class="legend">{legend}</ul></figure>'
    )


def smooth(points: Sequence[Point], half: int) -> list[Point]:
    """The mean of y over 2 half + 1 finite points around each, fewer (as many on both sides) at the ends."""
    points = [p for p in points if math.isfinite(p.y)]
    found = []
    for i, point in enumerate(points):
        reach = min(half, i, len(points) - 1 - i)
        near = [p.y for p in points[i - reach : i + reach + 1]]
        found.append(Point(point.x, sum(near) / len(near)))
    return found


def _thinned(points: Sequence[Point]) -> list[Point]:
    every = -(-len(points) // MOST) or 1
    return [p for i, p in enumerate(points) if i % every == 0 or i == len(points) - 1 or not math.isfinite(p.y)]


def _x(across: Axis, value: float) -> str:
    return f"{LEFT + across.place(value) * (WIDTH - LEFT - RIGHT):.1f}"


def _y(up: Axis, value: float) -> str:
    return f"{HEIGHT - BOTTOM - up.place(value) * (HEIGHT - TOP - BOTTOM):.1f}"


def _grid(across: Axis, up: Axis, x: str, y: str) -> str:
    ends = (LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM)
    lines = "".join(f"M{_x(across, t)} {ends[2]}V{ends[3]}" for t in across.ticks())
    lines += "".join(f"M{ends[0]} {_y(up, t)}H{ends[1]}" for t in up.ticks())
    words = [f'<text class="xtick" x="{_x(across, t)}" y="{ends[3] + 16}">{number(t)}</text>' for t in across.ticks()]
    words += [f'<text class="ytick" x="{ends[0] - 6}" y="{float(_y(up, t)) + 4:.1f}">{number(t)}</text>'
              for t in up.ticks()]  # fmt: skip
    middle = (ends[0] + ends[1]) / 2, (ends[2] + ends[3]) / 2
    words.append(f'<text class="xname" x="{middle[0]}" y="{HEIGHT - 6}">{html.escape(x)}</text>')
    words.append(f'<text class="yname" transform="translate(12 {middle[1]}) rotate(-90)">{html.escape(y)}</text>')
    return f'<path class="grid" d="{lines}"/>{"".join(words)}'


def _curve(one: Series, across: Axis, up: Axis) -> str:
    """The path of a curve; data-values holds "x,y" of each of its corners, in order."""
    path, values, after_gap, crosses, bars, words = [], [], True, [], [], []
    for i, point in enumerate(one.points):
        if not math.isfinite(point.x):
            continue
        if not math.isfinite(point.y):
            crosses.append(f"M{_x(across, point.x)} {TOP + 2}m-4-4l8 8m0-8l-8 8")
            after_gap = True
            continue
        place = f"{_x(across, point.x)} {_y(up, point.y)}"
        following = one.points[i + 1] if i + 1 < len(one.points) else None
        alone = after_gap and (following is None or not math.isfinite(following.y))
        # A point between gaps is a line to itself: a round end of the pen, and a place for its mark.
        corners = [f"M{place}", f"L{place}"] if alone else [("M" if after_gap else "L") + place]
        path += corners
        values += [f"{point.x:.6g},{point.y:.4g}"] * len(corners)
        after_gap = False
        if point.low is not None and point.high is not None and math.isfinite(point.low + point.high):
            low, high = (min(max(v, up.low), up.high) for v in (point.low, point.high))
            bars.append(f"M{_x(across, point.x)} {_y(up, low)}m-3 0h6m-3 0V{_y(up, high)}m-3 0h6")
        if point.label:
            x, y = map(float, place.split())
            # Near the right edge a word stands to the left of its point.
            side, move = ("tag left", -7) if x > WIDTH - RIGHT - 40 else ("tag", 7)
            words.append(f'<text class="{side}" x="{x + move:.1f}" y="{y - 6:.1f}">{html.escape(point.label)}</text>')
    look, parts = one.look or 0, []
    kind = f"s{look % LOOKS} {one.style}{' dashed' if look >= LOOKS else ''}"
    if bars:
        parts.append(f'<path class="s{look % LOOKS} bar" d="{"".join(bars)}"/>')
    if path:
        parts.append(
            f'<path class="{kind}" d="{"".join(path)}" data-name="{html.escape(one.name, True)}" '
            f'data-values="{" ".join(values)}"/>'
        )
    if crosses:
        parts.append(
            f'<path class="cross" d="{"".join(crosses)}"><title>{html.escape(one.name)}: not finite</title></path>'
        )
    return "".join(parts + words)


def _swatch(one: Series) -> str:
    look = one.look or 0
    kind = f"s{look % LOOKS} {one.style}{' dashed' if look >= LOOKS else ''}"
    return (
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><path class="{kind}" d="M1 6L14 6L27 6"/></svg>'
        if one.style != "marks"
        else f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true"><path class="{kind} nomarks" d="M0 6H28"/>'
        f'<path class="{kind}" d="M14 6L14 6"/></svg>'
    )


def _round_numbers(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about so many of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
