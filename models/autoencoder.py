"""A causal video autoencoder: the first frame alone, then groups of frames; Gaussian latents, unbounded.

Latents with a KL term after Rombach et al. 2022 (latent diffusion, arXiv 2112.10752, section 3.1); causal in time, so that a
frame's latent knows no later frame and an image is a clip of one, after Yu et al. 2023 (MAGVIT-v2, arXiv 2310.05737, section
3.2); patches at both ends in the place of layers at full resolution, after HaCohen et al. 2024 (LTX-Video, arXiv 2501.00103,
section 2.1).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.definition import Params, is_count, seam
from models.layers import Conv, Linear, RMSNorm, Rngs, rms_normalise
from models.names import spelt_out
from models.unet import depth_to_space, space_to_depth

Clip = Float[Array, "b f h w c"]
Latent = Float[Array, "b n y x d"]
Past = tuple[Array, ...]

DEFAULTS = {
    "shape": (32, 64, 64, 1), "channels": 8, "patch": 4, "group": 4, "widths": (64, 128), "blocks": 2, "dtype": "float32",
}  # fmt: skip
MEMORY = 2
"""Earlier latent frames that a causal layer sees."""


class Autoencoder(NamedTuple):
    """An autoencoder as pure functions.

    init(key) -> params: a nested dict of float32 arrays, with string keys and nothing else in it.
    encode(params, clips [b, f, h, w, c] in [-1, 1]) -> (mean, log variance), each [b, n, y, x, channels], float32. Of f
    frames the first is a latent frame alone and every `group` after it are one; the last group is filled up with its last
    frame: n = 1 + ceil((f - 1) / group).
    decode(params, latents, *, chunk=None) -> clips of 1 + (n - 1) group frames, of shape[0] where n is latent_shape[0], not
    clipped. chunk: latent frames decoded at a time, in the memory of so many; what the layers remember is handed on, and the
    result is the same.
    shape, latent_shape: of one clip and its latent. patch: pixels of an edge decoded by one position of the last layer, whose
    borders may show.
    """

    init: Callable[[PRNGKeyArray], Params]
    encode: Callable[[Params, Clip], tuple[Latent, Latent]]
    decode: Callable[..., Clip]
    shape: tuple[int, int, int, int]
    latent_shape: tuple[int, int, int, int]
    patch: int
    group: int


class CausalMix(nnx.Module):
    """A convolution over time at every pixel: a frame and the `MEMORY` before it, zeros before the first."""

    def __init__(self, width: int, rngs: Rngs):
        self.mix = Linear((1 + MEMORY) * width, width, rngs)

    def __call__(self, x: Clip, past: Array | None) -> tuple[Clip, Array]:
        past = jnp.zeros_like(x, shape=(len(x), MEMORY, *x.shape[2:])) if past is None else past
        seen = jnp.concatenate([past, x], 1)
        taps = [seen[:, i : i + x.shape[1]] for i in range(1 + MEMORY)]
        return self.mix(jnp.concatenate(taps, -1)), seen[:, -MEMORY:]


class Block(nnx.Module):
    """x + convolution(mix in time(convolution(x)))."""

    def __init__(self, width: int, rngs: Rngs):
        self.norm = RMSNorm(width)
        self.space = Conv(width, width, rngs, scale=2**0.5)
        self.time = CausalMix(width, rngs)
        self.out = Conv(width, width, rngs, scale=0.3)

    def __call__(self, x: Clip, past: Array | None) -> tuple[Clip, Array]:
        h = self.space(jax.nn.silu(self.norm(x)))
        h, past = self.time(jax.nn.silu(rms_normalise(h)), past)
        return x + self.out(jax.nn.silu(rms_normalise(h))), past


class Tower(nnx.Module):
    """`blocks` blocks at every width, one width after another, halving or doubling the sides in between."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int, blocks: int, rngs: Rngs):
        self.up = widths[-1] < widths[0]
        self.first = Linear(inputs, widths[0], rngs)
        self.blocks = nnx.List([nnx.List([Block(width, rngs) for _ in range(blocks)]) for width in widths])
        steps = zip(widths[:-1], widths[1:], strict=True)
        self.steps = nnx.List([Linear(a, 4 * b, rngs) if self.up else Linear(4 * a, b, rngs) for a, b in steps])
        self.norm = RMSNorm(widths[-1])
        self.last = Linear(widths[-1], outputs, rngs)

    def __call__(self, x: Clip, past: Past | None) -> tuple[Clip, Past]:
        x, remembered = self.first(x), []
        given = iter(past or ())
        for level, blocks in enumerate(self.blocks):
            if level:
                step = self.steps[level - 1]
                x = depth_to_space(step(x), 2) if self.up else step(space_to_depth(x, 2))
            for block in blocks:
                x, last = block(x, next(given, None))
                remembered.append(last)
        return self.last(jax.nn.silu(self.norm(x))), tuple(remembered)


