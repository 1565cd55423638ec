"""The teacher of latent 64x64 moving digits, as configs/moving_digits/teacher.py is that of pixels.

    python -m experiments.run --config=configs/moving_digits_64/teacher.py --workdir=runs/moving_digits_64/teacher

It reads the latents that latents.py makes. No weights of it are shipped: after the 4,500 steps below, 25 minutes on one core,
its clips hold pieces of moving strokes, not yet digits.
"""

from ml_collections import ConfigDict

from configs.moving_digits_64.base import latents


def get_config() -> ConfigDict:
    config = latents()
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train",
        method="denoising",
        steps=12_000,
        batch_size=16,
        optimiser=dict(learning_rate=2e-3, decay="cosine", warmup=100, clip=1.0),
        options=dict(law="uniform_time", weight="v", ema=0.999, label_dropout=0.1),
        log_every=100,
        checkpoint_every=500,
    )
    return config
