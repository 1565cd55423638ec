"""How noise levels are drawn together: uniform variables in (0, 1), open at both ends, over a batch and over its frames.

A **draw** is a function (key, shape) -> uniforms, of shape [b] for a level per clip, [b, f] for one per frame, [b, f, h, w] for
one per pixel. A law of
`levels` turns each into a log-SNR by its quantile function, 0 being clean and 1 noise, so a draw says how the levels of a
batch, or of the frames of a clip, hang together, whatever law each of them has (a copula, where they stay uniform).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from diffusion.names import choice

Draw = Callable[[PRNGKeyArray, tuple[int, ...]], Float[Array, "..."]]
Named = str | Mapping[str, Any] | Draw
"""A draw, the name of one, or a block {kind: name, **options}."""


def independent(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Independent draws; with a level per frame, Diffusion Forcing (Chen et al. 2024, arXiv 2407.01392, algorithm 1)."""
    return _open(jax.random.uniform(key, shape, jnp.float32))


def antithetic(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The second half of the batch is one minus the first half; the middle of an odd batch is drawn alone."""
    if not shape:
        return independent(key, shape)
    first = jax.random.uniform(key, ((shape[0] + 1) // 2, *shape[1:]), jnp.float32)
    return _open(jnp.concatenate([first, 1 - first[: shape[0] // 2]]))


def stratified(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """One draw in each of b equal parts: (u + i) / b with one shared u.

    The low-discrepancy sampler of Kingma et al. 2021, arXiv 2107.00630, appendix I.

    With a level per frame every frame has its own u and its own random order over the batch, so that the
    frames of a clip stay independent.
    """
    if not shape:
        return independent(key, shape)
    key_shift, key_order = jax.random.split(key)
    shift = jax.random.uniform(key_shift, (1, *shape[1:]), jnp.float32)
    order = jnp.argsort(jax.random.uniform(key_order, shape, jnp.float32), axis=0)
    return _open((order + shift) / shape[0])


def shared(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f"]:
    """One level for all frames of a clip, the clips stratified."""
    _frames("shared", shape)
    return jnp.broadcast_to(stratified(key, shape[:1])[:, None], shape)


def monotone(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f"]:
    """Later frames are at least as noisy: one frame, any, is uniform, and given it all such sequences are equally likely.

    AR-Diffusion's sampler (Sun et al. 2025, arXiv 2503.07418, section 3.3) in continuous time, where its recursion over the
    number of sequences left is not needed: uniform sequences before a frame of level u are sorted uniforms in (0, u), those
    after it sorted uniforms in (u, 1). Single frames are not uniform: the first is rather clean, the last rather noisy.
    """
    _frames("monotone", shape)
    key_level, key_frame, key_rest = jax.random.split(key, 3)
    level = stratified(key_level, shape[:1])[:, None]
    chosen = jax.random.randint(key_frame, (shape[0], 1), 0, shape[1])
    rest = jax.random.uniform(key_rest, shape, jnp.float32)
    frame = jnp.arange(shape[1])
    drawn = jnp.where(frame < chosen, level * rest, level + (1 - level) * rest)
    return _open(jnp.sort(jnp.where(frame == chosen, level, drawn), axis=1))


def rolling(history: int = 0, start: float = 0.1) -> Draw:
    """The levels of a window that rolls on: `history` clean frames, then a ramp of which the clip stands anywhere.

    Frame k of the w after the history has the local time clip((k + t) / w, 0, 1), t uniform, so that at t = 0 the first of
    them is clean and the window moves on by a frame. With probability `start` it is clip(k / w + t, 0, 1) instead, the
    levels through which a window of pure noise gets there (Ruhe et al. 2024, arXiv 2402.09470, section 3).
    """
    if not (isinstance(history, int) and history >= 0 and 0 <= start <= 1):
        raise ValueError(
            f"rolling: expected a number of frames from 0 up and a probability, got history {history}, start {start}"
        )

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f"]:
        _frames("rolling", shape, history + 1)
        key_time, key_start = jax.random.split(key)
        time = stratified(key_time, shape[:1])[:, None]
        frame = jnp.arange(shape[1]) - history
        width = shape[1] - history
        ramp = jnp.where(
            jax.random.bernoulli(key_start, start, time.shape), frame / width + time, (frame + time) / width
        )
        return _open(jnp.where(frame < 0, 0.0, jnp.clip(ramp, 0, 1)))

    return draw


def with_history(longest: int, future: Named = "shared", masked: float = 0.1) -> Draw:
    """Clean first frames, from none to `longest` of them (each number as likely), before frames drawn by `future`.

    With probability `masked` a clip's history is pure noise instead: the frames that history guidance compares with (Song et
    al. 2025, arXiv 2502.06764, section 4.1: a masked frame is one at the highest level).
    """
    if not (isinstance(longest, int) and longest >= 1 and 0 <= masked <= 1):
        raise ValueError(
            f"with_history: expected at least one frame and a probability, got longest {longest}, masked {masked}"
        )
    rest = named(future)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f"]:
        _frames("with_history", shape, longest + 1)
        key_length, key_masked, key_rest = jax.random.split(key, 3)
        length = jax.random.randint(key_length, (shape[0], 1), 0, longest + 1)
        level = jnp.where(jax.random.bernoulli(key_masked, masked, length.shape), 1.0, 0.0)
        return _open(jnp.where(jnp.arange(shape[1]) < length, level, rest(key_rest, shape)))

    return draw


def blocks(block: int, of: Named = "independent") -> Draw:
    """One level for every `block` frames, those of the blocks drawn by `of` as if each were a frame: what a network that is
    causal from block to block is sampled at.
    """
    if not (isinstance(block, int) and block >= 1):
        raise ValueError(f"blocks: expected a whole number of frames from 1 up, got block {block}")
    drawn = named(of)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f"]:
        _frames("blocks", shape)
        if shape[1] % block:
            raise ValueError(f"blocks: expected a divisor of the clip's {shape[1]} frames, got block {block}")
        return jnp.repeat(drawn(key, (shape[0], shape[1] // block)), block, axis=1)

    return draw


def squares(size: int, of: Named = "independent") -> Draw:
    """One level for every square of size x size pixels of every frame, those of the squares drawn by `of`: [b, f, h, w]."""
    if not (isinstance(size, int) and size >= 1):
        raise ValueError(f"squares: expected a whole number of pixels from 1 up, got size {size}")
    drawn = named(of)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f h w"]:
        _pixels("squares", shape)
        if shape[2] % size or shape[3] % size:
            raise ValueError(
                f"squares: expected a divisor of the frame's {shape[2]} x {shape[3]} pixels, got size {size}"
            )
        coarse = drawn(key, (*shape[:2], shape[2] // size, shape[3] // size))
        return jnp.repeat(jnp.repeat(coarse, size, axis=2), size, axis=3)

    return draw


def whole_frames(of: Named = "independent") -> Draw:
    """One level for all pixels of a frame, those of the frames drawn by `of`: levels [b, f, h, w]."""
    drawn = named(of)

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "b f h w"]:
        _pixels("whole_frames", shape)
        return jnp.broadcast_to(drawn(key, shape[:2])[..., None, None], shape)

    return draw


def mixture(parts: Sequence[Sequence[Any]]) -> Draw:
    """Every clip drawn by one of `parts`, (weight, draw) each."""
    weights, draws = [float(weight) for weight, _ in parts], [named(draw) for _, draw in parts]
    if not weights or not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
        raise ValueError(f"mixture: expected (weight, draw) pairs with weights above 0, got weights {weights}")

    def draw(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
        key_part, *keys = jax.random.split(key, 1 + len(draws))
        part = jax.random.choice(key_part, len(draws), shape[:1], p=jnp.asarray(weights) / sum(weights))
        drawn = jnp.stack([one(k, shape) for one, k in zip(draws, keys, strict=True)])
        chosen = part.reshape(1, -1, *(1,) * (len(shape) - 1))
        return jnp.take_along_axis(drawn, jnp.broadcast_to(chosen, (1, *shape)), 0)[0]

    return draw


DRAWS: dict[str, Draw] = {
    "independent": independent, "antithetic": antithetic, "stratified": stratified, "shared": shared, "monotone": monotone,
}  # fmt: skip
"""The draws by name. Wherever a name is taken, so is a function."""

MADE: dict[str, Callable[..., Draw]] = {
    "rolling": rolling,
    "with_history": with_history,
    "blocks": blocks,
    "squares": squares,
    "whole_frames": whole_frames,
    "mixture": mixture,
}
"""Draws that have options, by name."""


def named(draw: Named) -> Draw:
    """A draw as a function; KeyError for an unknown name, ValueError for options that it doesn't take."""
    if callable(draw):
        return draw
    if not isinstance(draw, str | Mapping):
        raise ValueError(f"a draw is a name, or a block {{kind: name, ...}}, got {draw!r}")
    kind, options = (
        (draw, {}) if isinstance(draw, str) else (draw.get("kind"), {k: draw[k] for k in draw if k != "kind"})
    )
    found = choice(kind, {**DRAWS, **MADE}, "draw", KeyError)
    if kind in DRAWS:
        if options:
            raise ValueError(f"draw {kind!r} has no options, got {', '.join(map(repr, options))}")
        return found
    try:
        return found(**options)
    except TypeError as error:
        raise ValueError(f"draw {kind!r}: {error}") from None


def _open(u: Array) -> Array:
    return jnp.clip(u, 2.0**-24, 1 - 2.0**-24)


def _frames(name: str, shape: tuple[int, ...], least: int = 1) -> None:
    if len(shape) != 2 or shape[1] < least:
        raise ValueError(
            f"draw {name!r}: expected a level per frame, [b, f] with f of at least {least}, got shape {shape}"
        )


def _pixels(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 4:
        raise ValueError(f"draw {name!r}: expected a level per pixel, [b, f, h, w], got shape {shape}")
