"""Rotary positions for a grid of frames, rows and columns: RoPE (Su et al. 2021, eq. 34) on three axes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def axis_split(head_dim: int) -> tuple[int, int, int]:
    """How many of D channels turn with frame, row and column: D - 4 (D // 6), 2 (D // 6), 2 (D // 6)."""
    if head_dim % 2 or head_dim < 6:
        raise ValueError(f"a head of 3-D RoPE has an even width of at least 6, got {head_dim}")
    sixth = head_dim // 6
    return head_dim - 4 * sixth, 2 * sixth, 2 * sixth


def grid_turns(frames: int, rows: int, columns: int, head_dim: int, base: float) -> Float[Array, "two n half"]:
    """Cosines and sines of the tokens' angles on a grid, in the order frame, row, column; float32.

    Channel pair i of an axis with D channels turns by position * base^(-2 i / D), in float64 on the host. Nothing here depends
    on a largest length, so a network trained on short clips runs on long ones.
    """
    sizes, parts = (frames, rows, columns), []
    for axis, (size, width) in enumerate(zip(sizes, axis_split(head_dim), strict=True)):
        angles = np.arange(size)[:, None] * base ** (-np.arange(0, width, 2) / width)
        alone = np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
        alone = alone.reshape(2, *(size if i == axis else 1 for i in range(3)), -1)
        # Spread over the grid by the program: as a constant of all tokens it would be written into every one that is compiled.
        parts.append(jnp.broadcast_to(jnp.asarray(alone), (2, *sizes, alone.shape[-1])))
    return jnp.concatenate(parts, axis=-1).reshape(2, frames * rows * columns, -1)


def rotate(x: Float[Array, "b n k d"], turns: Float[Array, "two n half"]) -> Float[Array, "b n k d"]:
    """Turns channel pairs (i, i + d/2) of every head by its token's angles, in float32.

    Halves, not neighbours, make the pairs: strided slices are slow on every backend.
    """
    cos, sin = turns[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
