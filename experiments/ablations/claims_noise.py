"""Claims on noise in the sampler: diversity, correction of errors, few steps, coherence over time."""

import math
from collections.abc import Callable

import numpy as np

from diffusion import grids, schedules, solvers
from experiments.ablations import claims_digits, page, variance
from experiments.ablations.claims import Claim, Found, Statement
from experiments.ablations.gaussian import COSINE, FRAMES, KERNELS
from experiments.ablations.numbers import difference, exact, of, ratio
from experiments.evaluation import QUALITY

VP = schedules.vp_linear()
SPREAD = 0.5
START, END = -2 * np.log(157.4), -2 * np.log(0.01)
WORSE = 1.1
"""Times as large that counts as worse."""


def law(level: float) -> float:
    return float(VP.alpha(level) ** 2 * SPREAD**2 + VP.sigma(level) ** 2)


def gain(level: float) -> float:
    """The exact denoiser of N(0, .25) is gain(log-SNR) x."""
    return float(VP.alpha(level)) * SPREAD**2 / law(level)


def spread(eta: float, steps: int, of_level: Callable[[float], float] = gain, first: float | None = None) -> float:
    """The standard deviation of the samples over the law's, exactly. of_level: a denoiser that may be wrong; first: the
    variance at the start, 0 for one start for all.
    """
    table = solvers.ddim(VP, grids.uniform_logsnr(VP, steps, START, END), eta)
    found = variance.variance(table, of_level, law(START) if first is None else first)
    return math.sqrt(found / law(END))


def pair(steps: int, metric: str):
    """(without noise, with all of DDPM's) of a metric on moving digits."""
    return tuple(of(claims_digits.measured("ddim", steps, eta)[metric]) for eta in (0.0, 1.0))


def diversity() -> Found:
    steps = (5, 10, 20, 50, 100)
    curves = {eta: [spread(eta, n) for n in steps] for eta in (0.0, 0.5, 1.0)}
    statements = [
        Statement(
            "N(0, .25): standard deviation of samples from one starting noise, 50 steps, over the data's",
            exact(spread(1.0, 50, first=0.0)),
            least=0.1,
        ),
        *(
            Statement(
                f"N(0, .25): standard deviation over all samples, {n} steps, with noise over without",
                exact(spread(1.0, n) / spread(0.0, n)),
                least=1.0,
            )
            for n in (10, 50)
        ),
    ]
    for n in (50, 8):
        without, with_noise = pair(n, "diversity")
        statements.append(
            Statement(
                f"moving digits: diversity, {n} steps, with noise minus without",
                difference(with_noise, without),
                least=0.0,
            )
        )
    figure, (axes,) = page.axes(1, 6.6, 3.6)
    for i, (eta, curve) in enumerate(curves.items()):
        axes.plot(steps, curve, **page.style(i), label=f"eta = {eta:g}")
    axes.axhline(1.0, color="0.5", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="steps", ylabel="standard deviation over the data's")
    page.mark(axes, steps)
    axes.legend(frameon=False)
    return Found(statements, figure)


def wrong(share: float, where: Callable[[float], bool]) -> Callable[[float], float]:
    """The exact denoiser with an estimate that is too large by `share` at some levels."""
    return lambda level: gain(level) * (1 + share * where(level))


def fault(eta: float, steps: int, where: Callable[[float], bool], share: float = 0.1) -> float:
    """What a denoiser's fault adds to the spread of the samples: the error of discretisation, which may hide it, is in both."""
    return abs(spread(eta, steps, wrong(share, where)) / spread(eta, steps) - 1)


def correction() -> Found:
    places = {"at noisy levels": lambda level: level < 0, "at all levels": lambda level: True}
    counts = (10, 20, 50, 100, 200, 400)
    figure, row = page.axes(2, 10.0, 3.6)
    statements = []
    for axes, (place, where) in zip(row, places.items(), strict=True):
        found = {eta: {n: fault(eta, n, where) for n in counts} for eta in (0.0, 1.0)}
        for n in (10, 200):
            said = f"N(0, .25), estimates 10 % too large {place}, {n} steps: its part of the spread, with noise over without"
            statements.append(Statement(said, exact(found[1.0][n] / found[0.0][n]), 1.0))
        for i, (eta, errors) in enumerate(found.items()):
            axes.plot(counts, list(errors.values()), **page.style(i), label=f"eta = {eta:g}")
        axes.set(xscale="log", yscale="log", xlabel="steps", title=f"10 % too large {place}")
    row[0].set_ylabel("what the fault adds to the spread")
    row[0].legend(frameon=False)
    left = math.sqrt(law(END) / law(0.0))
    noisy = float(VP.alpha(0.0) / VP.alpha(END)) * law(END) / law(0.0)
    statements.insert(
        0, Statement("what is left of an error made at log-SNR 0, with noise over without", exact(noisy / left), 1.0)
    )
    for n in (50, 8):
        without, with_noise = pair(n, QUALITY)
        statements.append(
            Statement(
                f"moving digits: Fréchet distance, {n} steps, with noise over without", ratio(with_noise, without), 1.0
            )
        )
    return Found(statements, figure)


