"""The few layers that the networks are made of, and what they share of their conditioning.

Parameters are float32; a layer computes in the dtype of what it is given, except for norms and the level
embedding, which are always computed in float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models.parallel import by_rows

LOGSNR_LIMIT = 20.0


class Normals:
    """Standard normals cut from one array that is drawn at once: stands in for nnx.Rngs while a network is made.

    XLA compiles a generator for every array drawn in a program; one in all makes `init` of a network ten times
    faster to compile. Without values it hands out zeros and counts: `used` numbers are needed.
    """

    def __init__(self, values: Float[Array, " n"] | None = None):
        self.values, self.used = values, 0
        self.params = self

    def normal(self, shape: tuple[int, ...]) -> Float[Array, "..."]:
        start, self.used = self.used, self.used + math.prod(shape)
        if self.values is None:
            return jnp.zeros(shape, jnp.float32)
        return self.values[start : self.used].reshape(shape)


Rngs = nnx.Rngs | Normals


class Linear(nnx.Module):
    """A dense layer; `scale` is the gain of its fan-in normal initialisation, 0 to start at zero."""

    def __init__(self, inputs: int, outputs: int, rngs: Rngs, scale: float = 1.0):
        self.weight = nnx.Param(fan_in_normal(rngs, (inputs, outputs), scale))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return x @ self.weight[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class Conv(nnx.Module):
    """A zero-padded 2-D convolution of every frame of a clip; channels last, XLA's fast path on CPU."""

    def __init__(self, inputs: int, outputs: int, rngs: Rngs, size: int = 3, scale: float = 1.0):
        self.weight = nnx.Param(fan_in_normal(rngs, (size, size, inputs, outputs), scale))
        self.bias = nnx.Param(jnp.zeros((outputs,), jnp.float32))

    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f h w o"]:
        border = self.weight.shape[0] // 2

        def convolve(x: Array, kernel: Array, rows: int) -> Array:
            # Frames join the batch: a 3-D convolution with a 1 x 3 x 3 kernel is six times slower on CPU.
            out = jax.lax.conv_general_dilated(
                x.reshape(-1, *x.shape[2:]),
                kernel,
                (1, 1),
                ((rows, rows), (border, border)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            return out.reshape(*x.shape[:2], *out.shape[1:])

        return by_rows(convolve, x, self.weight[...].astype(x.dtype), border) + self.bias[...].astype(x.dtype)


class TemporalMix(nnx.Module):
    """A convolution over time with three taps at every pixel, zero-padded at both ends of the clip."""

    def __init__(self, inputs: int, outputs: int, rngs: Rngs, scale: float = 1.0):
        self.mix = Linear(3 * inputs, outputs, rngs, scale)

    def __call__(self, x: Float[Array, "b f h w i"]) -> Float[Array, "b f h w o"]:
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0), (0, 0)))
        return self.mix(jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1))


