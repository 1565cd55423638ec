"""Checkpoints of a running stage: Orbax, asynchronous, with the data's position and the record of what they hold."""

import functools
import json
import logging
import math
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from experiments import mesh as meshes
from experiments.config import ConfigError

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves (tree, data position, record) under `folder`/STEP and finds the newest that can be read.

    A checkpoint appears under its name only when it is whole (Orbax writes beside and renames). Where one can't be read, or its
    numbers are not those that were saved (a flipped bit is no error to the file format), the one before it is used, and the
    damaged one is named and kept aside as STEP.damaged. What can't be written is an OSError that names the last whole one.

    keep: of how many steps, the newest ones.
    """

    def __init__(self, folder: pathlib.Path, *, keep: int = 2):
        self.folder = folder.resolve()
        self.manager = self._open(keep)
        self._keep = keep

    def _open(self, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, cleanup_tmp_directories=True)
        return ocp.CheckpointManager(self.folder, options=options, item_names=("state", "data", "record"))

    def save(self, step: int, state: PyTree, data: dict[str, Any], record: dict[str, Any]) -> None:
        if step in self.manager.all_steps():
            return
        sums = {"state": digest(state), "told": _digest_of_text(data, record)}
        told = ocp.args.JsonSave({"sums": sums, **record})
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), record=told)
        # Orbax raises whatever its storage layer met, be it that of the save before, which it wrote beside the training.
        try:
            self.manager.save(step, args=args, force=True)
        except Exception as error:  # noqa: BLE001
            raise self._unwritten(error) from error

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any], dict[str, Any]] | None:
        """(step, state, data position, record) of the newest checkpoint that all processes can read; None where there is none.

        like: a tree of arrays or ShapeDtypeStructs with shardings. Raises ConfigError if there are checkpoints and none
        can be read: then it may be that the system refuses, or that they are of another version of the program, and all stay
        where they are.
        """
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
        damaged: dict[int, str] = {}
        left = set(self.manager.all_steps())
        # Several processes try the newest that any sees, and take none that one can't read: all must go on from the same.
        while step := max(meshes.each(max(left, default=0))):
            left.discard(step)
            found, why = None, None  # there may be no room for two
            try:
                found, saved = self._read(step, abstract)
            # Orbax raises whatever its storage layer met: a damaged file shows up as ValueError, KeyError, OSError, ...
            except Exception as error:  # noqa: BLE001
                why = _line(error)
            if not meshes.agreed(why is not None):
                assert found is not None  # it was read, or there would be a reason
                total = digest(found[0])
                if not meshes.agreed(saved not in (None, total)):
                    self._set_aside(damaged)
                    return step, *found
                why = "its numbers are not those that were saved"
            damaged[step] = why or "another process can't read it"
        if damaged:
            raise ConfigError(
                f"no checkpoint under {self.folder} can be read (of {max(damaged)}: {damaged[max(damaged)]}); they stay as they"
                " are: remove the stage's folder to begin it anew"
            )
        return None

    def _read(self, step: int, abstract: PyTree) -> tuple[tuple[PyTree, dict[str, Any], dict[str, Any]], int | None]:
        """((state, data position, record), the digest that the state was saved with), as this process finds them: the manager's
        own `restore` would wait for the others, of which one may have met damage and never come.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone) as reader:
            found = reader.restore(
                self.folder / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract),
                    data=ocp.args.JsonRestore(),
                    record=ocp.args.JsonRestore(),
                ),
            )
        record = dict(found["record"])
        sums = record.pop("sums", None)  # checkpoints of older versions have none
        if sums and sums["told"] != _digest_of_text(found["data"], record):
            raise ValueError("its record or its data position is not the one that was saved")
        return (found["state"], found["data"], record), sums["state"] if sums else None

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        """Renames steps that could not be read, where one before them could."""
        if not damaged:
            return
        self.manager.close()
        meshes.meet("damaged checkpoints are set aside")
        for step, why in damaged.items():
            aside = _free(self.folder / f"{step}.damaged")
            log.error("checkpoint %s can't be read (%s); kept aside as %s", self.folder / str(step), why, aside.name)
            if meshes.leads() and (self.folder / str(step)).exists():
                (self.folder / str(step)).rename(aside)
        meshes.meet("damaged checkpoints are aside")
        self.manager = self._open(self._keep)

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def wait(self) -> None:
        """Until what was saved is on the disk; OSError if it can't be."""
        # As in `save`: whatever Orbax's storage layer met while it wrote.
        try:
            self.manager.wait_until_finished()
        except Exception as error:  # noqa: BLE001
            raise self._unwritten(error) from error

    def close(self) -> None:
        """What went wrong with a save that nobody waits for any more is said, not raised: an error is on its way already."""
        # As in `save`; an exception here would hide the one because of which this is called.
        try:
            self.manager.close()
        except Exception as error:  # noqa: BLE001
            log.error("%s", self._unwritten(error))

    def _unwritten(self, error: BaseException) -> OSError:
        whole = [int(p.name) for p in self.folder.glob("[0-9]*") if p.name.isdecimal()]
        last = f"the last whole one is {self.folder / str(max(whole))}" if whole else "there is none yet"
        return OSError(f"can't write a checkpoint under {self.folder} ({_line(error)}); {last}")


