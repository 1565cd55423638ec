"""Claims on samplers: how many steps which of them needs."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import grids, sampling, schedules, solvers
from experiments.ablations import claims_digits, convergence, page, post, variance
from experiments.ablations.claims import Claim, Found, Statement
from experiments.ablations.claims_schedules import relative
from experiments.ablations.numbers import Number, exact, of, over_seeds, ratio
from experiments.evaluation import QUALITY

VP = schedules.vp_linear()
SPREAD = 0.5
MATCHES = 1.1
"""How many times the other's error still counts as matching it."""


# DDIM against DDPM ----------------------------------------------------------------------------------------------


def spread_error(build: Callable[..., solvers.Table], steps: int) -> float:
    """The relative error of the standard deviation on N(0, .25), steps uniform in time, exactly."""
    grid = grids.uniform_time(VP, steps)

    def law(level):
        return float(VP.alpha(level) ** 2 * SPREAD**2 + VP.sigma(level) ** 2)

    table = build(VP, grid)
    found = variance.variance(table, lambda l: float(VP.alpha(l)) * SPREAD**2 / law(l), law(grid[0]))
    return abs(math.sqrt(found / law(grid[-1])) - 1)


def law_error(build: Callable[..., solvers.Table], steps: int, samples: int, batches: int = 4) -> Number:
    """The Wasserstein-1 distance to a1d, mean over batches of draws."""
    found = []
    for seed in range(batches):
        x = np.random.default_rng(seed).standard_normal(samples)
        grid = grids.uniform_time(post.VP, steps)
        table = build(post.VP, grid)
        drawn = sampling.sample(post.DATA.denoiser(post.VP), table, jnp.asarray(x)[:, None], jax.random.key(seed))
        found.append([post.law(np.asarray(drawn)[:, 0]).wasserstein] * 3)
    return over_seeds(found)


def ddim_ddpm(samples: int = 20_000, steps: Sequence[int] = (10, 20, 50, 100, 200, 500, 1000)) -> Found:
    gauss = {
        name: {n: spread_error(build, n) for n in steps}
        for name, build in (("DDIM", solvers.ddim), ("DDPM", solvers.ddpm))
    }
    over = exact(gauss["DDIM"][50] / gauss["DDPM"][1000])
    mixture = ratio(law_error(solvers.ddim, 50, samples), law_error(solvers.ddpm, 1000, samples))
    figure, (axes,) = page.axes(1, 6.6, 3.8)
    for i, (name, errors) in enumerate(gauss.items()):
        axes.plot(list(errors), list(errors.values()), **page.style(i), label=name)
    axes.axhline(gauss["DDPM"][1000], color="0.5", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="relative error of the spread, N(0, .25)")
    axes.legend(frameon=False)
    return Found(
        [
            Statement("N(0, .25): error of the standard deviation, DDIM 50 over DDPM 1000", over, MATCHES),
            Statement("a1d: distance to the law, DDIM 50 over DDPM 1000", mixture, MATCHES),
        ],
        figure,
    )


def ddim_ddpm_digits(clips: int = claims_digits.CLIPS) -> Found:
    measures = {
        name: claims_digits.measured("ddim", n, eta, clips)
        for name, n, eta in (("DDIM, 50", 50, 0.0), ("DDPM, 1000", 1000, 1.0))
    }
    few, many = (of(found[QUALITY]) for found in measures.values())
    said = f"Fréchet distance of {clips} clips, DDIM 50 over DDPM 1000"
    return Found([Statement(said, ratio(few, many), MATCHES)])


# DPM-Solver-2 ---------------------------------------------------------------------------------------------------


def as_posted(problem: convergence.Problem, grid: np.ndarray) -> np.ndarray:
    """DPM-Solver-2 by the post's formula, whose correction is a quarter of the right one."""
    x = np.asarray(problem.x)

    def eps(x, level):
        return (x - float(VP.alpha(level)) * np.asarray(problem.denoise(jnp.asarray(x), level))) / float(
            VP.sigma(level)
        )

    for here, there in zip(grid[:-1], grid[1:], strict=True):
        middle, h = (here + there) / 2, (there - here) / 2
        alpha, sigma = ([float(f(level)) for level in (here, middle, there)] for f in (VP.alpha, VP.sigma))
        first = eps(x, here)
        second = eps(alpha[1] / alpha[0] * x - sigma[1] * np.expm1(h / 2) * first, middle)
        x = alpha[2] / alpha[0] * x - sigma[2] * np.expm1(h) * first
        x = x - sigma[2] / (2 * h) * (np.expm1(h) - h) * (second - first)
    return x


def errors(problem: convergence.Problem, build: Callable[..., solvers.Table], steps: int) -> np.ndarray:
    grid = grids.uniform_logsnr(VP, steps, problem.start, convergence.END)
    return np.asarray(sampling.sample(problem.denoise, build(VP, grid), jnp.asarray(problem.x))) - problem.truth


def second_order(schedule, grid) -> solvers.Table:
    return solvers.dpm_solver(schedule, grid, 2)


