"""Devices as a mesh, and where things live on it: weights everywhere, the batch split over the devices."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from experiments.config import ConfigError


def make() -> Mesh:
    """All devices on the one axis `data`; a single device is a mesh of one."""
    return Mesh(np.asarray(jax.devices()), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """The leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch(batch_size: int, mesh: Mesh, where: str) -> None:
    if batch_size % mesh.size:
        raise ConfigError(f"{where}.batch_size {batch_size} is not divisible by the {mesh.size} devices of the mesh")


def put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """A tree of host or device arrays onto the mesh; every process holds the same values."""
    return jax.device_put(tree, sharding)


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
    """This process's rows of a global batch as global arrays."""
    sharding = split(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)
