"""`python -m experiments.plan --config=configs/X.py[:ARG] --topology=v5p:4x4x4 [--num_slices=2] [--stage=NAME] [--out=FILE]`

Compiles every phase of a config's training stages, and the samplers of its stages `generate` and `evaluate`, for TPUs that
need not be there, with the TPU's own compiler (libtpu; extra `tpu`), and says what one device would hold and do: does it fit,
how large may the batch be, and what bounds the speed. Nothing of the model is ever computed or held. It proves that the
programs compile and fit; times are what the chip's data sheet allows, at best.

A training stage is compiled at its own batch size and at another one, which gives memory as a line; the largest batch on it
is compiled to see whether that is so.
"""

import dataclasses
import functools
import logging
import math
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from distill import FORWARD
from experiments import bench, drawing, loop, programs, run, stages, tables, weights
from experiments import config as configs
from experiments import mesh as meshes
from experiments.ablations import page
from experiments.chips import GIB, Chip, check_topology, described, mesh_of
from experiments.command import command
from experiments.config import ConfigError
from experiments.context import Context

OPTIONS = ("topology", "num_slices", "out")
FARTHEST = 8
"""The largest batch is looked for up to so many times the config's."""


# The command line ------------------------------------------------------------------------------------------------


@functools.partial(command, about=__doc__)
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 everything fits, 1 something doesn't, 2 a mistake of the user's."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    config, source, only, name, slices, out = parse(sys.argv if argv is None else argv)
    stages.check_form(config, "sweep")
    chip, devices = described(name, slices)
    context = Context(config, pathlib.Path("."), mesh_of(config.get("mesh"), devices), source)
    names = bench.chosen(config, only, PLANNED)
    for stage in names:
        check(context, stage)
    plans = []
    for stage in names:
        plans += plan(context, stage, chip)
    print(describe(plans, context.mesh, f"{name}{f', {slices} slices' if slices > 1 else ''}", chip))
    if out is not None:
        found = [dataclasses.asdict(one) for one in plans]
        configs.write_json(out, {"config": source, "topology": name, "slices": slices, "plans": found})
    return 0 if all(one.fits for one in plans) else 1


def parse(argv: list[str]) -> tuple[dict[str, Any], str, str | None, str, int, pathlib.Path | None]:
    """(config, its name, the stage or None, topology, slices, file or None): what isn't ours is experiments.run's."""
    values, left = run.own_options(argv, OPTIONS)
    if "topology" not in values:
        raise ConfigError(
            "usage: python -m experiments.plan --config=configs/X.py --topology=v5p:4x4x4 [--num_slices=2] [--stage=NAME]"
            " [--out=FILE] [--config.a.b=VALUE]"
        )
    if not (text := values.get("num_slices", "1")).isdecimal() or not int(text):
        raise ConfigError(f"--num_slices: expected a whole number from 1 up, got {text!r}")
    check_topology(values["topology"])
    config, source, _, only, _ = run.parse([*left, "--workdir=."])
    return config, source, only, values["topology"], int(text), pathlib.Path(values["out"]) if "out" in values else None


def check(context: Context, name: str) -> None:
    """What would be refused before a run begins, as far as it needs no data and no finished stage."""
    block, where = context.config["stages"][name], f"config.stages.{name}"
    stages.check_block(block, where)
    if block["kind"] == "train":
        meshes.check_batch(block["batch_size"], context.mesh, where, block.get("accumulate", 1))