def dpm_solver_2(noises: int = 256, clips: int = claims_digits.CLIPS) -> Found:
    statements, figure, row = [], *page.axes(3, 13.0, 3.8)
    for axes, (name, make) in zip(row, convergence.PROBLEMS.items(), strict=True):
        problem = make(noises)
        reference = errors(problem, solvers.ddim, 50)

        for steps in (15, 20):
            said = f"{name}: error of DPM-Solver-2 with {steps} steps ({2 * steps} calls), over DDIM's with 50"
            statements.append(
                Statement(said, relative(problem.summary, errors(problem, second_order, steps), reference), MATCHES)
            )
        said = f"{name}: the same with 20 calls (10 steps)"
        statements.append(
            Statement(said, relative(problem.summary, errors(problem, second_order, 10), reference), MATCHES)
        )
        if name == "a1d":
            posted = as_posted(problem, grids.uniform_logsnr(VP, 20, problem.start, convergence.END)) - problem.truth
            statements.append(
                Statement(
                    "a1d: the same with 20 steps by the formula that the post prints",
                    relative(problem.summary, posted, reference),
                    MATCHES,
                )
            )
        curves = {
            "DDIM": (solvers.ddim, (10, 15, 20, 30, 50, 100)),
            "DPM-Solver-2": (second_order, (5, 8, 10, 15, 20, 50)),
        }
        for i, (title, (build, counts)) in enumerate(curves.items()):
            cost = 1 if title == "DDIM" else 2
            sizes = [problem.summary(errors(problem, build, n)) for n in counts]
            axes.plot([cost * n for n in counts], sizes, **page.style(i), label=title)
        axes.axhline(problem.summary(reference), color="0.5", linestyle=":", linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel="calls", title=name)
    row[0].set_ylabel("error")
    row[0].legend(frameon=False)
    if clips:
        slow = of(claims_digits.measured("ddim", 50, clips=clips)[QUALITY])
        fast = of(claims_digits.measured("dpm_solver", 10, clips=clips)[QUALITY])
        said = f"moving digits: Fréchet distance of {clips} clips, DPM-Solver-2 with 10 steps (19 calls), over DDIM's with 50"
        statements.append(Statement(said, ratio(fast, slow), MATCHES))
    return Found(statements, figure)


# Orders ---------------------------------------------------------------------------------------------------------

ORDERS = {
    1: solvers.ddim,
    2: lambda schedule, grid: solvers.dpmpp(schedule, grid, 2),
    3: lambda schedule, grid: solvers.dpmpp(schedule, grid, 3),
}
TOLERANCES = (0.1, 0.01, 0.001)


def needed(found: dict[int, float], tolerance: float) -> float:
    """Steps at which the error passes the tolerance for the last time, between the measured ones by powers."""
    steps, sizes = np.array(list(found)), np.array(list(found.values()))
    above = np.flatnonzero(sizes > tolerance)
    if len(above) == 0:
        return float(steps[0])
    last = above[-1]
    if last + 1 == len(steps):
        raise ValueError(f"{steps[-1]} steps leave an error of {sizes[-1]:.3g}, above {tolerance}")
    power = np.log(sizes[last] / sizes[last + 1]) / np.log(steps[last + 1] / steps[last])
    return float(steps[last] * (sizes[last] / tolerance) ** (1 / power))


def order() -> Found:
    steps = (5, 8, 12, 18, 27, 40, 60, 90, 135, 200)
    problem = convergence.PROBLEMS["a1d"](64)
    found = {p: {n: problem.summary(errors(problem, build, n)) for n in steps} for p, build in ORDERS.items()}
    for n in (400, 800, 1600, 3200, 6400):
        found[1][n] = problem.summary(errors(problem, ORDERS[1], n))
    counts = {p: {tolerance: needed(sizes, tolerance) for tolerance in TOLERANCES} for p, sizes in found.items()}
    statements = [
        Statement(
            f"steps of order {p} over those of order {p + 1}, for an error of {tolerance:g} on a1d",
            exact(counts[p][tolerance] / counts[p + 1][tolerance]),
            3.0,
            1.5,
        )
        for p in (1, 2)
        for tolerance in TOLERANCES
    ]
    figure, (axes,) = page.axes(1, 6.6, 3.8)
    for i, (p, sizes) in enumerate(found.items()):
        axes.plot(list(sizes), list(sizes.values()), **page.style(i), label=f"order {p}")
    for tolerance in TOLERANCES:
        axes.axhline(tolerance, color="0.5", linestyle=":", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="steps (of one call each)", ylabel="RMSE on a1d")
    axes.legend(frameon=False)
    return Found(statements, figure)


CLAIMS = (
    Claim(
        "ddim_ddpm",
        "DDIM with 50 steps matches DDPM with 1000, the denoiser being exact",
        f"""Steps uniform in time, VP linear, DDPM with the lower variance. N(0, .25), where the law of the samples has a
        closed form; a1d, four times 20,000 samples. Matching is at most {MATCHES} times the error.""",
        ddim_ddpm,
    ),
    Claim(
        "ddim_ddpm_digits",
        "DDIM with 50 steps matches DDPM with 1000, by a network",
        f"""{claims_digits.CLIPS} clips of moving digits by the shipped teacher, without guidance, against
        {claims_digits.REFERENCE} held-out ones; the thousand steps take minutes. Matching is at most {MATCHES} times the
        distance.""",
        ddim_ddpm_digits,
    ),
    Claim(
        "dpm_solver_2",
        "DPM-Solver-2 with 15 to 20 steps matches DDIM with 50",
        f"""Exact denoisers, 256 noises (32 clips of the Gaussian video), steps uniform in log-SNR from s = 157 to .01,
        against the exact flow; {claims_digits.CLIPS} clips of moving digits. Matching is at most {MATCHES} times the
        error.""",
        dpm_solver_2,
    ),
    Claim(
        "order",
        "Each order of the solver halves the number of steps",
        """DDIM and DPM-Solver++ of orders 2 and 3, multistep, so that a step is a call; a1d, 64 noises, steps uniform in
        log-SNR. Halving is a factor between 1.5 and 3.""",
        order,
    ),
)
