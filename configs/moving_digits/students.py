"""A student of every method on moving digits, from the shipped teacher, at one budget counted in network forwards.

    python -m experiments.run --config=configs/moving_digits/students.py:mean_flow --workdir=runs/digits/mean_flow
    python -m experiments.run --config=configs/moving_digits/students.py:tract,20000 --workdir=runs/digits_long/tract

The argument is METHOD or METHOD,BUDGET, the budget in forwards at batch 16 (6,000: some 6 minutes on two idle cores). A
guided teacher (g = 1.5) counts twice, an update of the student itself 3 times. `evaluate` compares with the teacher at 50
steps.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.moving_digits.base import base

TEACHER, GUIDANCE, BUDGET = "pretrained:moving_digits/teacher", 1.5, 6_000
# Log-SNR of s = sigma/alpha = 80 and .002, between which the papers of consistency models train and sample. The cosine goes on
# to -20 and 20: of 31 steps of Karras' grid between those, 21 lie beyond -6, where no teacher's step says anything, and a law
# of levels that is made for 80 never comes to -20, where its student would then have to answer.
NOISY, CLEAN = -8.764, 12.43


class Stage(NamedTuple):
    """A stage of a student: its method, what a step costs in forwards, options, further keys, its part of the budget, its
    highest learning rate.
    """

    method: str
    forwards: float
    options: dict
    block: dict = {}
    share: float = 1.0
    learning_rate: float = 5e-4


class Student(NamedTuple):
    """Stages by name, the last of which makes the student; its sampler, as a block of `evaluate`; inputs that its network
    has beside the teacher's; the numbers of calls at which it is judged; what its weights are called ({} is the number).
    """

    stages: dict[str, Stage]
    sampler: dict = dict(solver="consistency", grid=dict(kind="uniform_time", start=NOISY))
    inputs: tuple[str, ...] = ()
    counts: tuple[int, ...] = (8, 4, 2, 1)
    weights: str = "student"


TAUGHT = dict(teacher=TEACHER, guidance=GUIDANCE)
COMMON = dict(ema=0.99, label_dropout=0.1)
HALVINGS = (8, 4, 2, 1)
# Of g, for students that are told it.
RANGE = (1.0, 3.0)
TOLD = dict(solver="consistency", guidance=GUIDANCE)
JUMPS = dict(solver="flow_map")
DDIM = dict(solver="ddim")
# Samplers that may step anywhere: where their second call of two is best is searched, on noise and clips of its own.
SEARCHED = ("consistency", "flow_map")


def one(method: str, forwards: float, options: dict, block: dict = TAUGHT, **more: float) -> dict[str, Stage]:
    return {"student": Stage(method, forwards, {**COMMON, **options}, block, **more)}


EASY = dict(solver="euler", **COMMON)
KARRAS = dict(boundary=CLEAN, start=NOISY)
# sCM with the law of levels of rCM: by its own, 3 clips of 16,000 are beyond log-SNR -8, where sampling begins.
NOISIER = dict(mean=0.7, std=1.6)

STUDENTS = {
    # Guidance acts in the first of the four rounds only.
    "progressive": Student(
        one("progressive", 5.5, dict(weight="v"), dict(student_steps=HALVINGS, **TAUGHT)), DDIM, weights="student@{}"
    ),
    # First one call for what takes the guided teacher two, told g; then halvings of that.
    "guided": Student(
        {
            "guided": Stage(
                "guided", 5, dict(weight="v", law="uniform_time", guidance_range=RANGE, **COMMON), dict(teacher=TEACHER),
                share=0.25,
            ),
            "student": Stage(
                "progressive", 5, dict(weight="v", guidance_range=RANGE, **COMMON),
                dict(teacher="guided", student_steps=HALVINGS), share=0.75,
            ),
        },
        dict(solver="ddim", guidance=GUIDANCE), ("guidance",), weights="student@{}",
    ),
    "tract": Student(
        one("tract", 5.5, dict(weight="v", rounds=(64, 8, 4)), dict(student_steps=(8, 4), **TAUGHT)),
        DDIM, counts=(8, 4), weights="student@{}",
    ),
    "consistency_distillation": Student(
        # What is known at the clean end has to come to the noisy one, a level at a time: 12 levels are at 1.1 times the
        # teacher's distance after 4 calls. 32 were at 2.9, though in a run on another machine (a GPU, TF32 products).
        one("consistency_distillation", 6, dict(solver="euler", num_levels=12, target="ema", ema=0.95, **KARRAS))
    ),
    "consistency_training": Student(one("consistency_training", 4, dict(s1=40, ema=0.99, **KARRAS), {})),
    "improved_consistency": Student(one("improved_consistency", 4, dict(s1=80, **KARRAS), dict(init=TEACHER))),
    "easy_consistency": Student(one("easy_consistency", 6, dict(solver="euler"))),
    "truncated_consistency": Student(
        {
            "easy": Stage("easy_consistency", 6, EASY, TAUGHT, share=0.5),
            "student": Stage(
                "truncated_consistency", 7, dict(cut=2.0, **EASY), dict(previous="easy", init="easy", **TAUGHT), share=0.5
            ),
        },
        counts=(4, 2, 1),  # the cleanest of 8 calls would lie below the cut, where it learns nothing
    ),
    "latent_consistency": Student(
        one("latent_consistency", 6, dict(guidance_range=RANGE, ema=0.95), dict(teacher=TEACHER)), TOLD, ("guidance",)
    ),
    "multistep_consistency": Student(
        one("multistep_consistency", 6, dict(weight="v", segments=4, solver="euler", first=32, last=128)),
        DDIM, counts=(4,),
    ),
    # Slow: at 5e-4 the network breaks as the tangent comes in (from one log line to the next its answers leave the teacher's at
    # all levels, and don't come back), at 1e-4 it moves away at clean levels too, where there is nothing to learn.
    "continuous_distillation": Student(
        one("continuous_distillation", 6.1, dict(warmup=400, sigma_data=0.4, **NOISIER), learning_rate=2e-5)
    ),
    "continuous_training": Student(
        one("continuous_training", 4.2, dict(warmup=700, sigma_data=0.4, **NOISIER), dict(init=TEACHER), learning_rate=2e-5)
    ),
    "consistency_trajectory": Student(
        one("consistency_trajectory", 7.25, dict(law="uniform_time", weight="v", data=False)), JUMPS, ("logsnr_to",)
    ),
    "shortcut": Student(one("shortcut", 5.1, dict(law="uniform_time", weight="velocity")), JUMPS, ("logsnr_to",)),
    # Of a teacher no error is left where r = t, and by the paper's p = 1 (it has no teacher) such a clip would move the network
    # most: one call was at 37 times the teacher's distance; of p = .5 and levels that sampling comes to it is at 4.
    "mean_flow": Student(
        one("mean_flow", 6.1, dict(law=dict(kind="uniform_time", start=NOISY), share=0.5, p=0.5)),
        dict(grid=dict(kind="uniform_time", start=NOISY), **JUMPS), ("logsnr_to",),
    ),
    "reflow": Student(one("reflow", 19, dict(law="uniform_time", weight="v", steps=8)), DDIM),
}  # fmt: skip


def train_stage(stage: Stage, forwards: float) -> dict:
    """The block of a stage that has so many forwards to spend."""
    rounds = len(stage.block.get("student_steps", (1,)))
    return dict(
        kind="train", method=stage.method, steps=round(forwards / stage.forwards / rounds), batch_size=16,
        optimiser=dict(learning_rate=stage.learning_rate, decay="cosine", warmup=50, clip=1.0), options=stage.options,
        log_every=50, checkpoint_every=250, **stage.block,
    )  # fmt: skip


def get_config(argument: str = "consistency_trajectory") -> ConfigDict:
    method, _, budget = argument.partition(",")
    if method not in STUDENTS:
        raise ValueError(f"unknown student {method!r}, expected one of {', '.join(STUDENTS)}")
    student = STUDENTS[method]
    config = base()
    if student.inputs:
        config.model = ConfigDict({**config.model, "cond": student.inputs})
    if budget and not budget.isdecimal():
        raise ValueError(f"budget {budget!r}: expected a whole number of forwards, as in {method},{BUDGET}")
    stages = {name: train_stage(stage, int(budget or BUDGET) * stage.share) for name, stage in student.stages.items()}
    samplers = {"teacher_50": dict(weights=TEACHER, steps=50, guidance=GUIDANCE)}
    for n in student.counts:
        samplers[f"student_{n}"] = dict(weights=student.weights.format(n), steps=n, **student.sampler)
    if 2 in student.counts and student.sampler["solver"] in SEARCHED:
        stages["times"] = dict(kind="times", weights=student.weights, counts=(2,), num_clips=256, **student.sampler)
        samplers["student_2"]["grid"] = "searched"
    config.stages = ConfigDict(
        dict(**stages, evaluate=dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers))
    )
    return config
