"""Checkpoints of a running stage: Orbax, asynchronous, with the data's position and the record of what they hold."""

import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from experiments import mesh as meshes
from experiments.config import ConfigError

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves (tree, data position, record) under `folder`/STEP and finds the newest that can be read.

    A checkpoint appears under its name only when it is whole (Orbax writes beside and renames). One that can't be read is
    named, kept aside as STEP.damaged, and the one before it is used.
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
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data), record=ocp.args.JsonSave(record)
            ),
            force=True,
        )

    def restore(self, like: PyTree) -> tuple[int, PyTree, dict[str, Any], dict[str, Any]] | None:
        """(step, state, data position, record) of the newest readable checkpoint, or None where there is none.

        like: a tree of arrays or ShapeDtypeStructs with shardings. Raises ConfigError if there are checkpoints and none
        can be read.
        """
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), like)
        damaged = []
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                found = self.manager.restore(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract),
                        data=ocp.args.JsonRestore(),
                        record=ocp.args.JsonRestore(),
                    ),
                )
                return step, found["state"], found["data"], found["record"]
            # Orbax raises whatever its storage layer met: a damaged file shows up as ValueError, KeyError, OSError, ...
            except Exception as error:  # noqa: BLE001
                aside = self.folder / f"{step}.damaged"
                log.error(
                    "checkpoint %s can't be read (%s); kept aside as %s",
                    self.folder / str(step),
                    _line(error),
                    aside.name,
                )
                damaged.append(step)
                self.manager.close()
                meshes.meet(f"{aside} is damaged")
                if meshes.leads():
                    (self.folder / str(step)).rename(aside)
                meshes.meet(f"{aside} is aside")
                self.manager = self._open(self._keep)
        if damaged:
            raise ConfigError(
                f"no checkpoint under {self.folder} can be read; {len(damaged)} damaged ones were kept aside"
            )
        return None

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
