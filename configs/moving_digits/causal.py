"""A student that streams: a transformer that is causal in time, two frames at a time, from a teacher that sees whole clips.

    python -m experiments.run --config=configs/moving_digits/causal.py --workdir=runs/causal
    python -m experiments.run --config=configs/moving_digits/causal.py:causvid --workdir=runs/causvid

First a causal teacher from nothing, by teacher forcing: every block of frames is denoised after the clean ones before it, all
blocks of a clip in one call. Its steps are halved in the same way, to 4, and that student goes on in a game whose teacher and
critic are the shipped U-Net, which sees whole clips: Self Forcing (Huang et al. 2025, arXiv 2506.08009) on clips that it rolls
out itself, or CausVid (Yin et al. 2024, arXiv 2412.07772) on clips of the data, every block noised to a level of its own.

With the argument diffusion_forcing the causal teacher's past is noisy too (Chen et al. 2024, arXiv 2407.01392): every block
has a level of its own, and in three quarters of the clips those before a block are clean.

The causal teacher and its 4-step student of the stage `halved` are shipped (pretrained/moving_digits/causal_teacher and
causal_student). They were made on an H200 in minutes: 7,095 steps of diffusion_forcing and, from there, 1,503 of teacher
forcing, then 500 a round, all at batch 64. Frechet distance: teacher at 8 calls a block 1.7, student at 4 calls 2.1, the
shipped U-Net of whole clips at 50 steps 3.5. 561 steps of Self Forcing after that bring it to 4.3, and the share of clips that
keep their identity from .90 to .99.
"""

from ml_collections import ConfigDict

from configs.moving_digits.base import base
from configs.moving_digits.games import ADVERSARY
from configs.moving_digits.students import GUIDANCE, TAUGHT, TEACHER

BLOCK, BLOCKS, STEPS = 2, 4, 4
MODEL = dict(
    kind="dit", shape=(8, 16, 16, 1), num_classes=10, patch=2, width=192, depth=4, head_dim=48, causal=True, block=BLOCK
)  # fmt: skip
FORCED = dict(kind="blocks", block=BLOCK, of="stratified")
DIFFUSED = dict(
    kind="blocks", block=BLOCK,
    of=dict(
        kind="mixture",
        parts=[
            [0.25, "independent"],
            [0.75, dict(kind="with_history", longest=BLOCKS - 1, future="independent", masked=0.0)],
        ],
    ),
)  # fmt: skip
SOURCES = {"self_forcing": "rolled_out", "causvid": "noised_by_chunk", "diffusion_forcing": "rolled_out"}


def get_config(argument: str = "self_forcing") -> ConfigDict:
    if argument not in SOURCES:
        raise ValueError(f"unknown student {argument!r}, expected one of {', '.join(SOURCES)}")
    config = base()
    config.model = ConfigDict(MODEL)
    config.stages = ConfigDict()
    diffused = argument == "diffusion_forcing"
    config.stages.teacher = dict(
        kind="train", method="denoising", steps=10_000, batch_size=32, teacher_forcing=not diffused,
        optimiser=dict(learning_rate=1e-3, decay="cosine", warmup=500, clip=1.0),
        options=dict(
            law=dict(kind="uniform_time", draw=DIFFUSED if diffused else FORCED), per_frame=True, weight="v", ema=0.999,
            label_dropout=0.1,
        ),
        log_every=250, checkpoint_every=2_500,
    )  # fmt: skip
    config.stages.halved = dict(
        kind="train", method="progressive", teacher="teacher", guidance=GUIDANCE, student_steps=(2 * STEPS, STEPS),
        steps=1_500, batch_size=32, teacher_forcing=True, options=dict(weight="v", ema=0.99, label_dropout=0.1),
        optimiser=dict(learning_rate=5e-4, decay="cosine", warmup=50, clip=1.0), log_every=100, checkpoint_every=500,
    )  # fmt: skip
    config.stages.student = dict(
        kind="train", method="dmd2", init="halved", steps=3_000, batch_size=32,
        optimiser=dict(learning_rate=1e-4, decay="cosine", warmup=20, clip=1.0),
        critic_optimiser=dict(learning_rate=4e-4, decay="constant"),
        options=dict(
            steps=STEPS, source=SOURCES[argument], chunk=BLOCK, exit_told=True, ratio=2, ema=0.98, **ADVERSARY
        ),
        log_every=100, checkpoint_every=500, **TAUGHT,
    )  # fmt: skip
    samplers = {
        "bidirectional_50": dict(weights=TEACHER, steps=50, guidance=GUIDANCE),
        "causal_50": dict(weights="teacher", steps=50, guidance=GUIDANCE, stream=BLOCK),
        "halved_4": dict(weights="halved", steps=STEPS, stream=BLOCK),
        "student_4": dict(weights="student", steps=STEPS, solver="consistency", stream=BLOCK),
    }
    config.stages.evaluate = dict(kind="evaluate", num_clips=256, batch_size=64, samplers=samplers, latency=True)
    return config
