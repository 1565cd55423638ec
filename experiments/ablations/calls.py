"""Error over the number of calls of the denoiser: our samplers beside those of other libraries, in one process."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import fitted, grids, oracles, sampling, schedules, solvers
from experiments.ablations import page, peers
from experiments.ablations.convergence import median, rmse

# The chain of DDPM, as the peers have it: s from 157.4 to .01.
VP = schedules.vp_discrete(schedules.ddpm_betas())
START, END = VP.logsnr_start, VP.logsnr_end
CALLS = (5, 6, 8, 10, 15, 20)
NOISES = 1024
FIT = dict(num_noises=512, iterations=150, num_starts=2)
DATA = {"a1d": oracles.a1d(), "b2d": oracles.b2d()}


class Truth:
    """The probability-flow solution from noise z, solved once per interval."""

    def __init__(self, denoise: Callable, z: np.ndarray):
        self.denoise, self.z, self.known = denoise, z, {}

    def __call__(self, start: float, end: float) -> np.ndarray:
        key = round(start, 4), round(end, 4)
        if key not in self.known:
            self.known[key] = oracles.probability_flow(self.denoise, VP.sigma(start) * self.z, VP, start, end)
        return self.known[key]


Run = Callable[[int, Callable, np.ndarray], peers.Run]
"""(calls, denoise, z) -> a run."""
Sampler = Sequence[Run]
"""One sampler on several grids: the best one counts, so that no sampler is judged by a grid that doesn't suit it."""


def _run(build: Callable, end: float = END) -> Run:
    """Our table built by (calls, denoise, shape of one sample), from START to `end`."""

    def run(calls, denoise, z):
        table = build(calls, denoise, z.shape[1:])
        sample = sampling.sample(denoise, table, jnp.asarray(VP.sigma(START) * z))
        return peers.Run(np.asarray(sample), START, end, table.nfe)

    return run


def _on_grids(builder: Callable, *args: Any) -> Sampler:
    makers = (grids.uniform_time, grids.uniform_logsnr, grids.karras)
    return [
        _run(lambda calls, denoise, shape, make=make: builder(VP, make(VP, calls, START, END), *args))
        for make in makers
    ]


def _best(end: float) -> Sampler:
    key = jax.random.key(0)
    return [_run(lambda calls, denoise, shape: solvers.best(VP, denoise, calls, START, end, shape, key), end)]


def _fit(end: float) -> Sampler:
    key, ends = jax.random.key(0), dict(start=START, end=end)
    return [_run(lambda calls, denoise, shape: fitted.fit(denoise, VP, calls, key, shape=shape, **ends, **FIT), end)]


OURS: dict[str, Sampler] = {
    "ddim": _on_grids(solvers.ddim),
    "dpmpp 2M": _on_grids(solvers.dpmpp, 2),
    "unipc 2": _on_grids(solvers.unipc, 2),
    "best, probing": _best(END),
    "best, probing, to s = 0": _best(np.inf),
    "fitted": _fit(END),
}


def _diffusers(name: str, grids: Sequence[str], **options: Any) -> Sampler:
    """On the grid that it has by default, and on those behind its switches."""
    switches = [{}, *({f"use_{grid}": True} for grid in grids)]
    return [
        lambda n, denoise, z, switch=switch: peers.diffusers_run(
            peers.scheduler(name, **switch, **options), n, denoise, z, VP
        )
        for switch in switches
    ]


def _k_diffusion(name: str, steps: Callable[[int], int] = lambda n: n) -> Sampler:
    return [
        lambda n, denoise, z, grid=grid: peers.k_diffusion_run(name, grid, steps(n), denoise, z, VP)
        for grid in ("karras", "exponential")
    ]


