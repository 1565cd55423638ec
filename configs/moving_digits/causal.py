"""A student that streams: a transformer that is causal in time, two frames at a time, from a teacher that sees whole clips.

    python -m experiments.run --config=configs/moving_digits/causal.py --workdir=runs/causal --stage=teacher

First a causal teacher from nothing (Diffusion Forcing, Chen et al. 2024, arXiv 2407.01392): every block of frames has a level
of its own, and in three quarters of the clips those before a block are clean, as they are in streaming.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base

BLOCK = 2
BLOCKS = 4
LEVELS = dict(
    kind="blocks", block=BLOCK,
    of=dict(
        kind="mixture",
        parts=[
            [0.25, "independent"],
            [0.75, dict(kind="with_history", longest=BLOCKS - 1, future="independent", masked=0.0)],
        ],
    ),
)  # fmt: skip


def get_config() -> ConfigDict:
    config = base()
    config.model = ConfigDict(
        dict(
            kind="dit", shape=(8, 16, 16, 1), num_classes=10, patch=2, width=192, depth=4, head_dim=48, causal=True, block=BLOCK
        )
    )  # fmt: skip
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train", method="denoising", steps=15_000, batch_size=32,
        optimiser=dict(learning_rate=1e-3, decay="cosine", warmup=500, clip=1.0),
        options=dict(
            law=dict(kind="uniform_time", draw=LEVELS), per_frame=True, weight="v", ema=0.999, label_dropout=0.1
        ),
        log_every=250, checkpoint_every=2_500,
    )  # fmt: skip
    return config
