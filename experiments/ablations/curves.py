"""Curves of many methods in one figure: one look for each, one legend for all panels."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from distill import METHODS
from experiments.figures import COLOURS, MARKERS, plain_logs

BLACK = COLOURS[-1]
DASHES = ("-", "--", ":")

Curve = Mapping[float, float]
"""x -> y"""


def looks(names: Iterable[str], black: str) -> dict[str, dict[str, Any]]:
    """A look for every name, the same for a method in all figures; that which the others are held against is black."""
    made: dict[str, dict[str, Any]] = {black: dict(color=BLACK, marker=MARKERS[-1], linewidth=2.2)}
    for index, name in enumerate(name for name in dict.fromkeys([*METHODS, *names]) if name != black):
        # Fewer shapes than colours: two points of one colour differ, even without a line.
        colour, marker = COLOURS[index % len(COLOURS[:-1])], MARKERS[index % len(MARKERS[:-2])]
        dashes = DASHES[index // len(COLOURS[:-1]) % len(DASHES)]
        made[name] = dict(color=colour, marker=marker, linestyle=dashes, linewidth=1.3)
    return made


def draw(axes: Axes, curves: Mapping[str, Curve], looks: Mapping[str, Mapping[str, Any]]) -> None:
    """On logarithmic axes, with plain numbers as ticks."""
    for name, curve in curves.items():
        axes.plot(*zip(*sorted(curve.items()), strict=True), **looks[name], markersize=4, label=name)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        plain_logs(axis)


def mark_calls(axes: Axes, curves: Mapping[str, Curve]) -> None:
    """The numbers of calls as ticks."""
    calls = sorted({n for curve in curves.values() for n in curve})
    axes.set_xticks(calls, [f"{n:g}" for n in calls])


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One to the right, with every curve that a panel has."""
    known = {}
    for axes in panels:
        known |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*known.values()], [*known], frameon=False, fontsize=8, loc="outside right center")
