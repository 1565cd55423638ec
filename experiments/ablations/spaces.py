"""What a step of an adversarial student costs in the space of pixels and in that of latents, of clips of one size."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import mesh as meshes
from experiments import training, weights
from experiments.ablations import costs, page
from experiments.context import Context

PIXELS = dict(
    kind="unet", shape=(32, 64, 64, 1), num_classes=10, widths=(24, 48, 96), blocks=(1, 1, 2), embed=128, patch=4
)  # fmt: skip
"""The shipped pixel teacher's network on clips of the latent one's size, as cheap as it gets: patches of 4x4 pixels."""
LATENTS = dict(kind="unet", shape=(9, 8, 8, 8), num_classes=10, widths=(96, 128), blocks=(2, 3), embed=128)
"""The latent teacher's."""
CLIPS = dict(kind="moving_digits", size=64, frames=32, digits=1)
BATCH = 4
FEATURES = "pretrained:moving_digits_64/classifier"


class Step(NamedTuple):
    """Of one update of the critic and one of the student: operations counted by the compiler, CPU seconds, temporary bytes."""

    operations: float
    seconds: float
    temporaries: float


def configured() -> dict[str, dict[str, Any]]:
    """A stage of ADD on pixels, and one of LADD on latents."""
    stage = dict(kind="train", steps=1, batch_size=BATCH, teacher="teacher", options={"steps": 4})
    common = dict(seed=0, schedule="vp_cosine", prediction="v")
    add = dict(**stage, method="add", guidance=1.5, features=FEATURES)
    ladd = dict(**stage, method="ladd", heads={"level": True, "places": True, "layers": "all"})
    return {
        "add, pixels": common | dict(data=CLIPS, model=PIXELS, stages={"student": add}),
        "ladd, latents": common | dict(data={"kind": "latents"}, model=LATENTS, stages={"student": ladd}),
    }


def measure(config: Mapping[str, Any], repeats: int = 3) -> Step:
    """Both phases once, `repeats` times; the least seconds count."""
    context = Context(dict(config), pathlib.Path("."), meshes.make())
    block = config["stages"]["student"]
    definition, network, method, _ = training.plan(context, "student", block)
    params = definition.init(jax.random.key(0))
    state = method.init(jax.random.key(1), params, params)
    frozen = {"teacher": params}
    if "features" in block:
        frozen["features"] = jax.tree.map(
            jnp.asarray, weights.load(weights.find(block["features"], pathlib.Path(".")))[0]
        )
    video = jax.random.normal(jax.random.key(2), (BATCH, *definition.shape))
    batch = {"video": video, "label": jnp.arange(BATCH) % network.num_classes}
    arguments = (frozen, batch, jax.random.key(3), {"learning_rate_scale": 1.0, "guidance": block.get("guidance", 1.0)})
    operations, seconds, temporaries = 0.0, 0.0, 0.0
    for phase in method.phases.values():
        compiled = jax.jit(phase).lower(state, *arguments).compile()
        operations += costs.operations(compiled)
        temporaries = max(temporaries, costs.held(compiled))
        took = []
        for _ in range(repeats + 1):
            begun = time.process_time()
            jax.block_until_ready(compiled(state, *arguments))
            took.append(time.process_time() - begun)
        seconds += float(np.min(took[1:]))
    return Step(operations, seconds, temporaries)


def section(folder: pathlib.Path) -> str:
    del folder
    found = {name: measure(config) for name, config in configured().items()}
    add, ladd = found.values()
    rows = [
        [f"`{name}`", f"{s.operations / 1e9:.1f}", f"{s.seconds:.2f}", f"{s.temporaries / 2**20:.0f}"]
        for name, s in found.items()
    ]
    return f"""## An adversarial step on pixels and on latents

This shows what the latent side is worth in training: one update of the critic and one of the student, of `add` on 64x64 clips
of 32 frames and of `ladd` on their latents, {BATCH} clips. The pixel network is the shipped pixel teacher's with patches of 4x4
pixels, the cheapest that sees such clips; ADD's features are those of the shipped classifier in every frame. Nothing is decoded
in LADD's step. It takes {ladd.seconds / add.seconds:.2f} of ADD's CPU seconds and {ladd.operations / add.operations:.2f} of its
operations, as the compiler counts them.

{page.table(["", "operations, 10^9", "CPU seconds", "temporaries, MiB"], rows)}
"""
