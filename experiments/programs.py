"""What a program costs, read off the program: operations from its jaxpr, transfers from the text that the compiler leaves.

A loop's body counts as often as it runs, which the compiler's own analysis doesn't do. Branches count at the dearer one, and a
loop whose length is data as `trips` turns: the numbers are those of the dearest step.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

# Operations -----------------------------------------------------------------------------------------------------


def operations(jaxpr: ClosedJaxpr | Jaxpr, trips: float = 1.0) -> float:
    """Floating-point operations of all matrix products and convolutions, two for a product and its sum, on all devices.

    What is computed again in a backward pass counts again, and so does what the compiler may yet find to be computed twice.
    Products with the zeros of padding don't count. The rest of a network is a few operations a number, which this leaves out.
    """
    body = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total = 0.0
    for equation in body.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * _size(equation.outvars[0]) * math.prod(shape[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "scan":
            total += parameters["length"] * operations(parameters["jaxpr"], trips)
        elif name == "while":
            total += trips * (operations(parameters["body_jaxpr"], trips) + operations(parameters["cond_jaxpr"], trips))
        elif name == "cond":
            total += max(operations(branch, trips) for branch in parameters["branches"])
        else:
            total += sum(operations(inner, trips) for inner in _inner(parameters.values()))
    return total


def _convolution(equation: Any) -> float:
    parameters, (of_lhs, of_rhs, of_out) = equation.params, equation.params["dimension_numbers"]
    lhs, rhs, out = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    total = 2.0 * out[of_out[0]] * out[of_out[1]] * rhs[of_rhs[1]]
    for axis, (low, _) in enumerate(parameters["padding"]):
        spread, stride, step = (parameters[name][axis] for name in ("lhs_dilation", "window_strides", "rhs_dilation"))
        taps = step * np.arange(rhs[of_rhs[2 + axis]]) - low
        places = stride * np.arange(out[of_out[2 + axis]])[:, None] + taps
        # Between the input's numbers there are zeros, too, where it is spread.
        total *= np.sum((places >= 0) & (places <= spread * (lhs[of_lhs[2 + axis]] - 1)) & (places % spread == 0))
    return float(total)


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)


def _inner(values: Iterable[Any]) -> Iterator[ClosedJaxpr | Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr | Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner(value)


# Transfers ------------------------------------------------------------------------------------------------------

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
"""Of types whose name doesn't end in their number of bits."""
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "custom-call-done", "async-start", "async-update",
)  # fmt: skip
"""Operations that move nothing themselves."""


class Collective(NamedTuple):
    """Collectives of one kind between the same devices. times: how often a step runs them. sent: bytes that a device sends
    each time within a slice, across: to other slices, by the algorithm that sends least.
    """

    kind: str
    times: float
    sent: float
    across: float


class Transfers(NamedTuple):
    """Of one device in one step. memory: bytes between its memory and its core."""

    collectives: tuple[Collective, ...]
    memory: float

    def by_kind(self) -> dict[str, tuple[float, float]]:
        """kind -> (how often, bytes sent within a slice and across)."""
        found: dict[str, tuple[float, float]] = {}
        for kind, times, sent, across in self.collectives:
            count, total = found.get(kind, (0.0, 0.0))
            found[kind] = (count + times, total + times * (sent + across))
        return found

    @property
    def sent(self) -> float:
        return sum(one.times * one.sent for one in self.collectives)

    @property
    def across(self) -> float:
        return sum(one.times * one.across for one in self.collectives)


class Instruction(NamedTuple):
    """A line of a compiled program; shape, arguments and attributes as text."""

    name: str
    shape: str
    kind: str
    arguments: str
    attributes: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)


Computation = dict[str, Instruction]


