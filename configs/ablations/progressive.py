"""Progressive distillation: what the network predicts, and how its loss is weighted (Salimans & Ho 2022, table 1).

    python -m experiments.ablate sweep --config=configs/ablations/progressive.py

The paper trains CIFAR-10 models with each pair and finds that eps with the truncated SNR diverges, that plain eps suffers, and
that x0 and v do well. Here every pair trains a denoiser of eight modes and halves its 64 steps to 1.
"""

from ml_collections import ConfigDict

from configs.mixture.base import base, exact_stage, train_stage

HALVINGS = (32, 16, 8, 4, 2, 1)


def get_config(law: str = "eight_mode_ring") -> ConfigDict:
    config = base(law)
    optimiser = dict(learning_rate=1e-3, decay="cosine", warmup=50, clip=1.0)
    config.stages = ConfigDict(
        dict(
            denoiser=train_stage(
                "denoising", 1000, optimiser, options=dict(law="uniform_time", weight="v", ema=0.99)
            ),
            student=train_stage(
                "progressive", 120, optimiser, teacher="denoiser", student_steps=HALVINGS,
                options=dict(weight="v", ema=0.98),
            ),
            exact=exact_stage(
                {f"student_{n}": dict(weights=f"student@{n}", steps=n) for n in (1, 4)}, noise="sobol", num_clips=512
            ),
        )
    )  # fmt: skip
    config.sweep = ConfigDict(
        dict(
            about="""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512, table 1): the network's prediction and the
            weight of its loss (of the squared error of x0: snr is the plain loss of eps, v that of v). A denoiser of the ring
            of eight modes, trained with the same prediction and the weight of v, then 64 steps halved to 1. Distance is the
            2-Wasserstein distance to the exact flow's samples, energy the energy distance.""",
            axes=dict(
                prediction=dict(path="prediction", values=("v", "x0", "eps")),
                weight=dict(path="stages.student.options.weight", values=("v", "truncated_snr", "snr")),
            ),
            seeds=(0, 1, 2),
            columns={
                "distance, 1 call": dict(path=("exact", "metrics", "student_1", "wasserstein")),
                "energy, 1 call": dict(path=("exact", "metrics", "student_1", "energy")),
                "modes, 1 call": dict(path=("exact", "metrics", "student_1", "modes"), better="higher"),
                "distance, 4 calls": dict(path=("exact", "metrics", "student_4", "wasserstein")),
                "energy, 4 calls": dict(path=("exact", "metrics", "student_4", "energy")),
            },
        )
    )
    return config
