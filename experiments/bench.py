"""`python -m experiments.bench --config=configs/X.py[:ARG] [--stage=NAME] [--steps=20] [--out=FILE]`: what a step costs here.

Without a config, `python -m experiments.bench [--only=SECTION,..] [--out=docs/results]`: the page of what every method's step
costs, and of CPU time beside other libraries' (experiments/ablations/bench.py).

Compiles every phase of a training stage as the stage itself would, on random weights and clips (no data and no finished
stage is needed), and times it on this machine's devices. Beside the time: the operations of the step in forwards of the
network, its temporary memory, the size of its program, and the share of the chip's bfloat16 peak that it reaches. Operations
are counted as in a plan, those of the dearest step (experiments/programs.py); the time is the median step's.
"""

import dataclasses
import functools
import logging
import math
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill.method import Method
from experiments import beside, data, exact, latents, loop, programs, run, stages, training
from experiments import config as configs
from experiments import mesh as meshes
from experiments.ablations import bench as benchmarks
from experiments.ablations import page
from experiments.command import command
from experiments.config import ConfigError
from experiments.context import Context
from experiments.names import is_outside

PEAKS = {
    "NVIDIA H200": 989e12, "NVIDIA H100": 989e12, "NVIDIA A100": 312e12, "TPU v4": 275e12, "TPU v5 lite": 197e12,
    "TPU v5e": 197e12, "TPU v5p": 459e12, "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU v6e": 918e12,
}  # fmt: skip
"""Dense bfloat16 operations per second of a chip, by the vendors' data sheets; the first name that fits counts."""
DRAWN = ("moving_digits", "exact")
"""Kinds of data that no file holds."""
OPTIONS = ("steps", "out")
PAGE_OPTIONS = ("only", "out")
"""Without a config."""


class Timing(NamedTuple):
    """A phase: seconds a step; operations of it, and of one forward; bytes; lines of its program; seconds of compiling."""

    seconds: float
    operations: float
    forward: float
    temporaries: int
    lines: int
    compiling: float


@functools.partial(command, about=__doc__)
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 2 a mistake of the user's."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    argv = sys.argv if argv is None else argv
    if not any(a.startswith("--config") for a in argv[1:]):
        return make_page(argv[1:])
    config, source, only, steps, out = parse(argv)
    stages.check_form(config, "sweep")
    with tempfile.TemporaryDirectory() as folder:
        context = Context(config, pathlib.Path(folder), meshes.make(config.get("mesh")), source)
        report = {name: measure(context, name, steps) for name in chosen(config, only)}
    device = jax.devices()[0].device_kind
    print(describe(report, config, device, len(jax.devices())))
    if out is not None:
        found = {name: {phase: timing._asdict() for phase, timing in rows.items()} for name, rows in report.items()}
        configs.write_json(out, {"config": source, "device": device, "devices": len(jax.devices()), "stages": found})
    return 0


def make_page(arguments: list[str]) -> int:
    """Writes bench.md in the folder --out."""
    given = {"only": "", "out": "docs/results"}
    for argument in arguments:
        key, _, value = argument.removeprefix("--").partition("=")
        if key not in PAGE_OPTIONS or not argument.startswith("--"):
            raise ConfigError(f"{argument}: without --config=... there are --only=SECTION,.. and --out=FOLDER")
        if not value:
            raise ConfigError(f"--{key} needs a value: --{key}=...")
        given[key] = value
    benchmarks.run(pathlib.Path(given["out"]), [name for name in given["only"].split(",") if name])
    return 0


def parse(argv: list[str]) -> tuple[dict[str, Any], str, str | None, int, pathlib.Path | None]:
    """(config, its name, the stage or None, steps, file or None): --steps and --out are ours, all else is experiments.run's."""
    values, left = run.own_options(argv, OPTIONS)
    if not (text := values.get("steps", "20")).isdecimal() or not int(text):
        raise ConfigError(f"--steps: expected a whole number from 1 up, got {text!r}")
    config, source, _, only, _ = run.parse([*left, "--workdir=."])
    out = pathlib.Path(values["out"]) if "out" in values else None
    if out is not None:
        if out.is_dir():
            raise ConfigError(f"--out: {out} is a folder, expected a file")
        configs.make_folder(out.parent, "--out")
    return config, source, only, int(text), out


