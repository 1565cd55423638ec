"""What programs for eight devices send, against collectives of known size."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from experiments import mesh as meshes
from experiments import programs

ROWS, BYTES = 1024, 1024 * 4


@pytest.mark.parametrize(
    "collective, kind, bytes_",
    [
        (lambda x: jax.lax.psum(x, "fsdp"), "all-reduce", 2 * 7 / 8 * BYTES),
        (lambda x: jax.lax.all_gather(x, "fsdp", tiled=True), "all-gather", 7 * BYTES),
        (lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), "reduce-scatter", 7 / 8 * BYTES),
        (lambda x: jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True), "all-to-all", 7 / 8 * BYTES),
        (lambda x: jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 8) for i in range(8)]), "collective-permute", BYTES),
    ],
)
@pytest.mark.parametrize("turns", [1, 5])
def test_collectives_of_known_size(collective, kind, bytes_, turns):
    """Once, and in a loop whose trips the compiler doesn't multiply."""
    mesh = meshes.make(dict(fsdp=8))

    def local(x):
        def turn(total, i):
            return total + jnp.sum(collective(x * jnp.sin(total + i))), None

        return jax.lax.scan(turn, 0.0, jnp.arange(turns) * 1.0)[0][None]

    spec = PartitionSpec("fsdp")
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
    text = mapped.lower(jax.ShapeDtypeStruct((8 * ROWS,), jnp.float32)).compile().as_text()
    count, total = programs.transfers(text, [0] * 8).by_kind()[kind]
    assert (count, total) == (turns, pytest.approx(turns * bytes_))
