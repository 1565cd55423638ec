"""The moving-digits teacher from nothing: v-prediction on the cosine schedule (Salimans & Ho 2022), class dropout, EMA.

    python -m experiments.run --config=configs/moving_digits/teacher.py --workdir=runs/teacher

About an hour on two CPU cores. Its weights are shipped as pretrained/moving_digits/teacher.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base


def get_config() -> ConfigDict:
    config = base()
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train",
        method="denoising",
        steps=5_000,
        batch_size=16,
        optimiser=dict(learning_rate=2e-3, decay="cosine", warmup=100, clip=1.0),
        options=dict(law="uniform_time", weight="v", ema=0.999, label_dropout=0.1),
        log_every=100,
        checkpoint_every=500,
    )
    return config
