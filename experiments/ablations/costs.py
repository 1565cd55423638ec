"""What one training step of every method costs: forwards of its network, temporaries, lines and number of its programs."""

import collections
import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion import schedules
from distill import SELF_GUIDED, Discriminator, Network
from distill.games import CRITIC, STUDENT
from distill.method import Method
from experiments import config as configs
from experiments import loop
from experiments import mesh as meshes
from experiments.ablations import page
from experiments.config import ConfigError
from models import build_heads

WIDTH, DEPTH, BATCH = 4096, 4, 4096
"""Of the network and its batch: so wide that what isn't a matrix product hardly counts. Nothing of it is ever computed."""
SMALL = (64, 4)
"""Width and batch of the network whose steps are run to see how many programs they take."""
STEPS = 3
CLASSES, FEATURES = 10, 64


class Variant(NamedTuple):
    """A row of the table. limit: the forwards that it was to stay below, without guidance. phase: of the method's."""

    method: str
    options: dict[str, Any] = {}
    taught: bool = False
    limit: float | None = None
    phase: str = "train"


ALONE = dict(steps=1, adversarial=0.0, discriminative=0.0)
ALONE_ROW = "dmd2"
"""One step and no adversary: what the limits are about."""


def phases(method: str, options: dict[str, Any], student: float | None = None, critic: float | None = None):
    """The rows of a game, with their limits."""
    return {name: Variant(method, options, True, limit, name) for name, limit in ((STUDENT, student), (CRITIC, critic))}


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
} | {
    f"{title}, {phase}": variant
    for title, rows in {
        "dmd": phases("dmd", {}),
        ALONE_ROW: phases("dmd2", ALONE, 5.1, 4.1),
        "dmd2, 4 steps": phases("dmd2", ALONE | dict(steps=4)),
        "dmd2, adversary": phases("dmd2", dict(steps=1)),
        "f_distill": phases("f_distill", dict(steps=1)),
        "diff_instruct": phases("diff_instruct", {}),
        "sid": phases("sid", {}),
        "sid, adversary": phases("sid", dict(adversarial=0.01, discriminative=0.01)),
        "moment_matching": phases("moment_matching", {}),
        "rcm": phases("rcm", dict(steps=1)),
        "add": phases("add", {}),
        "ladd": phases("ladd", {}),
    }.items()
    for phase, variant in rows.items()
}  # fmt: skip


def stack(params, x, logsnr, cond, *, key=None, train=False):
    """Matrix products in a scan, as in a large network; it listens to all that it is told."""
    return through(params["late"], early(params, x, logsnr, cond)).reshape(x.shape)


def early(params, x, logsnr, cond):
    """What the first half of the layers makes of x."""
    told = sum((cond[name] for name in ("logsnr_to", "guidance") if name in cond), logsnr)
    h = x.reshape(len(x), -1) + jnp.broadcast_to(told, (len(x),))[:, None]
    h = h + params["label"][cond["label"]] if "label" in cond else h
    return through(params["early"], h)


def through(layers, h):
    return jax.lax.scan(lambda h, w: (h + jnp.sin(h @ w), None), h, layers)[0]


def features(params, x, logsnr, cond):
    """The middle, as of a U-Net, and so little of it that heads hardly count."""
    return (early(params, x, logsnr, cond)[:, None, None, None, :FEATURES],)


def make(
    method: str, options: Mapping[str, Any], *, taught: bool, guided: bool, size: tuple[int, int] = (WIDTH, BATCH)
) -> tuple[Method, tuple[Any, ...]]:
    """(the method, the arguments of one call of a phase, of which most are shapes only). size: width and batch."""
    of, params = jax.ShapeDtypeStruct, parameters(size[0])
    network = Network(stack, schedules.vp_cosine(), "v", 0, ("logsnr_to",))
    if guided or draws_guidance(method, options):
        network = network._replace(num_classes=CLASSES, cond_keys=("label", "logsnr_to", "guidance"))
    given = {}
    if configs.takes(method, "discriminator"):
        heads = build_heads(dict(width=1), (FEATURES,), network.num_classes)
        given["discriminator"] = Discriminator(features, heads.init, heads.apply)
    batch = {"video": of((size[1], *shape(size[0])), jnp.float32), "label": of((size[1],), jnp.int32)}
    frozen = {"previous": params, "features": params} | ({"teacher": params} if taught else {})
    hyper = {"learning_rate_scale": 1.0, "guidance": 1.0, "steps": 1.0}
    made = configs.method(method, options, network, optax.sgd(1.0), 1000, method, **given)
    state = jax.eval_shape(made.init, jax.random.key(0), params)
    return made, (state, frozen, batch, jax.random.key(0), hyper)


