"""A teacher whose pixels have levels of their own, and clips whose columns are denoised one after the other.

    python -m experiments.run --config=configs/moving_digits/joint.py --workdir=runs/joint

Begun as the shipped teacher of levels per frame. The network is told a map of levels, [b, f, h, w]: half of the clips have
one level for every frame, as before, half an independent one for every square of 4x4 pixels of every frame. Then: clips in one
piece, frame after frame, and in sweeps from left to right. Not run to the end yet.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base
from configs.moving_digits.students import GUIDANCE

FORCING = "pretrained:moving_digits/forcing"
LEVELS = dict(
    kind="mixture",
    parts=[[0.5, dict(kind="whole_frames", of="independent")], [0.5, dict(kind="squares", size=4)]],
)


def get_config() -> ConfigDict:
    config = base()
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train", method="denoising", init=FORCING, steps=6_000, batch_size=64,
        optimiser=dict(learning_rate=5e-4, decay="cosine", warmup=100, clip=1.0),
        options=dict(
            law=dict(kind="uniform_time", draw=LEVELS), per_pixel=True, weight="v", ema=0.999, label_dropout=0.1
        ),
        log_every=100, checkpoint_every=500,
    )  # fmt: skip
    matrices = {
        "full": "full",
        "frames": dict(kind="sweep", lag=4, axis="frames"),
        "columns": dict(kind="sweep", lag=2, axis="columns"),
    }
    config.stages.evaluate = dict(
        kind="evaluate", num_clips=256, batch_size=64,
        samplers={
            name: dict(weights="teacher", steps=16, solver="dpmpp", matrix=matrix, guidance=GUIDANCE)
            for name, matrix in matrices.items()
        },
    )  # fmt: skip
    return config
