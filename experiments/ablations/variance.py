"""The order of stochastic solvers: the error of their variance on Gaussian data, exact, without drawing a sample."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from diffusion import grids, schedules, solvers
from experiments.ablations import page
from experiments.ablations.convergence import END, START, Result, slope

VP = schedules.vp_linear()
STEPS = (40, 80, 160, 320)
SPREADS = (0.5, 2.0)

SOLVERS: dict[str, tuple[Callable[..., solvers.Table], int]] = {
    "ddim, eta 0.5": (lambda s, g: solvers.ddim(s, g, 0.5), 1),
    "ddim, eta 1": (lambda s, g: solvers.ddim(s, g, 1.0), 1),
    "ddpm, lower variance": (solvers.ddpm, 1),
    "ddpm, upper variance": (lambda s, g: solvers.ddpm(s, g, "upper"), 1),
    "euler, churn 5": (lambda s, g: solvers.euler(s, g, 5.0), 1),
    "heun, churn 5": (lambda s, g: solvers.heun(s, g, 5.0), 2),
    "dpmpp SDE 1": (lambda s, g: solvers.dpmpp(s, g, 1, sde=True), 1),
    "dpmpp SDE 2M": (lambda s, g: solvers.dpmpp(s, g, 2, sde=True), 2),
    "dpmpp SDE 3M": (lambda s, g: solvers.dpmpp(s, g, 3, sde=True), 2),
    "dpmpp SDE 2S": (lambda s, g: solvers.dpmpp(s, g, 2, singlestep=True, sde=True), 2),
    "sa_solver": (solvers.sa_solver, 2),
    "er_sde 1": (lambda s, g: solvers.er_sde(s, g, 1), 1),
    "er_sde 3": (lambda s, g: solvers.er_sde(s, g, 3), 2),
}


def variance(table: solvers.Table, gain: Callable[[float], float], first: float) -> float:
    """The variance of a table's samples for the denoiser gain(logsnr) x, x being of variance `first` at the start.

    All points are then linear in the noises, each kept as the vector of its weights over them: the start, then one noise per
    row, then the last step's.
    """
    size = table.nfe + 2
    table = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), table)
    anchor, history = np.sqrt(first) * np.eye(size)[0], [np.zeros(size)] * table.slots

    def predict(weights, noise):
        mixed = weights.anchor * anchor + sum(w * h for w, h in zip(weights.history, history, strict=True))
        return mixed + weights.noise * np.eye(size)[noise]

    for i in range(table.nfe):
        move, keep, fix = (
            jax.tree.map(lambda leaf, i=i: leaf[i], part) for part in (table.predict, table.remember, table.correct)
        )
        point = predict(move, i + 1)
        history = [keep.point * point + keep.denoised * gain(table.logsnr[i]) * point, *history[:-1]]
        mixed = sum(w * h for w, h in zip(fix.history, history, strict=True))
        anchor = fix.anchor * anchor + fix.point * point + mixed
    return float(np.sum(predict(table.final, size - 1) ** 2))


def measure(
    chosen: Sequence[str] = tuple(SOLVERS), spreads: Sequence[float] = SPREADS, steps: Sequence[int] = STEPS
) -> dict[str, dict[float, Result]]:
    """solver -> standard deviation of the data -> the relative errors of the variance and their slope."""
    found: dict[str, dict[float, Result]] = {name: {} for name in chosen}
    for spread in spreads:

        def exact(l, spread=spread):
            return float(VP.alpha(l) ** 2 * spread**2 + VP.sigma(l) ** 2)

        def gain(l, spread=spread, exact=exact):
            return float(VP.alpha(l)) * spread**2 / exact(l)

        for name in chosen:
            errors, calls = [], 0.0
            for n in steps:
                table = SOLVERS[name][0](VP, grids.uniform_logsnr(VP, n, START, END))
                errors.append(abs(variance(table, gain, exact(START)) / exact(END) - 1))
                calls = table.nfe / n
            found[name][spread] = Result(slope(errors, steps), errors, calls)
    return found


def draw(found: dict[str, dict[float, Result]], folder: pathlib.Path) -> str:
    figure, row = page.axes(len(SPREADS), 10.5, 4.2)
    for axes, spread in zip(row, SPREADS, strict=True):
        for i, (name, results) in enumerate(found.items()):
            axes.plot(STEPS, results[spread].errors, **page.style(i), label=name)
        axes.set(xscale="log", yscale="log", xlabel="steps", title=f"data N(0, {spread:g}²)")
        page.mark(axes, STEPS)
    row[0].set_ylabel("relative error of the variance")
    page.legend_beside(figure, row)
    return page.save(figure, folder, "samplers_variance.png", "error of the variance of stochastic solvers")


def section(folder: pathlib.Path) -> str:
    found = measure()
    header = ["solver", "order", "calls per step"]
    header += [f"std {s:g} {what}" for s in SPREADS for what in ("slope", f"error, {STEPS[0]}", f"error, {STEPS[-1]}")]
    lines: list[list[Any]] = []
    for name, results in found.items():
        cells = [v for r in results.values() for v in (f"{r.slope:.2f}", r.errors[0], r.errors[-1])]
        lines.append([name, SOLVERS[name][1], f"{results[SPREADS[0]].calls:.2g}", *cells])
    return f"""## Orders of stochastic solvers

This shows how fast the law of stochastic samplers becomes right: the relative error of the variance of the samples on
Gaussian data, read off the coefficients, so that no sampling error hides it. Steps are uniform in log-SNR from s = 157.4
to .01, VP linear; the slope is fitted through {", ".join(map(str, STEPS))} steps. DDIM with eta = 1, DDPM with the lower
variance and the first-order SDE form of DPM-Solver++ are one sampler. The slope of er_sde 3 is above its order because its
error changes sign: beyond 320 steps it falls more slowly.

{page.table(header, lines)}

{draw(found, folder)}
"""
