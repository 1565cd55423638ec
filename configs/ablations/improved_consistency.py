"""iCT's axes: the metric, the weight of a pair, the curriculum (Song & Dhariwal 2023, arXiv 2310.14189, sections 3.3 to 3.5).

    python -m experiments.ablate sweep --config=configs/ablations/improved_consistency.py

From scratch, as in the paper, where the pseudo-Huber metric, the weight 1 / (s_{i+1} - s_i) and the doubling grid each help.
"""

from ml_collections import ConfigDict

from configs.ablations.continuous_consistency import COLUMNS, SAMPLERS
from configs.mixture.base import base, exact_stage, train_stage

CURRICULA = {
    "10 to 80, doubling": dict(s0=10, s1=80),
    "80 throughout": dict(s0=80, s1=80),
    "10 throughout": dict(s0=10, s1=10),
}


def get_config(law: str = "eight_mode_ring") -> ConfigDict:
    config = base(law)
    options = dict(metric="huber", weighting="inverse_gap", ema=0.99, s0=10, s1=80)
    config.stages = ConfigDict(
        dict(
            student=train_stage("improved_consistency", 2000, options=options),
            exact=exact_stage(SAMPLERS, noise="sobol", num_clips=512),
        )
    )
    config.sweep = ConfigDict(
        dict(
            about="""The axes of improved consistency training (Song & Dhariwal 2023, arXiv 2310.14189, sections 3.3 to
            3.5): the metric, the weight of a pair, and how the number of levels grows. 2,000 updates from scratch on the
            ring of eight modes, each axis varied alone. Energy distance (no floor; not times 1000, as
            on the page of distillation) after one call and after two.""",
            axes=dict(
                metric=dict(path="stages.student.options.metric", values=("huber", "squared", "norm")),
                weight=dict(path="stages.student.options.weighting", values=("inverse_gap", "plain")),
                levels=dict(path="stages.student.options", values=list(CURRICULA.values()), labels=list(CURRICULA)),
            ),
            points=[{}, dict(metric="squared"), dict(metric="norm"), dict(weight="plain")]
            + [dict(levels=name) for name in list(CURRICULA)[1:]],
            seeds=(0, 1, 2),
            columns=COLUMNS,
        )
    )
    return config
