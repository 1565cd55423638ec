"""A whole experiment in seconds: a teacher, its progressive students, an evaluation. For tests only."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 3
    config.data = ConfigDict(dict(kind="moving_digits", size=16, frames=3, digits=1, num_clips=512))
    config.model = ConfigDict(
        dict(kind="unet", shape=(3, 16, 16, 1), num_classes=10, widths=(4, 8), blocks=(1, 1), embed=8, head_dim=8)
    )
    config.schedule = ConfigDict(dict(kind="vp_cosine"))
    config.prediction = "v"
    common = dict(kind="train", batch_size=8, optimiser=dict(learning_rate=1e-3), log_every=2, checkpoint_every=2)
    config.stages = ConfigDict()
    config.stages.teacher = dict(**common, method="denoising", steps=6)
    config.stages.student = dict(**common, method="progressive", teacher="teacher", student_steps=[4, 2, 1], steps=3)
    config.stages.classifier = dict(kind="classifier", steps=4, batch_size=8, model=dict(widths=(4, 4, 4)))
    config.stages.evaluate = dict(
        kind="evaluate",
        classifier="classifier",
        num_clips=16,
        num_reference=32,
        batch_size=8,
        bootstrap=4,
        shown=2,
        samplers=dict(
            teacher_4=dict(weights="teacher", steps=4, guidance=2.0),
            student_2=dict(weights="student@2", steps=2),
            student_1=dict(weights="student", steps=1, threshold="static"),
        ),
    )
    return config
