"""A model of real clips in a few steps: a teacher of the latents that autoencoder.py leaves, then its halved students.

    python -m experiments.run --config=configs/real_clips/student.py --workdir=runs/real_clips/student
    python -m experiments.run --config=configs/real_clips/student.py:runs/mine/autoencoder/latents --workdir=runs/mine/student
    python -m experiments.sample --weights=student@4 --workdir=runs/mine/student --steps=4 --out=runs/mine/clips

The argument is the folder of the latents. Clips have no classes. There is no stage `evaluate`: its metrics know moving digits
only, so that what is made is looked at, in report.html, at every checkpoint, always from the same noise. The numbers of steps
are those of a first look, some hours of a CPU; any other method of configs/moving_digits_64/students.py may take the student's
place.
"""

from ml_collections import ConfigDict

from configs.real_clips.autoencoder import CHANNELS

HALVINGS = (16, 8, 4)


def get_config(latents: str = "runs/real_clips/autoencoder/latents") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = ConfigDict(dict(kind="latents", path=latents))
    config.model = ConfigDict(
        dict(kind="unet", shape=(9, 8, 8, CHANNELS), num_classes=0, widths=(96, 128), blocks=(2, 3), embed=128)
    )
    config.schedule = ConfigDict(dict(kind="vp_cosine"))
    config.prediction = "v"
    config.stages = ConfigDict()
    config.stages.teacher = dict(
        kind="train", method="denoising", steps=4_000, batch_size=16,
        optimiser=dict(learning_rate=2e-3, decay="cosine", warmup=100, clip=1.0),
        options=dict(law="uniform_time", weight="v", ema=0.999), preview=dict(steps=32), log_every=50, checkpoint_every=500,
    )  # fmt: skip
    config.stages.student = dict(
        kind="train", method="progressive", teacher="teacher", student_steps=HALVINGS, steps=500, batch_size=16,
        optimiser=dict(learning_rate=5e-4, decay="cosine", warmup=50, clip=1.0),
        options=dict(weight="v", ema=0.99), preview=dict(), log_every=50, checkpoint_every=250,
    )  # fmt: skip
    return config