class RMSNorm(nnx.Module):
    """x / rms(x) * gain over the last axis (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int):
        self.gain = nnx.Param(jnp.ones((width,), jnp.float32))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return rms_normalise(x) * self.gain[...].astype(x.dtype)


class Embedding(nnx.Module):
    """Class embedding with one extra row, index `num_classes`, that means "no class"."""

    def __init__(self, num_classes: int, width: int, rngs: Rngs):
        self.table = nnx.Param(rngs.params.normal((num_classes + 1, width)))

    def __call__(self, label: Int[Array, " b"]) -> Float[Array, "b d"]:
        # A label that is out of range is a bug in the data; NaN makes it visible, clamping would hide it.
        return jnp.asarray(self.table[...]).at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)

    def no_class(self) -> Float[Array, "1 d"]:
        return self.table[...][-1:]


def clipped_logsnr(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
    """The log-SNR within +-20, float32: infinite levels are legal.

    At the limits the derivative is that of the inside; jnp.clip would halve it just where a trajectory begins.
    """
    level = logsnr.astype(jnp.float32)
    return jnp.where(level < -LOGSNR_LIMIT, -LOGSNR_LIMIT, jnp.where(level > LOGSNR_LIMIT, LOGSNR_LIMIT, level))


def averaged(level: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """The mean log-SNR, clipped, over some axes, which stay with length 1; equal levels give that level to the last bit."""
    level = clipped_logsnr(level)
    first = level[tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(level.ndim))]
    return first + jnp.mean(level - first, axes, keepdims=True)


def pooled(level: Float[Array, "b f ..."], size: int) -> Float[Array, "b f ..."]:
    """A map of levels [b, f, h, w] on a grid that is `size` times as coarse; a level per frame, [b, f], as it is."""
    if level.ndim == 2 or size == 1:
        return level
    b, f, h, w = level.shape
    return averaged(level.reshape(b, f, h // size, size, w // size, size), (3, 5))[:, :, :, 0, :, 0]


def per_frame(x: Float[Array, "b f ..."], ndim: int = 5) -> Float[Array, "b f ..."]:
    """What is known of frames, [b, f, d], with axes for the rows and columns that maps [b, f, h, w, d] have."""
    return x[:, :, None, None] if x.ndim < ndim else x


def angle(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
    """arctan(sigma / alpha), from 0 at clean data to pi/2 at noise: the t of TrigFlow (Lu & Song 2024, section 3)."""
    return jnp.arctan(jnp.exp(-clipped_logsnr(logsnr) / 2))


# Coordinate of the level, lowest and highest frequency of its sinusoids. The lowest is monotone over the range. Of the
# log-SNR the highest has a period of 3: fine enough to tell levels apart. The angle's are few and low, so that what
# objectives in continuous time differentiate by it stays bounded (Lu & Song 2024, section 4.1).
LEVELS: dict[str, tuple[Callable[[Array], Array], float, float]] = {
    "logsnr": (clipped_logsnr, np.pi / (4 * LOGSNR_LIMIT), 2.0),
    "angle": (angle, 0.5, 8.0),
}


class Sinusoids(nnx.Module):
    """Sines and cosines of some numbers, then a two-layer MLP; `scale` is the gain of its last layer.

    Always float32: in bfloat16 neighbouring levels would be the same level.
    """

    def __init__(self, numbers: int, low: float, high: float, width: int, rngs: Rngs, scale: float = 1.0):
        self.frequencies = tuple(np.geomspace(low, high, 16).tolist())
        self.hidden = Linear(2 * numbers * len(self.frequencies), width, rngs)
        self.out = Linear(width, width, rngs, scale)

    def __call__(self, *numbers: Float[Array, "b f"]) -> Float[Array, "b f d"]:
        angles = [x[..., None] * jnp.asarray(self.frequencies, jnp.float32) for x in jnp.broadcast_arrays(*numbers)]
        waves = jnp.concatenate([wave(x) for x in angles for wave in (jnp.sin, jnp.cos)], axis=-1)
        return self.out(jax.nn.silu(self.hidden(waves)))


class Conditioned(nnx.Module):
    """A network's conditioning, one embedding per frame, or per pixel where levels are maps: the sum of its level's, its
    class's and its optional inputs'.

    `inputs` may hold "logsnr_to", the level to jump to, "guidance", a scale, and "aug_logsnr", the level of the noise in the
    clip to upsample. Their paths end in zeros: at the start they change nothing, so that a network with them and the weights
    of one without them gives the same answers. So does the path of "low", that clip, which is the network's own.
    """

    def __init__(self, width: int, num_classes: int, inputs: tuple[str, ...], level: str, rngs: Rngs):
        coordinate, low, high = LEVELS[level]
        self.coordinate = coordinate
        self.level = Sinusoids(1, low, high, width, rngs)
        self.label = Embedding(num_classes, width, rngs) if num_classes else None
        # It sees both levels: a jump is a matter of the distance between them.
        self.logsnr_to = Sinusoids(2, low, high, width, rngs, scale=0.0) if "logsnr_to" in inputs else None
        # Monotone up to a scale of 15.
        self.guidance = Sinusoids(1, 0.1, 2.0, width, rngs, scale=0.0) if "guidance" in inputs else None
        self.aug_logsnr = Sinusoids(1, low, high, width, rngs, scale=0.0) if "aug_logsnr" in inputs else None

    def condition(self, level: Float[Array, "b f ..."], cond: dict, size: int = 1) -> Float[Array, "b f ... d"]:
        """`cond` holds every optional input that the network takes; a label may be missing. Levels are [b|1, f], or maps
        [b|1, f, h, w], whose embedding is one too, on a grid `size` times as coarse: the mean log-SNR of what a cell holds.
        """
        parts, maps = [], self.maps(level, cond)
        here = self.coordinate(pooled(level, size))
        parts.append(self.level(here))
        if self.label is not None:
            label = self.label(cond["label"]) if "label" in cond else self.label.no_class()
            parts.append(label[:, None])
        if self.logsnr_to is not None:
            there = self.coordinate(pooled(cond["logsnr_to"], size))
            parts.append(self.logsnr_to(*((per_frame(x, 4) for x in (here, there)) if maps else (here, there))))
        if self.guidance is not None:
            parts.append(self.guidance(cond["guidance"]))
        if self.aug_logsnr is not None:
            parts.append(self.aug_logsnr(self.coordinate(cond["aug_logsnr"])))
        embedding = per_frame(parts[0]) if maps else parts[0]
        for part in parts[1:]:
            embedding = embedding + (per_frame(part) if maps else part)
        return embedding

    @staticmethod
    def maps(level: Float[Array, "b f ..."], cond: dict) -> bool:
        """Whether a level is told for every pixel."""
        return level.ndim > 2 or ("logsnr_to" in cond and cond["logsnr_to"].ndim > 2)


def fan_in_normal(rngs: Rngs, shape: tuple[int, ...], scale: float = 1.0) -> Float[Array, "..."]:
    """N(0, scale² / fan_in), where the last axis is the output; zeros for scale 0."""
    if scale == 0.0:
        return jnp.zeros(shape, jnp.float32)
    return rngs.params.normal(shape) * (scale / math.sqrt(math.prod(shape[:-1])))


def rms_normalise(x: Float[Array, "... d"], epsilon: float = 1e-6) -> Float[Array, "... d"]:
    """x / rms(x) over the last axis, computed in float32 and returned in x's dtype."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)).astype(x.dtype)


def modulate(x: Float[Array, "..."], scale: Float[Array, "..."], shift: Float[Array, "..."]) -> Float[Array, "..."]:
    """x (1 + scale) + shift in x's dtype."""
    return x * (1 + scale).astype(x.dtype) + shift.astype(x.dtype)


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Inverted dropout (Srivastava et al. 2014); the identity when `key` is None or the rate is 0."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
