"""What fewer steps do to motion and flicker, and what noise on the way does: the shipped teacher of moving digits."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.ablations import page, shipped
from experiments.metrics import Measure

STEPS = (1, 2, 4, 6, 8, 16, 32)
SOLVERS = {"DDIM": dict(solver="ddim")}
SHOWN = {
    "flicker": "flicker", "warping_error": "warping error", "law_residual": "off the law, px", "change": "change",
    "speed_distance": "speed, px/frame", "identity_kept": "identity kept", "frechet_clip": "Fréchet distance",
}  # fmt: skip
NOISY = {
    "DDIM": dict(solver="ddim"),
    "DDIM, eta 1 (ancestral)": dict(solver=dict(kind="ddim", eta=1.0)),
    "2M": dict(solver="dpmpp"),
    "SDE 2M": dict(solver=dict(kind="dpmpp", sde=True)),
}
NOISY_STEPS = (8, 16)
Found = Mapping[tuple[str, int], Mapping[str, Measure]]


def measure(samplers: Mapping[str, dict], steps: Sequence[int]) -> dict[tuple[str, int], dict[str, Measure]]:
    return {
        (name, n): shipped.measured(shipped.drawn(shipped.TEACHER, n, **block), list(SHOWN))
        for name, block in samplers.items() for n in steps
    }  # fmt: skip


def table(found: Found) -> str:
    rows = [[name, n, *shipped.cells(measures)] for (name, n), measures in found.items()]
    floors = [measure.floor for measure in next(iter(found.values())).values()]
    return page.table(["sampler", "steps", *SHOWN.values()], [*rows, ["real clips", "", *floors]])


def curves(found: Found, folder: pathlib.Path, name: str, caption: str) -> str:
    shown = ("flicker", "law_residual", "change", "frechet_clip")
    figure, row = page.axes(len(shown), 12.5, 3.6)
    samplers = list(dict.fromkeys(sampler for sampler, _ in found))
    for axes, metric in zip(row, shown, strict=True):
        for i, sampler in enumerate(samplers):
            points = [(n, m[metric]) for (s, n), m in found.items() if s == sampler]
            values = [m.value for _, m in points]
            bars = [[max(m.value - m.low, 0) for _, m in points], [max(m.high - m.value, 0) for _, m in points]]
            axes.errorbar([n for n, _ in points], values, yerr=bars, **page.style(i), elinewidth=0.7, label=sampler)
        axes.axhline(next(iter(found.values()))[metric].floor, color="0.4", linestyle="--", linewidth=1, label="real")
        axes.set(xscale="log", xlabel="steps", title=SHOWN[metric])
        page.mark(axes, sorted({n for _, n in found}), fontsize=7)
        if metric in ("law_residual", "frechet_clip"):
            axes.set_yscale("log")
    page.legend_beside(figure, row)
    return page.save(figure, folder, name, caption)


CLIFF = 1.5
"""A step count is over the cliff where halving the steps makes a metric this many times worse."""


def cliffs(found: Found) -> str:
    """For every sampler, the fewest steps with which each fault stands within CLIFF of that with the most."""
    said = []
    for sampler in dict.fromkeys(name for name, _ in found):
        parts = []
        for metric in ("flicker", "law_residual", "frechet_clip"):
            values = {n: m[metric].value for (s, n), m in found.items() if s == sampler}
            near = [
                n for n in sorted(values) if all(values[k] <= CLIFF * values[max(values)] for k in values if k >= n)
            ]
            parts.append(f"{SHOWN[metric]} {near[0]}")
        said.append(f"{sampler}: {', '.join(parts)}")
    return "; ".join(said)


@shipped.in_float32
def section(folder: pathlib.Path) -> str:
    found = measure(SOLVERS, STEPS)
    drawn = curves(found, folder, "video_steps.png", "flicker, motion and distance against steps")
    return f"""## Flicker and motion against steps

This shows whether time suffers before the rest does as steps become few: the shipped teacher of moving digits, no guidance,
{shipped.CLIPS} clips from the same noise against {shipped.REFERENCE} real ones, 95 % intervals over the clips. The fewest steps
from which on a metric stays within {CLIFF:g} times its value at {STEPS[-1]}: {cliffs(found)}. There is no
cliff below 8: all fall off smoothly, from 6 steps down. One step is the blurred mean of all clips, which flickers and leaves
the law less than any sharp sample: both metrics only count beside a distance.

{table(found)}

{drawn}
"""


@shipped.in_float32
def noisy(folder: pathlib.Path) -> str:
    found = measure(NOISY, NOISY_STEPS)
    drawn = curves(found, folder, "video_stochastic.png", "deterministic and stochastic samplers")
    return f"""## Deterministic against stochastic sampling

This shows what fresh noise on the way is worth at few steps: the same teacher, noise and clips, with DDIM's eta 0 or 1 and
DPM-Solver++(2M) with and without noise.
Noise is worth more than steps: at 8 calls it keeps more identities and comes nearer to the data than 16 calls without. Its
price is motion: clips change less, and their speeds are twice as far off.

{table(found)}

{drawn}
"""
