"""The students of configs/moving_digits/students.py on latents of 64x64 clips: the same objectives and numbers of steps, in
batches of 8 clips, and samplers that step elsewhere.

python -m experiments.run --config=configs/moving_digits_64/students.py:tract --workdir=runs/digits_64/tract
"""

from typing import Any

from ml_collections import ConfigDict

from configs.moving_digits import students
from configs.moving_digits_64.base import on_latents

SHIFTED = dict(kind="flow_shift", shift=3.0)
"""What is decided about larger clips is decided at more noise: samplers that may step anywhere step as Stable Diffusion 3's
does, where uniform time, at 4 calls, goes at once to log-SNR -1.8.
"""
FIXED = ("shortcut",)
"""They jump, over lengths that they have learnt only."""


def get_config(argument: str = "consistency_trajectory") -> ConfigDict:
    config = on_latents(students.get_config(argument))
    if argument.partition(",")[0] in FIXED:
        return config
    stages: Any = config.stages
    for sampler in stages.evaluate.samplers.values():
        if sampler.get("solver") in students.SEARCHED and sampler.get("grid") != "searched":
            start = {"start": sampler.grid.start} if "grid" in sampler else {}
            sampler.grid = ConfigDict({**SHIFTED, **start})
    return config
