"""Devices as a mesh, and where things live on it: batches split over `data` and `fsdp`, weights by their paths.

    config.mesh = dict(data=-1, fsdp=8, context=1, tensor=4)

`data`     copies of the model, each with a part of the batch; several TPU slices are a part of it.
`fsdp`     a part of the batch too, and a part of every weight, which is gathered where it is used.
`context`  parts of every clip: frames, rows or tokens (models/parallel.py).
`tensor`   parts of every layer: heads and hidden channels.

An axis of -1 takes the devices that the others leave; without a config all devices are on `data`, and one device is a mesh of
one. What a run computes does not depend on its mesh, so it may go on from its checkpoints on another one.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from experiments.config import ConfigError
from experiments.data.source import nearest

AXES = ("data", "fsdp", "context", "tensor")
BATCH = ("data", "fsdp")

RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    # One for all layers, and of few numbers a frame.
    (r"/modulation/weight", ("fsdp", None)),
    # What ends a branch takes the channels that `tensor` has split, and adds its parts up.
    (r"/(out|contract|head|last)(/weight)?", ("tensor", "fsdp")),
    (r"/(qkv|expand|weight)", ("fsdp", "tensor")),
)
"""(the end of a path, the axes of the last dimensions of what stands there); the first that fits counts, and what no rule
fits (biases, gains, tables, counts) is everywhere. A dimension that its axis doesn't divide is not split. The paths are those
of the networks' params, which students, averages, teachers, critics and the moments of optimisers have in common."""


