"""The students of a critic or an adversary on latents of 64x64 clips: those of configs/moving_digits/games.py, and LADD.

    python -m experiments.run --config=configs/moving_digits_64/games.py:ladd --workdir=runs/digits_64/ladd_4

The argument is METHOD, METHOD,CALLS or METHOD,CALLS,BUDGET. Batches are of 8 clips, those of LADD of 16. Of `add` there is no
latent form with features of pixels: that is `ladd` (Sauer et al. 2024, arXiv 2403.12015), which learns from the teacher's own
clips, made first, in the 50 steps that the teacher is judged at. Of clips of 10 steps, with a Frechet distance of 28
themselves, a student of 4 calls was at 15, of these it is at 5.7, where the teacher has 6.2, after 45 minutes of a core, half
of them for the clips.
"""

from ml_collections import ConfigDict

from configs.moving_digits import games
from configs.moving_digits.games import HALVED
from configs.moving_digits.students import GUIDANCE, HALVINGS, STUDENTS, train_stage
from configs.moving_digits_64.base import TEACHER, latents, on_latents
from configs.moving_digits_64.students import CLOCK

# A head on the map after every level of the teacher, told the level and class, that judges every place.
HEADS = dict(width=64, depth=1, level=True, places=True, layers="all")
# The paper's mean is 1; of latents of 8x8 cells less noise leaves what is to be judged.
LEVELS = dict(kind="logit_normal", mean=-1.0, std=1.0)
# By the compiler's count: the critic's update 4 (the student's clip, the teacher's maps of two kinds of clips, the heads), the
# student's 5.5 (its own 3, and the gradient through maps and heads).
FORWARDS = 9.5


def get_config(argument: str = "ladd") -> ConfigDict:
    name, count, forwards = games.parsed(argument)
    if name not in (*games.GAMES, "ladd"):
        raise ValueError(f"unknown student {name!r}, expected one of {', '.join([*games.GAMES, 'ladd'])}")
    if name != "ladd":
        if name == "add":
            raise ValueError("add: its features are those of a classifier of pixels; on latents choose 'ladd'")
        config = on_latents(games.get_config(argument))
        # Its regression's goals are few calls of the teacher: on the cosine's clock nearly empty frames.
        if name == "dmd":
            config.schedule = ConfigDict(CLOCK)
        return config
    config = latents()
    config.stages = ConfigDict()
    config.stages.synthetic = dict(
        kind="generate", weights=TEACHER, steps=50, guidance=GUIDANCE, num_clips=1024, batch_size=64
    )
    rounds = dict(teacher=TEACHER, guidance=GUIDANCE, student_steps=tuple(n for n in HALVINGS if n >= count))
    halved = STUDENTS["progressive"].stages["student"]._replace(block=rounds)
    config.stages.halved = {**train_stage(halved, HALVED * forwards), "clips": "synthetic"}
    config.stages.student = dict(
        kind="train", method="ladd", teacher=TEACHER, init="halved", clips="synthetic",
        steps=round((1 - HALVED) * forwards / FORWARDS), batch_size=16,
        # Slow, after a critic that has looked first: at 1e-4 and at once it was worse after 50 steps than before.
        optimiser=dict(learning_rate=2e-5, decay="cosine", warmup=40, clip=1.0),
        critic_optimiser=dict(learning_rate=1e-3, decay="constant", warmup=0), heads=HEADS,
        options=dict(steps=count, warmup=0, head_start=80, critic_law=LEVELS, ema=0.98), log_every=20, checkpoint_every=100,
    )  # fmt: skip
    samplers = {"teacher_50": dict(weights=TEACHER, steps=50, guidance=GUIDANCE)}
    for n in sorted({count, 2, 1}, reverse=True):
        samplers[f"student_{n}"] = dict(weights="student", steps=n, solver="consistency")
    config.stages.evaluate = dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers)
    return config
