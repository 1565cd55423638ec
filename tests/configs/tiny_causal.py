"""A causal teacher by teacher forcing, a game with a teacher of another network, streams. For tests only."""

from ml_collections import ConfigDict

from experiments.config import plain
from tests.configs import tiny


def get_config(teacher: str) -> ConfigDict:
    """teacher: weights of another network, of the same clips."""
    given = plain(tiny.get_config())
    config = ConfigDict({k: v for k, v in given.items() if k != "stages"})
    config.data = ConfigDict({**given["data"], "frames": 4})
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
    config.stages.student = dict(
        **common, method="dmd2", steps=2, teacher=teacher, guidance=1.5, init="causal",
        options=dict(steps=2, source="rolled_out", chunk=2, ratio=2, exit_told=True),
    )  # fmt: skip
    judged = {k: v for k, v in given["stages"]["evaluate"].items() if k != "classifier"}
    samplers = dict(
        streamed=dict(weights="student", steps=2, solver="consistency", guidance=2.0, stream=2),
        whole=dict(weights=teacher, steps=2),
    )
    config.stages.evaluate = ConfigDict({**judged, "latency": True, "samplers": samplers})
    return config
