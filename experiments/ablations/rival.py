"""A training step and a forward derivative of the small DiT beside the same in eager PyTorch (the extra `bench`)."""

import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.ablations import cpu, page, peers
from experiments.ablations.small_dit import BATCH, KINDS, batch_of, prepare, small, stepper
from models import JVP_KINDS

ROUNDS = 7
AIMS = (1.5, 1.2)
BUILT_IN = "PyTorch, scaled_dot_product_attention"


def inputs() -> tuple[np.ndarray, ...]:
    """(clips, levels, labels, tangents of clips and of levels)"""
    random = np.random.default_rng(0)
    clips, tangents = (random.standard_normal((BATCH, *small()["model"]["shape"]), np.float32) for _ in range(2))
    levels, labels = np.linspace(-3, 3, BATCH, dtype=np.float32), np.arange(BATCH, dtype=np.int32)
    return clips, levels, labels, tangents, np.ones_like(levels)


def jvp(definition: Any) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, clips, levels, labels, tangents) -> (the prediction, its derivative along the tangents)"""

    def derivative(params, x, logsnr, label, dx, dlogsnr):
        return jax.jvp(
            lambda x, level: definition.apply(params, x, level, {"label": label}), (x, logsnr), (dx, dlogsnr)
        )

    return derivative


def steps() -> dict[str, Callable[[], None]]:
    from experiments.ablations import eager

    definition, _ = prepare(small())
    params, batch = definition.init(jax.random.key(0)), batch_of(definition, BATCH)
    found = {
        f"PyTorch, {name}": eager.stepper(eager.weights(params), batch, attend)
        for name, attend in eager.ATTENTION.items()
    }
    return found | {f"`{kind}`": stepper(small(kind), BATCH) for kind in KINDS}


def derivatives() -> dict[str, Callable[[], None]]:
    import torch

    from experiments.ablations import eager

    given = inputs()
    params = jax.jit(prepare(small())[0].init)(jax.random.key(0))
    tree, tensors = eager.weights(params), [torch.from_numpy(part) for part in given]
    found: dict[str, Callable[[], Any]] = {"torch.func.jvp": lambda: eager.jvp(tree, *tensors)}
    for kind in (kind for kind in KINDS if kind in JVP_KINDS):
        arrays = jax.device_put((params, *given))
        compiled = jax.jit(jvp(prepare(small(kind))[0])).lower(*arrays).compile()
        found[f"jax.jvp, `{kind}`"] = lambda compiled=compiled, arrays=arrays: jax.block_until_ready(compiled(*arrays))
    return found


def section(folder: pathlib.Path) -> str:
    del folder
    head = "## A step beside PyTorch\n\n"
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        return head + f"PyTorch is missing ({error}): {peers.INSTALL}.\n"
    torch.set_num_threads(1)
    took, slopes = cpu.in_turn(steps(), ROUNDS), cpu.in_turn(derivatives(), ROUNDS)
    base, plain = took[BUILT_IN], took["PyTorch, softmax"]
    rows = [[name, 1e3 * s, f"{s / base:.2f}", f"{s / plain:.2f}"] for name, s in took.items()]
    slowest = max(s for name, s in took.items() if "PyTorch" not in name) / base
    theirs = slopes["torch.func.jvp"]
    version = torch.__version__.partition("+")[0]
    return f"""{head}This shows a training step of the small DiT, of 512 tokens and batch {BATCH} in float32, beside the same
network in plain PyTorch {version}, eager: CPU time of one thread, all in turn in one process, medians of {ROUNDS} rounds. Both
make noised clips, take the loss and its gradient, clip it, and move the weights by AdamW (PyTorch's fused one) and their
average; our layers are scanned, as by default. With the same weights both networks give the same answers, gradients and
derivatives (tests/test_bench_pages.py). The aim was {AIMS[0]} and then {AIMS[1]} of PyTorch with its built-in attention; the
slowest kind takes {slowest:.2f}.

{page.table(["", "ms a step", "over its built-in attention", "over its plain one"], rows)}

The prediction and its derivative along the inputs, which continuous consistency and MeanFlow need in every step; PyTorch's
built-in attention has none on the CPU, so that it is its plain one:

{page.table(["", "ms", "over torch.func.jvp"], [[n, 1e3 * s, f"{s / theirs:.2f}"] for n, s in slopes.items()])}

PyTorch compiled (`torch.compile`) isn't here, nor are other machines than one core: a GPU has other ratios.
"""
