"""The TPU's kernel for attention in blocks, which leaves out those that nobody sees (jax's `splash_attention`).

Off the TPU the kernel is interpreted: right, and slow. It has no head scaling inside, wants its masks before the program runs
and has gradients written by hand. Its own chunked mask is causal *within* chunks only; a network that is causal in time needs
`Ordered`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as kernels
from jaxtyping import Float

from models.scores import Heads, Order

LANES, BLOCK = 128, 512
"""Blocks are of a multiple of LANES tokens, up to BLOCK."""


class Ordered(kernels.Mask):
    """A query sees the keys whose number is not above its own; made block by block, never as a whole."""

    def __init__(self, rows: Float[np.ndarray, " n"], columns: Float[np.ndarray, " m"]):
        self.rows, self.columns = rows, columns

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), len(self.columns)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = index
        return self.columns[None, columns] <= self.rows[rows, None]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ordered) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[bytes, bytes]:
        return self.rows.tobytes(), self.columns.tobytes()


def attend(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
    """softmax(q k^T / sqrt(d)) v. ValueError for an order that is not known before the program runs, as a cache's isn't."""
    if order is not None and any(isinstance(part, jax.core.Tracer) for part in order):
        raise ValueError(
            "attention 'splash' has no masks that depend on data, such as a cache's; build the model that samples with"
            " attention 'fused', which takes the same params"
        )
    lengths = (q.shape[1], k.shape[1])
    blocks = [min(BLOCK, n + -n % LANES) for n in lengths]
    rows, columns = order or (np.zeros(lengths[0]), np.zeros(lengths[1]))
    # What fills up the last block: keys that aren't there, and queries that see all, as one that sees nothing is NaN.
    rows, columns = (
        np.pad(np.asarray(part, np.float32), (0, -len(part) % block), constant_values=np.inf)
        for part, block in zip((rows, columns), blocks, strict=True)
    )
    mask = kernels.MultiHeadMask([Ordered(rows, columns)] * q.shape[2])
    sizes = kernels.BlockSizes(
        block_q=blocks[0], block_kv=blocks[1], block_kv_compute=blocks[1],
        block_q_dkv=blocks[0], block_kv_dkv=blocks[1], block_kv_dkv_compute=blocks[1],
        block_q_dq=blocks[0], block_kv_dq=blocks[1],
    )  # fmt: skip

    def on(interpret: bool):
        # Its tables are constants: made now, not by the program that is being traced.
        with jax.ensure_compile_time_eval():
            kernel = kernels.make_splash_mha(
                mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
            )
        return jax.vmap(kernel)

    def padded(x: Heads, block: int) -> Heads:
        return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0))).swapaxes(1, 2)

    q = (q.astype(jnp.float32) / np.sqrt(q.shape[-1])).astype(q.dtype)
    given = (padded(q, blocks[0]), padded(k, blocks[1]), padded(v, blocks[1]))
    out = jax.lax.platform_dependent(*given, tpu=on(False), default=on(True))
    return out.swapaxes(1, 2)[:, : lengths[0]].astype(v.dtype)