# Programs of a stage ---------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """What is compiled. lower(): its jit for the mesh's devices; count(): operations of one step at its batch size, and of one
    call of the network, on all devices; trips: of loops whose length is data, at most; state: bytes of all weights in it;
    least: bytes of one device that its arguments take.
    """

    name: str
    lower: Callable[[], Any]
    count: Callable[[], tuple[float, float]]
    trips: float
    state: float
    least: float


def training(context: Context, name: str, batch_size: int) -> list[Program]:
    """The phases of a training stage at a batch size, its arguments as shapes only."""
    block = {**context.config["stages"][name], "batch_size": batch_size}
    method, arguments = bench.begin(context, name, block, shapes=True)
    places = placed(context.mesh, *arguments)
    trips, counted = bench.trips(block), functools.cache(lambda: bench.counted(context, name, block))

    def count(phase: str) -> tuple[float, float]:
        counts, forward = counted()
        return counts[phase], forward

    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[:2]))
    least = on_one_device(places[:3])
    return [
        Program(
            f"{name}, {phase}",
            functools.partial(step.lower, *places),
            functools.partial(count, phase),
            trips,
            held,
            least,
        )
        for phase, step in loop.compile_phases(method, context.mesh).items()
    ]


def placed(mesh: Mesh, state: PyTree, frozen: PyTree, batch: PyTree, key: Any, hyper: PyTree) -> tuple[PyTree, ...]:
    """The arguments of a phase as shapes that say where they live, as `loop.train` puts them."""
    everywhere = lambda tree: jax.tree.map(lambda _: meshes.replicated(mesh), tree)  # noqa: E731
    places = (
        meshes.shardings(state, mesh), meshes.shardings(frozen, mesh), jax.tree.map(lambda _: meshes.split(mesh), batch),
        meshes.replicated(mesh), everywhere(hyper),
    )  # fmt: skip
    return jax.tree.map(shaped, (state, frozen, batch, key, hyper), places)


def shaped(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def on_one_device(places: PyTree) -> float:
    """Bytes that one device has of these shapes."""
    leaves = jax.tree.leaves(places)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def sampling(context: Context, name: str, batch_size: int) -> list[Program]:
    """The samplers of a stage, as it runs them: on the first device."""
    block, where = context.config["stages"][name], f"config.stages.{name}"
    samplers = block["samplers"] if "samplers" in block else {"": block}
    return [sampler(context, f"{name}{key and f', {key}'}", one, batch_size, where) for key, one in samplers.items()]


def sampler(context: Context, name: str, block: Mapping[str, Any], batch_size: int, where: str) -> Program:
    config = record_of(context, block["weights"], where)
    counting = bench.counting(dataclasses.replace(context, config=config)).config
    definition, network = configs.network(counting)
    _, real = configs.network(config)
    asked = tables.block_of(block)
    if tables.is_searched(asked):
        asked = {part: asked[part] for part in asked if part != "grid"}
    if any(tables.asks(asked, part) for part in asked):
        raise ConfigError(
            f"{where}: solver or grid of {name!r} ask the network first; plan it with another one, as 'ddim'"
        )
    scale, chunk = float(block.get("guidance", 1.0)), block.get("stream")
    shapes = (
        jax.eval_shape(definition.init, jax.random.key(0)), jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        # A stream draws its own noise.
        None if chunk is not None else jax.ShapeDtypeStruct((batch_size, *definition.shape), jnp.float32),
        context.key(name),
    )  # fmt: skip
    # Of the network the table learns the shape of its clips, which a matrix is made for.
    model = tables.Model(drawing.classes_in_turn(real, shapes[0], scale), tuple(definition.shape), context.key(name))
    table = tables.make(asked, block["steps"], network.schedule, where, model)
    if chunk is not None:
        drawing.check_stream(config["model"], chunk, length_of(context), f"{where}.stream", block["weights"])

    def draw(of: Any, config: Mapping[str, Any]) -> Callable:
        if chunk is None:
            return lambda params, labels, noise, key: drawing.drawn(of, params, table, labels, noise, key, scale)
        record = {**config, "shape": definition.shape}
        streams = drawing.streamer(of, record, table, chunk, length_of(context), scale)
        return lambda params, labels, noise, key: streams(params, labels, key)

    mesh = meshes.make(None, context.mesh.devices.flatten()[:1])
    places = jax.tree.map(lambda leaf: shaped(leaf, NamedSharding(mesh, PartitionSpec())), shapes)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes[0]))

    def count() -> tuple[float, float]:
        operations = programs.operations(jax.make_jaxpr(draw(network, counting))(*shapes))
        return operations, bench.one_forward(counting, batch_size)

    lower = functools.partial(jax.jit(draw(real, config)).lower, *places)
    return Program(name, lower, count, 1.0, held, on_one_device(places[:3]))


def length_of(context: Context) -> int:
    """The frames of the run's clips: its network's, where it has one, as the data need not be there."""
    if "model" in context.config:
        return context.config["model"]["shape"][0]
    return configs.source(context.config, "test").shape[0]


def record_of(context: Context, reference: str, where: str) -> dict[str, Any]:
    """The config of the network that a sampler samples: the run's own, or that of weights that there are."""
    if reference.split("@")[0] in context.config["stages"]:
        return context.config
    record = weights.load(weights.find(reference, context.workdir))[1]
    if "schedule" in record and "model" in record:
        return {**context.config, "model": record["model"], "prediction": record["prediction"]}
    raise ConfigError(f"{where}.weights {reference!r} are of no denoiser")


