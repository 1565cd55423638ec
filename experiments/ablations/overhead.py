"""What a sampler costs beside its model: CPU time per step with a model that does next to nothing."""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion import grids, sampling, schedules, solvers
from experiments.ablations import page, peers

VP = schedules.vp_discrete(schedules.ddpm_betas())
FEW, MANY = 20, 220
SHAPE = (1, 64)
REPEATS = 15
TOGETHER = 20

Timed = Callable[[], float]
"""A run: the CPU seconds that it took."""


class Cost(NamedTuple):
    """CPU seconds per step: of one more step, and of a run of FEW steps with everything that surrounds it."""

    marginal: float
    whole: float


def _half(x, logsnr):
    return 0.5 * x


def ours(builder: Callable) -> Callable[[int], Timed]:
    """A table in the compiled scan. Many runs are timed together: the clock of CPU time ticks slowly beside one."""
    x = jnp.ones(SHAPE, jnp.float32)

    def prepare(steps):
        table = builder(VP, grids.karras(VP, steps, VP.logsnr_start, VP.logsnr_end))

        def timed():
            began = time.process_time()
            for _ in range(TOGETHER):
                sampling.sample(_half, table, x).block_until_ready()
            return (time.process_time() - began) / TOGETHER

        return timed

    return prepare


def theirs(name: str, **options: Any) -> Callable[[int], Timed]:
    """A scheduler of diffusers, in the loop of its pipelines. Setting the timesteps isn't counted."""
    import torch

    x = torch.ones(SHAPE)

    def prepare(steps):
        made = peers.scheduler(name, **options)

        def timed():
            made.set_timesteps(steps)
            began, sample = time.process_time(), x
            for timestep in made.timesteps:
                sample = made.step(0.5 * sample, timestep, sample).prev_sample
            return time.process_time() - began

        return timed

    return prepare


PEER = {
    "Fewstep ddim": "diffusers DDIM",
    "Fewstep dpmpp 2M": "diffusers DPM++ 2M",
    "Fewstep unipc 2": "diffusers UniPC 2",
}


def samplers() -> dict[str, Callable[[int], Timed]]:
    made = (ours(solvers.ddim), ours(solvers.dpmpp), ours(lambda s, g: solvers.unipc(s, g, 2)))
    found = dict(zip(PEER, made, strict=True))
    if "diffusers" in peers.versions():
        options = dict(solver_order=2, use_karras_sigmas=True, final_sigmas_type="zero")
        found["diffusers DDIM"] = theirs("DDIMScheduler", clip_sample=False)
        found["diffusers DPM++ 2M"] = theirs("DPMSolverMultistepScheduler", **options)
        found["diffusers UniPC 2"] = theirs("UniPCMultistepScheduler", **options)
    return found


def measure(repeats: int = REPEATS) -> dict[str, Cost]:
    """All samplers in turn, `repeats` rounds; medians."""
    with jax.enable_x64(False):  # float32, as a network would run
        runs = {name: (prepare(FEW), prepare(MANY)) for name, prepare in samplers().items()}
        for pair in runs.values():
            for run in pair:
                run()  # compiles
        rounds: dict[str, list[Cost]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, (few_steps, many_steps) in runs.items():
                few, many = few_steps(), many_steps()
                rounds[name].append(Cost((many - few) / (MANY - FEW), few / FEW))
    return {name: Cost(*(statistics.median(c[i] for c in costs) for i in range(2))) for name, costs in rounds.items()}


def section(folder: pathlib.Path) -> str:
    del folder
    found = measure()
    rows = [[name, cost.marginal * 1e6, cost.whole * 1e6] for name, cost in found.items()]
    text = page.table(["sampler", "one more step, µs", f"a step of {FEW}, with dispatch, µs"], rows)
    if all(name in found for name in PEER.values()):
        ratios = [
            [f"{name} over {other}", *(f"1/{b / a:.0f}" for a, b in zip(found[name], found[other], strict=True))]
            for name, other in PEER.items()
        ]
        text += "\n\n" + page.table(["ratio", "one more step", f"a step of {FEW}"], ratios)
    else:
        text += f"\n\ndiffusers is missing: {peers.INSTALL}."
    shape = "x".join(map(str, SHAPE))
    return f"""## A sampler's step beside diffusers

This shows what a step costs beside the model: CPU time with a model that halves its input of {shape} float32 numbers, all
samplers in turn in one process, medians of {REPEATS} rounds. *One more step* is the difference between {MANY} and {FEW} steps
over {MANY - FEW}; *with dispatch* is a whole run of {FEW} steps over {FEW}. Our step is a row of a table in a compiled scan,
diffusers' a call of `scheduler.step` from Python. Setting up (tables, timesteps, compiling) is left out for all. Nobody's loop
is visible beside a network of seconds; beside a small one, or a student of few steps, it is. Tests hold our samples to those of
diffusers' last two on the same grid (tests/float64/test_solvers_peers.py).

{text}
"""
