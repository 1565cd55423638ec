"""A video diffusion transformer: joint attention over space and time, conditioned per frame, or per token by maps of levels.

After Peebles & Xie 2023 (DiT, section 3.2: adaLN-Zero) with the modulation of all blocks made by one layer
and a learned table per block (Chen et al. 2023, PixArt-alpha, section 2.3: adaLN-single), rotary positions,
and queries and keys normalised by their rms (Dehghani et al. 2023, ViT-22B, section 2, do so by layer norm).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.attention import Attention, Order
from models.layers import Conditioned, Linear, Rngs, dropout, fan_in_normal, modulate, per_frame, rms_normalise
from models.parallel import TENSOR, constrain, cut, filled, in_tiles, over_context
from models.rope import grid_turns, rotate
from models.unet import depth_to_space, space_to_depth

Clip = Float[Array, "b f h w c"]
Tokens = Float[Array, "b n d"]


# Chains of elementwise steps are recomputed in the backward pass, and so is what a product reads of them; the product
# itself is not, as nothing reads its result twice. Arithmetic is cheaper than memory.


def adaptive_norm(h: Clip, scale: Float[Array, "..."], shift: Float[Array, "..."]) -> Clip:
    """h / rms(h) (1 + scale) + shift."""
    return modulate(rms_normalise(h), scale, shift)


@jax.checkpoint
def after_norm(
    h: Clip, scale: Float[Array, "..."], shift: Float[Array, "..."], weight: Float[Array, "d ..."], bias: Array
) -> Float[Array, "b f h w ..."]:
    """The product of normed tokens with a weight, and its bias."""
    return jnp.tensordot(adaptive_norm(h, scale, shift), weight, 1) + bias


@jax.checkpoint
def after_gelu(x: Clip, weight: Float[Array, "d e"], bias: Float[Array, " e"]) -> Clip:
    return jax.nn.gelu(x) @ weight + bias


REMAT: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "layers": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass has of a layer, by jax's policies: all but what is always computed again; of the rest only the
products of tokens with weights; nothing but its input."""


class Layers(nnx.Module):
    """The weights of all blocks, stacked on axis 0: what `jax.lax.scan` reads one layer of at a time."""

    def __init__(self, depth: int, width: int, head_dim: int, ratio: int, rngs: Rngs):
        def weight(*shape: int) -> nnx.Param:
            return nnx.Param(jnp.stack([fan_in_normal(rngs, shape) for _ in range(depth)]))

        def constant(value: float, *shape: int) -> nnx.Param:
            return nnx.Param(jnp.full((depth, *shape), value, jnp.float32))

        self.qkv, self.qkv_bias = weight(width, 3 * width), constant(0, 3 * width)
        self.query_gain, self.key_gain = constant(1, head_dim), constant(1, head_dim)
        self.out, self.out_bias = weight(width, width), constant(0, width)
        self.expand, self.expand_bias = weight(width, ratio * width), constant(0, ratio * width)
        self.contract, self.contract_bias = weight(ratio * width, width), constant(0, width)
        # Zero gates make every block the identity at the start.
        self.table = constant(0, 6, width)

    def arrays(self) -> dict[str, Array]:
        return {name: value[...] for name, value in vars(self).items() if isinstance(value, nnx.Param)}


