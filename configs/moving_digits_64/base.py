"""What all runs on 64x64 moving digits of 32 frames share: the clips, and how a diffusion model sees their latents."""

import json
from typing import Any

from ml_collections import ConfigDict

from configs.moving_digits.students import TEACHER as PIXEL_TEACHER

AUTOENCODER = "pretrained:moving_digits_64/autoencoder"
# Pixels per frame, the numbers of 16x16 clips of 8 frames: these are such clips, four times as fine in space and in time.
SPEED = (0.5, 2.0)
TEACHER = "pretrained:moving_digits_64/teacher"
# Half the clips a step that students of 16x16 clips of pixels have: a forward of one costs five times theirs.
BATCH = 8
# What latents.py leaves.
LATENTS = "runs/moving_digits_64/latents/latents"


def clips(frames: int = 32, speed: tuple[float, float] | None = SPEED) -> ConfigDict:
    """A run on clips of pixels."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="moving_digits", size=64, frames=frames, digits=1, speed=speed))
    return config


def latents() -> ConfigDict:
    """A run on their latents, as latents.py left them: a 3 M video U-Net on 9 frames of 8x8, v on the cosine."""
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="latents", path=LATENTS))
    config.model = ConfigDict(
        dict(kind="unet", shape=(9, 8, 8, 8), num_classes=10, widths=(96, 128), blocks=(2, 3), embed=128)
    )
    config.schedule = ConfigDict(dict(kind="vp_cosine"))
    config.prediction = "v"
    return config


def on_latents(config: ConfigDict) -> ConfigDict:
    """A run on 16x16 clips of pixels as one on latents: other data, network and teacher, the deviation that latents have, and
    smaller batches; the objectives and numbers of steps stay as they are.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: 1.0 if key == "sigma_data" else moved(part) for key, part in value.items()}
        return TEACHER if value == PIXEL_TEACHER else value

    given, moved_config = json.loads(config.to_json()), latents()
    if "cond" in given["model"]:
        moved_config.model = ConfigDict({**moved_config.model, "cond": given["model"]["cond"]})
    smaller = {"train": {"batch_size": BATCH}}
    moved_config.stages = ConfigDict(
        {name: moved(block) | smaller.get(block["kind"], {}) for name, block in given["stages"].items()}
    )
    return moved_config
