"""A student of every method beside the exact denoiser, where the truth is known: minutes on two cores.

    python -m experiments.run --config=configs/mixture/students.py:mean_flow --workdir=runs/mean_flow
    python -m experiments.run --config=configs/mixture/students.py:shortcut,a1d --workdir=runs/shortcut_a1d

The argument is METHOD or METHOD,LAW, with LAW one of a1d, eight_mode_ring (the default), gaussian_process. A denoiser is
trained first, for the weights that a student begins with; the teacher is the exact denoiser but where it must be a network
(progressive, tract). `exact` holds the student against DDIM with the exact denoiser at as many calls.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.mixture.base import base, exact_stage, train_stage

HALVINGS = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)


class Student(NamedTuple):
    """How a method is run: its stage's own keys, its sampler, further options of the network."""

    options: dict
    solver: str = "ddim"
    stage: dict = {}
    model: dict = {}
    counts: tuple[int, ...] = (1, 2, 4)
    weights: str = "student"


CONSISTENCY = dict(ema=0.995)
ANGLE = dict(level="angle")
JUMPS = dict(cond=("logsnr_to",), level="angle")

STUDENTS = {
    "progressive": Student(
        dict(weight="truncated_snr", ema=0.99), stage=dict(teacher="denoiser", student_steps=HALVINGS, steps=300),
        weights="student@{}",
    ),
    "tract": Student(
        dict(weight="truncated_snr", rounds=(1024, 32, 1), ema=0.99),
        stage=dict(teacher="denoiser", student_steps=(32, 1), steps=1500), counts=(1,), weights="student@{}",
    ),
    "consistency_distillation": Student(
        dict(solver="heun", num_levels=40, **CONSISTENCY), "consistency", dict(teacher="oracle")
    ),
    "consistency_training": Student(dict(s1=40, **CONSISTENCY), "consistency"),
    "improved_consistency": Student(dict(s1=80, **CONSISTENCY), "consistency"),
    "easy_consistency": Student(dict(**CONSISTENCY), "consistency"),
    "multistep_consistency": Student(
        dict(weight="v", segments=2, solver="euler", **CONSISTENCY), stage=dict(teacher="oracle"), counts=(2,)
    ),
    "continuous_distillation": Student(
        dict(warmup=1000, **CONSISTENCY), "consistency", dict(teacher="oracle"), ANGLE
    ),
    "continuous_training": Student(dict(warmup=1000, **CONSISTENCY), "consistency", model=ANGLE),
    "consistency_trajectory": Student(
        dict(law="uniform_time", weight="truncated_snr", ema=0.995), "flow_map", dict(teacher="oracle"), JUMPS
    ),
    "shortcut": Student(dict(law="uniform_time", weight="velocity", ema=0.995), "flow_map", {}, JUMPS),
    "mean_flow": Student(dict(law="uniform_time", ema=0.995), "flow_map", dict(teacher="oracle"), JUMPS),
    "reflow": Student(dict(law="uniform_time", weight="v", ema=0.995), stage=dict(teacher="oracle")),
}  # fmt: skip


def get_config(argument: str = "progressive") -> ConfigDict:
    method, _, law = argument.partition(",")
    if method not in STUDENTS:
        raise ValueError(f"unknown student {method!r}, expected one of {', '.join(STUDENTS)}")
    student = STUDENTS[method]
    config = base(law or "eight_mode_ring", **student.model)
    first = dict(law="uniform_time", weight="v", ema=0.995)
    stage = dict(steps=4000, init="denoiser", options=student.options) | student.stage
    config.stages = ConfigDict(
        dict(
            denoiser=train_stage("denoising", 3000, options=first),
            student=train_stage(method, stage.pop("steps"), **stage),
            exact=exact_stage(student.solver, student.weights, student.counts),
        )
    )
    return config
