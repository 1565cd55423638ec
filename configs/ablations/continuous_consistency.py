"""sCM's axes: how the tangent is normalised, and its warm-up (Lu & Song 2024, arXiv 2410.11081, section 4.1, figure 5).

python -m experiments.ablate sweep --config=configs/ablations/continuous_consistency.py
"""

from ml_collections import ConfigDict

from configs.mixture.base import SPREADS, base, exact_stage, train_stage

SAMPLERS = {f"student_{n}": dict(weights="student", steps=n, solver="consistency") for n in (1, 2)}
ENERGY, MODES = ({"path": ("exact", "metrics", "student_1", name)} for name in ("energy", "modes"))
COLUMNS = {
    "energy, 1 call": ENERGY,
    "worst seed": ENERGY | {"over": "worst"},
    "modes of the worst seed": MODES | {"over": "worst", "better": "higher"},
    "energy, 2 calls": {"path": ("exact", "metrics", "student_2", "energy")},
}


def get_config(law: str = "eight_mode_ring") -> ConfigDict:
    config = base(law)
    first = dict(law="uniform_time", weight="v", ema=0.99)
    options = dict(normalise="rms", warmup=600, sigma_data=SPREADS[law], ema=0.99)
    config.stages = ConfigDict(
        dict(
            denoiser=train_stage("denoising", 1000, options=first),
            student=train_stage("continuous_distillation", 1500, teacher="oracle", init="denoiser", options=options),
            exact=exact_stage(SAMPLERS, noise="sobol", num_clips=512),
        )
    )
    config.sweep = ConfigDict(
        dict(
            about="""The two stabilisers of continuous-time consistency (Lu & Song 2024, arXiv 2410.11081, section 4.1): the
            tangent's normalisation ("norm" is the paper's, over a sample; "rms" divides by the root of the size first; "clip"
            its alternative) and its warm-up. 1,500 updates on the ring of eight modes with an exact teacher, begun as a
            denoiser. Energy distance (no floor) after one call and after two.""",
            axes=dict(
                tangent=dict(path="stages.student.options.normalise", values=("rms", "norm", "clip", "none")),
                warmup=dict(path="stages.student.options.warmup", values=(600, 0)),
            ),
            points=[dict(tangent=name) for name in ("rms", "norm", "clip", "none")]
            + [dict(tangent=name, warmup=0) for name in ("rms", "none")],
            seeds=(0, 1, 2),
            columns=COLUMNS,
        )
    )
    return config
