"""A student of every method on moving digits, from the shipped teacher, at one budget: about 20,000 forwards at batch 16.

    python -m experiments.run --config=configs/moving_digits/students.py:mean_flow --workdir=runs/digits_mean_flow

The argument is METHOD. Guided teachers have g = 1.5 and count twice; a step costs `forwards` network forwards, of which 3 are
the student's own update, and runs for BUDGET / forwards steps. `evaluate` compares with the teacher at 50 steps.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.moving_digits.base import base

TEACHER, GUIDANCE, BUDGET = "pretrained:moving_digits/teacher", 1.5, 20_000


class Student(NamedTuple):
    """A step's cost in forwards, the method's options, its sampler, its stage's own keys, the network's further inputs."""

    forwards: float
    options: dict
    solver: str = "consistency"
    stage: dict = {}
    model: dict = {}
    counts: tuple[int, ...] = (4, 2, 1)
    weights: str = "student"


TAUGHT = dict(teacher=TEACHER, guidance=GUIDANCE)
JUMPS = dict(cond=("logsnr_to",))
COMMON = dict(ema=0.99, label_dropout=0.1)

STUDENTS = {
    # Guidance acts in the first of the four rounds only.
    "progressive": Student(
        5.5, dict(weight="v", **COMMON), "ddim", dict(student_steps=(8, 4, 2, 1), **TAUGHT), weights="student@{}"
    ),
    "tract": Student(
        6, dict(weight="v", rounds=(64, 8, 4), **COMMON), "ddim", dict(student_steps=(8, 4), **TAUGHT),
        counts=(4,), weights="student@{}",
    ),
    "consistency_distillation": Student(6, dict(solver="euler", num_levels=32, **COMMON), stage=TAUGHT),
    "easy_consistency": Student(6, dict(solver="euler", **COMMON), stage=TAUGHT),
    "multistep_consistency": Student(
        6, dict(weight="v", segments=4, first=32, last=128, **COMMON), "ddim", TAUGHT, counts=(4,)
    ),
    "consistency_trajectory": Student(
        7.5, dict(law="uniform_time", weight="v", **COMMON), "flow_map", TAUGHT, JUMPS
    ),
    "shortcut": Student(5.4, dict(law="uniform_time", weight="velocity", **COMMON), "flow_map", TAUGHT, JUMPS),
    "mean_flow": Student(6.2, dict(law="uniform_time", share=0.5, **COMMON), "flow_map", TAUGHT, JUMPS),
}  # fmt: skip


def get_config(method: str = "consistency_trajectory") -> ConfigDict:
    if method not in STUDENTS:
        raise ValueError(f"unknown student {method!r}, expected one of {', '.join(STUDENTS)}")
    student = STUDENTS[method]
    config = base()
    config.model = ConfigDict({**config.model, **student.model})
    rounds = len(student.stage.get("student_steps", (1,)))
    stage = dict(
        kind="train", method=method, steps=round(BUDGET / student.forwards / rounds), batch_size=16,
        optimiser=dict(learning_rate=5e-4, decay="cosine", warmup=50, clip=1.0), options=student.options,
        log_every=50, checkpoint_every=250,
    ) | student.stage  # fmt: skip
    samplers = {"teacher_50": dict(weights=TEACHER, steps=50, guidance=GUIDANCE)}
    for n in student.counts:
        samplers[f"student_{n}"] = dict(weights=student.weights.format(n), steps=n, solver=student.solver)
    config.stages = ConfigDict(
        dict(student=stage, evaluate=dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers))
    )
    return config
