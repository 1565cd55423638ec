"""A causal teacher by teacher forcing, its steps halved, a game with a teacher of another network, streams. For tests only."""

from ml_collections import ConfigDict

from tests.configs import tiny


def get_config(teacher: str) -> ConfigDict:
    """teacher: weights of another network, of the same clips."""
    given = tiny.get_config()
    config = ConfigDict({k: v for k, v in given.items() if k != "stages"})
    config.data = ConfigDict({**given.data, "frames": 4})
    config.model = ConfigDict(
        dict(
            kind="dit", shape=(4, 16, 16, 1), num_classes=10, patch=8, width=12, depth=1, head_dim=6, mlp_ratio=1, causal=True,
            block=2,
        )
    )  # fmt: skip
    common = dict(kind="train", batch_size=8, optimiser=dict(learning_rate=1e-3), log_every=1, checkpoint_every=2)
    drawn = dict(kind="uniform_time", draw=dict(kind="blocks", block=2))
    config.stages = ConfigDict()
    config.stages.causal = dict(
        **common, method="denoising", steps=2, teacher_forcing=True, options=dict(law=drawn, per_frame=True)
    )
    config.stages.halved = dict(
        **common, method="progressive", steps=1, teacher="causal", guidance=1.5, student_steps=[2], teacher_forcing=True
    )
    config.stages.student = dict(
        **common, method="dmd2", steps=2, teacher=teacher, guidance=1.5, init="halved",
        options=dict(steps=2, source="rolled_out", chunk=2, ratio=2, exit_told=True),
    )  # fmt: skip
    config.stages.classifier = given.stages.classifier
    config.stages.evaluate = ConfigDict(given.stages.evaluate)
    config.stages.evaluate.latency = True
    config.stages.evaluate.samplers = ConfigDict(
        dict(
            streamed=dict(weights="student", steps=2, solver="consistency", guidance=2.0, stream=2),
            whole=dict(weights=teacher, steps=2),
        )
    )
    return config