_SIGMAS = ("karras_sigmas", "exponential_sigmas", "beta_sigmas")
_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
_TO_ZERO = dict(final_sigmas_type="zero")
THEIRS: dict[str, dict[str, Sampler]] = {
    "diffusers": {
        "DDIM": _diffusers("DDIMScheduler", (), timestep_spacing="trailing", clip_sample=False),
        "DPM++ 2M": _diffusers(_DPM, (*_SIGMAS, "lu_lambdas"), solver_order=2, **_TO_ZERO),
        "DPM++ 3M": _diffusers(_DPM, (*_SIGMAS, "lu_lambdas"), solver_order=3, **_TO_ZERO),
        "UniPC 2": _diffusers(_UNIPC, _SIGMAS, solver_order=2, **_TO_ZERO),
        "UniPC 3": _diffusers(_UNIPC, _SIGMAS, solver_order=3, **_TO_ZERO),
        "DEIS 3": _diffusers("DEISMultistepScheduler", ("karras_sigmas",), solver_order=3),
    },
    "k-diffusion": {
        "euler": _k_diffusion("euler"),
        "heun, calls/2 steps": _k_diffusion("heun", lambda n: n // 2),
        "dpmpp_2m": _k_diffusion("dpmpp_2m"),
        "lms": _k_diffusion("lms"),
    },
}
SHOWN = (
    "Fewstep dpmpp 2M", "Fewstep unipc 2", "Fewstep best, probing", "Fewstep fitted", "diffusers DDIM",
    "diffusers DPM++ 2M", "diffusers UniPC 3", "k-diffusion dpmpp_2m", "k-diffusion lms",
)  # fmt: skip


def samplers() -> dict[str, Sampler]:
    """Ours, and those of the libraries that are there."""
    others = {f"{lib} {name}": runs for lib in peers.versions() for name, runs in THEIRS[lib].items()}
    return {**{f"Fewstep {name}": runs for name, runs in OURS.items()}, **others}


class Errors(NamedTuple):
    """The smallest of each over a sampler's grids; `clean`: it goes to clean data, and not to s = .01."""

    rmse: float
    median: float
    clean: bool


def measure(
    problem: str, chosen: dict[str, Sampler], calls: Sequence[int] = CALLS, noises: int = NOISES
) -> dict[str, dict[int, Errors | None]]:
    """sampler -> calls -> errors against the truth of its own interval; None where it can't be run with so many calls."""
    data = DATA[problem]
    denoise = data.denoiser(VP)
    z = np.random.default_rng(1).standard_normal((noises, *data.mean().shape))
    truth, found = Truth(denoise, z), {}
    for name, runs in chosen.items():
        print(f"  {problem}: {name}", flush=True)
        found[name] = {n: _least([run(n, denoise, z) for run in runs], n, truth) for n in calls}
    return found


def _least(runs: Sequence[peers.Run], calls: int, truth: Truth) -> Errors | None:
    errors = [(run.sample - truth(run.start, run.end), run.end) for run in runs if run.calls == calls]
    if not errors:
        return None
    least = (float(np.nanmin([summary(error) for error, _ in errors])) for summary in (rmse, median))
    return Errors(*least, clean=bool(np.isinf(errors[0][1])))


def draw(found: dict[str, dict[str, dict[int, Errors | None]]], folder: pathlib.Path) -> str:
    figure, row = page.axes(2, 12.0, 4.6)
    for axes, (problem, what) in zip(row, (("a1d", "rmse"), ("b2d", "median")), strict=True):
        for i, name in enumerate(name for name in SHOWN if name in found[problem]):
            points = [(n, getattr(e, what)) for n, e in found[problem][name].items() if e is not None]
            # Ours solid, theirs dotted.
            look = {**page.style(i), "linestyle": "-" if name.startswith("Fewstep") else ":"}
            if points:
                axes.plot(*zip(*points, strict=True), **look, label=name)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="calls of the denoiser",
            title=f"{problem}, {what.replace('rmse', 'RMSE')}",
        )
        page.mark(axes, CALLS)
    row[0].set_ylabel("error")
    page.legend_beside(figure, row)
    return page.save(figure, folder, "samplers_calls.png", "error over the number of calls")


def section(folder: pathlib.Path) -> str:
    found = {problem: measure(problem, samplers()) for problem in DATA}
    tables = []
    for problem, what, label in (("a1d", "rmse", "RMSE"), ("b2d", "median", "median"), ("b2d", "rmse", "RMSE")):
        rows = [
            [name, "s = 0" if next(e for e in results.values() if e).clean else "s = .01"]
            + [None if e is None else getattr(e, what) for e in results.values()]
            for name, results in found[problem].items()
        ]
        tables.append(f"`{problem}`, {label}:\n\n{page.table(['sampler', 'to', *map(str, CALLS)], rows)}")
    beside = ", beside " + " and ".join(peers.versions()) if peers.versions() else ""
    return f"""## Error over calls

This shows what few calls of the denoiser are worth{beside}: the error against the probability flow
from the same {NOISES} noises, VP linear (DDPM's 1000 betas). Runs start at s = 157.4 and end at s = .01, or at clean data
where a library's sampler always goes there: each is held against the truth of its own interval. On `b2d` a few trajectories
end in another mode and rule the RMSE; the median tells the accuracy.

Every cell is a sampler's best grid: of ours uniform time, uniform log-SNR and Karras, of diffusers the default, Karras,
exponential, beta and Lu where there is such a switch (DDIM: trailing), of k-diffusion Karras and exponential. Only *best* and
*fitted* had to choose without seeing the noises that are judged: *best* took 64 of its own, *fitted* (`diffusion.fitted`)
{FIT["num_noises"]}, with {FIT["iterations"]} iterations and {FIT["num_starts"]} starts, below its defaults. A dash: the
sampler can't make that number of calls.

{(chr(10) * 2).join(tables)}

{draw(found, folder)}
"""
