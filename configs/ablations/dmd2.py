"""DMD2's axes: updates of the critic for each of the student's, the adversary, backward simulation (Yin et al. 2024, table 3).

python -m experiments.ablate sweep --config=configs/ablations/dmd2.py
"""

from ml_collections import ConfigDict

from configs.mixture.base import base, exact_stage, train_stage


def get_config(law: str = "eight_mode_ring") -> ConfigDict:
    config = base(law)
    samplers = {"student": dict(weights="student", steps=4, solver="consistency")}
    first = dict(law="uniform_time", weight="v", ema=0.99)
    options = dict(steps=4, source="simulated", ratio=5, ema=0.99)
    config.stages = ConfigDict(
        dict(
            denoiser=train_stage("denoising", 1000, options=first),
            student=train_stage(
                "dmd2", 4000, teacher="oracle", init="denoiser", options=options, heads=dict(kinds=("spatial",), width=32)
            ),
            exact=exact_stage(samplers, noise="sobol", num_clips=512),
        )
    )  # fmt: skip
    without = dict(adversarial=0.0, discriminative=0.0)
    config.sweep = ConfigDict(
        dict(
            about="""DMD2's axes (Yin et al. 2024, arXiv 2405.14867, sections 4.2, 4.3 and 4.5): how many updates the critic has
            for each of the student's, the adversary on its features, and where the inputs of a student of four calls come from,
            its own samples or noised clips. 4,000 updates of the critic on the ring of eight modes, the teacher exact, each
            axis varied alone. Energy distance (no floor) and the distance of order 1 (fresh draws have .1).""",
            axes=dict(
                ratio=dict(path="stages.student.options.ratio", values=(5, 1, 10)),
                adversary=dict(path="stages.student.options", values=[{}, without], labels=["on", "off"]),
                inputs=dict(path="stages.student.options.source", values=("simulated", "noised")),
            ),
            points=[{}, dict(ratio=1), dict(ratio=10), dict(adversary="off"), dict(inputs="noised")],
            seeds=(0, 1, 2),
            columns={
                "energy": dict(path=("exact", "metrics", "student", "energy")),
                "distance of order 1": dict(path=("exact", "metrics", "student", "wasserstein_1")),
                "modes": dict(path=("exact", "metrics", "student", "modes"), better="higher"),
            },
        )
    )
    return config
