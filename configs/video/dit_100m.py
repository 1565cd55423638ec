"""A latent video DiT of 0.1 B parameters: 9 latent frames of 32x32, 2,304 tokens, in bfloat16.

    python -m experiments.bench --config=configs/video/dit_100m.py
    python -m experiments.run --config=configs/video/dit_100m.py --workdir=runs/video/dit_100m

It learns on latents that an `encode` stage left in runs/video/latents: of 256x256 clips of 33 frames, say, by an autoencoder of
factors 8 and 4 with 16 channels, in 10 classes (of clips without any set config.model.num_classes=0).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="latents", path="runs/video/latents"))
    config.model = ConfigDict(
        dict(
            kind="dit", shape=(9, 32, 32, 16), num_classes=10, patch=2, width=768, depth=12, head_dim=64, dtype="bfloat16"
        )
    )  # fmt: skip
    config.schedule = ConfigDict(dict(kind="vp_cosine"))
    config.prediction = "v"
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train",
        method="denoising",
        steps=200_000,
        batch_size=32,
        optimiser=dict(learning_rate=2e-4, decay="cosine", warmup=1_000, clip=1.0),
        options=dict(law="uniform_time", weight="v", ema=0.9999, label_dropout=0.1),
        log_every=100,
        checkpoint_every=2_000,
    )
    return config