class DiT(Conditioned):
    """Patches of 1 x `patch` x `patch`, `depth` blocks of `width` channels; predicts zero at initialisation.

    `scan` runs the layers as one scanned layer, which keeps compile time and code size flat in depth; the
    parameters are the same either way. `causal`: a frame sees its own `block` of frames and those before, never later ones,
    and cond may hold a `cache` of earlier frames' keys and values (see `remember`), or the `history` that they are to have.
    `remat`: one of `REMAT`, memory for time.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        inputs: tuple[str, ...],
        level: str,
        patch: int,
        width: int,
        depth: int,
        head_dim: int,
        mlp_ratio: int,
        dropout: float,
        attend: Attention,
        rope_base: float,
        scan: bool,
        causal: bool,
        block: int,
        remat: str,
        dtype: str,
        rngs: Rngs,
    ):
        super().__init__(width, num_classes, inputs, level, rngs)
        self.causal, self.block, self.remat = causal, block, remat
        self.patch, self.head_dim, self.depth, self.rate = patch, head_dim, depth, dropout
        self.hidden = depth
        self.attend, self.rope_base, self.scan, self.dtype = attend, rope_base, scan, jnp.dtype(dtype)
        self.modulation = Linear(width, 6 * width, rngs, scale=0.0)
        self.embed = Linear(channels * patch**2, width, rngs)
        self.low = Linear(channels * patch**2, width, rngs, scale=0.0) if "low" in inputs else None
        self.layers = Layers(depth, width, head_dim, mlp_ratio, rngs)
        self.final_table = nnx.Param(jnp.zeros((2, width), jnp.float32))
        self.head = Linear(width, channels * patch**2, rngs, scale=0.0)

    def __call__(self, x: Clip, level: Float[Array, "b f ..."], cond: dict, key: PRNGKeyArray | None) -> Clip:
        h, _, embedding = self.run(x, level, cond, key)
        shift, scale = (per_frame(x) for x in jnp.moveaxis(embedding[..., None, :] + self.final_table[...], -2, 0))
        h = after_norm(h, scale, shift, self.head.weight[...].astype(h.dtype), self.head.bias[...].astype(h.dtype))
        return depth_to_space(h, self.patch).astype(jnp.float32)

    def features(
        self, x: Clip, level: Float[Array, "b f ..."], cond: dict, layers: tuple[int, ...] | None
    ) -> tuple[Clip, ...]:
        """The tokens after these layers, None for each: heads on several, as in ADD (Sauer et al. 2023, arXiv 2311.17042)."""
        layers = tuple(range(self.depth)) if layers is None else layers
        maps = self.run(x, level, cond, None, collect=lambda h, keys, values: h, depth=max(layers) + 1)[1]
        return tuple(maps[i] for i in layers)

    def remember(self, x: Clip, level: Float[Array, "b f ..."], cond: dict) -> dict[str, Array]:
        """cond['cache'] with these frames behind its own: what later frames read instead of running them again.

        Keys are kept before they are turned: a frame's position is its place in the cache, so positions stay within
        slots + f however long the video is. The last slots frames are kept, or the first `sinks` ones and the last of the
        others (attention sinks: Xiao et al. 2023, arXiv 2309.17453, section 3.2).
        """
        cache = cond["cache"]
        if x.shape[1] % self.block:
            raise ValueError(
                f"remember: frames come in whole blocks of {self.block}, as those behind them begin a block; got"
                f" {x.shape[1]}"
            )
        new = self.read(x, level, cond)
        slots, frames = cache["keys"].shape[2], x.shape[1]
        place, filled = jnp.arange(slots), cache["filled"]
        first = slots - filled  # old frames stand at the end of their slots
        overflow = filled + frames > slots
        kept = jnp.where(overflow & (place < cache["sinks"]), first + place, place + frames)
        joined = (
            jnp.concatenate([cache[name], part], axis=2) for name, part in zip(("keys", "values"), new, strict=True)
        )
        keys, values = (jnp.take(part, kept, axis=2) for part in joined)
        return {**cache, "keys": keys, "values": values, "filled": jnp.minimum(filled + frames, slots)}

    def read(self, x: Clip, level: Float[Array, "b f ..."], cond: dict) -> tuple[Array, Array]:
        """Keys and values of these frames as a cache keeps them, [layer, b, f, tokens, heads, d]."""
        found = self.run(x, level, cond, None, collect=lambda h, keys, values: (keys, values))[1]
        keys, values = (part.reshape(*part.shape[:2], x.shape[1], -1, *part.shape[3:]) for part in found)
        return keys, values

    def empty_cache(self, batch: int, rows: int, columns: int, slots: int, sinks: int) -> dict[str, Array]:
        """A cache of `slots` frames that holds none yet."""
        heads = self.layers.qkv.shape[1] // self.head_dim
        tokens = (rows // self.patch) * (columns // self.patch)
        shape = (self.depth, batch, slots, tokens, heads, self.head_dim)
        # Two arrays: a buffer that is in a cache twice could not be donated.
        keys, values = (jnp.zeros(shape, self.dtype) for _ in range(2))
        return {"keys": keys, "values": values, "filled": jnp.int32(0), "sinks": jnp.int32(sinks)}

    def check_cache(self, cache: dict[str, Array], rows: int, columns: int) -> None:
        """Refuses a cache of another network, or of frames of another size."""
        own = jax.eval_shape(lambda: self.empty_cache(1, rows, columns, 0, 0))["keys"].shape
        given = cache["keys"].shape
        if (given[0], given[3:]) != (own[0], own[3:]):
            raise ValueError(
                f"cond['cache'] is of another network or of frames of another size: its keys have shape {given}, expected"
                f" [{own[0]}, b, slots, {', '.join(map(str, own[3:]))}]"
            )

    def run(
        self,
        x: Clip,
        level: Float[Array, "b f ..."],
        cond: dict,
        key: PRNGKeyArray | None,
        collect: Callable[[Clip, Array, Array], Any] = lambda h, keys, values: None,
        depth: int | None = None,
    ) -> tuple[Clip, Any, Float[Array, "b f ... d"]]:
        """(the tokens after the last layer; collect(tokens, keys, values) of every layer, stacked; the embedding). depth: of so
        many layers, without those behind.
        """
        depth = self.depth if depth is None else depth
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"this DiT takes sides that are multiples of {self.patch}, got frames {x.shape[2:4]}")
        cache, history = cond.get("cache"), cond.get("history")
        if cache is not None:
            self.check_cache(cache, *x.shape[2:4])
        embedding = self.condition(level, cond, self.patch)
        # float32, [b|1, f, 6, d], or per token; each layer adds its own table, which costs nothing per frame.
        modulation = self.modulation(jax.nn.silu(embedding))
        modulation = modulation.reshape(*modulation.shape[:-1], 6, -1)

        h = self.embed(space_to_depth(x.astype(self.dtype), self.patch))
        if self.low is not None:
            h = h + self.low(space_to_depth(cond["low"].astype(self.dtype), self.patch))
        slots = 0 if cache is None else cache["keys"].shape[2]
        turns = grid_turns(slots + h.shape[1], *h.shape[2:4], self.head_dim, self.rope_base)
        past = None if cache is None else (cache["keys"], cache["values"])
        keys = None if key is None else jax.random.split(key, self.depth)
        if history is None:
            order, tokens = self.order(h, cache), math.prod(h.shape[1:4])
            if past is None and (more := in_tiles(tokens) - tokens):
                # What fills up the last tile is a key that nobody sees, and the place of a query that nobody reads.
                order = (np.zeros(tokens, np.float32),) * 2 if order is None else order
                order = tuple(np.pad(part, (0, more), constant_values=np.inf) for part in order)
                turns = jnp.pad(turns, ((0, 0), (0, more), (0, 0)))
            attend = functools.partial(self.attend, order=order)
        else:
            # As earlier frames of an empty cache, at their own places, which are those of x's frames too.
            empty = self.empty_cache(x.shape[0], *x.shape[2:4], slots=0, sinks=0)
            told = {name: value for name, value in cond.items() if name != "history"} | {"cache": empty}
            if "logsnr_to" in cond:
                told["logsnr_to"] = history["level"]
            past = self.read(history["clip"], history["level"], told)
            attend = functools.partial(self.attend_forced, frames=h.shape[1])
            turns = jnp.concatenate([turns, turns], axis=1)

        def layer(h: Clip, of: tuple) -> tuple[Clip, Any]:
            weights, key, past = of
            h, k, v = self.layer(weights, h, modulation + weights["table"], turns, attend, past, key)
            return h, collect(h, k, v)

        layers, policy = (self.layers.arrays(), keys, past), REMAT[self.remat]
        if depth < self.depth:
            layers = jax.tree.map(lambda leaf: leaf[:depth], layers)
        if policy is not None:
            layer = jax.checkpoint(layer, policy=policy, prevent_cse=not self.scan)
        if self.scan:
            h, maps = jax.lax.scan(layer, h, layers)
        else:
            collected = []
            for i in range(depth):
                h, after = layer(h, jax.tree.map(lambda leaf, i=i: leaf[i], layers))
                collected.append(after)
            maps = jax.tree.map(lambda *leaves: jnp.stack(leaves), *collected)
        return h, maps, embedding

    def attend_forced(self, q: Array, k: Array, v: Array, frames: int) -> Array:
        """Teacher forcing: of the keys, history's and then own, a block sees the history before it and itself."""
        tokens = q.shape[1]
        starts = [first * tokens // frames for first in range(0, frames, self.block)]
        parts = []
        for start, end in zip(starts, [*starts[1:], tokens], strict=True):
            seen = (jnp.concatenate([part[:, :start], part[:, tokens + start : tokens + end]], 1) for part in (k, v))
            parts.append(self.attend(q[:, start:end], *seen, None))
        return jnp.concatenate(parts, 1)

    def order(self, h: Clip, cache: dict[str, Array] | None) -> Order | None:
        """The block of every token; cached frames come before all blocks, slots that hold none after."""
        if not self.causal:
            return None
        tokens = h.shape[2] * h.shape[3]
        # NumPy's, as long as there is no cache: an attention that wants its masks early has them.
        own = np.repeat(np.arange(h.shape[1]) // self.block, tokens).astype(np.float32)
        if cache is None:
            return own, own
        slots = cache["keys"].shape[2]
        there = jnp.arange(slots) >= slots - cache["filled"]
        return own, jnp.concatenate([jnp.repeat(jnp.where(there, -1.0, jnp.inf), tokens), own])

    def layer(
        self,
        weights: dict[str, Array],
        h: Clip,
        modulation: Float[Array, "b f ... 6 d"],
        turns: Float[Array, "two n half"],
        attend: Callable[[Array, Array, Array], Array],
        past: tuple[Array, Array] | None,
        key: PRNGKeyArray | None,
    ) -> tuple[Clip, Array, Array]:
        """One layer: h + gate attention(norm), then h + gate mlp(norm), modulated per frame or token; and its keys and values.
        With a past the keys are as it keeps them, normed and not turned; without one nobody collects them.
        """
        h = over_context(h, 1, 2, 3)
        shift1, scale1, gate1, shift2, scale2, gate2 = (per_frame(x) for x in jnp.moveaxis(modulation, -2, 0))
        weights = {name: leaf.astype(h.dtype) for name, leaf in weights.items()}
        first, second = (None, None) if key is None else jax.random.split(key)

        @jax.checkpoint
        def normed(x: Float[Array, "b n k d"], gain: Float[Array, " d"]) -> Float[Array, "b n k d"]:
            return rms_normalise(x) * gain

        @jax.checkpoint
        def turned(x: Float[Array, "b n k d"], gain: Float[Array, " d"]) -> Float[Array, "b n k d"]:
            return rotate(rms_normalise(x) * gain, turns[:, -x.shape[1] :])

        count = math.prod(h.shape[1:4])
        length = turns.shape[1] if past is None else count

        @jax.checkpoint
        def by_tokens(
            h: Clip, scale: Array, shift: Array, weight: Float[Array, "d three k e"], bias: Float[Array, "1 three k e"]
        ) -> Float[Array, "b n three k e"]:
            tokens = adaptive_norm(h, scale, shift).reshape(h.shape[0], -1, h.shape[-1])
            return jnp.tensordot(filled(tokens, length), weight, 1) + bias

        # The weights as heads first: then each device of `tensor` makes its own heads, and weights move, not tokens.
        by_heads = (
            weights[name].reshape(-1, 3, h.shape[-1] // self.head_dim, self.head_dim) for name in ("qkv", "qkv_bias")
        )
        heads, bias = (constrain(part, None, None, TENSOR, None) for part in by_heads)
        q, own_k, own_v = jnp.moveaxis(by_tokens(h, scale1, shift1, heads, bias), 2, 0)
        if past is None:
            k, v = turned(own_k, weights["key_gain"]), own_v
        else:
            old_k, old_v = (part.reshape(h.shape[0], -1, *part.shape[3:]).astype(h.dtype) for part in past)
            own_k = normed(own_k, weights["key_gain"])
            k, v = rotate(jnp.concatenate([old_k, own_k], 1), turns), jnp.concatenate([old_v, own_v], 1)
        out = attend(turned(q, weights["query_gain"]), k, v)
        out = out.reshape(h.shape[0], length, -1) @ weights["out"] + weights["out_bias"]
        h = h + dropout(cut(out, count).reshape(h.shape), self.rate, first) * gate1.astype(h.dtype)

        hidden = after_norm(h, scale2, shift2, weights["expand"], weights["expand_bias"])
        out = after_gelu(hidden, weights["contract"], weights["contract_bias"])
        return h + dropout(out, self.rate, second) * gate2.astype(h.dtype), own_k, own_v
