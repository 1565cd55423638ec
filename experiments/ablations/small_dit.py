"""The small DiT of the bench, and what each kind of attention costs in one training step of it."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.method import Method
from experiments import config as configs
from experiments import programs
from experiments.ablations import costs, page
from models import ModelDef

CONFIG: Mapping[str, Any] = dict(
    data=dict(kind="moving_digits", size=16, frames=8, digits=1),
    model=dict(kind="dit", shape=(8, 16, 16, 1), num_classes=10, patch=2, width=192, depth=4, head_dim=48),
    schedule=dict(kind="vp_cosine"),
    prediction="v",
)
"""8 frames of 8x8 patches: 512 tokens."""
BATCH = 4
HYPER = {"learning_rate_scale": 1.0, "guidance": 1.0}
PLAIN = "xla"
KINDS = (PLAIN, "checkpoint", "fused")
"""Those of one device that compile for every backend; `splash` is the TPU's, elsewhere it is interpreted."""
FORWARDS = {PLAIN: 3.08, "checkpoint": 3.2, "fused": 3.2}
"""A step was to stay at or below so many."""
MEMORY = {("fused", True, False): 0.45, ("fused", True, True): 0.65, ("fused", False, False): 0.65}
"""(kind, are its layers scanned, are those of the plain kind) -> its temporaries were to be at most this share."""


class Step(NamedTuple):
    """A training step: forwards of its products, and of all operations as the compiler counts them (None where it has a loop);
    bytes of temporaries.
    """

    forwards: float
    counted: float | None
    temporaries: int


def small(attention: str = PLAIN, scan: bool = True) -> dict[str, Any]:
    """The config of the small DiT with this attention."""
    return {**CONFIG, "model": {**CONFIG["model"], "attention": attention, "scan": scan}}


def prepare(config: Mapping[str, Any]) -> tuple[ModelDef, Method]:
    """(the network, its training as a denoiser: AdamW with the gradient clipped, and the average of the weights)"""
    definition, network = configs.network(config)
    rule = configs.optimiser(dict(learning_rate=1e-3), 1000, "the optimiser")
    return definition, configs.method("denoising", {}, network, rule, 1000, "the method")


def batch_of(definition: ModelDef, size: int) -> dict[str, np.ndarray]:
    """Bytes of no meaning: what is computed of them is the same."""
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (size, *definition.shape), np.uint8)
    return {"video": video, "label": np.arange(size, dtype=np.int32) % max(1, definition.num_classes)}


def stepper(config: Mapping[str, Any], size: int) -> Callable[[], None]:
    """One training step on a batch of `size` that is on the device, compiled, with a state of its own."""
    definition, method = prepare(config)
    state = jax.jit(method.init)(jax.random.key(0), definition.init(jax.random.key(1)))
    given = ({}, jax.device_put(batch_of(definition, size)), jax.random.key(2), HYPER)
    step = jax.jit(method.phases["train"], donate_argnums=0).lower(state, *given).compile()

    def run() -> None:
        nonlocal state
        state, metrics = step(state, *given)
        jax.block_until_ready((state, metrics))

    return run


def trace(attention: str, scan: bool) -> tuple[Any, Any]:
    """(a training step, one forward of the network), traced."""
    definition, method = prepare(small(attention, scan))
    params = jax.eval_shape(definition.init, jax.random.key(0))
    state = jax.eval_shape(method.init, jax.random.key(0), params)
    batch = batch_of(definition, BATCH)
    step = jax.jit(method.phases["train"], donate_argnums=0).trace(state, {}, batch, jax.random.key(0), HYPER)
    clips, level = jnp.zeros(batch["video"].shape), jnp.zeros(BATCH)
    return step, jax.jit(definition.apply).trace(params, clips, level, {"label": batch["label"]})


def forwards(step: Any, forward: Any) -> float:
    """Of what `trace` gives: matrix products of one over those of the other."""
    return programs.operations(step.jaxpr) / programs.operations(forward.jaxpr)


def measure(attention: str, scan: bool) -> Step:
    step, forward = trace(attention, scan)
    compiled, counted = costs.compile(step.lower()), None
    if not scan and attention != "fused":  # chunks are a loop, too
        counted = costs.operations(compiled) / costs.operations(costs.compile(forward.lower()))
    return Step(forwards(step, forward), counted, costs.held(compiled))


def section(folder: pathlib.Path) -> str:
    del folder
    found = {(kind, scan): measure(kind, scan) for kind in KINDS for scan in (True, False)}
    rows = []
    for (kind, scan), step in found.items():
        shares = [f"{step.temporaries / found[PLAIN, of].temporaries:.2f}" for of in (True, False)]
        counted = step.counted and f"{step.counted:.2f}"
        name = f"`{kind}`, {'scanned' if scan else 'unscanned'}"
        rows.append([name, f"{step.forwards:.2f}", counted, f"{step.temporaries / 2**20:.0f}", *shares])
    shares = {
        (kind, own, plain): found[kind, own].temporaries / found[PLAIN, plain].temporaries
        for kind, own, plain in MEMORY
    }
    over = [f"`{kind}`" for kind, scan in found if found[kind, scan].forwards > FORWARDS[kind]]
    over += [f"the temporaries of `{key[0]}`" for key, share in shares.items() if share > MEMORY[key]]
    verdict = f"Over: {', '.join(over)}." if over else "All hold."
    params = sum(x.size for x in jax.tree.leaves(jax.eval_shape(prepare(small())[0].init, jax.random.key(0))))
    tokens = 8 * 8 * 8
    return f"""## Attention of the small DiT

This shows what each kind of attention costs in a training step of a DiT of {params / 1e6:.2f} M parameters on {tokens} tokens,
batch {BATCH}, float32: *forwards* are those of its matrix products, loops counted as often as they run, *of all operations*
what the compiler counts, which sees a loop's body once. *Temporaries* are the step's beside its state, *over plain* their share
of the plain kind's, of scanned layers and of unscanned ones. The plain kind was to stay at {FORWARDS[PLAIN]} forwards or
below, the recomputing ones at {FORWARDS["fused"]}; the temporaries of `fused`, its layers scanned as by default, at .45 of
those of plain attention with unscanned layers, and at .65 where both are scanned or neither is. {verdict}

{page.table(["", "forwards", "of all operations", "temporaries, MiB", "over plain, scanned", "unscanned"], rows)}

Of unscanned layers `checkpoint` saves nothing on the CPU, whose compiler keeps no barrier between the two passes: the second
computation stands in the first one, and its result is kept. In a loop it can't. Another backend's compiler has temporaries of
its own. `splash` is the TPU's kernel; elsewhere it is interpreted, and isn't counted here.
"""
