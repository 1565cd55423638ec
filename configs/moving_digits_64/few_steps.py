"""The latent teacher at few steps, as configs/moving_digits/few_steps.py is that of pixels.

python -m experiments.run --config=configs/moving_digits_64/few_steps.py --workdir=runs/digits_64/teacher
"""

from ml_collections import ConfigDict

from configs.moving_digits import few_steps
from configs.moving_digits_64.base import on_latents


def get_config() -> ConfigDict:
    return on_latents(few_steps.get_config())
