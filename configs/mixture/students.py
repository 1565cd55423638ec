"""A student of every method beside the exact denoiser, where the truth is known: a minute each on two cores.

    python -m experiments.run --config=configs/mixture/students.py:mean_flow --workdir=runs/mean_flow
    python -m experiments.run --config=configs/mixture/students.py:shortcut+reflow,a1d --workdir=runs/two_on_a1d
    python -m experiments.run --config=configs/mixture/students.py:all --workdir=runs/mixture/eight_mode_ring_0

The argument is METHODS or METHODS,LAW: names joined by +, or all; LAW one of a1d, eight_mode_ring (the default),
gaussian_process. A denoiser is trained first, for the weights that students begin with; the teacher is the exact denoiser but
where it must be a network (progressive, tract). `exact` holds the students against DDIM with the exact denoiser at as many
calls. Guidance as an input (guided) has no place here: these laws have no classes.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from configs.mixture.base import SPREADS, base, exact_stage, train_stage

FORWARD_IN_ANGLE = ("continuous_distillation", "continuous_training", "rcm")
"""Methods that are told the data's standard deviation."""
HALVINGS = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


class Student(NamedTuple):
    """How a method is run: its options, its sampler, its stage's own keys, the numbers of calls at which it is judged, what
    its weights are called ({} is the number), another student that must stand before it; its method, if not its own name.
    """

    options: dict
    solver: str = "ddim"
    stage: dict = {}
    counts: tuple[int, ...] = (1, 2, 4)
    weights: str = ""
    after: str = ""
    method: str = ""


TAUGHT = dict(teacher="oracle")
AVERAGE = dict(ema=0.995)

STUDENTS = {
    "progressive": Student(
        dict(weight="truncated_snr", ema=0.99), stage=dict(teacher="denoiser", student_steps=HALVINGS, steps=300),
        weights="@{}",
    ),
    "tract": Student(
        dict(weight="truncated_snr", rounds=(1024, 32, 4, 2, 1), ema=0.99),
        stage=dict(teacher="denoiser", student_steps=(32, 4, 2, 1), steps=750), weights="@{}",
    ),
    # With its own weights as the target it sinks to the mean of the law, which is nearly a solution; an average holds it.
    "consistency_distillation": Student(
        dict(solver="heun", num_levels=40, target="ema", ema=0.95), "consistency", TAUGHT
    ),
    "consistency_training": Student(dict(s1=40, **AVERAGE), "consistency"),
    "improved_consistency": Student(dict(s1=80, **AVERAGE), "consistency"),
    # Both with the paper's closest pairs left out: in 3,000 updates those pull some seeds to the mean too.
    "easy_consistency": Student(dict(stages=5, **AVERAGE), "consistency"),
    "truncated_consistency": Student(
        dict(limit=0.97, **AVERAGE), "consistency", dict(previous="easy_consistency", init="easy_consistency"),
        after="easy_consistency",
    ),
    "latent_consistency": Student(dict(guidance_range=None, ema=0.99), "consistency", TAUGHT),
    "multistep_consistency": Student(
        dict(weight="v", segments=4, solver="euler", **AVERAGE), stage=TAUGHT, counts=(4,)
    ),
    "continuous_distillation": Student(dict(warmup=1000, **AVERAGE), "consistency", TAUGHT),
    "continuous_training": Student(dict(warmup=1000, **AVERAGE), "consistency"),
    "consistency_trajectory": Student(
        dict(law="uniform_time", weight="truncated_snr", **AVERAGE), "flow_map", TAUGHT
    ),
    "shortcut": Student(dict(law="uniform_time", weight="velocity", **AVERAGE), "flow_map"),
    "mean_flow": Student(dict(law="uniform_time", **AVERAGE), "flow_map", TAUGHT),
    "reflow": Student(dict(law="uniform_time", weight="v", **AVERAGE), stage=TAUGHT),
}  # fmt: skip


def get_config(argument: str = "progressive") -> ConfigDict:
    return assemble(argument, STUDENTS, (1, 2, 4))


def assemble(argument: str, students: Mapping[str, Student], oracle: Sequence[int], **judged) -> ConfigDict:
    """A config of METHODS or METHODS,LAW out of `students`, beside the exact denoiser at `oracle` calls; judged: further keys
    of the `exact` stage.
    """
    names, _, law = argument.partition(",")
    law = law or "eight_mode_ring"
    config = base(law)
    chosen = list(students) if names == "all" else names.split("+")
    for name in chosen:
        if name not in students:
            raise ValueError(f"unknown student {name!r}: expected all or some of {', '.join(students)}, joined by +")
    first = dict(law="uniform_time", weight="v", ema=0.995)
    stages = dict(denoiser=train_stage("denoising", 3000, options=first))
    samplers = {f"oracle_{n}": dict(weights="oracle", steps=n) for n in oracle}
    for name in chosen:
        student = students[name]
        for stage in (student.after, name):
            if stage and stage not in stages:
                method = students[stage].method or stage
                options = dict(students[stage].options)
                if method in FORWARD_IN_ANGLE:
                    # Its own default of 1 is half of a1d's spread, and there it sank to the mean.
                    options["sigma_data"] = SPREADS[law]
                block = dict(steps=3000, init="denoiser", options=options) | students[stage].stage
                stages[stage] = train_stage(method, **block)
        for n in student.counts:
            samplers[f"{name}_{n}"] = dict(weights=name + student.weights.format(n), steps=n, solver=student.solver)
    config.stages = ConfigDict(dict(**stages, exact=exact_stage(samplers, **judged)))
    return config
