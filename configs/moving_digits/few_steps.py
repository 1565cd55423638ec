"""The teacher at few steps, undistilled: DDIM, DPM-Solver++(2M), `best` and a table fitted to it.

    python -m experiments.run --config=configs/moving_digits/few_steps.py --workdir=runs/digits/teacher

`best` and `fitted` ask the teacher first, about few noises: `best` runs 75 samplers from each (at 50 steps, from 16 noises,
some 20 minutes of a core), a fit differentiates through every call of its own. Above 8 steps nothing is fitted: the unfitted
samplers are near the teacher's limit there.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base
from configs.moving_digits.students import GUIDANCE, TEACHER

STEPS = (50, 20, 8, 4, 2, 1)
FITTED = (8, 4, 2, 1)
SOLVERS = {
    "ddim": "ddim",
    "dpmpp": dict(kind="dpmpp", order=2),
    "best": dict(kind="best", num_noises=4),
    "fitted": dict(kind="fitted", num_noises=32, num_starts=1, iterations=20, reference_steps=50),
}


def get_config() -> ConfigDict:
    config = base()
    samplers = {
        f"{name}_{steps}": dict(weights=TEACHER, steps=steps, guidance=GUIDANCE, solver=solver)
        for name, solver in SOLVERS.items()
        for steps in STEPS
        if name != "fitted" or steps in FITTED
    }
    config.stages = ConfigDict(dict(evaluate=dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers)))
    return config
