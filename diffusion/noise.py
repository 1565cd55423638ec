"""Noise sources with a known covariance over frames: what to start sampling from, train with and feed to
stochastic tables.

A source is a callable (key, shape, dtype) -> noise of shape [b, f, ...] that is a pytree, so its numbers are
arguments of a compiled program. `source.covariance(frames)` is the covariance [f, f] of one pixel over
frames, the `noise_covariance` of `oracles.GaussianProcess.denoiser`. Clips of a batch are independent. All
but `offset` and `block_correlated` are white within each frame. A model must be trained with the noise that
it is sampled with.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float


@dataclass_transform(frozen_default=True)
def source(data: tuple[str, ...] = (), static: tuple[str, ...] = ()):
    """Class decorator: a frozen dataclass that is a pytree with these leaves and static fields."""

    def decorate(cls):
        cls = dataclasses.dataclass(frozen=True)(cls)

        def flatten(it):
            return [(jax.tree_util.GetAttrKey(name), getattr(it, name)) for name in data], tuple(
                getattr(it, name) for name in static
            )

        # Not `register_dataclass`: the structures of two such classes are equal where their fields are as many (jaxlib
        # 0.10), so that where their hashes fell together jit ran one source's program for another.
        jax.tree_util.register_pytree_with_keys(
            cls, flatten, lambda fixed, leaves: cls(**dict(zip(data + static, (*leaves, *fixed), strict=True)))
        )
        return cls

    return decorate


def _check(shape, axes=2):
    if len(shape) < axes:
        raise ValueError(f"noise: expected a shape [b, f, ...] of at least {axes} axes, got {tuple(shape)}")


@source()
class Iid:
    """Independent everywhere."""

    def __call__(self, key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Float[Array, "b f ..."]:
        _check(shape)
        return jax.random.normal(key, shape, dtype)

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """The identity."""
        return _identity(frames)


@source(data=("a",))
class Mixed:
    """PYoCo's mixed noise; see `mixed`."""

    a: Any

    def __call__(self, key, shape, dtype=jnp.float32):
        _check(shape)
        shared_key, own_key = jax.random.split(key)
        shared = jax.random.normal(shared_key, (shape[0], 1, *shape[2:]), dtype)
        own = jax.random.normal(own_key, shape, dtype)
        norm = jnp.sqrt(1 + jnp.square(self.a))
        return ((self.a * shared + own) / norm).astype(dtype)

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """a^2 / (1 + a^2) between any two frames, 1 within one."""
        correlation = self.a**2 / (1 + self.a**2)
        return correlation + (1 - correlation) * _identity(frames)


@source(data=("a",))
class Progressive:
    """PYoCo's progressive noise; see `progressive`."""

    a: Any

    def __call__(self, key, shape, dtype=jnp.float32):
        _check(shape)
        fresh = jax.random.normal(key, shape, dtype)
        norm = jnp.sqrt(1 + jnp.square(self.a))

        def step(previous, new):
            noise = ((self.a * previous + new) / norm).astype(dtype)
            return noise, noise

        # The first frame has variance 1 already, so the chain is stationary.
        _, rest = jax.lax.scan(step, fresh[:, 0], jnp.moveaxis(fresh[:, 1:], 1, 0))
        return jnp.concatenate([fresh[:, :1], jnp.moveaxis(rest, 0, 1)], axis=1)

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """(a / sqrt(1 + a^2))^|i - j|."""
        return (self.a / math.sqrt(1 + self.a**2)) ** _lags(frames)


