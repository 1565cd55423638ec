"""The students of configs/moving_digits/students.py on latents of 64x64 clips: the same objectives, steps and samplers, in
batches of 8 clips.

python -m experiments.run --config=configs/moving_digits_64/students.py:tract --workdir=runs/digits_64/tract
"""

from ml_collections import ConfigDict

from configs.moving_digits import students
from configs.moving_digits_64.base import on_latents


def get_config(argument: str = "consistency_trajectory") -> ConfigDict:
    return on_latents(students.get_config(argument))
