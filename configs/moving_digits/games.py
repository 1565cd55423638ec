"""Students of a critic, or an adversary, on moving digits, from the shipped teacher, at the budget of students.py.

    python -m experiments.run --config=configs/moving_digits/games.py:dmd2 --workdir=runs/digits/dmd2_4
    python -m experiments.run --config=configs/moving_digits/games.py:dmd2,1,20000 --workdir=runs/digits/dmd2_1

The argument is METHOD, METHOD,CALLS or METHOD,CALLS,BUDGET: a student is made for a number of calls, 4 by default, and judged
there; the budget is in forwards at batch 16.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.moving_digits.base import base
from configs.moving_digits.students import BUDGET, GUIDANCE, TAUGHT, TEACHER

AVERAGE = dict(ema=0.98)


class Game(NamedTuple):
    """A method, what its average step costs in forwards for a student of 4 calls, its options, its stage's own keys, its
    sampler.
    """

    method: str
    forwards: float
    options: dict
    block: dict = {}
    solver: str = "consistency"


GAMES = {
    "dmd2": Game("dmd2", 7.0, dict(ratio=2, adversarial=0.0, discriminative=0.0, source="noised")),
    "moment_matching": Game("moment_matching", 6.0, {}, solver="ddpm"),
    "diff_instruct": Game("diff_instruct", 10.0, dict(source="noised")),
}


def get_config(argument: str = "dmd2") -> ConfigDict:
    name, _, rest = argument.partition(",")
    calls, _, budget = rest.partition(",")
    if name not in GAMES:
        raise ValueError(f"unknown student {name!r}, expected one of {', '.join(GAMES)}")
    for what, text in (("calls", calls), ("budget", budget)):
        if text and not text.isdecimal():
            raise ValueError(f"{what} {text!r}: expected a whole number, as in {name},4,{BUDGET}")
    count, game = int(calls or 4), GAMES[name]
    config = base()
    student = dict(
        kind="train", method=game.method, steps=round(int(budget or BUDGET) / game.forwards), batch_size=16,
        optimiser=dict(learning_rate=2e-4, decay="cosine", warmup=20, clip=1.0),
        critic_optimiser=dict(learning_rate=4e-4, decay="constant"),
        options=dict(steps=count, **AVERAGE, **game.options), log_every=50, checkpoint_every=250, **TAUGHT, **game.block,
    )  # fmt: skip
    samplers = {
        "teacher_50": dict(weights=TEACHER, steps=50, guidance=GUIDANCE),
        f"student_{count}": dict(weights="student", steps=count, solver=game.solver),
    }
    config.stages = ConfigDict(
        dict(student=student, evaluate=dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers))
    )
    return config
