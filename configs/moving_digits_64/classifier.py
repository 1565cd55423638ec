"""The metric network for 64x64 frames: as configs/moving_digits/classifier.py, on larger digits.

    python -m experiments.run --config=configs/moving_digits_64/classifier.py --workdir=runs/moving_digits_64/classifier

Its weights are shipped as pretrained/moving_digits_64/classifier.
"""

from ml_collections import ConfigDict

from configs.moving_digits_64.base import clips


def get_config() -> ConfigDict:
    # It looks at single frames: short clips are read faster, and their law is the same at any speed.
    config = clips(frames=4, speed=None)
    config.stages = ConfigDict()
    config.stages.classifier = dict(
        kind="classifier",
        model=dict(shape=(64, 64, 1), widths=(12, 24, 48, 64, 64)),
        steps=2_000,
        batch_size=32,
        optimiser=dict(learning_rate=2e-3, decay="cosine", clip=1.0),
        options=dict(frames_per_clip=2, ema=0.995, smoothing=0.1, gain=0.15, blur=0.5, noise=0.1),
        log_every=100,
        checkpoint_every=500,
    )
    return config