def few_steps() -> Found:
    statements = []
    counts = (1, 2, 3, 4, 6, 8, 16)
    found = {eta: [abs(spread(eta, n) - 1) for n in counts] for eta in (0.0, 1.0)}
    for n in (1, 2, 4):
        with_noise, without = (found[eta][counts.index(n)] for eta in (1.0, 0.0))
        statements.append(
            Statement(
                f"N(0, .25): error of the spread, {page.plural(n, 'step')}, with noise over without",
                exact(with_noise / without),
                least=WORSE,
            )
        )
    for n in (1, 2, 4):
        without, with_noise = pair(n, QUALITY)
        statements.append(
            Statement(
                f"moving digits: Fréchet distance, {page.plural(n, 'step')}, with noise over without",
                ratio(with_noise, without),
                least=WORSE,
            )
        )
    figure, (axes,) = page.axes(1, 6.6, 3.6)
    digits = {eta: [claims_digits.measured("ddim", n, eta)[QUALITY] for n in (1, 2, 4, 8, 50)] for eta in (0.0, 1.0)}
    for i, (eta, measures) in enumerate(digits.items()):
        middle = [m.value for m in measures]
        bars = [[m.value - m.low for m in measures], [m.high - m.value for m in measures]]
        axes.errorbar((1, 2, 4, 8, 50), middle, bars, **page.style(i), capsize=2, label=f"eta = {eta:g}")
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="Fréchet distance, moving digits")
    page.mark(axes, (1, 2, 4, 8, 50))
    axes.legend(frameon=False)
    return Found(statements, figure)


# Coherence over time --------------------------------------------------------------------------------------------


def made(kernel: np.ndarray, eta: float, steps: int) -> np.ndarray:
    """The covariance over frames of what DDIM makes of Gaussian video, exactly: in the kernel's eigenvectors all is scalar."""
    grid = grids.uniform_time(COSINE, steps, None, 10.0)
    table = solvers.ddim(COSINE, grid, eta)
    values, vectors = np.linalg.eigh(kernel)

    def scalar(value):
        def at(level):
            return float(COSINE.alpha(level)) ** 2 * value + float(COSINE.sigma(level)) ** 2

        return variance.variance(table, lambda level: float(COSINE.alpha(level)) * value / at(level), at(grid[0]))

    return vectors * [scalar(max(value, 0.0)) for value in values] @ vectors.T / float(COSINE.alpha(grid[-1])) ** 2


def change(covariance: np.ndarray) -> float:
    """E|x_{f+1} - x_f|^2, over the variance of a frame: what a viewer sees as flicker in video of this law."""
    steps = np.diff(np.eye(FRAMES), axis=0)
    return float(np.trace(steps @ covariance @ steps.T) / np.trace(covariance))


def temporal() -> Found:
    counts = (4, 8, 16, 50, 100)
    figure, row = page.axes(2, 10.0, 3.6)
    statements = []
    for axes, (name, kernel) in zip(row, KERNELS.items(), strict=True):
        found = {eta: {n: change(made(kernel, eta, n)) / change(kernel) for n in counts} for eta in (0.0, 1.0)}
        for n in (8, 50):
            said = f"{name}: change from frame to frame, {n} steps, with noise over without"
            statements.append(Statement(said, exact(found[1.0][n] / found[0.0][n]), least=WORSE))
        for i, (eta, values) in enumerate(found.items()):
            axes.plot(counts, list(values.values()), **page.style(i), label=f"eta = {eta:g}")
        axes.axhline(1.0, color="0.5", linestyle=":", linewidth=1)
        axes.set(xscale="log", xlabel="steps", title=name)
        page.mark(axes, counts)
    row[0].set_ylabel("change from frame to frame, over the truth")
    row[0].legend(frameon=False)
    for n in (8, 50):
        without, with_noise = pair(n, "flicker")
        statements.append(
            Statement(
                f"moving digits: flicker, {n} steps, with noise over without", ratio(with_noise, without), least=WORSE
            )
        )
        without, with_noise = pair(n, "identity_kept")
        statements.append(
            Statement(
                f"moving digits: identity kept, {n} steps, without noise minus with",
                difference(without, with_noise),
                least=0.02,
            )
        )
    return Found(statements, figure)


NETWORK = f"{claims_digits.CLIPS} clips of moving digits by the shipped teacher, without guidance"

CLAIMS = (
    Claim(
        "diversity",
        "Stochastic samplers are more diverse",
        f"""DDIM with eta = 1 (DDPM's lower variance) against eta = 0. N(0, .25), where the law of the samples is exact;
        {NETWORK}; diversity is the mean distance of two clips over that of real ones.""",
        diversity,
    ),
    Claim(
        "correction",
        "Noise in the sampler washes out errors of an imperfect denoiser",
        f"""N(0, .25) with a denoiser whose estimate is 10 % too large, at noisy levels (log-SNR below 0) or at all;
        {NETWORK}: a network that makes mistakes of its own. eta = 1 against eta = 0.""",
        correction,
    ),
    Claim(
        "few_noise",
        "At 1 to 4 steps stochastic samplers do worse",
        f"N(0, .25), exactly; {NETWORK}. eta = 1 against eta = 0; worse is {WORSE} times the error.",
        few_steps,
    ),
    Claim(
        "temporal",
        "Noise in the sampler breaks coherence over time",
        f"""Gaussian videos, whose change from frame to frame (over the variance of a frame) is read off the coefficients;
        {NETWORK}. eta = 1 against eta = 0; broken is {WORSE} times the change or the flicker, or 2 % fewer clips that
        keep their identity.""",
        temporal,
    ),
)