class Pair(nnx.Module):
    """Encoder and decoder."""

    def __init__(
        self, channels: int, latent: int, patch: int, group: int, widths: tuple[int, ...], blocks: int, dtype: str, rngs: Rngs
    ):  # fmt: skip
        self.patch, self.group, self.dtype = patch, group, jnp.dtype(dtype)
        pixels = channels * group * patch**2
        self.encoder = Tower(pixels, widths, 2 * latent, blocks, rngs)
        self.decoder = Tower(latent, widths[::-1], pixels, blocks, rngs)

    def encode(self, clips: Clip) -> tuple[Latent, Latent]:
        b, f, *rest = clips.shape
        # The first frame fills a group alone, so that one stack of layers serves it and the others.
        first = jnp.repeat(clips[:, :1], self.group - 1, 1)
        last = jnp.repeat(clips[:, -1:], -(f - 1) % self.group, 1)
        groups = jnp.concatenate([first, clips, last], 1).reshape(b, -1, self.group, *rest)
        stacked = jnp.moveaxis(groups, 2, -2).reshape(b, groups.shape[1], *rest[:2], -1)
        h, _ = self.encoder(space_to_depth(stacked.astype(self.dtype), self.patch), None)
        mean, log_variance = jnp.split(h.astype(jnp.float32), 2, -1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: Latent, past: Past | None) -> tuple[Clip, Past]:
        """`group` frames for every latent frame, the first frame's also."""
        h, past = self.decoder(latents.astype(self.dtype), past)
        h = depth_to_space(h.astype(jnp.float32), self.patch)
        b, n, height, width, _ = h.shape
        frames = jnp.moveaxis(h.reshape(b, n, height, width, self.group, -1), -2, 2)
        return frames.reshape(b, n * self.group, height, width, -1), past


def in_chunks(run: Callable[[Latent, Past | None], tuple[Clip, Past]], latents: Latent, chunk: int) -> Clip:
    """run(latents, None) by a scan over chunks of latent frames; what is left over at the end is a chunk of its own."""
    whole = latents.shape[1] - latents.shape[1] % chunk
    parts = jnp.moveaxis(latents[:, :whole].reshape(len(latents), -1, chunk, *latents.shape[2:]), 1, 0)
    remembered = jax.eval_shape(lambda z: run(z, None)[1], parts[0])
    past = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), remembered)

    def step(past: Past, part: Latent) -> tuple[Past, Clip]:
        frames, past = run(part, past)
        return past, frames

    past, frames = jax.lax.scan(step, past, parts)
    frames = jnp.moveaxis(frames, 0, 1).reshape(len(latents), -1, *frames.shape[3:])
    if whole == latents.shape[1]:
        return frames
    return jnp.concatenate([frames, run(latents[:, whole:], past)[0]], 1)


def build_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """The autoencoder that `config` describes: any of the keys of DEFAULTS.

    `shape` of a clip (frames, height, width, channels); `channels` of a latent; `group` frames and `patch`² pixels make one
    position of the first layers, one of `widths` a level, each level half as wide as the one before: a latent's sides are
    those of the clip over patch 2^(levels - 1). Equal configs give the same Autoencoder. Raises KeyError for an unknown key
    and ValueError for a value that makes none.
    """
    options = spelt_out(config, DEFAULTS, "an autoencoder")
    for name, value in options.items():
        several = isinstance(value, list | tuple)
        counts = value if several else (value,)
        if name != "dtype" and not (several == (name in ("shape", "widths")) and counts and all(map(is_count, counts))):
            raise ValueError(f"{name} of an autoencoder is made of whole numbers from 1 up, got {value!r}")
    if options["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is 'float32' or 'bfloat16', got {options['dtype']!r}")
    shape, widths = tuple(options["shape"]), tuple(options["widths"])
    if len(shape) != 4:
        raise ValueError(f"shape is (frames, height, width, channels), got {shape}")
    if list(widths) != sorted(set(widths)):
        raise ValueError(f"widths of an autoencoder grow from level to level, got {widths}")
    factor = options["patch"] * 2 ** (len(widths) - 1)
    if shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"frames of {shape[1]}x{shape[2]} do not divide by patch * 2^(levels - 1) = {factor}; choose a shape that does"
        )
    return _build(shape, widths, *(options[k] for k in ("channels", "patch", "group", "blocks", "dtype")))


@functools.lru_cache(maxsize=128)
def _build(
    shape: tuple[int, int, int, int], widths: tuple[int, ...], channels: int, patch: int, group: int, blocks: int, dtype: str
) -> Autoencoder:  # fmt: skip
    init, module = seam(lambda rngs: Pair(shape[-1], channels, patch, group, widths, blocks, dtype, rngs))
    factor = patch * 2 ** (len(widths) - 1)
    latent_shape = (1 + -(-(shape[0] - 1) // group), shape[1] // factor, shape[2] // factor, channels)

    def encode(params: Params, clips: Clip) -> tuple[Latent, Latent]:
        sides = clips.shape[2:4]
        if clips.ndim != 5 or clips.shape[-1] != shape[-1] or 0 in clips.shape[1:] or any(n % factor for n in sides):
            raise ValueError(
                f"this autoencoder takes clips [b, f, h, w, {shape[-1]}] of a frame or more, with sides of a multiple of"
                f" {factor}, got shape {clips.shape}"
            )
        if not jnp.issubdtype(clips.dtype, jnp.floating):
            raise ValueError(
                f"this autoencoder takes clips of floats in [-1, 1], got {clips.dtype}; of bytes give x / 127.5 - 1"
            )
        return module(params).encode(clips)

    def decode(params: Params, latents: Latent, *, chunk: int | None = None) -> Clip:
        if latents.ndim != 5 or latents.shape[-1] != channels or 0 in latents.shape[1:]:
            raise ValueError(
                f"this autoencoder decodes latents [b, n, y, x, {channels}] of a frame or more, got shape {latents.shape}"
            )
        if chunk is not None and (type(chunk) is not int or chunk < 1):
            raise ValueError(f"chunk is a number of latent frames from 1 up, or None for all, got {chunk!r}")
        # A whole clip without a scan: XLA on CPU takes 8 times as long for the gradient of convolutions in one.
        run, n = module(params).decode, latents.shape[1]
        frames = run(latents, None)[0] if chunk is None or chunk >= n else in_chunks(run, latents, chunk)
        end = shape[0] if n == latent_shape[0] else None
        return frames[:, group - 1 :][:, :end]

    return Autoencoder(init, encode, decode, shape, latent_shape, patch, group)
