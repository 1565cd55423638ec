"""The shipped teacher of moving digits under some sampler, measured: what claims need where a network with faults is wanted."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from diffusion import grids, solvers
from experiments import config as configs
from experiments import data, drawing, evaluation, metrics, weights
from experiments.metrics import Measure

TEACHER = "pretrained:moving_digits/teacher"
CLIPS, REFERENCE, BATCH = 64, 512, 64
DATA = {"data": {"kind": "moving_digits", "size": 16, "frames": 8, "digits": 1}}


@functools.cache
def network() -> tuple[Any, ...]:
    """(params, network) of the teacher."""
    return drawing.load_network(weights.find(TEACHER, pathlib.Path()))[:2]


@functools.cache
def held_out(clips: int) -> tuple[Any, ...]:
    """(labels, the classifier, real clips described, as many others that play a sampler without faults)"""
    classify = evaluation.load_classifier(weights.find(evaluation.CLASSIFIERS[16], pathlib.Path()))
    found = data.Batches(configs.source(DATA, "test"), clips + REFERENCE, seed=0).batch_at(0)
    real = metrics.describe(found["video"][clips:], classify)
    other = metrics.describe(found["video"][:clips], classify, found["label"][:clips])
    return found["label"][:clips], classify, real, other


@functools.cache
def measured(solver: str, steps: int, eta: float = 0.0, clips: int = CLIPS) -> dict[str, Measure]:
    """Metrics of clips of a sampler with steps uniform in time, all from the same noise and classes, without guidance."""
    params, of = network()
    grid = grids.uniform_time(of.schedule, steps)
    build = {
        "ddim": lambda: solvers.ddim(of.schedule, grid, eta),
        "dpm_solver": lambda: solvers.dpm_solver(of.schedule, grid, 2),
    }
    labels, classify, real, other = held_out(clips)
    noise = np.random.default_rng(0).standard_normal((clips, 8, 16, 16, 1)).astype(np.float32)
    with jax.enable_x64(False):
        made, _ = drawing.draw(
            of, params, build[solver](), labels, noise, jax.random.key(1), batch_size=min(BATCH, clips), timed=False
        )
        return metrics.evaluate(
            made, real, labels=labels, classify=classify, floor_reference=other, floor_labels=labels, bootstrap=100
        )
