"""TRACT (Berthelot et al. 2023, arXiv 2303.04248): the steps fall by any factor a round, 1024 -> 32 -> 1, not by two.

Within a segment of the student's grid it is multistep consistency: one DDIM step of the teacher, then the student's own
average carries the point to the segment's clean end, and the target is the x0 whose one DDIM step leads there. At the last
small step of a segment that is the teacher's answer alone.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import Array

from distill import pairs, regression
from distill.consistency import TARGETS, euler
from distill.consistency import objective as consistency_objective
from distill.inputs import Network
from distill.jumps import uniform_clock
from distill.method import Method


def objective(
    network: Network,
    *,
    rounds: Sequence[int],
    weight: Callable[[Array], Array],
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Callable[..., regression.Problem]:
    """hyper["steps"] is the student's number of steps, a traced number among rounds[1:]; its teacher has the one before.

    hyper["guidance"]: the teacher's g; frozen["teacher"]: its weights. The grid is uniform in the schedule's time.
    """
    teachers, students = (jnp.asarray(part, jnp.float32) for part in (rounds[:-1], rounds[1:]))

    def intervals(step, hyper):
        return jnp.sum(jnp.where(students == hyper["steps"], teachers / students, 0.0))

    clock = uniform_clock(network.schedule)
    return consistency_objective(
        network,
        pairs=pairs.neighbours(clock, intervals, lambda step, hyper: hyper["steps"]),
        solver=euler,
        weight=lambda here, there: weight(here),
        target=TARGETS["ema"],
        compare_denoised=True,
        label_dropout=label_dropout,
        per_frame=per_frame,
    )


def method(
    network: Network,
    *,
    optimiser: optax.GradientTransformation,
    weight: Callable[[Array], Array],
    rounds: Sequence[int] = (1024, 32, 1),
    ema: float = 0.5,
    label_dropout: float = 0.0,
    per_frame: bool = False,
) -> Method:
    """TRACT as a `Method`: begin with hyper["steps"] = rounds[1]; `next` makes the student the teacher.

    The paper's weight is truncated SNR. ema: the decay of the average that is both the self-teacher and the result; the
    paper keeps a second, slower one for the result and the next teacher. Guidance acts in the first round only: the next
    teacher has it built in.
    Teacher and counts are arguments of the compiled phase, so all rounds share one program.
    """
    rounds = tuple(rounds)
    if len(rounds) < 2 or rounds[-1] < 1 or any(a <= b or a % b for a, b in zip(rounds[:-1], rounds[1:], strict=True)):
        raise ValueError(f"rounds: expected falling numbers of steps, each a multiple of the next, got {list(rounds)}")
    target = objective(network, rounds=rounds, weight=weight, label_dropout=label_dropout, per_frame=per_frame)
    one = regression.method(network, target, optimiser, ema=ema)

    def following(state: regression.RegressionState, frozen, hyper):
        steps = round(float(hyper["steps"]))
        if steps not in rounds[1:-1]:
            raise ValueError(f"steps: no round follows {steps}, expected one of {list(rounds[1:-1])}")
        state, teacher = regression.succeed(one.init, state)
        later = {**hyper, "steps": float(rounds[rounds.index(steps) + 1]), "guidance": 1.0}
        return state, {**frozen, "teacher": teacher}, later

    return one._replace(next=following)
