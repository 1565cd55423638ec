"""Latent video DiTs of the size of Wan 2.1, 1.3 B and 14 B parameters: 81 frames of 480x832, 32,760 tokens a clip.

    python -m experiments.plan --config=configs/video/wan.py:14b,dmd2,v5p-256 --topology=v5p:4x8x8
    python -m experiments.run --config=configs/video/wan.py:14b,dmd2,v5p-256 --workdir=runs/wan --processes=auto

The argument is SIZE,STUDENT,SLICE: 1.3b or 14b; teacher, scm, dmd2 or self_forcing; v5p-64, v5p-256, v6e-256, v5e-256 or
2xv5e-256. The clips are latents that an `encode` stage left in runs/video/latents, of an autoencoder of factors 4 in time and 8
in space with 16 channels, and of 1000 classes. All train in bfloat16 on float32 weights, with every layer computed again in the
backward pass.

The teacher of `self_forcing` is causal, as its student: for one that sees whole clips train `teacher` alone and name its
weights with --config.stages.student.teacher=FILE. Nothing here was trained; docs/scale.md has what the plan says.

Width, depth and heads are Wan's (Wan Team 2025, arXiv 2503.20314, section 4). It is told a class where Wan is told a text, and
its MLP is wider by about the weights that Wan's attention to that text has.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

SIZES = {
    "1.3b": dict(width=1536, depth=30, mlp_ratio=7),
    "14b": dict(width=5120, depth=40, mlp_ratio=5),
}
# Latent frames that a causal student makes at a time.
CHUNK = 3
STUDENTS = ("teacher", "scm", "dmd2", "self_forcing")

# (mesh, clips a step) by slice and size. `context` divides the heads, 12 or 40; fsdp splits weights, moments and the batch.
SLICES = {
    "v5p-64": {"1.3b": (dict(fsdp=16, context=4), 16), "14b": (dict(fsdp=16, context=4), 16)},
    "v5p-256": {"1.3b": (dict(fsdp=64, context=4), 64), "14b": (dict(fsdp=64, context=4), 64)},
    "v6e-256": {"1.3b": (dict(fsdp=64, context=4), 64), "14b": (dict(fsdp=64, context=4), 64)},
    "v5e-256": {"1.3b": (dict(fsdp=64, context=4), 64), "14b": (dict(fsdp=32, context=8), 32)},
    "2xv5e-256": {"1.3b": (dict(data=2, fsdp=64, context=4), 128), "14b": (dict(data=2, fsdp=32, context=8), 64)},
}


def get_config(argument: str = "1.3b,dmd2,v5p-64") -> ConfigDict:
    parts = argument.split(",")
    for name, part, known in zip(("size", "student", "slice"), parts, (SIZES, STUDENTS, SLICES), strict=False):
        if part not in known:
            raise ValueError(f"unknown {name} {part!r}, expected one of {', '.join(known)}")
    if len(parts) != 3:
        raise ValueError(f"argument {argument!r}: expected SIZE,STUDENT,SLICE, as in 14b,dmd2,v5p-256")
    size, student, where = parts
    mesh, batch = SLICES[where][size]
    config = ConfigDict()
    config.seed = 0
    config.mesh = ConfigDict(mesh)
    config.data = ConfigDict(dict(kind="latents", path="runs/video/latents"))
    model = dict(
        kind="dit", shape=(21, 60, 104, 16), num_classes=1000, patch=2, head_dim=128, dtype="bfloat16", remat="layers",
        attention="splash", rope_base=10_000.0, **SIZES[size],
    )  # fmt: skip
    config.schedule = ConfigDict(dict(kind="flow", shift=3.0))
    config.prediction = "velocity"
    # Fine-tuned from weights that are named here, or trained from nothing.
    stages = {
        "teacher": {**stage("denoising", batch, 1e-5, weight="velocity", label_dropout=0.1), "init": placeholder(str)}
    }
    if student == "scm":
        # It has jax.jvp, and holds scores of its own tokens only; the angle keeps the derivative by the level finite.
        model |= dict(attention="ring", level="angle")
        stages["student"] = stage("continuous_distillation", batch, 1e-6, warmup=1_000, ema=0.99)
    elif student == "dmd2":
        model |= dict(cond=("logsnr_to",))
        stages["student"] = game(batch, source="simulated")
    elif student == "self_forcing":
        model |= dict(cond=("logsnr_to",), causal=True, block=CHUNK)
        stages["student"] = {**game(batch, source="rolled_out", chunk=CHUNK), "init": "teacher"}
    if student != "teacher":
        stages["student"] |= dict(teacher="teacher", guidance=5.0)
    config.model, config.stages = ConfigDict(model), ConfigDict(stages)
    return config


def stage(method: str, batch: int, learning_rate: float, **options) -> dict:
    return dict(
        kind="train", method=method, steps=10_000, batch_size=batch,
        optimiser=dict(learning_rate=learning_rate, warmup=500, clip=1.0), options=dict(dict(ema=0.999), **options),
        log_every=50, checkpoint_every=500,
    )  # fmt: skip


def game(batch: int, **options) -> dict:
    """DMD2's game without an adversary, whose heads would see every layer; the critic moves five times as often."""
    block = stage("dmd2", batch, 2e-6, steps=4, ratio=5, exit_told=True, adversarial=0.0, discriminative=0.0, **options)
    return {**block, "critic_optimiser": dict(learning_rate=4e-7)}
