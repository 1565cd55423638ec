"""Networks on a mesh: what is split over its axes, and attention whose tokens are split over the axis `context`.

A network knows no devices and no config. It reads the mesh in whose context it is traced (`jax.set_mesh`, or
`jax.sharding.use_abstract_mesh` inside a jit) and leaves alone what is not there: without a mesh everything here is the
identity, or the plain attention. Axes: `data` and `fsdp` split the batch, `context` the tokens, `tensor` heads and channels.
Where a length doesn't divide, that axis is left out and the devices along it hold the same.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from models.scores import HIDDEN, Attention, Heads, Order, by_head, by_token, scores, seen, weighted

BATCH, CONTEXT, TENSOR = ("data", "fsdp"), "context", "tensor"


def axes() -> dict[str, int]:
    """Name -> size of the mesh axes that programs traced here may split over; none outside of a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in kinds if kind == AxisType.Auto}


def spec(shape: tuple[int, ...], *names: str | tuple[str, ...] | None) -> PartitionSpec:
    """Dimension i of `shape` over the mesh axes names[i], as many of them as are there and divide it."""
    sizes, entries = axes(), []
    for length, name in zip(shape, names, strict=True):
        kept: tuple[str, ...] = ()
        for axis in (name,) if isinstance(name, str) else name or ():
            if length % math.prod(sizes.get(a, 1) for a in (*kept, axis)) == 0 and axis in sizes:
                kept += (axis,)
        entries.append(kept or None)
    return PartitionSpec(*entries)


def constrain(x: Float[Array, "..."], *names: str | tuple[str, ...] | None) -> Float[Array, "..."]:
    """x laid out as `spec` says; x itself outside of a mesh."""
    return jax.lax.with_sharding_constraint(x, spec(x.shape, *names)) if axes() else x


ROWS = 16
"""Rows of a TPU's tile of bfloat16."""


def in_tiles(tokens: int) -> int:
    """`tokens`, or so many more that every device of `context` has whole tiles of them: putting the parts of several devices
    behind each other would shift every row, and takes a compiler for TPUs ten times as long.
    """
    count = axes().get(CONTEXT, 1)
    return tokens if count == 1 else tokens + -tokens % (count * ROWS)


def filled(x: Float[Array, "b n d"], tokens: int) -> Float[Array, "b m d"]:
    """x with zeros behind it up to `tokens`, over `context`."""
    if tokens == x.shape[1]:
        return x
    # Whole where it is padded or cut: of parts every device would pass rows on to the next, and shift its own.
    return constrain(_padded(constrain(x, BATCH, None, None), tokens), BATCH, CONTEXT, None)


def cut(x: Float[Array, "b m d"], tokens: int) -> Float[Array, "b n d"]:
    """The first `tokens` of x."""
    return x if tokens == x.shape[1] else constrain(x, BATCH, None, None)[:, :tokens]


def over_context(h: Float[Array, "b f h w c"], *sides: int) -> Float[Array, "b f h w c"]:
    """The batch over `data` and `fsdp`, over `context` the first of `sides` (1 frames, 2 rows, 3 columns) that it divides."""
    count = axes().get(CONTEXT, 1)
    side = next((i for i in sides if h.shape[i] % count == 0), None)
    return constrain(h, BATCH, *(CONTEXT if i == side else None for i in (1, 2, 3)), None)


def by_rows(
    convolve: Callable[[Array, Array, int], Array], x: Float[Array, "b f h w i"], kernel: Array, border: int
) -> Float[Array, "b f h w o"]:
    """convolve(x, kernel, rows), which takes `rows` rows of zeros for granted above and below, with the rows over `context`.

    Devices give each other the `border` rows at their edges. By hand, as XLA (jax 0.10.2) shares out convolutions wrongly: of
    rows and channels at once the values are others, of rows on a mesh with a further axis the kernel's gradient is a multiple.
    """
    if not axes():
        return convolve(x, kernel, border)
    split = spec(x.shape, BATCH, None, CONTEXT, None, None)
    count = axes()[CONTEXT] if split[2] else 1

    def local(x: Array, kernel: Array) -> Array:
        if count == 1 or border == 0:
            return convolve(x, kernel, border)
        # Who is sent nothing has zeros: the rows above the first and below the last.
        above = jax.lax.ppermute(x[:, :, -border:], CONTEXT, [(i, i + 1) for i in range(count - 1)])
        below = jax.lax.ppermute(x[:, :, :border], CONTEXT, [(i + 1, i) for i in range(count - 1)])
        return convolve(jnp.concatenate([above, x, below], 2), kernel, 0)

    return _mapped(local, (split, PartitionSpec()), split)(x, kernel)