PLANNED: dict[str, Callable[[Context, str, int], list[Program]]] = {
    "train": training,
    "generate": sampling,
    "evaluate": sampling,
}
"""Kinds of stages that have programs to plan."""


# Compiling -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program at one batch size; all of one device, in bytes. peak: of its memory; where it didn't fit, what it asked for,
    or NaN, or, of arguments that alone are too many, these.
    """

    name: str
    batch: int
    fits: bool
    peak: float
    arguments: float = math.nan
    temporaries: float = math.nan
    sent: float = 0.0
    across: float = 0.0
    memory: float = 0.0
    collectives: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    operations: float = 0.0
    forwards: float = 0.0
    forward: float = 0.0
    seconds: float = 0.0
    cpu: float = 0.0


def build(program: Program, batch: int, devices: list[Any], memory: float, whole: bool = True) -> Compiled:
    """Compiles, with a line before and one after; not, where a device's `memory` hasn't even room for the arguments. whole:
    with what the step does, else its memory alone.
    """
    if program.least > memory:
        say(f"{program.name}: batch {batch}: does not fit, nor do its arguments alone")
        return Compiled(program.name, batch, False, program.least, program.least)
    say(f"{program.name}: batch {batch}: compiling ...")
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        compiled = program.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise ConfigError(f"{program.name}: the TPU's compiler refuses it: {str(error).splitlines()[0]}") from error
        spent = dict(seconds=time.perf_counter() - begun, cpu=time.process_time() - cpu)
        found = Compiled(program.name, batch, False, asked(str(error)), **spent)
        say(f"{program.name}: batch {batch}: does not fit ({spent['cpu']:.0f} s of CPU)")
        return found
    spent = dict(seconds=time.perf_counter() - begun, cpu=time.process_time() - cpu)
    held = compiled.memory_analysis()
    arguments, temporaries = held.argument_size_in_bytes, held.temp_size_in_bytes
    # Results that take the place of donated arguments are no further memory; the program itself is there too.
    own = held.output_size_in_bytes - held.alias_size_in_bytes
    peak = arguments + own + temporaries + held.generated_code_size_in_bytes
    say(
        f"{program.name}: batch {batch}: peak {peak / GIB:.3g} GiB, compiled in {spent['seconds']:.0f} s"
        f" ({spent['cpu']:.0f} s of CPU)"
    )
    found = Compiled(program.name, batch, True, peak, arguments, temporaries, **spent)
    return dataclasses.replace(found, **work(program, compiled.as_text(), devices)) if whole else found


def work(program: Program, text: str, devices: list[Any]) -> dict[str, Any]:
    """What a step does, by the program's own count and by its compiled text."""
    moves = programs.transfers(text, [getattr(device, "slice_index", 0) for device in devices], program.trips)
    step, forward = program.count()
    return dict(
        sent=moves.sent, across=moves.across, memory=moves.memory, collectives=moves.by_kind(),
        operations=step / len(devices), forwards=step / forward, forward=forward / len(devices),
    )  # fmt: skip


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def asked(error: str) -> float:
    """The bytes that a program which doesn't fit asked for, by the compiler's message; nan where it doesn't say."""
    found = re.search(r"(?:Used|memory required[^(]*\(|requir\w+) ?([\d.]+)([KMGT]?)", error)
    return float(found[1]) * UNITS[found[2]] if found else math.nan


@dataclasses.dataclass(frozen=True)
class Line:
    """Memory of one device as a line: base + slope batch."""

    base: float
    slope: float

    def __call__(self, batch: float) -> float:
        return self.base + self.slope * batch

    def largest(self, memory: float, parts: int) -> int:
        """The largest batch, in whole `parts`, that is within the memory; 0 where none is."""
        if self.slope <= 0:
            raise ValueError(f"memory does not grow with the batch: slope {self.slope}")
        return max(0, math.floor((memory - self.base) / self.slope / parts + 1e-9) * parts)


