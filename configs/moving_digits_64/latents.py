"""The latents of 64x64 moving digits, written once for all runs that learn on them.

python -m experiments.run --config=configs/moving_digits_64/latents.py --workdir=runs/moving_digits_64/latents
"""

from ml_collections import ConfigDict

from configs.moving_digits_64.base import AUTOENCODER, clips


def get_config() -> ConfigDict:
    config = clips()
    config.stages = ConfigDict()
    config.stages.latents = dict(
        kind="encode", autoencoder=AUTOENCODER, train_clips=8192, test_clips=512, batch_size=16
    )
    return config