def chosen(config: Mapping[str, Any], only: str | None, kinds: Iterable[str] = ("train",)) -> list[str]:
    """The stages of these kinds that are asked for, all of them by default."""
    known = {name: block for name, block in config["stages"].items() if block["kind"] in kinds}
    if not known:
        raise ConfigError(f"this config has no stage of kind {', '.join(kinds)}")
    if only is None:
        return list(known)
    configs.choose(only, known, "--stage")
    return [only]


class Prepared(NamedTuple):
    """A phase compiled for this machine's devices, with what is told of it before it ever runs: `of` lacks the seconds only."""

    compiled: Any
    of: Timing


def measure(context: Context, name: str, steps: int) -> dict[str, Timing]:
    """Every phase of a stage, compiled and timed."""
    phases, arguments = prepare(context, name)
    return timed(name, phases, arguments, steps)


def prepare(context: Context, name: str) -> tuple[dict[str, Prepared], tuple[Any, ...]]:
    """(a stage's phases, the arguments of their first call, on the devices)"""
    block, where = context.config["stages"][name], f"config.stages.{name}"
    stages.check_block(block, where)
    meshes.check_batch(block["batch_size"], context.mesh, where, block.get("accumulate", 1))
    method, (state, frozen, batch, key, hyper) = begin(context, name, block)
    state, frozen = meshes.put(state, context.mesh), meshes.put(frozen, context.mesh)
    arguments = (state, frozen, meshes.put_batch(batch, context.mesh, block["batch_size"]), key, hyper)
    counts, forward = counted(context, name, block)
    phases = {}
    for phase, step in loop.compile_phases(method, context.mesh).items():
        begun = time.perf_counter()
        compiled = step.lower(*arguments).compile()
        compiling = time.perf_counter() - begun
        memory, lines = compiled.memory_analysis().temp_size_in_bytes, len(compiled.as_text().splitlines())
        phases[phase] = Prepared(compiled, Timing(math.nan, counts[phase], forward, memory, lines, compiling))
    return phases, arguments


def counted(context: Context, name: str, block: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """(operations of a step of every phase of a stage, and of one forward), on all devices"""
    context = counting(context)
    method, shapes = begin(context, name, block, shapes=True)
    longest = trips(block)
    counts = {
        phase: programs.operations(jax.make_jaxpr(step)(*shapes), longest) for phase, step in method.phases.items()
    }
    return counts, one_forward(context.config, block["batch_size"])


def counting(context: Context) -> Context:
    """For counting: a kernel's products are those of an attention that computes its scores again."""
    model = context.config["model"]
    if is_outside(model.get("kind")):
        return context
    plain = model.get("attention", "xla") in ("xla", "none")
    kind = model.get("attention", "xla") if plain else "checkpoint"
    return dataclasses.replace(context, config={**context.config, "model": {**model, "attention": kind}})


def trips(block: Mapping[str, Any]) -> float:
    """Of a stage's loops whose length is data, at most: the calls of a roll-out before its last exit."""
    option = functools.partial(configs.method_option, block["method"], block.get("options", {}))
    return option("steps") - 1.0 if option("source") == "rolled_out" else 1.0


def timed(name: str, phases: Mapping[str, Prepared], arguments: tuple[Any, ...], steps: int) -> dict[str, Timing]:
    """The median second of `steps` steps of each phase, after two that don't count. The arguments' state is given away."""
    state, frozen, batch, key, hyper = arguments
    found = {}
    for phase, prepared in phases.items():
        seconds = []
        for index in range(steps + 2):
            step_key = jax.random.fold_in(key, index)
            begun = time.perf_counter()
            state, metrics = prepared.compiled(state, frozen, batch, step_key, hyper)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - begun)
        found[phase] = prepared.of._replace(seconds=statistics.median(seconds[2:]))
        print(f"{name}: {phase}: {1e3 * found[phase].seconds:.2f} ms a step", file=sys.stderr, flush=True)
    return found


def one_forward(config: Mapping[str, Any], batch_size: int) -> float:
    """Operations of one call of the network on a batch."""
    apply, shapes = one_call(config, batch_size)
    return programs.operations(jax.make_jaxpr(apply)(*shapes))


