"""What every stage of a run shares."""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Context:
    """What every stage of a run shares: the config as a plain dict, the workdir, the devices."""

    config: dict[str, Any]
    workdir: pathlib.Path
    mesh: Mesh
    source: str = "config"

    def key(self, stage: str) -> jax.Array:
        """The stage's key: folded from the seed and the stage's name, so that no stage depends on those before it."""
        digest = int.from_bytes(hashlib.sha256(stage.encode()).digest()[:4], "big")
        return jax.random.fold_in(jax.random.key(self.config["seed"]), digest)
