"""The teacher of latent 64x64 moving digits, as configs/moving_digits/teacher.py is that of pixels.

    python -m experiments.run --config=configs/moving_digits_64/teacher.py --workdir=runs/moving_digits_64/teacher

It reads the latents that latents.py makes (of 32,768 clips: --config.stages.latents.train_clips=32768). Its weights are shipped
as pretrained/moving_digits_64/teacher: 2,938, 1,922 and 7,770 steps at batch 64, each part with a cosine of its own, minutes of
an H200 that other programs shared. Of its clips at 50 steps the class is right in .80 of the frames, identity is kept in .40,
and the Frechet distance is 6.2 (after the first two parts 9.9; real clips: 2.0); its loss still falls.
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