def one_call(config: Mapping[str, Any], batch_size: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The network as a function, and the shapes of what it takes: a batch with labels, and low clips if it upsamples."""
    definition = configs.model(config)
    clips = jax.ShapeDtypeStruct((batch_size, *definition.shape), jnp.float32)
    level = jax.ShapeDtypeStruct((batch_size,), jnp.float32)
    cond = {"label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)} if definition.num_classes else {}
    cond |= {"low": clips} if "low" in definition.cond_keys else {}
    return definition.apply, (jax.eval_shape(definition.init, jax.random.key(0)), clips, level, cond)


def begin(
    context: Context, name: str, block: Mapping[str, Any], shapes: bool = False
) -> tuple[Method, tuple[Any, ...]]:
    """(the stage's method, the arguments of a phase's first call), of random weights and clips, or their shapes only."""
    where = f"config.stages.{name}"
    definition, network, method, rounds = training.plan(context, name, block)
    known, own = block.get("teacher") == exact.ORACLE, beside.own_teacher(context, block, network, where)
    teacher = definition if own is None else own.definition

    def make(key: jax.Array) -> tuple[Any, Any]:
        frozen = {}
        if known:
            frozen["teacher"] = configs.source(context.config, "train").oracle.denoiser(network.schedule)
        elif block.get("teacher"):
            frozen["teacher"] = teacher.init(key)
        if block.get("previous"):
            frozen["previous"] = definition.init(key)
        if block.get("features"):
            frozen["features"] = beside.feature_network(context, block["features"], where).init(key)
        denoiser = [frozen["teacher"]] if configs.has_critic(block["method"]) and not known else []
        return method.init(key, definition.init(key), *denoiser), frozen

    key = context.key(name)
    state, frozen = jax.eval_shape(make, key) if shapes else jax.jit(make)(key)
    hyper = {"learning_rate_scale": 1.0, "guidance": float(block.get("guidance", 1.0))}
    hyper |= {"steps": float(rounds[0])} if rounds else {}
    clips = batch(context.config, definition.shape, 1 if shapes else block["batch_size"])
    if shapes:
        size = (block["batch_size"],)
        clips = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(size + leaf.shape[1:], leaf.dtype), clips)
    return method, (state, frozen, clips, key, {k: np.float32(v) for k, v in hyper.items()})


def batch(config: Mapping[str, Any], shape: tuple[int, ...], size: int) -> dict[str, np.ndarray]:
    """The data's first clips where they are drawn, noise of their kind where they would be read from files."""
    origin = config["data"]
    while origin["kind"] == "resized":
        origin = origin["of"]
    if origin["kind"] in DRAWN:
        return data.Batches(configs.source(config, "train"), size).batch_at(0)
    random = np.random.default_rng(0)
    clips = random.integers(0, 256, (size, *shape), np.uint8)
    if latents.is_latent(config):
        clips = random.standard_normal((size, *shape), np.float32)
    made = {"video": clips, "label": np.zeros(size, np.int32)}
    if (low := config["data"].get("low")) is not None:
        made["low"] = clips[:, :: low[0], :: low[1], :: low[1]]
    return made


def describe(report: Mapping[str, Mapping[str, Timing]], config: Mapping[str, Any], device: str, count: int) -> str:
    """The table that is printed, Markdown."""
    peak = next((value for name, value in PEAKS.items() if device.startswith(name)), None)
    rows = []
    for name, phases in report.items():
        for phase, found in phases.items():
            speed = found.operations / found.seconds
            share = peak and f"{100 * speed / (peak * count):.2g} %"
            clips = config["stages"][name]["batch_size"] / found.seconds
            rows.append(
                [f"{name}, {phase}", 1e3 * found.seconds, clips, found.operations / found.forward, speed / 1e12, share,
                 found.temporaries / 2**20, found.lines, found.compiling]
            )  # fmt: skip
    header = [
        "phase",
        "ms a step",
        "clips/s",
        "forwards",
        "TFLOP/s",
        "of peak",
        "temporaries, MiB",
        "HLO lines",
        "compiled, s",
    ]
    return f"{count} x {device}\n\n{page.table(header, rows)}"


if __name__ == "__main__":
    sys.exit(main())
