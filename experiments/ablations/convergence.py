"""The measured order of every deterministic solver: a log-log fit of its error over the number of steps."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import grids, oracles, sampling, schedules, solvers
from diffusion.solvers.best import two_parameter_coordinate
from experiments.ablations import page

VP = schedules.vp_linear()
START, END = -2 * np.log(157.4), -2 * np.log(0.01)
STEPS = (20, 40, 80, 160)
SAMPLES = 64


class Problem(NamedTuple):
    """A denoiser, noise at the level `start`, the probability-flow solution at END, and how errors are summed up."""

    denoise: Callable
    x: np.ndarray
    truth: np.ndarray
    start: float
    summary: Callable[[np.ndarray], float]
    statistics: solvers.Statistics | None = None


def rmse(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


def median(error: np.ndarray) -> float:
    """Of the samples' own root mean square errors: on narrow modes a few trajectories change mode and rule the RMSE."""
    return float(np.median(np.sqrt(np.mean(error**2, axis=tuple(range(1, error.ndim))))))


def mixture_problem(mixture: oracles.Mixture, summary: Callable, samples: int, start: float = START) -> Problem:
    denoise = mixture.denoiser(VP)
    x = float(VP.sigma(start)) * np.random.default_rng(0).standard_normal((samples, *mixture.mean().shape))
    return Problem(denoise, x, oracles.probability_flow(denoise, x, VP, start, END), start, summary)


