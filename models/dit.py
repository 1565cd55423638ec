"""A video diffusion transformer: joint attention over space and time, conditioned per frame.

After Peebles & Xie 2023 (DiT, section 3.2: adaLN-Zero) with the modulation of all blocks made by one layer
and a learned table per block (Chen et al. 2023, PixArt-alpha, section 2.3: adaLN-single), rotary positions,
and queries and keys normalised by their rms (Dehghani et al. 2023, ViT-22B, section 2, do so by layer norm).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.attention import Attention
from models.layers import Conditioned, Linear, Rngs, dropout, fan_in_normal, modulate, rms_normalise
from models.rope import grid_angles, rotate
from models.unet import depth_to_space, space_to_depth

Clip = Float[Array, "b f h w c"]
Tokens = Float[Array, "b n d"]


# Chains of elementwise steps are recomputed in the backward pass. Arithmetic is cheaper than memory: on CPU this
# saves a fifth of a training step and, with fused attention, 40 % of its memory.
gelu = jax.checkpoint(jax.nn.gelu)


@jax.checkpoint
def adaptive_norm(h: Clip, scale: Float[Array, "..."], shift: Float[Array, "..."]) -> Clip:
    """h / rms(h) (1 + scale) + shift."""
    return modulate(rms_normalise(h), scale, shift)


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

    `scan` runs the blocks as one scanned block, which keeps compile time and code size flat in depth; the
    parameters are the same either way.
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
        dtype: str,
        rngs: Rngs,
    ):
        super().__init__(width, num_classes, inputs, level, rngs)
        self.patch, self.head_dim, self.depth, self.rate = patch, head_dim, depth, dropout
        self.attend, self.rope_base, self.scan, self.dtype = attend, rope_base, scan, jnp.dtype(dtype)
        self.modulation = Linear(width, 6 * width, rngs, scale=0.0)
        self.embed = Linear(channels * patch**2, width, rngs)
        self.layers = Layers(depth, width, head_dim, mlp_ratio, rngs)
        self.final_table = nnx.Param(jnp.zeros((2, width), jnp.float32))
        self.head = Linear(width, channels * patch**2, rngs, scale=0.0)

    def __call__(self, x: Clip, level: Float[Array, "b f"], cond: dict, key: PRNGKeyArray | None) -> Clip:
        h, _, embedding = self.run(x, level, cond, key, collect=False)
        shift, scale = jnp.moveaxis(embedding[:, :, None] + self.final_table[...], 2, 0)[:, :, :, None, None]
        h = self.head(adaptive_norm(h, scale, shift))
        return depth_to_space(h, self.patch).astype(jnp.float32)

    def features(self, x: Clip, level: Float[Array, "b f"], cond: dict) -> tuple[Clip, ...]:
        """The tokens after each block: heads on several layers, as in ADD (Sauer et al. 2023, arXiv 2311.17042)."""
        return self.run(x, level, cond, None, collect=True)[1]

    def run(
        self, x: Clip, level: Float[Array, "b f"], cond: dict, key: PRNGKeyArray | None, collect: bool
    ) -> tuple[Clip, tuple[Clip, ...], Float[Array, "b f d"]]:
        """(the tokens after the last block; if they are to be collected, those after each; the embedding)."""
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"this DiT takes sides that are multiples of {self.patch}, got frames {x.shape[2:4]}")
        embedding = self.condition(level, cond)
        # float32, [b|1, f, 6, d]; each block adds its own table, which costs nothing per frame.
        modulation = self.modulation(jax.nn.silu(embedding))
        modulation = modulation.reshape(*modulation.shape[:2], 6, -1)

        h = self.embed(space_to_depth(x.astype(self.dtype), self.patch))
        angles = grid_angles(*h.shape[1:4], self.head_dim, self.rope_base)
        keys = None if key is None else jax.random.split(key, self.depth)

        def block(h: Clip, layer: tuple) -> tuple[Clip, Clip | None]:
            weights, key = layer
            h = self.block(weights, h, modulation + weights["table"], angles, key)
            return h, h if collect else None

        layers = (self.layers.arrays(), keys)
        if self.scan:
            h, maps = jax.lax.scan(block, h, layers)
        else:
            maps = []
            for i in range(self.depth):
                h, after = block(h, jax.tree.map(lambda leaf, i=i: leaf[i], layers))
                maps.append(after)
        return h, tuple(maps) if collect else (), embedding

    def block(
        self,
        weights: dict[str, Array],
        h: Clip,
        modulation: Float[Array, "b f 6 d"],
        angles: Float[Array, "n half"],
        key: PRNGKeyArray | None,
    ) -> Clip:
        """One block: h + gate attention(norm), then h + gate mlp(norm), modulated per frame."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(modulation, 2, 0)[:, :, :, None, None]
        weights = {name: leaf.astype(h.dtype) for name, leaf in weights.items()}
        first, second = (None, None) if key is None else jax.random.split(key)

        @jax.checkpoint
        def turn(x: Float[Array, "b n k d"], gain: Float[Array, " d"]) -> Float[Array, "b n k d"]:
            return rotate(rms_normalise(x) * gain, angles)

        tokens = adaptive_norm(h, scale1, shift1)
        qkv = tokens.reshape(h.shape[0], -1, h.shape[-1]) @ weights["qkv"] + weights["qkv_bias"]
        q, k, v = jnp.moveaxis(qkv.reshape(*qkv.shape[:2], 3, -1, self.head_dim), 2, 0)
        q = turn(q, weights["query_gain"])
        k = turn(k, weights["key_gain"])
        out = self.attend(q, k, v).reshape(h.shape) @ weights["out"] + weights["out_bias"]
        h = h + dropout(out, self.rate, first) * gate1.astype(h.dtype)

        tokens = adaptive_norm(h, scale2, shift2)
        hidden = gelu(tokens @ weights["expand"] + weights["expand_bias"])
        out = hidden @ weights["contract"] + weights["contract_bias"]
        return h + dropout(out, self.rate, second) * gate2.astype(h.dtype)