def own_queries(attend: Attention) -> Attention:
    """`attend` with every device's own queries against all keys. Tokens that `context` doesn't divide are not split."""

    def attention(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
        if not axes():
            return attend(q, k, v, order)
        own = spec(q.shape, BATCH, CONTEXT, TENSOR, None)
        everyones = spec(k.shape, BATCH, None, TENSOR, None)
        orders = None if order is None else (PartitionSpec(own[1]), PartitionSpec())
        return _mapped(attend, (own, everyones, everyones, orders), own)(q, k, v, order)

    return attention


def heads_for_tokens(attend: Attention, kind: str) -> Attention:
    """`attend` between two exchanges: a device gives away tokens of all heads for all tokens of its own heads (Jacobs et al.
    2023, DeepSpeed Ulysses, arXiv 2309.14509, section 3). ValueError where `context` doesn't divide the heads.
    """

    def attention(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
        if not axes():
            return attend(q, k, v, order)
        count, lengths = axes().get(CONTEXT, 1), (q.shape[1], k.shape[1])
        q, k, v = (_padded(x, count) for x in (q, k, v))
        split = spec(q.shape, BATCH, CONTEXT, TENSOR, None)
        heads = q.shape[2] // (axes().get(TENSOR, 1) if split[2] else 1)
        if heads % count:
            raise ValueError(
                f"attention {kind!r} splits heads over the mesh axis {CONTEXT!r}: {q.shape[2]} heads do not divide by"
                f" {q.shape[2] // heads * count}; choose another mesh, or attention 'ring', which splits tokens alone"
            )

        def local(q: Heads, k: Heads, v: Heads, order: Order | None) -> Heads:
            if count > 1:
                q, k, v = (jax.lax.all_to_all(x, CONTEXT, 2, 1, tiled=True) for x in (q, k, v))
            out = attend(q[:, : lengths[0]], k[:, : lengths[1]], v[:, : lengths[1]], order)
            out = _padded(out, count)
            return jax.lax.all_to_all(out, CONTEXT, 1, 2, tiled=True) if count > 1 else out

        # Arrays of an order are arguments; what NumPy holds stays known to `attend`.
        known = order is None or not any(isinstance(part, jax.core.Tracer) for part in order)
        if known:
            out = _mapped(lambda q, k, v: local(q, k, v, order), (split, split, split), split)(q, k, v)
        else:
            everywhere = (PartitionSpec(), PartitionSpec())
            out = _mapped(local, (split, split, split, everywhere), split)(q, k, v, order)
        return out[:, : lengths[0]]

    return attention


def ring(attend: Attention) -> Attention:
    """Keys and values travel round the devices of `context`, each of which keeps its own queries (Liu et al. 2023, Ring
    Attention, arXiv 2310.01889, section 3). `attend` is what it equals, and what it is where nothing is split.

    A step is recomputed in the backward pass: what is kept is a layer's keys and values, once round, and no probabilities.
    """

    def attention(q: Heads, k: Heads, v: Heads, order: Order | None = None) -> Heads:
        count = axes().get(CONTEXT, 1)
        if count == 1:
            return attend(q, k, v, order)
        tokens = q.shape[1]
        rows, columns = order or (jnp.zeros(tokens), jnp.zeros(k.shape[1]))
        # Filled up with keys that are not there, so that any number of tokens will do. The same zeros behind all: where one
        # array is padded twice XLA (jax 0.10.2) pads it with one of the values.
        there = jnp.arange(k.shape[1] + -k.shape[1] % count) < k.shape[1]
        q, k, v, rows, columns = (
            _padded(x, count, axis) for x, axis in ((q, 1), (k, 1), (v, 1), (rows, 0), (columns, 0))
        )
        columns = jnp.where(there, columns, jnp.inf)
        split = spec(q.shape, BATCH, CONTEXT, TENSOR, None)
        along = PartitionSpec(CONTEXT)
        return _mapped(local, (split, split, split, along, along), split)(q, k, v, rows, columns)[:, :tokens]

    def local(q: Heads, k: Heads, v: Heads, rows: Float[Array, " n"], columns: Float[Array, " m"]) -> Heads:
        count = jax.lax.axis_size(CONTEXT)
        q = by_head(q)

        @jax.checkpoint
        def step(carry: Any, _: None) -> tuple[Any, None]:
            top, total, out, k, v, columns = carry
            found = seen(scores(q, by_head(k)), rows, columns)
            highest = jax.lax.stop_gradient(jnp.maximum(top, jnp.max(found, axis=-1, keepdims=True)))
            weights, shrink = jnp.exp(found - highest), jnp.exp(top - highest)
            total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
            out = out * shrink + weighted(weights, by_head(v))
            onward = [(i, (i + 1) % count) for i in range(count)]
            k, v, columns = (jax.lax.ppermute(x, CONTEXT, onward) for x in (k, v, columns))
            return (highest, total, out, k, v, columns), None

        column = jnp.zeros((*q.shape[:3], 1), jnp.float32)
        start = (column + HIDDEN, column, jnp.zeros(q.shape, jnp.float32), k, v, columns)
        (_, total, out, *_), _ = jax.lax.scan(step, start, length=count)
        return by_token(out / total).astype(v.dtype)

    return attention


def _mapped(local: Callable, inputs: Any, outputs: PartitionSpec) -> Callable:
    return jax.shard_map(local, in_specs=inputs, out_specs=outputs, axis_names=set(axes()), check_vma=False)


def _padded(x: Float[Array, "..."], count: int, axis: int = 1) -> Float[Array, "..."]:
    """Zeros behind an axis, up to a multiple of `count`."""
    return jnp.pad(jnp.asarray(x), [(0, -n % count if i == axis else 0) for i, n in enumerate(x.shape)])
