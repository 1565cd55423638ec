"""A factorised video U-Net: 2-D convolutions, three-tap mixing in time, joint attention at the lowest level.

After the 3-D U-Net of Ho et al. 2022 (Video Diffusion Models, section 3), with the temporal attention of the
upper levels replaced by a temporal convolution of three taps (Tran et al. 2018, R(2+1)D, section 3.5), which
is a matrix product over a frame and its two neighbours.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.attention import Attention
from models.layers import (
    Conditioned,
    Conv,
    Linear,
    RMSNorm,
    Rngs,
    TemporalMix,
    dropout,
    modulate,
    per_frame,
    rms_normalise,
)
from models.rope import grid_turns, rotate

Clip = Float[Array, "b f h w c"]


class Block(nnx.Module):
    """x + convolution(temporal mix(convolution(x))), scaled and shifted by the level and class, per frame or pixel."""

    def __init__(self, inputs: int, outputs: int, embed: int, rate: float, rngs: Rngs):
        self.norm = RMSNorm(inputs)
        self.space = Conv(inputs, outputs, rngs)
        self.condition = Linear(embed, 2 * outputs, rngs, scale=0.0)
        self.time = TemporalMix(outputs, outputs, rngs)
        self.out = Conv(outputs, outputs, rngs, scale=0.3)
        self.skip = Linear(inputs, outputs, rngs) if inputs != outputs else None
        self.rate = rate

    def __call__(self, x: Clip, embedding: Float[Array, "b f ... e"], key: PRNGKeyArray | None) -> Clip:
        scale, shift = jnp.split(per_frame(self.condition(embedding)), 2, axis=-1)
        h = self.space(jax.nn.silu(self.norm(x)))
        h = jax.nn.silu(modulate(rms_normalise(h), scale, shift))
        h = jax.nn.silu(rms_normalise(self.time(h)))
        h = self.out(dropout(h, self.rate, key))
        return h + (x if self.skip is None else self.skip(x))


class JointAttention(nnx.Module):
    """Self-attention over all frames and pixels at once, with 3-D rotary positions and normalised q and k."""

    def __init__(self, width: int, heads: int, attend: Attention, base: float, rngs: Rngs):
        self.norm = RMSNorm(width)
        self.qkv = Linear(width, 3 * width, rngs)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)
        self.out = Linear(width, width, rngs, scale=0.3)
        self.heads, self.attend, self.base = heads, attend, base

    def __call__(self, x: Clip) -> Clip:
        b, f, h, w, c = x.shape
        q, k, v = jnp.moveaxis(self.qkv(self.norm(x)).reshape(b, f * h * w, 3, self.heads, -1), 2, 0)
        turns = grid_turns(f, h, w, c // self.heads, self.base)
        out = self.attend(rotate(self.query_norm(q), turns), rotate(self.key_norm(k), turns), v, None)
        return x + self.out(out.reshape(x.shape))


class UNet(Conditioned):
    """Levels of `widths` channels, each half as large as the one above; `blocks[i]` blocks on either side.

    The prediction is zero at initialisation. Frames are not counted anywhere: a clip may be of any length. Without attention
    the network is convolutional in space and time: trained on crops, it runs on whole clips (Ho et al. 2022, Imagen Video,
    arXiv 2210.02303, section 2.3).
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        inputs: tuple[str, ...],
        level: str,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        patch: int,
        embed: int,
        head_dim: int,
        dropout: float,
        attend: Attention | None,
        rope_base: float,
        dtype: str,
        rngs: Rngs,
    ):
        super().__init__(embed, num_classes, inputs, level, rngs)
        self.patch, self.dtype, self.before = patch, jnp.dtype(dtype), blocks[-1]
        self.hidden = 2 * len(widths) - 1
        self.stem = Conv(channels * patch**2, widths[0], rngs)
        # A stem of its own, added: the same as one stem of both clips, side by side in the channels.
        self.low = Conv(channels * patch**2, widths[0], rngs, scale=0.0) if "low" in inputs else None

        def stack(inputs: list[int], width: int) -> nnx.List:
            return nnx.List([Block(i, width, embed, dropout, rngs) for i in inputs])

        upper = list(zip(widths[:-1], blocks[:-1], strict=True))
        steps = list(zip(widths[:-1], widths[1:], strict=True))
        self.down = nnx.List([stack([w] * n, w) for w, n in upper])
        self.shrink = nnx.List([Linear(4 * a, b, rngs) for a, b in steps])
        self.middle = stack([widths[-1]] * 2 * blocks[-1], widths[-1])
        heads = max(1, widths[-1] // head_dim)
        self.attention = None if attend is None else JointAttention(widths[-1], heads, attend, rope_base, rngs)
        self.grow = nnx.List([Linear(b, 4 * a, rngs) for a, b in steps])
        self.up = nnx.List([stack([2 * w] + [w] * (n - 1), w) for w, n in upper])
        self.norm = RMSNorm(widths[0])
        self.head = Conv(widths[0], channels * patch**2, rngs, scale=0.0)

    def __call__(self, x: Clip, level: Float[Array, "b f ..."], cond: dict, key: PRNGKeyArray | None) -> Clip:
        *_, h = self.levels(x, level, cond, one_by_one(key))
        h = self.head(jax.nn.silu(self.norm(h)))
        return depth_to_space(h, self.patch).astype(jnp.float32)

    def features(
        self, x: Clip, level: Float[Array, "b f ..."], cond: dict, layers: tuple[int, ...] | None
    ) -> tuple[Clip, ...]:
        """After each level on the way down, at the bottom and on the way up; None is the bottleneck alone, what DMD2 puts its
        discriminator on (Yin et al. 2024, arXiv 2405.14867, section 4.3).
        """
        layers = (len(self.down),) if layers is None else layers
        maps = list(itertools.islice(self.levels(x, level, cond, one_by_one(None)), max(layers) + 1))
        return tuple(maps[i] for i in layers)

    def levels(
        self, x: Clip, level: Float[Array, "b f ..."], cond: dict, keys: Iterator[PRNGKeyArray | None]
    ) -> Iterator[Clip]:
        """What each level hands on, in turn: down, at the bottom, up. What nobody asks for isn't computed."""
        factor = self.patch * 2 ** len(self.down)
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"this U-Net takes sides that are multiples of {factor}, got frames {x.shape[2:4]}")
        # One for all levels of the network, unless it is a map: then at the resolution of each.
        sizes = [self.patch * 2**i for i in range(1 + (len(self.down) if self.maps(level, cond) else 0))]
        embeddings = [jax.nn.silu(self.condition(level, cond, size)) for size in sizes]
        embeddings += embeddings[:1] * (1 + len(self.down) - len(embeddings))

        h = self.stem(space_to_depth(x.astype(self.dtype), self.patch))
        if self.low is not None:
            h = h + self.low(space_to_depth(cond["low"].astype(self.dtype), self.patch))
        skips = []
        for stack, shrink, embedding in zip(self.down, self.shrink, embeddings[:-1], strict=True):
            h = run(stack, h, embedding, keys)
            yield h
            skips.append(h)
            h = shrink(space_to_depth(h, 2))
        h = run(self.middle[: self.before], h, embeddings[-1], keys)
        h = h if self.attention is None else self.attention(h)
        h = run(self.middle[self.before :], h, embeddings[-1], keys)
        yield h
        for stack, grow, embedding in reversed(list(zip(self.up, self.grow, embeddings[:-1], strict=True))):
            h = run(stack, jnp.concatenate([depth_to_space(grow(h), 2), skips.pop()], axis=-1), embedding, keys)
            yield h


def run(stack: nnx.List, h: Clip, embedding: Float[Array, "b f ... e"], keys: Iterator[PRNGKeyArray | None]) -> Clip:
    """The blocks of a level, one after the other, each with a key of its own."""
    for block in stack:
        h = block(h, embedding, next(keys))
    return h


def one_by_one(key: PRNGKeyArray | None) -> Iterator[PRNGKeyArray | None]:
    """Keys split off `key`, as many as are asked for; None each time if there is none."""
    while True:
        key, here = (None, None) if key is None else jax.random.split(key)
        yield here


def space_to_depth(x: Clip, size: int) -> Clip:
    """[b, f, h, w, c] -> [b, f, h/size, w/size, size² c]; a dense layer makes it a strided convolution."""
    if size == 1:
        return x
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h // size, size, w // size, size, c)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, f, h // size, w // size, size * size * c)


def depth_to_space(x: Clip, size: int) -> Clip:
    """The inverse of `space_to_depth`."""
    if size == 1:
        return x
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h, w, size, size, c // size**2)
    return x.transpose(0, 1, 2, 4, 3, 5, 6).reshape(b, f, h * size, w * size, c // size**2)
