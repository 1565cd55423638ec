"""TPUs that need not be there: what a chip's data sheet says of it, a topology's devices as libtpu describes them, a mesh over
them.
"""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments import config as configs
from experiments import mesh as meshes
from experiments.config import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """A chip, one device: bytes of memory that libtpu lets a program have; by the vendor's data sheet its bytes/s, bfloat16
    operations/s, bytes/s over one axis of the torus, both directions, and to other slices; the topologies that are sold.
    """

    memory: float
    bandwidth: float
    peak: float
    links: float
    across: float
    topologies: tuple[str, ...]


FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16",
)  # fmt: skip
CHIPS = {
    "v4": Chip(30.75 * GIB, 1.23e12, 275e12, 90e9, 6.25e9, CUBES),
    "v5e": Chip(15.75 * GIB, 0.82e12, 197e12, 90e9, 3.125e9, FLAT),
    "v5p": Chip(95.74 * GIB, 2.77e12, 459e12, 180e9, 6.25e9, CUBES),
    "v6e": Chip(31.25 * GIB, 1.64e12, 918e12, 180e9, 12.5e9, FLAT),
}


def check_topology(name: str) -> None:
    """Refuses what isn't sold; the compiler itself takes tori of any size."""
    chip, _, shape = name.partition(":")
    if chip not in CHIPS:
        raise ConfigError(f"--topology {name!r}: no chip {chip!r}; {configs.nearest(chip, CHIPS)}")
    if shape not in CHIPS[chip].topologies:
        raise ConfigError(
            f"--topology {name!r}: {chip} has no {shape!r}; nearest: '{chip}:{_nearest_shape(shape, CHIPS[chip].topologies)}'"
            f" (of {', '.join(CHIPS[chip].topologies)})"
        )


def _nearest_shape(shape: str, known: tuple[str, ...]) -> str:
    """By the number of chips where it is one, else by its letters."""
    if re.fullmatch(r"\d+(x\d+)*", shape):
        count = lambda text: math.log(max(1, math.prod(map(int, text.split("x")))))  # noqa: E731
        return min(known, key=lambda other: abs(count(other) - count(shape)))
    return difflib.get_close_matches(shape, known, 1, 0)[0]


def described(name: str, slices: int) -> tuple[Chip, list[Any]]:
    """(the chip, the devices of so many slices) as libtpu describes them. JAX itself stays on the CPU."""
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("the TPU's compiler, libtpu, isn't installed (no TPU is needed): pip install -e '.[tpu]'")
    # Of a machine that is no TPU host; JAX, at its import, has put warnings where the names belong.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}
    # Plans may be made side by side: nobody holds a TPU.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    jax.config.update("jax_platforms", "cpu")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except Exception as error:  # libtpu raises whatever went wrong in it
        raise ConfigError(f"--topology {name!r}: libtpu refuses it: {str(error).splitlines()[0]}") from error
    return CHIPS[name.split(":")[0]], list(found.devices)


def mesh_of(sizes: Mapping[str, int] | None, devices: list[Any]) -> Mesh:
    """The config's mesh on these devices; a refusal names the nearest one that they make up."""
    try:
        return meshes.make(sizes, devices)
    except ConfigError as error:
        if "devices" not in str(error) and "slices" not in str(error):
            raise
        raise ConfigError(f"{error}; {nearest_mesh(sizes, devices)}") from None


def nearest_mesh(sizes: Any, devices: list[Any]) -> str:
    """The mesh with the nearest `fsdp` whose `data`, a multiple of the slices, takes what is left."""
    slices, count = len({getattr(device, "slice_index", 0) for device in devices}), len(devices)
    given = dict(sizes) if isinstance(sizes, Mapping) else {}
    known = {axis: n for axis, n in given.items() if axis in ("context", "tensor") and type(n) is int and n > 0}
    if count // slices % math.prod(known.values()):
        known = {}
    left = count // slices // math.prod(known.values())
    wanted = given.get("fsdp", 1)
    wanted = wanted if type(wanted) is int and wanted > 0 else left
    fsdp = min((n for n in range(1, left + 1) if left % n == 0), key=lambda n: abs(math.log(n / wanted)))
    sizes = {"data": count // fsdp // math.prod(known.values()), "fsdp": fsdp, **known}
    return "nearest: " + ", ".join(f"{axis}={n}" for axis, n in sizes.items())
