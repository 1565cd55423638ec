"""What every kind of attention is made of: scores of queries and keys, what is seen of them, weighted sums.

Queries, keys and values are [b, n, heads, d]; products are accumulated and the softmax is taken in float32. An `order`, a
number for every query and for every key, masks what is later: a query sees the keys whose number is not above its own. Blocks
of frames in order make a network causal in time, and a key of number infinity is one that isn't there.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Heads = Float[Array, "b n k d"]
Order = tuple[Float[Array | np.ndarray, " n"], Float[Array | np.ndarray, " m"]]
"""(a number for every query, a number for every key); NumPy's where it is known before any program runs."""
Attention = Callable[[Heads, Heads, Heads, Order | None], Heads]

HIDDEN = -1e30
"""The score of what is not seen: finite, so that a query that sees nothing is no NaN."""


def by_head(x: Heads) -> Float[Array, "b k n d"]:
    """Heads in front of tokens. The batch and the heads stay two axes: merged they could not both be split over devices."""
    return x.swapaxes(1, 2)


by_token = by_head
"""Its own inverse."""


def scores(q: Float[Array, "b k n d"], k: Float[Array, "b k m d"]) -> Float[Array, "b k n m"]:
    """q k^T / sqrt(d)."""
    # The scale goes on the queries, of which there are fewer numbers than scores.
    q = (q.astype(jnp.float32) / math.sqrt(q.shape[-1])).astype(q.dtype)
    return jnp.einsum("bknd,bkmd->bknm", q, k, preferred_element_type=jnp.float32)


def seen(scores: Float[Array, "b k n m"], rows: Any, columns: Any) -> Float[Array, "b k n m"]:
    """Scores without those of keys whose number is above the query's; rows None: all are seen."""
    return scores if rows is None else jnp.where(columns <= jnp.asarray(rows)[..., None], scores, HIDDEN)


def weighted(weights: Float[Array, "b k n m"], v: Float[Array, "b k m d"]) -> Float[Array, "b k n d"]:
    """The values' sum in float32; the weights are rounded to the values' type first."""
    return jnp.einsum("bknm,bkmd->bknd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
