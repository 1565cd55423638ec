"""Singlestep samplers: within a step the anchor waits, the points move on, each with a call of its own.

Every point of an explicit scheme is a mix of the step's start x, the denoised values D_0, D_1, ... found so far and fresh
noise. So a scheme is written with vectors of weights over (x, D_0, ..., D_{c-1}, last point), which add and scale as the
points themselves do: the code below a paper's formula is that formula.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from diffusion.schedules import Schedule
from diffusion.solvers.ddim import transition
from diffusion.solvers.steps import EXTREME, leaps
from diffusion.solvers.table import SLOTS, Row, Table, assemble

Levels = Float[np.ndarray, "steps ..."]


class Stage(NamedTuple):
    """A later call of a step: its level, its point as weights over the basis, and the deviation of its fresh noise."""

    level: Any
    point: Any
    noise: Any = 0.0


class Scheme(NamedTuple):
    """A step with 1 + len(stages) calls. end: the step's end over the basis; noise: drawn for it afterwards."""

    stages: list[Stage]
    end: Any
    noise: Any = 0.0


class Basis(NamedTuple):
    """The vectors over which points are written: x, the denoised values of the calls, and the last call's point."""

    x: Any
    denoised: list[Any]
    last: Any


def basis(calls: int, like: Levels) -> Basis:
    """The basis of a step with that many calls, for levels shaped as `like`: arrays [calls + 2, *like.shape]."""
    size = (calls + 2,) + (1,) * np.ndim(like)
    x, *denoised, last = np.eye(calls + 2).reshape(calls + 2, *size)
    return Basis(x, denoised, last)


def eps(schedule: Schedule, level: Levels, point: Any, denoised: Any) -> Any:
    """(x - alpha D) / sigma for points written over a basis."""
    return (point - schedule.alpha(level) * denoised) / schedule.sigma(level)


def renoise(schedule: Schedule, before: Levels, here: Levels, s_noise: float = 1.0) -> tuple[Any, Any]:
    """(scale, deviation) of x_here = scale x_before + deviation z, the forward process from `before` up to noisier `here`.

    deviation = s_noise sqrt(sigma_here^2 - scale^2 sigma_before^2) = s_noise sigma_here sqrt(1 - exp(l_here - l_before)).
    """
    still = here >= before
    low, high = np.where(still, 0.0, here), np.where(still, 1.0, before)
    scale = schedule.alpha(low) / schedule.alpha(high)
    deviation = s_noise * schedule.sigma(low) * np.sqrt(-np.expm1(low - high))
    return np.where(still, 1.0, scale), np.where(still, 0.0, deviation)


def singlestep(
    schedule: Schedule,
    before: Levels,
    here: Levels,
    there: Levels,
    scheme: Callable[[Levels, Levels], Scheme],
    *,
    s_noise: float = 1.0,
    careful: bool = False,
) -> Table:
    """The table of steps that each go from `before` up to noisier `here` (equal: no noise), then down to `there`.

    scheme: (here, there) -> `Scheme`, for steps between finite levels. Steps from alpha = 0 or to sigma = 0, and `leaps` where
    it is `careful`, are one DDIM step; where a level waits nothing happens. A step has one call if no level in it is regular,
    and otherwise those of the scheme: levels that need fewer stay where they are meanwhile.
    """
    moves = there > here
    regular = moves & (np.abs(here) < EXTREME) & (np.abs(there) < EXTREME) & ~(careful & leaps(here, there))
    plan = scheme(np.where(regular, here, 0.0), np.where(regular, there, 1.0))
    calls = 1 + len(plan.stages)
    units = basis(calls, here)
    x, denoised, _ = transition(schedule, here, there)
    end = np.where(regular, plan.end, x * units.x + denoised * units.denoised[0])
    stages = [
        Stage(
            np.where(regular, s.level, here),
            np.where(regular, s.point, units.x),
            np.where(regular, s.noise, 0.0),
        )
        for s in plan.stages
    ]
    scale, noise = renoise(schedule, before, here, s_noise)
    after = np.where(regular, plan.noise, 0.0)
    after = np.concatenate([np.zeros_like(after[:1]), after])
    rows = []
    for i in range(len(here)):
        # Noise left over from the step before is drawn here; with the noise of `before` to `here` it is one deviation.
        arrival = np.hypot(scale[i] * after[i], noise[i])
        if not regular[i].any():
            rows.append(Row(here[i], anchor=scale[i], noise=arrival, correct_point=x[i], correct_history=[denoised[i]]))
            continue
        rows.append(Row(here[i], anchor=scale[i], noise=arrival))
        for k, stage in enumerate(stages):
            point = stage.point[:, i]
            # A point is over x and D_0..D_k only; the newest denoised value stands first in the history.
            row = Row(stage.level[i], anchor=point[0], history=point[1 : k + 2][::-1], noise=stage.noise[i])
            rows.append(row._replace(correct_anchor=1.0, correct_point=0.0))
        finish = end[:, i]
        rows[-1] = rows[-1]._replace(
            correct_anchor=finish[0] if stages else 0.0,
            correct_point=finish[-1] if stages else finish[0] + finish[-1],
            correct_history=finish[1:-1][::-1],
        )
    return assemble(rows, Row(there[-1], anchor=1.0, noise=after[-1]), slots=max(SLOTS, calls))
