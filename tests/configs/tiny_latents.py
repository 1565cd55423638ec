"""A latent experiment in seconds: `autoencoder` trains one and encodes with it, `model,FOLDER` runs on those latents. For tests
only.
"""

from ml_collections import ConfigDict

from tests.configs.tiny import get_config as tiny

COMMON = dict(kind="train", batch_size=8, optimiser=dict(learning_rate=1e-3), log_every=2, checkpoint_every=2)


def get_config(argument: str = "autoencoder") -> ConfigDict:
    what, _, folder = argument.partition(",")
    config = tiny()
    config.data.frames = 5
    evaluate = config.stages.evaluate.to_dict()
    classifier = config.stages.classifier
    config.stages = ConfigDict()
    if what == "autoencoder":
        del config.model, config.schedule, config.prediction
        config.stages.autoencoder = dict(
            kind="autoencoder", steps=4, batch_size=8, log_every=2, checkpoint_every=2,
            model=dict(channels=3, patch=2, group=2, widths=(4, 8), blocks=1), options=dict(frames=3),
        )  # fmt: skip
        config.stages.round_trip = dict(
            kind="round_trip", weights="autoencoder", num_clips=8, batch_size=4, bootstrap=4
        )
        config.stages.latents = dict(
            kind="encode", autoencoder="autoencoder", train_clips=64, test_clips=16, batch_size=16
        )
        config.stages.classifier = classifier
        return config
    config.data = ConfigDict(dict(kind="latents", path=f"{folder}/latents"))
    config.model.shape = (3, 4, 4, 3)
    config.stages.teacher = dict(**COMMON, method="denoising", steps=4)
    config.stages.synthetic = dict(
        kind="generate", weights="teacher", steps=2, guidance=2.0, num_clips=32, batch_size=16
    )
    config.stages.student = dict(
        **COMMON, method="ladd", teacher="teacher", clips="synthetic", steps=4,
        heads=dict(width=4, level=True, places=True, layers="all"), options=dict(steps=2, warmup=2),
    )  # fmt: skip
    samplers = dict(
        teacher_2=dict(weights="teacher", steps=2, guidance=2.0),
        student_2=dict(weights="student", steps=2, solver="consistency"),
    )
    config.stages.evaluate = evaluate | dict(
        samplers=samplers, num_clips=8, classifier=f"{folder}/classifier/weights.safetensors"
    )
    return config