def video_problem(samples: int, start: float = START) -> Problem:
    """Eight frames of 2 x 2 pixels, smooth in time and space."""
    process = oracles.gaussian_process(oracles.rbf(8, 2.0), 0.5 * np.eye(4) + 0.5, 0.3)
    x = float(VP.sigma(start)) * np.random.default_rng(0).standard_normal((samples, 8, 2, 2, 1))
    return Problem(process.denoiser(VP), x, process.flow_map(VP)(x, start, END), start, rmse)


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "a1d": lambda samples, start=START: mixture_problem(oracles.a1d(), rmse, samples, start),
    "b2d": lambda samples, start=START: mixture_problem(oracles.b2d(), median, samples, start),
    "video": lambda samples, start=START: video_problem(max(1, samples // 8), start),
}


class Solver(NamedTuple):
    """A builder (schedule, grid) -> table, the order that it is said to have, and its grid: (steps, start) -> levels."""

    build: Callable[..., solvers.Table]
    order: int
    grid: Callable[[int, float], np.ndarray] = lambda n, start: grids.uniform_logsnr(VP, n, start, END)
    start: float = START


def _with(builder: Callable, *args: Any, **options: Any) -> Callable[..., solvers.Table]:
    return lambda schedule, grid: builder(schedule, grid, *args, **options)


def warped(order: int, nodes: int) -> Callable[..., solvers.Table]:
    return _with(solvers.warped_adams, two_parameter_coordinate(1.0, 1.25), order, nodes=nodes)


SOLVERS: dict[str, Solver] = {
    "ddim": Solver(solvers.ddim, 1),
    "dpm_solver 1": Solver(_with(solvers.dpm_solver, 1), 1),
    "dpm_solver 2": Solver(_with(solvers.dpm_solver, 2), 2),
    "dpm_solver 3": Solver(_with(solvers.dpm_solver, 3), 3),
    "dpm_solver 2M": Solver(_with(solvers.dpm_solver, 2, multistep=True), 2),
    "dpm_solver 3M": Solver(_with(solvers.dpm_solver, 3, multistep=True), 3),
    "dpmpp 1": Solver(_with(solvers.dpmpp, 1), 1),
    "dpmpp 2M": Solver(_with(solvers.dpmpp, 2), 2),
    "dpmpp 3M": Solver(_with(solvers.dpmpp, 3), 3),
    "dpmpp 2S": Solver(_with(solvers.dpmpp, 2, singlestep=True), 2),
    "dpmpp 3S": Solver(_with(solvers.dpmpp, 3, singlestep=True), 3),
    "heun": Solver(solvers.heun, 2),
    "exponential_adams 2": Solver(_with(solvers.exponential_adams, 2), 2),
    "exponential_adams 3": Solver(_with(solvers.exponential_adams, 3), 3),
    "exponential_adams 4": Solver(_with(solvers.exponential_adams, 4), 4),
    "exponential_adams 3, noise form": Solver(_with(solvers.exponential_adams, 3, noise_form=True), 3),
    "unipc 2": Solver(_with(solvers.unipc, 2), 3),
    "unipc 2, noise form": Solver(_with(solvers.unipc, 2, noise_form=True), 3),
    "unipc 3": Solver(_with(solvers.unipc, 3), 4),
    "unipc 3, noise form": Solver(_with(solvers.unipc, 3, noise_form=True), 4),
    "deis tAB 2": Solver(_with(solvers.deis, 2), 2),
    "deis tAB 3": Solver(_with(solvers.deis, 3), 3),
    "deis rhoAB 3": Solver(_with(solvers.deis, 3, variant="rho"), 3),
    "adams 2": Solver(_with(solvers.adams, 2), 2),
    "adams 4": Solver(_with(solvers.adams, 4), 4),
    "dpm_solver_v3 2": Solver(lambda s, g, stats: solvers.dpm_solver_v3(s, g, stats, 2, corrector=False), 2),
    "dpm_solver_v3 3": Solver(lambda s, g, stats: solvers.dpm_solver_v3(s, g, stats, 3, corrector=False), 3),
    "dpm_solver_v3 3, corrector": Solver(lambda s, g, stats: solvers.dpm_solver_v3(s, g, stats, 3), 4),
    "warped_adams 2": Solver(warped(2, 0), 2),
    "warped_adams 3": Solver(warped(3, 0), 3),
    "warped_adams 3, corrector": Solver(warped(3, 4), 4),
}

# 160 equal steps of s from 157 are all longer than the data is wide, hence the start at 8.
_IN_S = dict(grid=lambda n, start: grids.karras(VP, n, start, END, rho=1.0), start=-2 * np.log(8.0))
_IN_TIME = dict(grid=lambda n, start: grids.uniform_time(VP, n, start, END))
OWN_GRIDS: dict[str, Solver] = {
    **{f"ipndm {p}, equal steps in s": Solver(_with(solvers.ipndm, p), p, **_IN_S) for p in (1, 2, 3, 4)},
    "pndm, equal steps in time": Solver(solvers.pndm, 2, **_IN_TIME),
    "pndm without Runge-Kutta, equal steps in time": Solver(_with(solvers.pndm, runge_kutta=False), 2, **_IN_TIME),
}

SHOWN = (
    "ddim", "heun", "dpm_solver 2", "dpmpp 2M", "dpmpp 3M", "deis tAB 3", "dpm_solver 3",
    "unipc 2", "unipc 3", "exponential_adams 4", "dpm_solver_v3 3, corrector", "warped_adams 3, corrector",
)  # fmt: skip


class Result(NamedTuple):
    """The fitted slope and the errors of one solver on one problem, one error per number of steps; its calls per step."""

    slope: float
    errors: list[float]
    calls: float


def slope(errors: Sequence[float], steps: Sequence[int]) -> float:
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


def converge(solver: Solver, problem: Problem, steps: Sequence[int] = STEPS) -> Result:
    errors, calls = [], 0.0
    # DPM-Solver-v3 alone needs to know something of the denoiser.
    extra = () if problem.statistics is None else (problem.statistics,)
    for n in steps:
        table = solver.build(VP, solver.grid(n, problem.start), *extra)
        sample = sampling.sample(problem.denoise, table, jnp.asarray(problem.x))
        errors.append(problem.summary(np.asarray(sample) - problem.truth))
        calls = table.nfe / n
    return Result(slope(errors, steps), errors, calls)


def with_statistics(problem: Problem) -> Problem:
    """The problem with the statistics of its denoiser, from 256 noises other than those that are judged.

    Few levels and many probes: noise in the statistics makes them rough, and a step over rough ones is of low order.
    """
    key, others = jax.random.split(jax.random.key(0))
    x = float(VP.sigma(problem.start)) * jax.random.normal(
        others, (256, *problem.x.shape[1:]), jnp.asarray(problem.x).dtype
    )
    found = solvers.ems_statistics(problem.denoise, VP, x, key, start=problem.start, end=END, levels=32, probes=8)
    return problem._replace(statistics=found)


def measure(
    chosen: dict[str, Solver],
    problems: Sequence[str] = tuple(PROBLEMS),
    steps: Sequence[int] = STEPS,
    samples: int = SAMPLES,
) -> dict[str, dict[str, Result]]:
    """solver -> problem -> Result."""
    found: dict[str, dict[str, Result]] = {name: {} for name in chosen}
    for key in problems:
        made = {start: PROBLEMS[key](samples, start) for start in {solver.start for solver in chosen.values()}}
        for name, solver in chosen.items():
            problem = made[solver.start]
            found[name][key] = converge(solver, with_statistics(problem) if "_v3" in name else problem, steps)
    return found


def draw(found: dict[str, dict[str, Result]], folder: pathlib.Path) -> str:
    figure, row = page.axes(3, 13.0, 4.4)
    for axes, (key, label) in zip(
        row, {"a1d": "a1d", "b2d": "b2d, median", "video": "Gaussian video"}.items(), strict=True
    ):
        for i, name in enumerate(SHOWN):
            axes.plot(STEPS, found[name][key].errors, **page.style(i), label=name)
        axes.set(xscale="log", yscale="log", xlabel="steps", title=label)
        page.mark(axes, STEPS)
    row[0].set_ylabel("error")
    page.legend_beside(figure, row)
    return page.save(
        figure, folder, "samplers_convergence.png", "error over the number of steps of deterministic solvers"
    )


def rows(found: dict[str, dict[str, Result]], chosen: dict[str, Solver]) -> list[list[Any]]:
    lines = []
    for name, results in found.items():
        first = next(iter(results.values()))
        cells = [v for r in results.values() for v in (f"{r.slope:.2f}", r.errors[0], r.errors[-1])]
        lines.append([name, chosen[name].order, f"{first.calls:.2g}", *cells])
    return lines


def section(folder: pathlib.Path) -> str:
    found, own = measure(SOLVERS), measure(OWN_GRIDS)
    labels = ("a1d", "b2d", "video")
    header = ["solver", "order", "calls per step"]
    header += [f"{label} {what}" for label in labels for what in ("slope", f"error, {STEPS[0]}", f"error, {STEPS[-1]}")]
    return f"""## Orders of convergence

This shows the order of every deterministic solver as measured: the slope of log error over log steps, fitted through
{", ".join(map(str, STEPS))} steps, uniform in log-SNR from s = 157.4 to .01, VP linear. The error is the RMSE on `a1d` and on
the Gaussian-process video (8 frames of 2 x 2, its truth in closed form), and on `b2d` the median of the samples' own errors.
*order* is that of the method; with a corrector, it is one more than its predictor's. Multistep solvers begin, and below 50
steps may end, with lower orders, so a fit may lie on either side. DPM-Solver-v3 has statistics of each denoiser, estimated at
32 levels by 8 probes (by default 128 levels and one probe: noisier, and on the video the third order then shows
as 1.8 to 2.4). The figure is over steps; a step of some solvers costs two or three calls.

{page.table(header, rows(found, SOLVERS))}

Solvers that have their order on grids of their own kind only; iPNDM starts at s = 8. Such steps are all large beside the
narrow modes of `b2d` and of the video, so that there the orders don't show yet:

{page.table(header, rows(own, OWN_GRIDS))}

{draw(found, folder)}
"""
