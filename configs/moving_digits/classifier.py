"""The metric network: a classifier of single frames of moving digits, trained once and then frozen.

Figures are comparable only as long as this network stays the same: retrain it under another name, never in
place.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="moving_digits", size=16, frames=8, digits=1))
    config.stages = ConfigDict()
    config.stages.classifier = ConfigDict(
        dict(
            kind="classifier",
            steps=4000,
            batch_size=64,
            learning_rate=2e-3,
        )
    )
    return config
