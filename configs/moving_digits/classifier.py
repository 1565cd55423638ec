"""The metric network: a classifier of single frames of moving digits, trained once and then frozen.

    python -m experiments.run --config=configs/moving_digits/classifier.py --workdir=runs/classifier

A few minutes on two CPU cores. Its weights are shipped as pretrained/moving_digits/classifier. Figures are
comparable only as long as this network stays the same: retrain it under another name, never in place.
"""

from ml_collections import ConfigDict

STAGE = dict(
    kind="classifier",
    steps=2_000,
    batch_size=64,
    optimiser=dict(learning_rate=2e-3, decay="cosine", clip=1.0),
    options=dict(frames_per_clip=2, ema=0.995, smoothing=0.1, gain=0.15, blur=0.5, noise=0.1),
    log_every=100,
    checkpoint_every=500,
)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="moving_digits", size=16, frames=8, digits=1))
    config.stages = ConfigDict()
    config.stages.classifier = STAGE
    return config
