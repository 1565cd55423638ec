"""A cascade for 64x64 moving digits of 32 frames: 16x16x8 from noise, 16x16x32 from that, 64x64x32 from that (after Imagen
Video: Ho et al. 2022, arXiv 2210.02303), each stage with a student of its own.

    python -m experiments.run --config=configs/moving_digits_64/cascade.py:base --workdir=runs/moving_digits_64/cascade_base
    (the same for `temporal` and `spatial`)
    python -m experiments.run --config=configs/moving_digits_64/cascade.py:evaluate --workdir=runs/moving_digits_64/cascade

The first three train a stage's teacher and halve its steps, to 4 for the base and to 2 for the others. `evaluate` samples
50 + 10 + 10 steps of the teachers and 4 + 2 + 2 of the students; `levels` the teachers at other levels of the noise that is put
into the clips before. The run in docs/results/video.md was made on one H200, the three at once in five minutes: 4,250, 3,152
and 5,307 steps of the teachers, 400 in each round of the students.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from configs.moving_digits_64.base import clips

RUN = "runs/moving_digits_64/cascade_{}"
GUIDANCE = 1.5
# Log-SNR of the noise in the clips to upsample: where training draws it, and what sampling takes.
AUGMENTATION, LEVEL = (0.0, 10.0), 5.0
LEVELS = (2.0, 3.5, 5.0, 7.0, 9.0)
UNET = dict(kind="unet", num_classes=10, blocks=(1, 1, 2), embed=128)
UPSAMPLES = dict(cond=("low", "aug_logsnr"), attention="none")


class Part(NamedTuple):
    """A stage: its data, its network; the steps of its teacher and its students; the teacher's guidance; its schedule."""

    data: dict
    model: dict
    steps: int
    students: tuple[int, ...]
    guidance: float = 1.0
    schedule: dict = dict(kind="vp_cosine")


PARTS = {
    "base": Part(
        dict(time=4, space=4), dict(shape=(8, 16, 16, 1), widths=(32, 64, 128)), 50, (16, 8, 4), GUIDANCE
    ),
    # Convolutions alone, in time too, on crops: what lies between two frames is told by those around them.
    "temporal": Part(
        dict(space=4, low=(4, 1), crop=(16, 16)), dict(shape=(16, 16, 16, 1), widths=(32, 64, 96), **UPSAMPLES), 10, (8, 4, 2)
    ),
    # Noise is moved up as the side is, from 32 (Hoogeboom et al. 2023, simple diffusion, arXiv 2301.11093, section 3).
    "spatial": Part(
        dict(low=(1, 4), crop=(8, 32)), dict(shape=(8, 32, 32, 1), widths=(32, 64, 96), patch=2, **UPSAMPLES), 10, (8, 4, 2),
        schedule=dict(kind="vp_cosine", shift=2.0),
    ),
}  # fmt: skip


def training(part: Part) -> ConfigDict:
    config = clips()
    config.data = ConfigDict(dict(kind="resized", of=config.data, **part.data))
    config.model = ConfigDict({**UNET, **part.model})
    config.schedule = ConfigDict(part.schedule)
    config.prediction = "v"
    if "cond" in part.model:
        config.augmentation = AUGMENTATION
    common = dict(kind="train", batch_size=32, threads=8, log_every=100, checkpoint_every=2_000)
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        **common, method="denoising", steps=4_000,
        optimiser=dict(learning_rate=2e-3, decay="cosine", warmup=200, clip=1.0),
        options=dict(law="uniform_time", weight="v", ema=0.999, label_dropout=0.1),
    )  # fmt: skip
    config.stages.student = dict(
        **common, method="progressive", teacher="teacher", guidance=part.guidance, student_steps=part.students, steps=400,
        optimiser=dict(learning_rate=5e-4, decay="cosine", warmup=50, clip=1.0),
        options=dict(weight="v", ema=0.99, label_dropout=0.1),
    )  # fmt: skip
    return config


def stage(name: str, student: bool, level: float = LEVEL) -> dict[str, Any]:
    """A stage of a cascade in the evaluation."""
    part, folder = PARTS[name], RUN.format(name)
    told = dict(aug_logsnr=level) if "cond" in part.model else {}
    if student:
        return dict(weights=f"{folder}/student/weights.safetensors", steps=part.students[-1], **told)
    return dict(
        weights=f"{folder}/teacher/weights.safetensors", steps=part.steps, solver=dict(kind="dpmpp", order=2),
        guidance=part.guidance, threshold="static", **told,
    )  # fmt: skip


def get_config(argument: str = "evaluate") -> ConfigDict:
    if argument in PARTS:
        return training(PARTS[argument])
    if argument not in ("evaluate", "levels"):
        raise ValueError(f"unknown argument {argument!r}, expected one of {', '.join(PARTS)}, evaluate, levels")
    rows = {
        "teachers": {name: stage(name, False) for name in PARTS},
        "students": {name: stage(name, True) for name in PARTS},
    }
    if argument == "levels":
        rows = {f"level_{level:g}": {name: stage(name, False, level) for name in PARTS} for level in LEVELS}
    config = clips()
    config.stages = ConfigDict()
    config.stages.evaluate = dict(kind="cascade", num_clips=256, num_reference=1024, batch_size=32, samplers=rows)
    return config