def draws_guidance(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a student is told a g that is drawn: then there is no step without guidance."""
    return configs.method_option(method, options, "guidance_range") is not None


STATE = (0,)
"""Of a phase's arguments: it is given away, as in training."""


class Count(NamedTuple):
    """Forwards of a phase, its temporaries in sizes of the network's weights, and lines of its program before the compiler."""

    forwards: float
    memory: float
    lines: int


def count(method: str, options: Mapping[str, Any], phase: str, *, taught: bool, guided: bool) -> Count:
    """What one phase of a method's step costs; see `forwards`."""
    calls = 2 if guided or draws_guidance(method, options) else 1
    option = functools.partial(configs.method_option, method, options)
    if option("source") == "rolled_out":
        raise ConfigError(f"{method}: a roll-out costs by the number of its chunks, which isn't counted here")
    with jax.enable_x64(False):  # float32, as a network would run
        made, arguments = make(method, options, taught=taught, guided=guided)
        lowered = lower(made.phases[phase], *arguments, donated=STATE)
        compiled = compile(lowered)
    found = operations(compiled) / one_forward()
    if method == "reflow":
        found += calls * (option("steps") - 1)
    elif method == "dmd" and phase == STUDENT and option("regression_weight"):
        found += calls * (option("teacher_steps") - 1)
    elif option("source") == "simulated":
        found -= (option("steps") - 1) / 2
    return Count(found, temporaries(compiled), len(lowered.as_text().splitlines()))


def programs(method: str, options: Mapping[str, Any], *, taught: bool, guided: bool) -> dict[str, int]:
    """phase -> how many programs its calls of STEPS steps took, on arrays, as training makes them: a second one would mean that
    a phase gives back a state of other types than it took, or that something is static that changes.
    """
    with jax.enable_x64(False):
        made, (_, frozen, batch, key, hyper) = make(method, options, taught=taught, guided=guided, size=SMALL)
        shapes = (parameters(SMALL[0]), frozen, batch)
        params, frozen, batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        mesh = meshes.make(devices=jax.devices()[:1])
        state, frozen = meshes.put(made.init(key, params), mesh), meshes.put(frozen, mesh)
        batch = meshes.put_batch(batch, mesh, SMALL[1])
        phases = loop.compile_phases(made, mesh)
        for step in range(STEPS):
            # Each phase every time: what a game's order leaves out of three steps counts too.
            for phase in phases.values():
                hyper = {name: np.float32(value) for name, value in hyper.items()}
                state, _ = phase(state, frozen, batch, jax.random.fold_in(key, step), hyper)
        return {name: phase._cache_size() for name, phase in phases.items()}


def forwards(method: str, options: Mapping[str, Any], *, taught: bool, guided: bool, steps: int | None = None) -> float:
    """Forwards of the network in one training step, the average over the first `steps` of a stage (None: over one turn of a
    game); options as in a config.

    The compiler counts a loop's body once, whatever its trips; the layers' loops all have the same, so their ratio is right
    without them. A loop around them isn't in it: those of reflow and DMD over their sampler are added, that of
    consistency_trajectory's substeps after the second isn't.

    guided: the network has classes, as it must where the method itself draws a g. The call without a class stands in a
    `jax.lax.cond`, of which the compiler counts the dearer branch, not the sum (measured: branches of one and three forwards
    count as three). So a network with classes costs what it does at g != 1, whatever g is. Backward simulation has every
    call but its last in such a `cond` too, and as the exit is uniform, half of them run: the other half is taken off.

    An adversary's features are half a network's (of the shipped U-Net, whose bottleneck has them: .64), and a frozen network
    that gives some counts as the student's own.
    """
    with jax.enable_x64(False):
        made, _ = make(method, options, taught=taught, guided=guided)
    steps = steps or configs.method_option(method, options, "ratio") or 1
    turns = collections.Counter(phase for index in range(steps) for phase in made.order(index))
    each = {phase: count(method, options, phase, taught=taught, guided=guided).forwards for phase in turns}
    return sum(times * each[phase] for phase, times in turns.items()) / steps


def shape(width: int) -> tuple[int, int, int, int]:
    """Of a clip of so many numbers, one square frame."""
    return 1, math.isqrt(width), math.isqrt(width), 1


def parameters(width: int = WIDTH) -> dict[str, jax.ShapeDtypeStruct]:
    half = (DEPTH // 2, width, width)
    shapes = {"early": half, "late": half, "label": (CLASSES + 1, width)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@functools.cache
def one_forward() -> float:
    clips, level = (jax.ShapeDtypeStruct((BATCH, *part), jnp.float32) for part in (shape(WIDTH), ()))
    lowered = lower(lambda params, x, logsnr: stack(params, x, logsnr, {}), parameters(), clips, level)
    return operations(compile(lowered))


def lower(function: Callable, *arguments: Any, donated: tuple[int, ...] = ()) -> Any:
    return jax.jit(function, donate_argnums=donated).lower(*arguments)


def compile(lowered: Any) -> Any:
    """Level 0 only spares LLVM's work, which comes after all that is asked of the program."""
    return lowered.compile({"xla_backend_optimization_level": 0})


def operations(compiled: Any) -> float:
    cost = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]  # a list in older versions of JAX


def temporaries(compiled: Any) -> float:
    """Peak of what the program holds beside its arguments and results, in sizes of the network's weights."""
    return held(compiled) / sum(4 * math.prod(leaf.shape) for leaf in parameters().values())


def held(compiled: Any) -> float:
    """The same in bytes."""
    return compiled.memory_analysis().temp_size_in_bytes


class Cost(NamedTuple):
    """Forwards of a step, None where there is no such thing; its temporaries, the lines of its program and the programs of
    STEPS steps without guidance, or with where it must be.
    """

    unguided: float | None
    guided: float | None
    memory: float
    lines: int
    programs: int


def measure(variants: Mapping[str, Variant] = VARIANTS) -> dict[str, Cost]:
    # A game is run once for all of its phases.
    ran: dict[tuple[str, str], dict[str, int]] = {}
    found = {}
    for name, (method, options, taught, _, phase) in variants.items():
        always, never = draws_guidance(method, options), phase == CRITIC or not taught and method not in SELF_GUIDED
        counts = [
            None if missing else count(method, options, phase, taught=taught, guided=guided)
            for guided, missing in ((False, always), (True, never))
        ]
        one = next(filter(None, counts))
        game = method, repr((options, taught))
        if game not in ran:
            ran[game] = programs(method, options, taught=taught, guided=always)
        found[name] = Cost(*(c and c.forwards for c in counts), one.memory, one.lines, ran[game][phase])
    return found


def together(method: str, options: Mapping[str, Any]) -> float:
    """Temporaries of one program of all phases of a game."""
    with jax.enable_x64(False):
        made, arguments = make(method, options, taught=True, guided=False)

        def both(state, frozen, batch, key, hyper):
            metrics = {}
            for name, phase in made.phases.items():
                state, metrics[name] = phase(state, frozen, batch, key, hyper)
            return state, metrics

        return temporaries(compile(lower(both, *arguments, donated=STATE)))


HEADER = ("method", "teacher", "forwards", "guided", "limit", "temporaries", "HLO lines", "compilations")


def section(folder: pathlib.Path) -> str:
    del folder
    found = measure()
    limits = {name: variant.limit for name, variant in VARIANTS.items() if variant.limit is not None}
    over = [f"`{name}`" for name, limit in limits.items() if (found[name].unguided or 0.0) >= limit]
    rows = [
        [f"`{name}`", "yes" if VARIANTS[name].taught else "no", *(c and f"{c:.2f}" for c in cost[:2]), limits.get(name),
         f"{cost.memory:.2f}", cost.lines, cost.programs]
        for name, cost in found.items()
    ]  # fmt: skip
    verdict = f"Over its limit: {', '.join(over)}." if over else "All stay below."
    weights = sum(4 * math.prod(leaf.shape) for leaf in parameters().values())
    larger = max(found[f"{ALONE_ROW}, {phase}"].memory for phase in (STUDENT, CRITIC))
    return f"""## What a step costs

This shows what one training step costs in forwards of the network, which decides what a method can do in a budget. Counted,
not timed: the operations of the compiled step over those of one call, for a network of scanned layers whose cost is all in its
matrix products. The student's own update is 3, a forward and a backward pass; a derivative along the inputs is one more. Of a
batch, `consistency_trajectory` and `shortcut` let a share of the clips jump, by default 75 % and 12.5 %. `reflow` makes its
pairs with 16 calls of the teacher, `dmd` with 18. *Guided* is a step at a scale other than 1; at 1 the calls without a class
aren't made. *Limit* is what a step without guidance was to stay below. {verdict}

A method with a critic has a row for each of its phases: a step of it is an update of the critic and, in some steps, one of
the student, after the critic's or in its place. Where no number is given, the student is made for one call, or by the
method's own default on noised clips; backward simulation of more calls costs either phase half of those before the last, on
average. An adversary's features are from the middle of a network and cost half a forward.

*Temporaries* are the peak of what a step holds beside its arguments and results, in sizes of the network's weights
({weights / 2**20:.0f} MiB); the activations of its layers are as many numbers as its weights. Phases are programs of their own,
so that a step's peak is that of its larger phase: one program of both phases of `{ALONE_ROW}` would take
{together("dmd2", ALONE) / larger:.2f} times as much.

*HLO lines* are those of the program that is handed to the compiler: they grow with what is traced, not with the machine.
*Compilations* are the programs that {STEPS} steps took, on arrays, of the same network {SMALL[0]} wide; a second one would be
the price of a compilation in every run.

{page.table(HEADER, rows)}
"""