def digest(tree: PyTree) -> int:
    """A number that a flipped bit anywhere in the arrays changes, and that does not depend on the devices they are spread over:
    sums of the bits as whole numbers, weighted by their places, modulo 2^32.

    Every process sums the pieces that it holds, and the sums travel once: as many small collectives as there are arrays would
    meet one another in another order on another process, and hang.
    """
    sums = []
    for index, leaf in enumerate(map(jnp.asarray, jax.tree.leaves(tree))):
        steps = tuple(math.prod(leaf.shape[axis + 1 :]) % 2**32 for axis in range(leaf.ndim))
        for shard in leaf.addressable_shards:
            # Of copies one counts, also of what every process has for itself.
            if shard.replica_id == 0 and (meshes.leads() or not leaf.is_fully_addressable):
                first = sum((part.start or 0) * step for part, step in zip(shard.index, steps, strict=True))
                sums.append((2 * index + 1, _sum(shard.data, np.uint32(first % 2**32), steps)))
    return meshes.total(sum(weight * int(value) for weight, value in jax.device_get(sums)) % 2**32) % 2**32


@functools.partial(jax.jit, static_argnames="steps")
def _sum(piece: Array, first: Array, steps: tuple[int, ...]) -> Array:
    """first: the place of the piece's first number in the whole array. steps: how far apart neighbours along each axis are."""
    width = min(piece.dtype.itemsize, 4)
    bits = piece.astype(jnp.uint8) if piece.dtype == bool else piece
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * width}").astype(jnp.uint32)
    if bits.ndim > piece.ndim:  # numbers of 8 bytes are two of 4
        first, steps = 2 * first, (*(2 * n for n in steps), 1)
    places = [
        jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(n % 2**32) for axis, n in enumerate(steps)
    ]
    # Odd weights: no multiple of them that a changed bit may cause is 0.
    weights = 2 * functools.reduce(jnp.add, places, jnp.full(bits.shape, first, jnp.uint32)) + 1
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def _digest_of_text(*values: Any) -> int:
    return zlib.crc32(json.dumps(values, sort_keys=True).encode())


def _free(path: pathlib.Path) -> pathlib.Path:
    """The path, or the next one like it where there is one already: what is kept aside is never written over."""
    names = (path.with_name(f"{path.name}.{i}") for i in range(2, 2**31))
    return path if not path.exists() else next(name for name in names if not name.exists())


def _line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    # The reason stands at the end, after paths that may be long.
    return line if len(line) <= 400 else f"{line[:200]} ... {line[-200:]}"
