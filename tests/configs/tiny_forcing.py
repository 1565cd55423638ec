"""Levels per frame in seconds: a teacher, clips along schedule matrices, and known frames continued. For tests only."""

from ml_collections import ConfigDict

from tests.configs import tiny


def get_config() -> ConfigDict:
    given = tiny.get_config()
    config = ConfigDict({k: v for k, v in given.items() if k != "stages"})
    config.stages = ConfigDict()
    levels = dict(kind="mixture", parts=[[1, "monotone"], [1, dict(kind="with_history", longest=2)]])
    config.stages.teacher = dict(
        kind="train", method="denoising", steps=2, batch_size=8, optimiser=dict(learning_rate=1e-3),
        options=dict(law=dict(kind="uniform_time", draw=levels), per_frame=True, weight=dict(kind="fused_min_snr")),
    )  # fmt: skip
    config.stages.classifier = given.stages.classifier
    judged = dict(
        weights="teacher", classifier="classifier", num_clips=16, num_reference=32, batch_size=8, bootstrap=4, shown=2
    )
    config.stages.evaluate = dict(
        kind="evaluate", **{k: v for k, v in judged.items() if k != "weights"},
        samplers=dict(
            pyramid=dict(weights="teacher", steps=2, solver="dpmpp", matrix=dict(kind="pyramid", lag=1), guidance=2.0),
            single=dict(weights="teacher", steps=2, matrix="autoregressive"),
        ),
    )  # fmt: skip
    config.stages["chunks"] = dict(
        kind="continue", history=1, frames=6, steps=2, matrix="full", solver="ddim", **judged
    )
    config.stages["rolling"] = dict(
        kind="continue", history=1, frames=6, steps=2, level=4.0, solver="dpmpp", matrix=dict(kind="rolling", lag=1), **judged
    )  # fmt: skip
    return config
