"""A residual network over a whole clip as one vector: for laws of a few numbers, where seconds of training do."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.layers import Conditioned, Linear, Rngs, dropout, modulate

Clip = Float[Array, "b f h w c"]
Vector = Float[Array, "b d"]


class Layer(nnx.Module):
    """x + dense(silu(dense(x) (1 + scale) + shift)). No norm: in a plane a point's length says as much as its direction."""

    def __init__(self, width: int, rate: float, rngs: Rngs):
        self.first = Linear(width, width, rngs)
        self.condition = Linear(width, 2 * width, rngs, scale=0.0)
        self.out = Linear(width, width, rngs, scale=0.3)
        self.rate = rate

    def __call__(self, x: Vector, embedding: Vector, key: PRNGKeyArray | None) -> Vector:
        scale, shift = jnp.split(self.condition(embedding), 2, axis=-1)
        h = jax.nn.silu(modulate(self.first(x), scale, shift))
        return x + self.out(dropout(h, self.rate, key))


class MLP(Conditioned):
    """`depth` layers of `width` channels; predicts zero at initialisation. Clips must have the shape it was built for."""

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        num_classes: int,
        inputs: tuple[str, ...],
        level: str,
        width: int,
        depth: int,
        dropout: float,
        dtype: str,
        rngs: Rngs,
    ):
        super().__init__(width, num_classes, inputs, level, rngs)
        self.shape, self.dtype = shape, jnp.dtype(dtype)
        size = math.prod(shape)
        # The embeddings of all frames side by side: each number of the clip may depend on every frame's level.
        self.mix = Linear(shape[0] * width, width, rngs)
        self.stem = Linear(2 * size, width, rngs)
        self.low = Linear(2 * size, width, rngs, scale=0.0) if "low" in inputs else None
        self.layers = nnx.List([Layer(width, dropout, rngs) for _ in range(depth)])
        self.head = Linear(width, size, rngs, scale=0.0)

    def __call__(self, x: Clip, level: Float[Array, "b f"], cond: dict, key: PRNGKeyArray | None) -> Clip:
        h = self.run(x, level, cond, key)
        return self.head(jax.nn.silu(h)).astype(jnp.float32).reshape(x.shape)

    def features(self, x: Clip, level: Float[Array, "b f"], cond: dict) -> tuple[Clip]:
        """What the last layer hands on, as a map of one frame and one pixel."""
        return (self.run(x, level, cond, None)[:, None, None, None],)

    def run(self, x: Clip, level: Float[Array, "b f"], cond: dict, key: PRNGKeyArray | None) -> Vector:
        if x.shape[1:] != self.shape:
            raise ValueError(f"this MLP takes clips of shape {self.shape}, got {x.shape[1:]}")
        embedding = self.condition(level, cond)
        embedding = jax.nn.silu(self.mix(jax.nn.silu(embedding.reshape(embedding.shape[0], -1))))
        h = self.stem(squashed(x.reshape(x.shape[0], -1)).astype(self.dtype))
        if self.low is not None:
            h = h + self.low(squashed(cond["low"].reshape(cond["low"].shape[0], -1)).astype(self.dtype))
        keys = [None] * len(self.layers) if key is None else jax.random.split(key, len(self.layers))
        for layer, here in zip(self.layers, keys, strict=True):
            h = layer(h, embedding, here)
        return h


def squashed(x: Vector) -> Float[Array, "b d2"]:
    """The direction of x, and x on a scale that is linear at 0 and logarithmic far out: noise may be 80 times the data."""
    x = x.astype(jnp.float32)
    return jnp.concatenate([x * jax.lax.rsqrt(1 + jnp.mean(x * x, -1, keepdims=True)), jnp.arcsinh(x)], axis=-1)
