"""Three trained stages and a measurement of data whose law is known, to be killed at any moment. For tests only."""

from ml_collections import ConfigDict

from configs.mixture.base import base


def get_config() -> ConfigDict:
    config = base("eight_mode_ring")
    config.data.size = 512
    config.model.width, config.model.depth = 16, 2
    common = dict(
        kind="train",
        batch_size=16,
        optimiser=dict(learning_rate=1e-3),
        log_every=1,
        checkpoint_every=2,
        tensorboard=False,
    )
    config.stages = ConfigDict()
    config.stages.teacher = dict(**common, method="denoising", steps=16, accumulate=2)
    config.stages.student = dict(**common, method="progressive", teacher="teacher", student_steps=[4, 2, 1], steps=6)
    config.stages.game = dict(
        **common, method="dmd2", teacher="oracle", init="teacher", steps=16, options=dict(steps=1, ratio=2),
        heads=dict(kinds=("spatial",), width=8),
    )  # fmt: skip
    samplers = dict(student=dict(weights="student", steps=1), game=dict(weights="game", steps=1))
    config.stages.exact = dict(kind="exact", num_clips=64, bootstrap=4, samplers=samplers)
    return config
