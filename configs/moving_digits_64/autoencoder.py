"""The autoencoder of 64x64 moving digits of 32 frames, and its round trip: 8x8 latents of 8 channels, one for 4 frames.

    python -m experiments.run --config=configs/moving_digits_64/autoencoder.py --workdir=runs/moving_digits_64/autoencoder

Its weights are shipped as pretrained/moving_digits_64/autoencoder.
"""

from ml_collections import ConfigDict

from configs.moving_digits_64.base import clips


def stage(channels: int, steps: int) -> dict:
    """An autoencoder with so many channels in its latents."""
    return dict(
        kind="autoencoder",
        model=dict(channels=channels, patch=4, group=4, widths=(48, 96), blocks=1),
        steps=steps,
        batch_size=8,
        optimiser=dict(learning_rate=2e-3, decay="cosine", warmup=100, clip=1.0),
        options=dict(frames=9, kl=5e-4, ema=0.995),
        log_every=50,
        checkpoint_every=250,
    )


def get_config() -> ConfigDict:
    config = clips()
    config.stages = ConfigDict()
    config.stages.autoencoder = stage(channels=8, steps=8_000)
    config.stages.round_trip = dict(kind="round_trip", weights="autoencoder", num_clips=256, batch_size=16)
    return config
