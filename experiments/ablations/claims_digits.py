"""The shipped teacher of moving digits under some sampler, measured: what claims need where a network with faults is wanted."""

import functools

import jax
import numpy as np

from diffusion import grids, solvers
from experiments import drawing, metrics
from experiments.ablations import shipped
from experiments.metrics import Measure

CLIPS, REFERENCE, BATCH = 64, 512, 64


@functools.cache
def measured(solver: str, steps: int, eta: float = 0.0, clips: int = CLIPS) -> dict[str, Measure]:
    """Metrics of clips of a sampler with steps uniform in time, all from the same noise and classes, without guidance."""
    params, of, _ = shipped.network(shipped.TEACHER)
    grid = grids.uniform_time(of.schedule, steps)
    build = {
        "ddim": lambda: solvers.ddim(of.schedule, grid, eta),
        "dpm_solver": lambda: solvers.dpm_solver(of.schedule, grid, 2),
    }
    classify, labels, floor, reference = shipped.judge(clips, REFERENCE)
    noise = np.random.default_rng(0).standard_normal((clips, 8, 16, 16, 1)).astype(np.float32)
    with jax.enable_x64(False):
        made, _ = drawing.draw(
            of, params, build[solver](), labels, noise, jax.random.key(1), batch_size=min(BATCH, clips), timed=False
        )
        return metrics.evaluate(made, reference, labels=labels, classify=classify, floor_reference=floor, bootstrap=100)
