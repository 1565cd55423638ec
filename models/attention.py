"""Attention over all tokens: kinds that are equal in value and gradient and differ in time, memory and devices.

`xla`         softmax(q k^T / sqrt(d)) v as two batched products; the backward pass reads the probabilities.
`checkpoint`  the same under jax.checkpoint: the probabilities are recomputed in the backward pass.
`fused`       chunks of queries; only the log-sum-exp of each row is kept (Dao et al. 2022, FlashAttention,
              algorithms 1 and 4). On a mesh whose `context` axis splits the tokens every device has its own queries and
              all keys.
`splash`      the TPU's kernel (models/splash.py). It takes orders that are known before the program runs: no cache.
`ulysses`     `checkpoint` with the tokens split over the mesh axis `context`, exchanged for heads (models/parallel.py).
`ring`        the tokens split over `context`; keys and values travel round the devices.

Without a `context` axis the last two are the plain one. `fused` and `splash` have gradients written by hand and no forward
derivative: `jax.jvp` needs one of `JVP_KINDS`. What `order` means, and the shapes: models/scores.py.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from models import parallel, splash
from models.names import hint
from models.scores import HIDDEN, Attention, Heads, Order, by_head, by_token, scores, seen, weighted

__all__ = ["ATTENTION", "HIDDEN", "JVP_KINDS", "NO_ATTENTION", "Attention", "Order", "attention_kind"]

QUERY_CHUNK = 256


def plain(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1)."""
    weights = jax.nn.softmax(seen(scores(by_head(q), by_head(k)), *(order or (None, None))), axis=-1)
    return by_token(weighted(weights, by_head(v))).astype(v.dtype)


def fused(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
    """`plain` in chunks of queries; its gradient recomputes the probabilities from the log-sum-exp."""
    rows, columns = (None, None) if order is None else (jnp.asarray(part, jnp.float32) for part in order)
    return by_token(_fused(by_head(q), by_head(k), by_head(v), rows, columns))


ATTENTION: dict[str, Attention] = {
    "xla": plain,
    "checkpoint": jax.checkpoint(plain),
    "fused": parallel.own_queries(fused),
    "splash": parallel.heads_for_tokens(splash.attend, "splash"),
    "ulysses": parallel.heads_for_tokens(jax.checkpoint(plain), "ulysses"),
    "ring": parallel.ring(plain),
}
JVP_KINDS = ("xla", "checkpoint", "ulysses", "ring")
NO_ATTENTION = "none"
"""What a network without attention calls its kind."""


def attention_kind(kind: str) -> Attention:
    """The attention called `kind`; an unknown name is a KeyError that lists the known ones."""
    if kind not in ATTENTION:
        raise KeyError(
            f"unknown attention kind {kind!r}, expected one of {', '.join(ATTENTION)}{hint(kind, ATTENTION)}"
        )
    return ATTENTION[kind]


def _chunked(x: Float[Array, "b k n ..."]) -> Float[Array, "chunks b k c ..."]:
    """Equal chunks of the token axis, in front; the last is filled with zeros, which add to no sum."""
    tokens = x.shape[2]
    count = -(-tokens // QUERY_CHUNK)
    length = -(-tokens // count)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, count * length - tokens)) + ((0, 0),) * (x.ndim - 3))
    return jnp.moveaxis(padded.reshape(*x.shape[:2], count, length, *x.shape[3:]), 2, 0)


def _unchunked(chunks: Float[Array, "chunks b k c ..."], tokens: int) -> Float[Array, "b k n ..."]:
    joined = jnp.moveaxis(chunks, 0, 2)
    return joined.reshape(*joined.shape[:2], -1, *joined.shape[4:])[:, :, :tokens]


def _over_chunks(body, carry, chunks):
    """`jax.lax.scan`, but a single chunk is a plain call: a loop of one hides the work from the compiler."""
    if jax.tree.leaves(chunks)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, chunks)
    carry, out = body(carry, jax.tree.map(lambda chunk: chunk[0], chunks))
    return carry, jax.tree.map(lambda x: x[None], out)


@jax.custom_vjp
def _fused(q, k, v, rows, columns):
    return _fused_forward(q, k, v, rows, columns)[0]


def _fused_forward(q, k, v, rows, columns):
    def chunk(_, part):
        q, rows = part
        found = seen(scores(q, k), rows, columns)
        top = jnp.max(found, axis=-1, keepdims=True)
        weights = jnp.exp(found - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = weighted(weights, v) / total
        return None, (out.astype(v.dtype), (top + jnp.log(total))[..., 0])

    _, (out, logsumexp) = _over_chunks(chunk, None, (_chunked(q), _row_chunks(rows)))
    return _unchunked(out, q.shape[2]), (q, k, v, rows, columns, _unchunked(logsumexp, q.shape[2]))


def _row_chunks(rows):
    return None if rows is None else _chunked(rows[None, None])


def _fused_backward(residuals, gradient):
    q, k, v, rows, columns, logsumexp = residuals
    scale = 1 / math.sqrt(q.shape[-1])
    f32 = {"preferred_element_type": jnp.float32}

    def chunk(carry, part):
        dk, dv = carry
        q, logsumexp, dout, rows = part
        weights = jnp.exp(seen(scores(q, k), rows, columns) - logsumexp[..., None])
        dweights = jnp.einsum("bknd,bkmd->bknm", dout, v, **f32)
        # sum_m p dp is the row's sum of out * dout, found without keeping out.
        dscores = weights * (dweights - jnp.sum(weights * dweights, axis=-1, keepdims=True))
        dscores = dscores.astype(q.dtype)
        dv = dv + jnp.einsum("bknm,bknd->bkmd", weights.astype(q.dtype), dout, **f32)
        dk = dk + jnp.einsum("bknm,bknd->bkmd", dscores, q, **f32)
        return (dk, dv), jnp.einsum("bknm,bkmd->bknd", dscores, k, **f32)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    parts = (*jax.tree.map(_chunked, (q, logsumexp, gradient)), _row_chunks(rows))
    (dk, dv), dq = _over_chunks(chunk, zeros, parts)
    dq = _unchunked(dq, q.shape[2])
    nothing = jax.tree.map(jnp.zeros_like, (rows, columns))
    return (dq * scale).astype(q.dtype), (dk * scale).astype(k.dtype), dv.astype(v.dtype), *nothing


_fused.defvjp(_fused_forward, _fused_backward)
