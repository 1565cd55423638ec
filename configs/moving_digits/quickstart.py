"""The main job in minutes: from the shipped teacher, halve the steps 16 -> 8 -> 4 -> 2 -> 1, then look and measure.

    python -m experiments.run --config=configs/moving_digits/quickstart.py --workdir=runs/quickstart

Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, Algorithm 2). At most 10 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base


def get_config() -> ConfigDict:
    config = base()
    config.stages = ConfigDict()
    config.stages.student = dict(
        kind="train",
        method="progressive",
        teacher="pretrained:moving_digits/teacher",
        guidance=1.5,
        student_steps=(8, 4, 2, 1),
        steps=200,
        batch_size=16,
        optimiser=dict(learning_rate=1e-3, decay="linear", clip=1.0),
        options=dict(weight="v", ema=0.95, label_dropout=0.1),
        log_every=25,
        checkpoint_every=100,
        preview=dict(clips=6),
    )
    config.stages.evaluate = dict(
        kind="evaluate",
        num_clips=256,
        batch_size=64,
        samplers=dict(
            teacher_50=dict(weights="pretrained:moving_digits/teacher", steps=50, guidance=1.5),
            teacher_8=dict(weights="pretrained:moving_digits/teacher", steps=8, guidance=1.5),
            teacher_4=dict(weights="pretrained:moving_digits/teacher", steps=4, guidance=1.5),
            student_8=dict(weights="student@8", steps=8),
            student_4=dict(weights="student@4", steps=4),
            student_2=dict(weights="student@2", steps=2),
            student_1=dict(weights="student@1", steps=1),
        ),
    )
    return config
