"""A student that streams: a transformer that is causal in time, two frames at a time, from a teacher that sees whole clips.

    python -m experiments.run --config=configs/moving_digits/causal.py --workdir=runs/causal --stage=teacher

First a causal teacher from nothing, by teacher forcing: every block of frames is denoised after the clean ones before it, all
blocks of a clip in one call. With the argument diffusion_forcing its past is noisy too (Chen et al. 2024, arXiv 2407.01392):
every block has a level of its own, and in three quarters of the clips those before a block are clean.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base

BLOCK, BLOCKS = 2, 4
MODEL = dict(
    kind="dit", shape=(8, 16, 16, 1), num_classes=10, patch=2, width=192, depth=4, head_dim=48, causal=True, block=BLOCK
)  # fmt: skip
FORCED = dict(kind="blocks", block=BLOCK, of="stratified")
DIFFUSED = dict(
    kind="blocks", block=BLOCK,
    of=dict(
        kind="mixture",
        parts=[
            [0.25, "independent"],
            [0.75, dict(kind="with_history", longest=BLOCKS - 1, future="independent", masked=0.0)],
        ],
    ),
)  # fmt: skip


def get_config(argument: str = "self_forcing") -> ConfigDict:
    config = base()
    config.model = ConfigDict(MODEL)
    config.stages = ConfigDict()
    diffused = argument == "diffusion_forcing"
    config.stages.teacher = dict(
        kind="train", method="denoising", steps=10_000, batch_size=32, teacher_forcing=not diffused,
        optimiser=dict(learning_rate=1e-3, decay="cosine", warmup=500, clip=1.0),
        options=dict(
            law=dict(kind="uniform_time", draw=DIFFUSED if diffused else FORCED), per_frame=True, weight="v", ema=0.999,
            label_dropout=0.1,
        ),
        log_every=250, checkpoint_every=2_500,
    )  # fmt: skip
    return config
