"""The students of configs/moving_digits/students.py on latents of 64x64 clips: the same objectives and numbers of steps, in
batches of 8 clips, and steps that lie elsewhere.

python -m experiments.run --config=configs/moving_digits_64/students.py:tract --workdir=runs/digits_64/tract
"""

import math
from typing import Any

from ml_collections import ConfigDict

from configs.moving_digits import students
from configs.moving_digits_64.base import on_latents

SHIFT = 3.0
"""What is decided about larger clips is decided at more noise: all students step as if sigma/alpha were three times as large,
as Stable Diffusion 3's samplers do. Uniform time, at 4 calls, goes at once to log-SNR -1.8.
"""
GRID = dict(kind="flow_shift", shift=SHIFT)
"""Of samplers that may step anywhere."""
ENDS = 20.0
# Of students that learn their steps. A clock is a student's own: networks are told log-SNRs. With the ends of its teacher's.
CLOCK = dict(
    kind="vp_cosine", shift=SHIFT, logsnr_min=-ENDS + 2 * math.log(SHIFT), logsnr_max=ENDS + 2 * math.log(SHIFT)
)


def get_config(argument: str = "consistency_trajectory") -> ConfigDict:
    config = on_latents(students.get_config(argument))
    stages: Any = config.stages
    samplers = [s for s in stages.evaluate.samplers.values() if s.get("solver") in students.SEARCHED]
    if not samplers or argument.partition(",")[0] == "shortcut":  # it jumps, over lengths that it has learnt only
        config.schedule = ConfigDict(CLOCK)
        return config
    for sampler in samplers:
        if sampler.get("grid") != "searched":
            start = {"start": sampler.grid.start} if "grid" in sampler else {}
            sampler.grid = ConfigDict({**GRID, **start})
    return config
