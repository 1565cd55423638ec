"""Less noise in time than in space, and a schedule of its own for every pixel of every frame.

    python -m experiments.run --config=configs/moving_digits/joint.py --workdir=runs/joint

Every frame has all of its noise, but half of its variance is the same in all frames (PYoCo's mixed noise: Ge et al. 2023,
arXiv 2305.10474, section 3.2): what changes from frame to frame has the other half only, and is still to be seen where single
frames are not. The network is told a map of levels, [b, f, h, w]: half of the clips have one level for every frame, half an
independent one for every square of 4x4 pixels of every frame. Then: clips in one piece, frame after frame, and in sweeps from
left to right. Begun as the shipped network of levels per frame. Not run to the end yet.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.moving_digits import forcing
from configs.moving_digits.history import FORCING

LEVELS = dict(
    kind="mixture",
    parts=[[0.5, dict(kind="whole_frames", of="independent")], [0.5, dict(kind="squares", size=4)]],
)
MATRICES = {
    "full": "full",
    "frames": dict(kind="sweep", lag=4, axis="frames"),
    "columns": dict(kind="sweep", lag=2, axis="columns"),
}


def get_config() -> ConfigDict:
    config = forcing.get_config()
    config.noise = dict(kind="mixed", a=1.0)
    stages: Any = config.stages
    teacher, evaluate = stages.teacher, stages.evaluate
    teacher.update(init=FORCING, steps=6_000)
    teacher.optimiser.learning_rate = 5e-4
    teacher.options.update(law=dict(kind="uniform_time", draw=LEVELS), per_frame=False, per_pixel=True)
    sampler = evaluate.samplers.full.to_dict()
    evaluate.samplers = {name: sampler | dict(matrix=matrix) for name, matrix in MATRICES.items()}
    config.stages = dict(teacher=teacher, evaluate=evaluate)
    return config
