"""The teacher of latent 64x64 moving digits, as configs/moving_digits/teacher.py is that of pixels.

    python -m experiments.run --config=configs/moving_digits_64/teacher.py --workdir=runs/moving_digits_64/teacher

It reads the latents that latents.py makes (of 32,768 clips: --config.stages.latents.train_clips=32768). No weights of it are
shipped: after 4,860 steps at batch 64, minutes of an H200 that other programs shared, the class is right in .74 of the frames
of its clips, identity is kept in .25 of them, and the Frechet distance is 9.9 at 50 steps (real clips after a round trip: 2.1).
"""

from ml_collections import ConfigDict

from configs.moving_digits_64.base import latents


def get_config() -> ConfigDict:
    config = latents()
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train",
        method="denoising",
        steps=20_000,
        batch_size=64,
        optimiser=dict(learning_rate=2e-3, decay="cosine", warmup=100, clip=1.0),
        options=dict(law="uniform_time", weight="v", ema=0.999, label_dropout=0.1),
        log_every=100,
        checkpoint_every=500,
    )
    return config