def make(sizes: Mapping[str, int] | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a config's block, over all devices. ConfigError for axes that don't exist or don't make up the devices."""
    devices = jax.devices() if devices is None else devices
    if sizes is not None and not isinstance(sizes, Mapping):
        raise ConfigError(f"config.mesh names sizes of axes among {', '.join(AXES)}, got {sizes!r}")
    given = dict(sizes or {})
    for name, size in given.items():
        if name not in AXES:
            raise ConfigError(f"config.mesh has no axis {name!r}; {nearest(name, AXES)}")
        if type(size) is not int or (size < 1 and size != -1):
            raise ConfigError(
                f"config.mesh.{name}: expected a whole number from 1 up, or -1 for what is left, got {size!r}"
            )
    rest = [name for name, size in given.items() if size == -1] or ([] if "data" in given else ["data"])
    if len(rest) > 1:
        raise ConfigError(f"config.mesh: one axis can take what is left, got -1 for {' and '.join(rest)}")
    known = {name: given.get(name, 1) for name in AXES if name not in rest}
    product = math.prod(known.values())
    if len(devices) % product or not rest and product != len(devices):
        told = " x ".join(f"{name} {size}" for name, size in known.items())
        raise ConfigError(
            f"config.mesh: {told} is {product}, which {'is not' if not rest else 'does not divide'} the {len(devices)} devices"
        )
    shape = tuple(known.get(name, len(devices) // product) for name in AXES)
    return Mesh(grid(devices, shape), AXES)


def grid(devices: Sequence[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Devices in the mesh's shape. On a TPU, neighbours in it are neighbours in the machine, and slices are parts of `data`."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise ConfigError(f"config.mesh.data {shape[0]} does not divide by the {slices} slices, which are parts of it")
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    inside = (shape[0] // slices, *shape[1:])
    return mesh_utils.create_hybrid_device_mesh(inside, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis, of a batch, over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """Where every leaf of a state, or of frozen weights, lives: by `RULES`."""

    def of(path: Any, leaf: Any) -> NamedSharding:
        name, shape = f"/{jax.tree_util.keystr(path, simple=True, separator='/')}", np.shape(leaf)
        axes = next((axes for pattern, axes in RULES if re.search(f"{pattern}$", name)), ())
        if len(axes) > len(shape):
            return replicated(mesh)
        sizes = [mesh.shape[axis] if axis else 1 for axis in axes]
        lengths = shape[len(shape) - len(axes) :]
        fits = [axis if k > 1 and n % k == 0 else None for axis, k, n in zip(axes, sizes, lengths, strict=True)]
        # As a compiled program writes what it returns, or a second step would be another program than the first.
        while fits and fits[-1] is None:
            fits.pop()
        return NamedSharding(
            mesh, PartitionSpec(*(None,) * (len(shape) - len(axes)), *fits) if fits else PartitionSpec()
        )

    return jax.tree_util.tree_map_with_path(of, tree)


def check_batch(batch_size: int, mesh: Mesh, where: str, accumulate: int = 1) -> None:
    """Refuses a batch that doesn't divide into `accumulate` microbatches, each with as many rows on every device."""
    if batch_size % accumulate:
        raise ConfigError(
            f"{where}.batch_size {batch_size} is not divisible by {where}.accumulate {accumulate}; choose"
            f" {-(-batch_size // accumulate) * accumulate}"
        )
    micro = f"{where}.batch_size {batch_size}" + (f" / accumulate {accumulate}" if accumulate > 1 else "")
    parts = math.prod(mesh.shape[axis] for axis in BATCH)
    if batch_size // accumulate % parts:
        told = " x ".join(f"{axis} {mesh.shape[axis]}" for axis in BATCH)
        raise ConfigError(f"{micro} is not divisible by the mesh's {told} = {parts} parts")


def put(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree of weights, in host or device arrays, onto the mesh by `RULES`; every process holds the same values."""
    places = shardings(tree, mesh)
    if not mesh.is_multi_process:
        return jax.device_put(tree, places)

    def of(leaf: Any, place: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, place)
        # Here device_put would first compare what the processes hold, all of it on every device.
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    return jax.tree.map(of, tree, places)


def made(make: Callable[..., PyTree], mesh: Mesh, *given: PyTree) -> PyTree:
    """make(*given), a tree of weights, each made where `RULES` has it: on one device alone it need not have room."""
    if mesh.size == 1:
        return make(*given)
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make, *given), mesh))(*given)


def reader(mesh: Mesh, batch_size: int) -> tuple[int, int]:
    """(i, n): of n equal parts of every batch this process must read part i, the smallest that holds all its devices' rows."""
    rows = split(mesh).addressable_devices_indices_map((batch_size,)).values()
    ranges = [index[0].indices(batch_size) for index in rows if index is not None]
    first, last = min(r[0] for r in ranges), max(r[1] for r in ranges) - 1
    for count in range(batch_size, 0, -1):
        if batch_size % count == 0 and first * count // batch_size == last * count // batch_size:
            return first * count // batch_size, count
    raise AssertionError("one part holds all rows")


def put_batch(batch: PyTree, mesh: Mesh, batch_size: int) -> PyTree:
    """This process's part of a global batch, see `reader`, as global arrays."""
    index, count = reader(mesh, batch_size)
    first = index * batch_size // count

    def whole(rows: np.ndarray) -> jax.Array:
        def of(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return rows[start - first : stop - first]

        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), split(mesh), of)

    return jax.tree.map(whole, batch)


def whole(tree: PyTree) -> PyTree:
    """A tree as NumPy arrays on every process, leaf by leaf; all processes must call it."""

    def of(leaf: Any) -> np.ndarray:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(of, tree)


def leads() -> bool:
    """Whether this process writes what there is to be written once."""
    return jax.process_index() == 0


def meet(place: str) -> None:
    """Every process waits here for the others."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(place)


def each(value: int) -> list[int]:
    """A whole number from 0 up, below 2^32, of every process; all must ask."""
    if jax.process_count() == 1:
        return [value]
    return multihost_utils.process_allgather(np.asarray(value, np.uint32)).tolist()


def total(value: int) -> int:
    """The sum over processes of a number below 2^32; all must ask."""
    return sum(each(value))


def agreed(flag: bool) -> bool:
    """Whether it is true on any process; all must ask."""
    return any(each(flag))
