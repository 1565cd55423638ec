"""Students of a critic, or an adversary, beside the exact denoiser: one call, where the truth is known.

    python -m experiments.run --config=configs/mixture/games.py:dmd2 --workdir=runs/dmd2
    python -m experiments.run --config=configs/mixture/games.py:sid+moment_matching,a1d --workdir=runs/two_on_a1d
    python -m experiments.run --config=configs/mixture/games.py:all --workdir=runs/games/eight_mode_ring_0

The argument is METHODS or METHODS,LAW as in students.py. Each is to come nearer to the law in its one call than DDIM with the
exact denoiser in eight, and says how many modes it keeps.
"""

from ml_collections import ConfigDict

from configs.mixture.students import Student, assemble

AVERAGE = dict(ema=0.995)
ONE = dict(steps=1, **AVERAGE)


def taught(steps: int, **block) -> dict:
    return dict(teacher="oracle", steps=steps, **block)


# A student that moves at each of the critic's steps must be slower than it.
SLOWER = dict(optimiser=dict(learning_rate=5e-4), critic_optimiser=dict(learning_rate=1e-3))
IDENTITY = dict(start=None, alpha=1.0, **ONE)
# A point of the plane has no neighbours: one kind of head will do.
HEADS = dict(heads=dict(kinds=("spatial",), width=32))

GAMES = {
    "dmd": Student(dict(teacher_steps=8, ratio=2, **AVERAGE), stage=taught(8_000)),
    "dmd2": Student(ONE, stage=taught(15_000, **HEADS)),
    "diff_instruct": Student(dict(ratio=2, **ONE), stage=taught(16_000, **SLOWER)),
    "sid": Student(IDENTITY, stage=taught(14_000, **SLOWER)),
    "sida": Student(
        # A normaliser of a sample is a mean over its numbers. Here they are one or two, at times next to none: with an
        # adversary beside it the student of a1d left the data for good. Without one it takes such steps to leave the mean.
        dict(normaliser="batch", adversarial=1e-2, discriminative=1e-2, **IDENTITY),
        stage=taught(10_000, **SLOWER, **HEADS),
        method="sid",
    ),
    "moment_matching": Student(ONE, "ddpm", taught(10_000, **SLOWER)),
    "f_distill": Student(ONE, stage=taught(15_000, **HEADS)),
    "rcm": Student(
        dict(consistency_weight=2.0, normalise="rms", warmup=200, mean=-0.4, **ONE), stage=taught(15_000)
    ),
    # The modes are narrow: a discriminator of clips without noise has no slope between them.
    "add": Student(
        dict(weighting="score", critic_law="uniform_time", ratio=2, **ONE),
        stage=taught(
            6_000, features="denoiser", heads=dict(kinds=("spatial",), width=64, depth=2),
            optimiser=dict(learning_rate=3e-4, betas=(0.5, 0.99)), critic_optimiser=dict(learning_rate=1e-3),
        ),
    ),
}  # fmt: skip
GAMES = {name: student._replace(counts=(1,)) for name, student in GAMES.items()}


def get_config(argument: str = "dmd2") -> ConfigDict:
    # These students don't keep to the flow's map: what chance adds to their distance must be small by itself.
    return assemble(argument, GAMES, (1, 4, 8), noise="sobol")
