"""The latent teacher at few steps, as configs/moving_digits/few_steps.py is that of pixels, and with 2M at steps that begin at
more noise (`shifted`).

python -m experiments.run --config=configs/moving_digits_64/few_steps.py --workdir=runs/digits_64/teacher
"""

from typing import Any

from ml_collections import ConfigDict

from configs.moving_digits import few_steps
from configs.moving_digits_64.base import on_latents
from configs.moving_digits_64.students import GRID


def get_config() -> ConfigDict:
    config = on_latents(few_steps.get_config())
    stages: Any = config.stages
    samplers = stages.evaluate.samplers
    for steps in few_steps.STEPS:
        samplers[f"shifted_{steps}"] = ConfigDict({**samplers[f"dpmpp_{steps}"], "grid": GRID})
    return config