def transfers(text: str, slices: Sequence[int] = (), trips: float = 1.0) -> Transfers:
    """Of a compiled program's text (`compiled.as_text()`). slices: that of every device, in the mesh's order; none: one."""
    computations, entry = parse(text)
    slices = np.asarray(slices) if len(slices) else np.zeros(1, int)
    known: dict[str, tuple[dict[tuple, float], float]] = {}

    def of(name: str) -> tuple[dict[tuple, float], float]:
        """({(kind, sent, across): times}, bytes of memory) of a computation that runs once."""
        if name not in known:
            found, memory = defaultdict(float), 0.0
            here = computations[name]
            for one in here.values():
                if (kind := one.kind.removesuffix("-start")) in COLLECTIVES:
                    kind = "reduce-scatter" if kind == "all-reduce" and _scattered(here, one) else kind
                    given = sum(size(here[operand].shape) for operand in one.operands if operand in here)
                    found[kind, *sent(kind, given, groups(one.attributes, len(slices)), slices)] += 1.0
                memory += moved(one, here, computations)
                for times, inner in _called(one, computations, trips, lambda inner: _worth(*of(inner))):
                    more, bytes_ = of(inner)
                    # What a fusion does inside, it does in the core.
                    memory += 0.0 if one.kind == "fusion" else times * bytes_
                    for key, value in more.items():
                        found[key] += times * value
            known[name] = (found, memory)
        return known[name]

    found, memory = of(entry)
    return Transfers(tuple(Collective(kind, times, *sizes) for (kind, *sizes), times in found.items()), memory)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(computations by name, the name of the one that is the program)"""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and (header := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif started := re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line):
            rest = line[started.end() :]
            end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
            opened = rest.index("(", end)
            closed = _closing(rest, opened)
            current[started[2]] = Instruction(
                started[2], rest[:end], rest[end:opened].strip(), rest[opened + 1 : closed], rest[closed + 1 :],
                bool(started[1]),
            )  # fmt: skip
    return computations, entry


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"no closing bracket in {text[:80]!r}")


def size(shape: str, resident: bool = False) -> float:
    """Bytes of a shape's text, a tuple's parts together. resident: without what the core's own memory holds."""
    total = 0.0
    for kind, lengths, layout in re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        bits = BITS.get(kind) or int((re.search(r"\d+", kind) or ["0"])[0])
        if not (resident and re.search(r"S\([1-9]\)", layout)):
            total += bits / 8 * math.prod(int(n) for n in lengths.split(",") if n)
    return total


def groups(attributes: str, devices: int) -> list[list[int]]:
    """The devices that a collective brings together, in any of the ways in which programs say so; a permutation's pairs."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        return [[int(n) for n in pair.split(",")] for pair in re.findall(r"\{?([\d]+,[\d]+)", pairs[1])]
    if mesh := re.search(r"replica_groups=@?\w*mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        axes = [(name, int(n)) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])]
        within = [i for i, (name, _) in enumerate(axes) if f"'{name}'" in mesh[2]]
        ids = np.arange(math.prod(n for _, n in axes)).reshape([n for _, n in axes])
        ids = np.moveaxis(ids, within, range(-len(within), 0))
        return ids.reshape(-1, math.prod(axes[i][1] for i in within)).tolist()
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
        order = [int(n) for n in iota[3].split(",")] if iota[3] else range(len(dims))
        return np.arange(math.prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    return [list(range(devices))]


def sent(kind: str, given: float, together: list[list[int]], slices: np.ndarray) -> tuple[float, float]:
    """Bytes that a device sends (within its slice, to other slices) where each gives `given` bytes.

    Rings: of an all-reduce 2 (k - 1) / k of what is given, of a reduce-scatter or an all-to-all (k - 1) / k, of an all-gather
    k - 1 times it. Between slices first what every slice has of its own.
    """
    if kind == "collective-permute":
        crossing = [slices[a % len(slices)] != slices[b % len(slices)] for a, b in together]
        share = sum(crossing) / max(1, len(crossing))
        return given * (1 - share), given * share
    count = len(together[0])
    across = len({slices[one % len(slices)] for one in together[0]})
    own = count // across
    inside = {"all-gather": count - across, "all-reduce": 2 * (own - 1) / own}.get(kind, (own - 1) / own)
    outside = {
        "all-gather": across - 1.0,
        "all-reduce": 2 * (across - 1) / across / own,
        "reduce-scatter": (across - 1) / across / own,
    }.get(kind, (across - 1) / across)
    return given * inside, given * outside


def _scattered(here: Computation, one: Instruction) -> bool:
    """Whether of an all-reduce each device keeps its own part: so the TPU's compiler writes a reduce-scatter."""
    users = [other for other in here.values() if one.name in other.operands]
    return bool(users) and all(other.kind == "dynamic-slice" and other.root for other in users)