@source(data=("correlation",), static=("block",))
class BlockCorrelated:
    """Equal correlation within square blocks of pixels; see `block_correlated`."""

    correlation: Any
    block: int

    def __call__(self, key, shape, dtype=jnp.float32):
        _check(shape, 5)
        b, f, h, w, c = shape
        n = self.block
        if h % n or w % n:
            raise ValueError(f"block-correlated noise: height and width must be multiples of {n}, got {h} x {w}")
        white = jax.random.normal(key, (b, f, h // n, n, w // n, n, c), dtype)
        # The symmetric root of (1 - r) I + r J: the block mean has variance factor 1 + (n^2 - 1) r, the rest
        # 1 - r.
        mean = white.mean((3, 5), keepdims=True)
        rest = jnp.sqrt(1 - self.correlation) * (white - mean)
        noise = rest + jnp.sqrt(jnp.maximum(1 + (n * n - 1) * self.correlation, 0)) * mean
        return noise.reshape(shape).astype(dtype)

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """The identity: frames are independent."""
        return _identity(frames)

    def block_covariance(self) -> Float[np.ndarray, "n n"]:
        """The covariance of the block^2 pixels of one block."""
        return self.correlation + (1 - self.correlation) * np.eye(self.block**2)


@source(static=("window", "stride"))
class WindowShuffled:
    """FreeNoise's long noise; see `window_shuffled`."""

    window: int
    stride: int

    def __call__(self, key, shape, dtype=jnp.float32):
        _check(shape)
        base_key, order_key = jax.random.split(key)
        b, frames = shape[0], shape[1]
        base = jax.random.normal(base_key, (b, self.window, *shape[2:]), dtype)
        # Shuffling each chunk anew and shuffling its last repetition once more have the same law.
        chunk = jnp.arange(math.ceil(frames / self.stride)) % (self.window // self.stride)
        shuffle = jnp.argsort(jax.random.uniform(order_key, (b, len(chunk), self.stride)))
        order = (chunk[:, None] * self.stride + shuffle).reshape(b, -1)[:, :frames]
        return jnp.take_along_axis(base, order.reshape(b, frames, *(1,) * (len(shape) - 2)), axis=1)

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """1 / stride between frames whose chunks of `stride` lie whole windows apart.

        This is the mean over the shuffles; given them, every entry is 0 or 1.
        """
        chunk = np.arange(frames) // self.stride
        apart = np.abs(np.subtract.outer(chunk, chunk))
        repeats = (apart > 0) & (apart % (self.window // self.stride) == 0)
        return _identity(frames) + repeats / self.stride


@source(data=("strength",), static=("per_frame",))
class Offset:
    """A random constant on top of white noise; see `offset`."""

    strength: Any
    per_frame: bool

    def __call__(self, key, shape, dtype=jnp.float32):
        _check(shape, 3)
        white_key, constant_key = jax.random.split(key)
        frames = shape[1] if self.per_frame else 1
        constant = jax.random.normal(constant_key, (shape[0], frames, *(1,) * (len(shape) - 3), shape[-1]), dtype)
        return (jax.random.normal(white_key, shape, dtype) + self.strength * constant).astype(dtype)

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """I + strength^2 11^T, or (1 + strength^2) I with a constant per frame."""
        return _identity(frames) + self.strength**2 * (_identity(frames) if self.per_frame else 1)


@source(data=("origin",))
class Warped:
    """Noise carried along integer motion; see `warped`. origin [f, h, w]: which fresh number each cell is."""

    origin: Any

    def __call__(self, key, shape, dtype=jnp.float32):
        _check(shape, 5)
        if tuple(shape[1:4]) != self.origin.shape:
            raise ValueError(f"warped noise: the flow is for [f, h, w] = {self.origin.shape}, got shape {tuple(shape)}")
        fresh = jax.random.normal(key, (shape[0], math.prod(shape[1:4]), shape[4]), dtype)
        return fresh[:, jnp.asarray(self.origin)]

    def covariance(self, frames: int) -> Float[np.ndarray, "f f"]:
        """The share of pixels at which two frames have the same noise: a pixel's covariance, on average."""
        if frames != len(self.origin):
            raise ValueError(f"warped noise: the flow is for {len(self.origin)} frames, got {frames}")
        flat = np.asarray(self.origin).reshape(frames, -1)
        return (flat[:, None] == flat[None]).mean(-1)


def iid() -> Iid:
    """Independent standard normal noise."""
    return Iid()


def mixed(a: float | int = 1.0) -> Mixed:
    """eps_f = (a shared + own_f) / sqrt(1 + a^2), a >= 0 (PYoCo: Ge et al. 2023, arXiv 2305.10474, 3.2)."""
    return Mixed(_nonnegative("mixed noise", "a", a))


def progressive(a: float | int = 2.0) -> Progressive:
    """eps_f = (a eps_(f-1) + own_f) / sqrt(1 + a^2), a >= 0: a stationary AR(1) chain (PYoCo, sec. 3.2)."""
    return Progressive(_nonnegative("progressive noise", "a", a))


def block_correlated(correlation: float | int = -1 / 3, block: int | float = 2) -> BlockCorrelated:
    """Variance 1 and one correlation between the pixels of each block x block square of a frame and channel.

    What Pyramid Flow adds after nearest-neighbour upsampling, correlation -1/3 (Jin et al. 2024, arXiv
    2410.05954, section 3.2). correlation in [-1 / (block^2 - 1), 1].
    """
    if not 1 <= block < math.inf or int(block) != block:
        raise ValueError(f"block-correlated noise: expected a block of at least 1 pixel, got {block}")
    least = -1 / (block * block - 1) if block > 1 else -1.0
    if not least - 1e-12 <= correlation <= 1:
        raise ValueError(
            f"block-correlated noise: a {block} x {block} block allows correlations in [{least:.6g}, 1],"
            f" got {correlation}; nearest: {min(max(correlation, least), 1.0):.6g}"
        )
    return BlockCorrelated(float(correlation), int(block))


def window_shuffled(window: int | float = 16, stride: int | float = 4) -> WindowShuffled:
    """Noise for long videos that repeats its first `window` frames, shuffled in chunks of `stride`.

    Every window of a roll-out then sees the same frames of noise in another order (FreeNoise: Qiu et al.
    2023, arXiv 2310.15169, section 3.2). Here every clip is shuffled for itself. stride must divide window.
    """
    finite = all(map(math.isfinite, (window, stride)))
    if not finite or int(window) != window or int(stride) != stride or not 1 <= stride <= window or window % stride:
        whole = int(window) if math.isfinite(window) else 0
        divisors = [n for n in range(1, whole + 1) if window % n == 0 and n <= max(stride, 1)]
        near = max(divisors, default=1)
        raise ValueError(
            f"window-shuffled noise: expected whole numbers, stride dividing window; got window {window} and"
            f" stride {stride}, nearest stride: {near}"
        )
    return WindowShuffled(int(window), int(stride))


def offset(strength: float | int = 0.1, per_frame: bool = False) -> Offset:
    """White noise plus strength times one normal number per clip and channel (or per frame and channel).

    Offset noise for brightness that zero terminal SNR leaves out of reach; equal to a prior that isn't white,
    with variance 1 + strength^2. strength >= 0.
    """
    return Offset(_nonnegative("offset noise", "strength", strength), bool(per_frame))


def warped(flow: ArrayLike | Sequence[Any]) -> Warped:
    """White noise that moves with the picture, in whole pixels (How I Warped Your Noise: Chang et al. 2024, arXiv 2504.03072).

    flow: how far (down, right) the content now at a pixel of frames 1, 2, ... has come since the frame
    before. The pixel takes the noise from there; where that lies outside the frame, or another pixel (earlier
    in reading order) has taken it, the noise is fresh. So every frame is exactly white, and noise repeats
    exactly along the motion.
    """
    flow = np.asarray(flow)
    if flow.ndim != 4 or flow.shape[-1] != 2:
        raise ValueError(f"warped noise: expected a flow of shape [frames - 1, h, w, 2], got {flow.shape}")
    if not np.issubdtype(flow.dtype, np.integer):
        raise ValueError(f"warped noise: expected integer flow (whole pixels), got {flow.dtype}; round it first")
    steps, h, w, _ = flow.shape
    rows, columns = np.mgrid[:h, :w]
    origin = np.arange((steps + 1) * h * w).reshape(steps + 1, h, w)
    for t in range(steps):
        y, x = rows - flow[t, ..., 0], columns - flow[t, ..., 1]
        inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)
        sources = np.where(inside, y * w + x, -1).ravel()
        _, first = np.unique(sources, return_index=True)
        moved = np.zeros(h * w, bool)
        moved[first] = True
        moved &= sources >= 0
        origin[t + 1] = np.where(moved, origin[t].ravel()[sources], origin[t + 1].ravel()).reshape(h, w)
    return Warped(origin.astype(np.int32))


def _identity(frames):
    return np.equal(_lags(frames), 0).astype(np.float64)


def _nonnegative(source_name, name, value):
    if not 0 <= value < math.inf:
        raise ValueError(f"{source_name}: expected {name} in [0, inf), got {value}")
    return float(value)


def _lags(frames):
    if frames < 1:
        raise ValueError(f"noise covariance: expected at least one frame, got {frames}")
    return np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