def line(first: tuple[int, float], second: tuple[int, float]) -> Line:
    """Through two (batch, bytes)."""
    slope = (second[1] - first[1]) / (second[0] - first[0])
    return Line(first[1] - slope * first[0], slope)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A program at the config's batch size, and how far that may grow. largest: None where what the line promised did not
    fit; predicted, confirmed: bytes at the largest, by the line and, of the program that limits, by the compiler (NaN: not
    compiled there). hint: what to set where it doesn't fit.
    """

    program: Compiled
    largest: int | None
    predicted: float
    confirmed: float
    hint: str

    @property
    def fits(self) -> bool:
        return self.program.fits


def plan(context: Context, name: str, chip: Chip) -> list[Plan]:
    """Every program of a stage at its batch size and at another one, and the one that limits at the largest of all."""
    block = context.config["stages"][name]
    trained = block["kind"] == "train"
    devices = list(context.mesh.devices.flat) if trained else list(context.mesh.devices.flat)[:1]
    parts = math.prod(context.mesh.shape[axis] for axis in meshes.BATCH) * block.get("accumulate", 1) if trained else 1
    size = block["batch_size"] if trained else block.get("batch_size", 64)

    def at(batch: int, only: str | None = None) -> dict[str, Compiled]:
        made = PLANNED[block["kind"]](context, name, batch)
        return {
            one.name: build(one, batch, devices, chip.memory, batch == size) for one in made if only in (None, one.name)
        }

    first = at(size)
    if not all(one.fits for one in first.values()):
        held = PLANNED[block["kind"]](context, name, size)[0].state
        told = {key: "" if one.fits else hint(context, block, one, held, chip, parts) for key, one in first.items()}
        return [Plan(one, None, math.nan, math.nan, told[key]) for key, one in first.items()]
    # Far from the first, as the line goes on to FARTHEST times; all temporaries may grow with the batch.
    far = all(one.arguments + 4 * one.temporaries <= chip.memory for one in first.values())
    other = at((4 if far else 2) * parts if size == parts else max(parts, size // 2 // parts * parts))
    if not all(one.fits for one in other.values()):  # so the config's own is the largest
        return [Plan(one, size, one.peak, one.peak, "") for one in first.values()]
    lines = {key: line((size, one.peak), (other[key].batch, other[key].peak)) for key, one in first.items()}
    largest = {key: one.largest(chip.memory, parts) if one.slope > 0 else FARTHEST * size for key, one in lines.items()}
    limiting = min(largest, key=lambda key: (largest[key], -first[key].peak))
    best = min(max(largest[limiting], size), FARTHEST * size)
    there = {size: first, other[limiting].batch: other}
    last = there[best][limiting] if best in there else at(best, limiting)[limiting]
    return [
        Plan(
            one, best if last.fits else None, lines[key](best),
            (last.peak if last.fits else math.inf) if key == limiting else math.nan, "",
        )
        for key, one in first.items()
    ]  # fmt: skip


def hint(context: Context, block: Mapping[str, Any], found: Compiled, held: float, chip: Chip, parts: int) -> str:
    """What would make a program smaller, the cheapest first."""
    model, mesh, sets = context.config["model"], context.mesh, []
    stage, size = found.name.split(",")[0], mesh.size
    if block["kind"] != "train":
        return "set batch_size=1" if block.get("batch_size", 64) > 1 else "choose a chip of more memory"
    if held > chip.memory * size:
        return (
            f"the weights and their optimisers alone are {held / GIB:.0f} GiB: more chips, {math.ceil(held / chip.memory)} at"
            " the least, or chips of more memory"
        )
    if model.get("remat", "layers") != "layers":
        sets.append("config.model.remat='layers'")
    if model.get("attention", "splash") in ("xla", "checkpoint") and model["kind"] == "dit":
        kind = "ring" if block["method"] in FORWARD else "splash"
        sets.append(f"config.model.attention={kind!r}")
    # The state is to leave half of the memory for the step.
    across = mesh.shape["tensor"] * len({getattr(device, "slice_index", 0) for device in mesh.devices.flat})
    fsdps = [n for n in range(1, size // across + 1) if size // across % n == 0]
    enough = [n for n in fsdps if held / (n * mesh.shape["tensor"]) <= chip.memory / 2]
    now, along = mesh.shape["fsdp"], mesh.shape["context"]
    if now not in enough and now < fsdps[-1]:
        wanted = min(enough, default=fsdps[-1])
        sets += resized(context, stage, wanted, math.gcd(along, size // across // wanted))
    if not sets and block["batch_size"] > parts:
        more = f"accumulate={block['batch_size'] // parts * block.get('accumulate', 1)}"
        sets.append(f"config.stages.{stage}.{more}, or config.stages.{stage}.batch_size={parts}")
    if not sets:
        kept = next((n for n in (now, now // 2) if n in enough and size // across % (n * 2 * along) == 0), None)
        sets += resized(context, stage, kept, 2 * along) if kept else []
    if not sets:
        return f"the weights and their optimisers alone are {held / GIB:.0f} GiB: more chips, or chips of more memory"
    return "set " + ", ".join(sets)


def resized(context: Context, stage: str, fsdp: int, along: int) -> list[str]:
    """What to set for so many devices on `fsdp` and `context`, the others on `data`, and a batch that this mesh takes."""
    block, mesh, given = context.config["stages"][stage], context.mesh, context.config.get("mesh") or {}
    sizes = {"data": mesh.size // (fsdp * along * mesh.shape["tensor"]), "fsdp": fsdp, "context": along}
    named = given.get("data", -1) != -1
    sets = [
        f"config.mesh.{axis}={n}" for axis, n in sizes.items() if n != mesh.shape[axis] and (axis != "data" or named)
    ]
    parts = sizes["data"] * fsdp * block.get("accumulate", 1)
    if block["batch_size"] % parts:
        sets.append(f"config.stages.{stage}.batch_size={max(1, block['batch_size'] // parts) * parts}")
    return sets


# Reporting -------------------------------------------------------------------------------------------------------


class Roofline(NamedTuple):
    """Seconds that a step takes at the least by what each part of the chip has to do, were all the rest for nothing."""

    compute: float
    memory: float
    links: float
    across: float

    @property
    def bound(self) -> float:
        return max(self)

    @property
    def limit(self) -> str:
        return LIMITS[max(self._fields, key=lambda name: getattr(self, name))]


LIMITS = {"compute": "compute", "memory": "memory", "links": "links", "across": "network"}


def roofline(found: Compiled, chip: Chip) -> Roofline:
    return Roofline(
        found.operations / chip.peak, found.memory / chip.bandwidth, found.sent / chip.links, found.across / chip.across
    )


def describe(plans: list[Plan], mesh: Mesh, where: str, chip: Chip) -> str:
    """The report that is printed, Markdown."""
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1) or "one device"
    head = f"{where}: {mesh.size} devices of {chip.memory / GIB:.2f} GiB, {axes}"
    rows, moves = [], []
    for one in plans:
        found = one.program
        if not found.fits:
            rows.append([found.name, found.batch, None, None, found.peak / GIB, *(None,) * 6])
            continue
        least = roofline(found, chip)
        rows.append(
            [found.name, found.batch, found.arguments / GIB, found.temporaries / GIB, found.peak / GIB,
             found.operations / 1e12, found.forwards, 1e3 * least.bound, least.limit, one.largest, told(one)]
        )  # fmt: skip
        moves += [[found.name, kind, round(n), size / 1e9] for kind, (n, size) in sorted(found.collectives.items())]
    header = [
        "program", "batch", "arguments, GiB", "temporaries, GiB", "peak, GiB", "TFLOP", "forwards", "at least, ms",
        "limit", "largest batch", "its peak, GiB",
    ]  # fmt: skip
    verdicts = [f"{one.program.name}: {verdict(one, chip)}" for one in plans]
    parts = [head, page.table(header, rows), "\n".join(verdicts)]
    if moves:
        parts.insert(2, page.table(["program", "collective", "times", "sent, GB"], moves))
    return "\n\n".join(parts)


def told(one: Plan) -> str | None:
    if math.isinf(one.confirmed):
        return f"{one.predicted / GIB:.1f} (compiled: does not fit)"
    if one.largest is None:
        return None
    seen = "" if math.isnan(one.confirmed) else f" (compiled: {one.confirmed / GIB:.1f})"
    return f"{one.predicted / GIB:.1f}{seen}"


def verdict(one: Plan, chip: Chip) -> str:
    if one.fits:
        return "fits"
    found = one.program
    what = "its arguments alone need" if found.peak == found.arguments else "needs"
    need = "" if math.isnan(found.peak) else f"{what} {found.peak / GIB:.1f} GiB of {chip.memory / GIB:.2f}; "
    return f"does not fit: {need}{one.hint}"


if __name__ == "__main__":
    jax.config.update("jax_threefry_partitionable", True)
    sys.exit(main())