def _called(
    one: Instruction, computations: dict[str, Computation], trips: float, worth: Callable[[str], float]
) -> list[tuple[float, str]]:
    """(how often, which) computations an instruction runs."""
    if one.kind == "while":
        body, condition = (_name(one.attributes, key) for key in ("body", "condition"))
        return [(_trips(one.attributes, computations[condition], trips), body)]
    if one.kind == "conditional":
        if listed := re.search(r"branch_computations=\{([^}]*)\}", one.attributes):
            branches = re.findall(r"%?([\w.\-]+)", listed[1])
        else:
            branches = [_name(one.attributes, f"{which}_computation") for which in ("true", "false")]
        return [(1.0, max(branches, key=worth))]
    if one.kind in ("fusion", "call", "async-start", "custom-call"):
        names = [_name(one.attributes, key) for key in ("calls", "to_apply")]
        return [(1.0, name) for name in names if name in computations]
    return []


def _name(attributes: str, key: str) -> str:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", attributes)
    return found[1] if found else ""


def _worth(found: dict[tuple, float], memory: float) -> float:
    return memory + sum(times * (sent + across) for (_, sent, across), times in found.items())


def _trips(attributes: str, condition: Computation, unknown: float) -> float:
    """How often a loop runs: what the compiler says, or the one number that its condition knows."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', attributes):
        return float(known[1])
    numbers = [one.arguments for one in condition.values() if one.kind == "constant" and one.shape.startswith("s32[]")]
    return float(numbers[0]) if len(numbers) == 1 else unknown


def moved(one: Instruction, here: Computation, computations: dict[str, Computation]) -> float:
    """Bytes that an instruction takes from the memory and brings back. Of a slice only what is sliced."""
    if one.kind in FREE or one.kind.endswith("-done"):
        return 0.0
    if one.kind.endswith("-start"):
        return size(one.shape, resident=True)
    if one.kind == "fusion":
        inner = computations.get(_name(one.attributes, "calls"), {})
        if not inner:
            return 0.0
        return _fused(one, inner)
    out = size(one.shape, resident=True)
    if one.kind in ("dynamic-slice", "slice", "gather", "iota", "broadcast"):
        return 2 * out if one.kind in ("dynamic-slice", "slice", "gather") else out
    if one.kind == "dynamic-update-slice":
        return 2 * size(here[one.operands[1]].shape, resident=True) if one.operands[1] in here else out
    return out + sum(size(here[operand].shape, resident=True) for operand in one.operands if operand in here)


def _fused(one: Instruction, inner: Computation) -> float:
    total = 0.0
    updated = {step.operands[0] for step in inner.values() if step.kind == "dynamic-update-slice" and step.operands}
    for step in inner.values():
        if step.kind == "parameter":
            users = [other for other in inner.values() if step.name in other.operands]
            if step.name in updated:
                continue
            if users and all(other.kind in ("dynamic-slice", "slice", "gather") for other in users):
                total += sum(size(other.shape, resident=True) for other in users)
            else:
                total += size(step.shape, resident=True)
        elif step.kind == "dynamic-update-slice" and len(step.operands) > 1 and step.operands[1] in inner:
            total += size(inner[step.operands[1]].shape)
    return total if updated else total + size(one.shape, resident=True)
