"""Real clips with one thing wrong: which metric reacts to which of the known corruptions, and which to none."""

import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from experiments.ablations import page
from experiments.metrics import corruptions
from experiments.metrics.corruptions import MUST_NOT_REACT, MUST_REACT, REACTS, Reading

CLIPS = 192
MOST = 30.0
"""Half intervals at which the colours of the figure end."""


def kept(found: Mapping[str, Reading], name: str) -> tuple[list[str], list[str]]:
    """(metrics that are to react to a corruption and don't, those that are not to and do)."""
    blind = [m for m in MUST_REACT[name] if abs(found[m].score) < REACTS]
    nervous = [m for m in MUST_NOT_REACT[name] if abs(found[m].score) >= REACTS]
    return blind, nervous


def rows(readings: Mapping[str, Mapping[str, Reading]]) -> list[list[str]]:
    """A corruption, what reacts to it from the strongest on, and how many of the expectations are met."""
    lines = []
    for name, found in readings.items():
        blind, nervous = kept(found, name)
        react = sorted((m for m, r in found.items() if abs(r.score) >= REACTS), key=lambda m: -abs(found[m].score))
        must, not_to = len(MUST_REACT[name]), len(MUST_NOT_REACT[name])
        met = [f"{must - len(blind)} of {must}" + (f" (not {', '.join(blind)})" if blind else "")]
        met += [f"{not_to - len(nervous)} of {not_to}" + (f" (but {', '.join(nervous)})" if nervous else "")]
        lines.append([name, ", ".join(react) or "none", *met])
    return lines


def finding(readings: Mapping[str, Mapping[str, Reading]]) -> str:
    """How many faults the usual distance sees, and the one that needs no network."""
    seen = {
        m: sum(abs(found[m].score) >= REACTS for name, found in readings.items() if name != "reversed")
        for m in ("frechet_clip", "warping_error")
    }
    faults = len(readings) - 1
    return (
        f"The Fréchet distance of clips sees {seen['frechet_clip']} of the {faults} faults, `warping_error`, which knows the"
        f" law of motion, {seen['warping_error']}."
    )


def picture(readings: Mapping[str, Mapping[str, Reading]], folder: pathlib.Path) -> str:
    names = list(next(iter(readings.values())))
    scores = np.array([[found[m].score for found in readings.values()] for m in names])
    figure, (axes,) = page.axes(1, 7.6, 8.4)
    strength = np.sign(scores) * np.log1p(np.abs(scores)) / np.log1p(MOST)
    drawn = axes.imshow(strength, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (i, k), score in np.ndenumerate(scores):
        if abs(score) >= REACTS:
            colour = "white" if abs(strength[i, k]) > 0.65 else "black"
            text = f"{score:+.0f}" if abs(score) < 1000 else f"{score:+.0e}".replace("e+0", "e")
            axes.text(k, i, text, ha="center", va="center", fontsize=6, color=colour)
    axes.set_xticks(range(len(readings)), list(readings), rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.grid(False)
    bar = figure.colorbar(drawn, shrink=0.5, ticks=np.array([-1, -0.5, 0, 0.5, 1]))
    ends = [-MOST, -np.expm1(0.5 * np.log1p(MOST)), 0, np.expm1(0.5 * np.log1p(MOST)), MOST]
    bar.ax.set_yticklabels([f"{e:+.0f}" if e else "0" for e in ends], fontsize=8)
    bar.set_label("change, in half intervals of the real clips'", fontsize=8)
    return page.save(figure, folder, "video_corruptions.png", "how far each metric moves under each corruption")


def section(folder: pathlib.Path) -> str:
    with jax.enable_x64(False):
        _, readings = corruptions.shipped(CLIPS)
    header = ["corruption", "reacts, the strongest first", "to react, and do", "not to react, and don't"]
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * 4, *rows(readings))]
    return f"""## Known corruptions: which metric reacts to what

This shows which fault each metric sees: real clips with one thing wrong, made from the ground truth so that nothing else is
(experiments/metrics/corruptions.py; 64x64 digits, 20 frames, {CLIPS} clips against {2 * CLIPS}). A metric reacts where it moves
by at least {REACTS:g} half intervals of what chance gives to the same clips without the fault. What is to react, and what
is not, is written down in MUST_REACT and MUST_NOT_REACT of the same file; the values are in [docs/metrics.md](../metrics.md).
{finding(readings)}

{chr(10).join(lines)}

{picture(readings, folder)}
"""
