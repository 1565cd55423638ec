"""Students of a critic, or an adversary, on moving digits, from the shipped teacher, at the budget of students.py.

    python -m experiments.run --config=configs/moving_digits/games.py:moment_matching --workdir=runs/digits/moment_matching_4
    python -m experiments.run --config=configs/moving_digits/games.py:dmd2,1,20000 --workdir=runs/digits/dmd2_1

The argument is METHOD, METHOD,CALLS or METHOD,CALLS,BUDGET: a student is made for a number of calls, 4 by default, and judged
there; the budget is in forwards at batch 16. Most students begin as a progressive one (three tenths of the budget): the
teacher's own answer to noise is a mean, from which a game takes long to part.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs.moving_digits import classifier
from configs.moving_digits.base import base
from configs.moving_digits.students import BUDGET, GUIDANCE, STUDENTS, TAUGHT, TEACHER, train_stage

AVERAGE = dict(ema=0.98)
HALVED = 0.3


class Game(NamedTuple):
    """A method, what its average step costs in forwards, its options, its sampler, its stage's own keys; whether its student
    begins as a progressive one.
    """

    method: str
    forwards: float
    options: dict
    solver: str = "consistency"
    block: dict = {}
    halved: bool = True


ADVERSARY = dict(adversarial=1e-2, discriminative=1e-2)

GAMES = {
    "dmd": Game("dmd", 21.1, dict(teacher_steps=4)),
    "dmd2": Game("dmd2", 12.8, dict(ratio=2, source="simulated", exit_told=True, **ADVERSARY)),
    "f_distill": Game("f_distill", 12.8, dict(ratio=2, source="simulated", exit_told=True, **ADVERSARY)),
    "diff_instruct": Game("diff_instruct", 13.0, dict(source="simulated", exit_told=True)),
    # Its own first level, sigma 2.5, is one that a sampler would have to be told: here it is the schedule's noisy end.
    "sid": Game("sid", 16.0, dict(start=None)),
    "moment_matching": Game("moment_matching", 6.0, {}, "ddpm", halved=False),
    "rcm": Game("rcm", 8.4, dict(warmup=100, sigma_data=0.4, exit_told=True)),
    # Its frozen features are a classifier's that is trained first: those of the network that measures would be told the test.
    "add": Game("add", 8.0, dict(adversarial=0.1, r1=1e-3), block=dict(features="features"), halved=False),
}
ONE_CALL = ("dmd",)
"""Methods of a single call."""


def parsed(argument: str) -> tuple[str, int, float]:
    """The method, its calls and its budget, of METHOD, METHOD,CALLS or METHOD,CALLS,BUDGET."""
    name, _, rest = argument.partition(",")
    calls, _, budget = rest.partition(",")
    count = 1 if name in ONE_CALL else 4
    for what, text in (("calls", calls), ("budget", budget)):
        if text and not (text.isdecimal() and int(text)):
            raise ValueError(f"{what} {text!r}: expected a whole number from 1 up, as in {name},{count},{BUDGET}")
    return name, int(calls or count), int(budget or BUDGET)


def get_config(argument: str = "dmd2") -> ConfigDict:
    name, count, forwards = parsed(argument)
    if name not in GAMES:
        raise ValueError(f"unknown student {name!r}, expected one of {', '.join(GAMES)}")
    game = GAMES[name]
    if name in ONE_CALL and count != 1:
        raise ValueError(f"{name} is a method of one call, got {count}: choose {name},1")
    config, stages, options = base(), {}, {**AVERAGE, **game.options}
    options |= {} if name in ONE_CALL else {"steps": count}
    if options.get("exit_told"):
        config.model = ConfigDict({**config.model, "cond": ("logsnr_to",)})
    begin: dict = {}
    if "features" in game.block:
        stages["features"] = classifier.STAGE
    if game.halved:
        stages["halved"] = train_stage(STUDENTS["progressive"].stages["student"], HALVED * forwards)
        begin, forwards = dict(init="halved"), (1 - HALVED) * forwards
    stages["student"] = dict(
        kind="train", method=game.method, steps=round(forwards / game.forwards), batch_size=16,
        optimiser=dict(learning_rate=2e-4, decay="cosine", warmup=20, clip=1.0),
        critic_optimiser=dict(learning_rate=4e-4, decay="constant"), options=options, log_every=50, checkpoint_every=250,
        **TAUGHT, **begin, **game.block,
    )  # fmt: skip
    samplers = {
        "teacher_50": dict(weights=TEACHER, steps=50, guidance=GUIDANCE),
        f"student_{count}": dict(weights="student", steps=count, solver=game.solver),
    }
    stages["evaluate"] = dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers)
    config.stages = ConfigDict(stages)
    return config
