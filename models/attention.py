"""Attention over all tokens: three kinds, equal in value and gradient, that differ in time and memory.

`xla`         softmax(q k^T / sqrt(d)) v as two batched products; the backward pass reads the probabilities.
`checkpoint`  the same under jax.checkpoint: the probabilities are recomputed in the backward pass.
`fused`       chunks of queries; only the log-sum-exp of each row is kept (Dao et al. 2022, FlashAttention,
              algorithms 1 and 4). Its gradient is written by hand, so that it has no forward derivative:
              `jax.jvp` needs one of `JVP_KINDS`.

Queries, keys and values are [b, n, heads, d]; products are accumulated and the softmax is taken in float32. An `order`, a
number for every query and for every key, masks what is later: a query sees the keys whose number is not above its own. Blocks
of frames in order make a network causal in time, and a key of number infinity is one that isn't there.
"""

import functools
import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "b n k d"]
Order = tuple[Float[Array, " n"], Float[Array, " m"]]
Attention = Callable[[Heads, Heads, Heads, Order | None], Heads]

HIDDEN = -1e30
"""The score of what is not seen: finite, so that a query that sees nothing is no NaN."""

QUERY_CHUNK = 256


def plain(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
    """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, eq. 1) with the batch and heads as one batch axis."""
    weights = jax.nn.softmax(_seen(_scores(_by_head(q), _by_head(k)), *(order or (None, None))), axis=-1)
    return _by_token(_weighted(weights, _by_head(v)), q)


def fused(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
    """`plain` in chunks of queries; its gradient recomputes the probabilities from the log-sum-exp."""
    rows, columns = (None, None) if order is None else (jnp.asarray(part, jnp.float32) for part in order)
    return _by_token(_fused(_by_head(q), _by_head(k), _by_head(v), rows, columns), q)


ATTENTION: dict[str, Attention] = {"xla": plain, "checkpoint": jax.checkpoint(plain), "fused": fused}
JVP_KINDS = ("xla", "checkpoint")
NO_ATTENTION = "none"
"""What a network without attention calls its kind."""


def attention_kind(kind: str) -> Attention:
    """The attention called `kind`; an unknown name is a KeyError that lists the known ones."""
    if kind not in ATTENTION:
        near = get_close_matches(str(kind), ATTENTION, n=1, cutoff=0.0)[0]
        known = ", ".join(ATTENTION)
        raise KeyError(f"unknown attention kind {kind!r}, expected one of {known}; did you mean {near!r}?")
    return ATTENTION[kind]


def require_jvp(kind: str) -> None:
    """Refuses an attention kind that has no forward derivative (`jax.jvp`), by name."""
    attention_kind(kind)
    if kind not in JVP_KINDS:
        raise ValueError(f"attention kind {kind!r} has no jax.jvp; build the model with one of {JVP_KINDS}")


def _by_head(x: Heads) -> Float[Array, "bk n d"]:
    b, n, k, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b * k, n, d)


def _by_token(x: Float[Array, "bk n d"], like: Heads) -> Heads:
    b, n, k, d = like.shape
    return x.reshape(b, k, n, d).transpose(0, 2, 1, 3)


def _scores(q: Float[Array, "h n d"], k: Float[Array, "h m d"]) -> Float[Array, "h n m"]:
    # The scale goes on the queries, of which there are fewer numbers than scores.
    q = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    return jnp.einsum("hnd,hmd->hnm", q, k, preferred_element_type=jnp.float32)


def _seen(scores: Float[Array, "h n m"], rows: Any, columns: Any) -> Float[Array, "h n m"]:
    return scores if rows is None else jnp.where(columns <= jnp.asarray(rows)[..., None], scores, HIDDEN)


def _weighted(weights: Float[Array, "h n m"], v: Float[Array, "h m d"]) -> Float[Array, "h n d"]:
    out = jnp.einsum("hnm,hmd->hnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return out.astype(v.dtype)


def _chunked(x: Float[Array, "h n ..."]) -> Float[Array, "chunks h c ..."]:
    """Equal chunks of the token axis, in front; the last is filled with zeros, which add to no sum."""
    heads, tokens = x.shape[:2]
    count = -(-tokens // QUERY_CHUNK)
    length = -(-tokens // count)
    padded = jnp.pad(x, ((0, 0), (0, count * length - tokens)) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(heads, count, length, *x.shape[2:]), 1, 0)


def _unchunked(chunks: Float[Array, "chunks h c d"], tokens: int) -> Float[Array, "h n d"]:
    joined = jnp.moveaxis(chunks, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :tokens]


def _over_chunks(body, carry, chunks):
    """`jax.lax.scan`, but a single chunk is a plain call: a loop of one hides the work from the compiler."""
    if jax.tree.leaves(chunks)[0].shape[0] > 1:
        return jax.lax.scan(body, carry, chunks)
    carry, out = body(carry, jax.tree.map(lambda chunk: chunk[0], chunks))
    return carry, jax.tree.map(lambda x: x[None], out)


@functools.partial(jax.custom_vjp)
def _fused(q, k, v, rows, columns):
    return _fused_forward(q, k, v, rows, columns)[0]


def _fused_forward(q, k, v, rows, columns):
    def chunk(_, part):
        q, rows = part
        scores = _seen(_scores(q, k), rows, columns)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        out = _weighted(weights, v).astype(jnp.float32) / total
        return None, (out.astype(v.dtype), (top + jnp.log(total))[..., 0])

    _, (out, logsumexp) = _over_chunks(chunk, None, (_chunked(q), _row_chunks(rows)))
    return _unchunked(out, q.shape[1]), (q, k, v, rows, columns, _unchunked(logsumexp, q.shape[1]))


def _row_chunks(rows):
    return None if rows is None else _chunked(rows[None])


def _fused_backward(residuals, gradient):
    q, k, v, rows, columns, logsumexp = residuals
    scale = 1 / math.sqrt(q.shape[-1])
    f32 = {"preferred_element_type": jnp.float32}

    def chunk(carry, part):
        dk, dv = carry
        q, logsumexp, dout, rows = part
        weights = jnp.exp(_seen(_scores(q, k), rows, columns) - logsumexp[..., None])
        dweights = jnp.einsum("hnd,hmd->hnm", dout, v, **f32)
        # sum_m p dp is the row's sum of out * dout, found without keeping out.
        dscores = weights * (dweights - jnp.sum(weights * dweights, axis=-1, keepdims=True))
        dscores = dscores.astype(q.dtype)
        dv = dv + jnp.einsum("hnm,hnd->hmd", weights.astype(q.dtype), dout, **f32)
        dk = dk + jnp.einsum("hnm,hnd->hmd", dscores, q, **f32)
        return (dk, dv), jnp.einsum("hnm,hmd->hnd", dscores, k, **f32)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    parts = (*jax.tree.map(_chunked, (q, logsumexp, gradient)), _row_chunks(rows))
    (dk, dv), dq = _over_chunks(chunk, zeros, parts)
    dq = _unchunked(dq, q.shape[1])
    nothing = jax.tree.map(jnp.zeros_like, (rows, columns))
    return (dq * scale).astype(q.dtype), (dk * scale).astype(k.dtype), dv.astype(v.dtype), *nothing


_fused.defvjp(_fused_forward, _fused_backward)
