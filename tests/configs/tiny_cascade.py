"""A cascade in seconds: `base`, `temporal` and `spatial` train a stage and its student, `evaluate,FOLDER` samples what they
left in FOLDER. For tests only.
"""

from ml_collections import ConfigDict

from tests.configs import tiny

DATA = {
    "base": (dict(time=2, space=2), (4, 8, 8, 1)),
    "temporal": (dict(space=2, low=(2, 1)), (8, 8, 8, 1)),
    "spatial": (dict(low=(1, 2), crop=(4, 8)), (4, 8, 8, 1)),
}


def get_config(argument: str = "base") -> ConfigDict:
    name, _, folder = argument.partition(",")
    config = tiny.get_config()
    config.data.frames = 8
    classifier, config.stages = config.stages.classifier, ConfigDict()
    if name in DATA:
        data, shape = DATA[name]
        config.data = ConfigDict(dict(kind="resized", of=config.data, **data))
        config.model.shape = shape
        if name != "base":
            config.model = ConfigDict({**config.model, "cond": ("low", "aug_logsnr"), "attention": "none"})
            config.augmentation = (0.0, 8.0)
        common = dict(kind="train", batch_size=8, threads=2, log_every=2, checkpoint_every=2)
        config.stages.teacher = dict(**common, method="denoising", steps=2)
        config.stages.student = dict(**common, method="progressive", teacher="teacher", student_steps=[2, 1], steps=2)
        return config
    del config.model, config.schedule, config.prediction

    def stage(name: str, steps: int, of: str, **options) -> dict:
        told = {} if name == "base" else dict(aug_logsnr=4.0)
        return dict(weights=f"{folder}/{name}/{of}/weights.safetensors", steps=steps, **told, **options)

    config.stages.classifier = classifier
    config.stages.cascade = dict(
        kind="cascade", classifier="classifier", num_clips=8, num_reference=16, batch_size=4, bootstrap=4, shown=2,
        samplers=dict(
            teachers=dict(
                base=stage("base", 3, "teacher", guidance=2.0),
                temporal=stage("temporal", 2, "teacher", solver=dict(kind="dpmpp", order=2), threshold="static"),
                spatial=stage("spatial", 2, "teacher", guidance=1.5),
            ),
            students={name: stage(name, 1, "student") for name in DATA},
        ),
    )  # fmt: skip
    return config
