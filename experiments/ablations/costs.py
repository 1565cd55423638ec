"""What one training step of every method costs, in forwards of its network: operations that the compiler counts."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diffusion import schedules
from distill import Network
from experiments import config as configs
from experiments.ablations import page

WIDTH, DEPTH, BATCH = 4096, 4, 4096
"""Of the network and its batch: so wide that what isn't a matrix product hardly counts. Nothing of it is ever computed."""
SHAPE = (1, 64, 64, 1)
CLASSES = 10
OWN_GUIDANCE = ("shortcut", "mean_flow")
"""Methods that are guided without a teacher, by their own answers."""


class Variant(NamedTuple):
    """A row of the table. limit: the forwards that it was to stay below, without guidance."""

    method: str
    options: dict[str, Any] = {}
    taught: bool = False
    limit: float | None = None


VARIANTS = {
    "denoising": Variant("denoising"),
    "guided": Variant("guided", {}, True),
    "progressive": Variant("progressive", {}, True, 5.1),
    "tract": Variant("tract", {}, True),
    "consistency_distillation, Euler": Variant("consistency_distillation", dict(solver="euler"), True, 5.1),
    "consistency_distillation, Heun": Variant("consistency_distillation", dict(solver="heun"), True, 6.1),
    "consistency_training": Variant("consistency_training"),
    "improved_consistency": Variant("improved_consistency"),
    "easy_consistency": Variant("easy_consistency"),
    "latent_consistency": Variant("latent_consistency", dict(guidance_range=None), True),
    "multistep_consistency": Variant("multistep_consistency", {}, True),
    "truncated_consistency": Variant("truncated_consistency"),
    "continuous_distillation": Variant("continuous_distillation", {}, True, 5.5),
    "continuous_training": Variant("continuous_training", {}, False, 4.5),
    "consistency_trajectory": Variant("consistency_trajectory", {}, True),
    "shortcut": Variant("shortcut"),
    "shortcut, taught": Variant("shortcut", {}, True),
    "mean_flow": Variant("mean_flow", {}, False, 4.6),
    "mean_flow, taught": Variant("mean_flow", {}, True),
    "reflow": Variant("reflow", {}, True),
}


def stack(params, x, logsnr, cond, *, key=None, train=False):
    """Matrix products in a scan, as in a large network; it listens to all that it is told."""
    told = sum((cond[name] for name in ("logsnr_to", "guidance") if name in cond), logsnr)
    h = x.reshape(len(x), WIDTH) + jnp.broadcast_to(told, (len(x),))[:, None]
    h = h + params["label"][cond["label"]] if "label" in cond else h
    h, _ = jax.lax.scan(lambda h, w: (h + jnp.sin(h @ w), None), h, params["layers"])
    return h.reshape(x.shape)


def forwards(method: str, options: Mapping[str, Any], *, taught: bool, guided: bool) -> float:
    """Forwards of the network in one training step; options as in a config.

    The compiler counts a loop's body once, whatever its trips; the layers' loops all have the same, so their ratio is right
    without them. A loop around them isn't in it: reflow's over its sampler is added, that of consistency_trajectory's
    substeps after the second isn't.

    guided: the network has classes, as it must where the method itself draws a g. The call without a class stands in a
    `jax.lax.cond`, of which the compiler counts the dearer branch, not the sum (measured: branches of one and three forwards
    count as three). So a network with classes costs what it does at g != 1, whatever g is.
    """
    of, params = jax.ShapeDtypeStruct, parameters()
    network = Network(stack, schedules.vp_cosine(), "v", 0, ("logsnr_to",))
    guided = guided or configs.method_option(method, options, "guidance_range") is not None
    if guided:
        network = network._replace(num_classes=CLASSES, cond_keys=("label", "logsnr_to", "guidance"))
    batch = {"video": of((BATCH, *SHAPE), jnp.float32), "label": of((BATCH,), jnp.int32)}
    frozen = {"previous": params} | ({"teacher": params} if taught else {})
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.0, "steps": 1.0}
    with jax.enable_x64(False):  # float32, as a network would run
        made = configs.method(method, options, network, optax.sgd(1.0), 1000, method)
        state = jax.eval_shape(made.init, jax.random.key(0), params)
        count = operations(made.phases["train"], state, frozen, batch, jax.random.key(0), hyper) / one_forward()
    more = configs.method_option(method, options, "steps") - 1 if method == "reflow" else 0
    return count + more * (2 if guided else 1)


def parameters() -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {"layers": (DEPTH, WIDTH, WIDTH), "label": (CLASSES + 1, WIDTH)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@functools.cache
def one_forward() -> float:
    clips, level = (jax.ShapeDtypeStruct((BATCH, *part), jnp.float32) for part in (SHAPE, ()))
    return operations(lambda params, x, logsnr: stack(params, x, logsnr, {}), parameters(), clips, level)


def operations(function: Callable, *arguments: Any) -> float:
    """Of the compiled program. Level 0 only spares LLVM's work, which comes after the count."""
    compiled = jax.jit(function).lower(*arguments).compile({"xla_backend_optimization_level": 0})
    cost: Any = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]  # a list in older versions of JAX


class Cost(NamedTuple):
    """Forwards of a step; None where there is no such thing."""

    unguided: float | None
    guided: float | None


def measure(variants: Mapping[str, Variant] = VARIANTS) -> dict[str, Cost]:
    found = {}
    for name, (method, options, taught, _) in variants.items():
        always = configs.method_option(method, options, "guidance_range") is not None
        never = not taught and method not in OWN_GUIDANCE
        found[name] = Cost(
            None if always else forwards(method, options, taught=taught, guided=False),
            None if never else forwards(method, options, taught=taught, guided=True),
        )
    return found


def section(folder: pathlib.Path) -> str:
    found = measure()
    limits = {name: variant.limit for name, variant in VARIANTS.items() if variant.limit is not None}
    over = [f"`{name}`" for name, limit in limits.items() if (found[name].unguided or 0.0) >= limit]
    rows = [
        [f"`{name}`", "yes" if VARIANTS[name].taught else "no", *(c and f"{c:.2f}" for c in cost), limits.get(name)]
        for name, cost in found.items()
    ]
    verdict = f"Over its limit: {', '.join(over)}." if over else "All stay below."
    return f"""## What a step costs

This shows what one training step costs in forwards of the network, which decides what a method can do in a budget. Counted,
not timed: the operations of the compiled step over those of one call, for a network of scanned layers whose cost is all in its
matrix products. The student's own update is 3, a forward and a backward pass; a derivative along the inputs is one more. Of a
batch, `consistency_trajectory` and `shortcut` let a share of the clips jump, by default 75 % and 12.5 %. `reflow` makes its
pairs with 16 calls of the teacher. *Guided* is a step at a scale other than 1; at 1 the calls without a class aren't made.
*Limit* is what a step without guidance was to stay below. {verdict}

{page.table(["method", "teacher", "forwards", "guided", "limit"], rows)}
"""
