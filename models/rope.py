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


def grid_angles(frames: int, rows: int, columns: int, head_dim: int, base: float) -> Float[np.ndarray, "n half"]:
    """Angles of the tokens of a grid, in the order frame, row, column; float64, on the host.

    Channel pair i of an axis with D channels turns by position * base^(-2 i / D). Nothing here depends on a
    largest length, so a network trained on short clips runs on long ones.
    """
    positions = np.indices((frames, rows, columns)).reshape(3, -1)
    parts = []
    for axis, width in enumerate(axis_split(head_dim)):
        frequency = base ** (-np.arange(0, width, 2) / width)
        parts.append(positions[axis, :, None] * frequency)
    return np.concatenate(parts, axis=-1)


def rotate(x: Float[Array, "b n k d"], angles: Float[Array, "n half"]) -> Float[Array, "b n k d"]:
    """Turns channel pairs (i, i + d/2) of every head by its token's angles, in float32.

    Halves, not neighbours, make the pairs: strided slices are slow on every backend.
    """
    cos = jnp.asarray(np.cos(angles), jnp.float32)[:, None]
    sin = jnp.asarray(np.sin(angles), jnp.float32)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1).astype(x.dtype)
