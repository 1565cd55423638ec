"""A page of results: sections of Markdown, each made by a function, under the command that makes them."""

import math
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.config import choose, make_folder
from experiments.figures import COLOURS, MARKERS, row_of_axes, save_figure, write_atomically

Section = Callable[[pathlib.Path], str]
"""(folder) -> Markdown; figures go to the folder."""


class Empty(str):
    """A section that found nothing to show, only what is missing: it doesn't replace one that is there."""


MARK = "<!-- section: {} -->"
axes = row_of_axes


def write(
    name: str,
    introduction: str,
    sections: Mapping[str, Section],
    folder: pathlib.Path,
    only: Sequence[str],
    program: str = "experiments.ablate {}",
) -> pathlib.Path:
    """Makes the sections (`only` these, or all) and writes folder/NAME.md; sections not made stay as they were there. program:
    what makes the page.
    """
    for key in only:
        choose(key, sections, "the section")
    make_folder(folder, "--out")
    path = folder / f"{name}.md"
    bodies = read(path)
    for key in only or sections:
        began = time.perf_counter()
        print(f"{key} ...", flush=True)
        made = sections[key](folder)
        if isinstance(made, Empty) and key in bodies:
            print(
                f"{key}: none of its runs was found, and what {path} has stays; in another --out they are listed",
                flush=True,
            )
            continue
        bodies[key] = made
        print(f"{key}: {time.perf_counter() - began:.0f} s", flush=True)
        parts = [f"{MARK.format(k)}\n\n{bodies[k].strip()}" for k in sections if k in bodies]
        command = f"```bash\npython -m {program.format(name)}\n```"
        page = "\n\n".join([f"# Results: {name}", f"Made by\n\n{command}", introduction.strip(), *parts])
        write_atomically(path, (page + "\n").encode())
    return path


def read(path: pathlib.Path) -> dict[str, str]:
    """The sections of a page that is there."""
    if not path.is_file():
        return {}
    pieces = re.split(MARK.format("(.*?)"), path.read_text(encoding="utf-8"))
    return {name: body.strip() for name, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers with three digits, None as a dash."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *([cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plural(count: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    return (
        f"{value:.3g}"
        if value == 0 or 1e-3 <= abs(value) < 1000
        else f"{value:.1e}"
        if abs(value) < 1
        else f"{value:.0f}"
    )


def style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the index-th curve: 7 colours, then the same dashed."""
    dashes = "-" if index < len(COLOURS) else "--"
    return dict(
        color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)],
        linestyle=dashes, markersize=4, linewidth=1.3,
    )  # fmt: skip


def interval(measure: Any) -> str:
    """value [low, high]"""
    return f"{cell(measure.value)} [{cell(measure.low)}, {cell(measure.high)}]"


def mark(axes: Axes, numbers: Sequence[float], **options: Any) -> None:
    """These numbers alone as ticks of a logarithmic axis."""
    axes.set_xticks(numbers, [f"{n:g}" for n in numbers], **options)
    axes.minorticks_off()


def legend_beside(figure: Figure, row: Sequence[Axes]) -> None:
    """One legend to the right of a row of plots that share their curves."""
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")


def save(figure: Figure, folder: pathlib.Path, name: str, caption: str) -> str:
    """Saves the figure as a PNG, and returns the Markdown that shows it."""
    save_figure(folder / name, figure)
    return f"![{caption}]({name})"
