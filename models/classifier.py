"""A small classifier of single frames: the network behind the metrics, so that no outside weights are needed.

Its penultimate layer gives the features that Fréchet distances are measured in. It looks at one frame at a
time: what a clip does in time is judged by laws of motion, not by a network.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from models.definition import Params, is_count, seam
from models.layers import Conv, Linear, Rngs
from models.names import spelt_out

# Five convolutions of 105,000 weights in all: 16x16 frames end at 4x4. For 64x64 add levels at the front.
DEFAULTS = {"shape": (16, 16, 1), "widths": (32, 64, 64), "features": 64, "num_classes": 10}


class ClassifierDef(NamedTuple):
    """A classifier as two pure functions.

    init(key) -> params: a nested dict of float32 arrays, with string keys and nothing else in it.
    apply(params, frames [n, h, w, c] in [-1, 1]) -> (logits [n, num_classes], features [n, features]),
    float32.
    taps(params, clips [b, f, h, w, c] in [-1, 1]) -> maps: the map of each level, finest first, float32 [b, f, h_i, w_i,
    channels[i]]; frames do not see each other. For heads on a frozen network (Sauer et al. 2023, arXiv 2311.17042).
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[[Params, Float[Array, "n h w c"]], tuple[Float[Array, "n k"], Float[Array, "n d"]]]
    taps: Callable[[Params, Float[Array, "b f h w c"]], tuple[Float[Array, "b f h w c"], ...]]
    channels: tuple[int, ...]


class FrameClassifier(nnx.Module):
    """Two convolutions a level, 2x2 mean pooling between levels, a mean over what is left, two dense
    layers."""

    def __init__(self, channels: int, widths: tuple[int, ...], features: int, num_classes: int, rngs: Rngs):
        self.levels = len(widths)
        before = channels
        for level, width in enumerate(widths):
            # Named one by one, so that the tree of weights has string keys only.
            setattr(self, f"first{level}", Conv(before, width, rngs, scale=2**0.5))
            setattr(self, f"second{level}", Conv(width, width, rngs, scale=2**0.5))
            before = width
        self.features = Linear(before, features, rngs, scale=2**0.5)
        self.logits = Linear(features, num_classes, rngs)

    def __call__(self, frames: Float[Array, "n h w c"]) -> tuple[Float[Array, "n k"], Float[Array, "n d"]]:
        x = self.taps(frames[None])[-1]  # the layers are those of video networks: n frames of one clip
        features = jax.nn.silu(self.features(x[0].mean((1, 2))))
        return self.logits(features), features

    def taps(self, clips: Float[Array, "b f h w c"]) -> tuple[Float[Array, "b f h w c"], ...]:
        """The map after each level's second convolution, finest first."""
        x, maps = clips.astype(jnp.float32), []
        for level in range(self.levels):
            if level:
                b, f, h, w, c = x.shape
                x = x.reshape(b, f, h // 2, 2, w // 2, 2, c).mean((3, 5))
            x = jax.nn.silu(getattr(self, f"first{level}")(x))
            x = jax.nn.silu(getattr(self, f"second{level}")(x))
            maps.append(x)
        return tuple(maps)


def build_classifier(config: Mapping[str, Any]) -> ClassifierDef:
    """The classifier that `config` describes: any of the keys of DEFAULTS, each with its default.

    `shape` is (height, width, channels); height and width divide by 2^(levels - 1), one level per entry of
    `widths`. Raises KeyError for an unknown key and ValueError for a value that does not fit.
    """
    options = spelt_out(config, DEFAULTS, "a classifier")
    shape, widths = tuple(options["shape"]), tuple(options["widths"])
    if len(shape) != 3 or not widths or not all(map(is_count, (*shape, *widths))):
        raise ValueError(f"a classifier needs shape (h, w, c) and widths (one a level), got {shape} and {widths}")
    for name in ("features", "num_classes"):
        if not is_count(options[name]):
            raise ValueError(f"{name} is a whole number from 1 up, got {options[name]!r}")
    if shape[0] % 2 ** (len(widths) - 1) or shape[1] % 2 ** (len(widths) - 1):
        raise ValueError(f"frames of {shape[0]}x{shape[1]} can't be halved {len(widths) - 1} times for {widths}")

    init, module = seam(
        lambda rngs: FrameClassifier(shape[-1], widths, options["features"], options["num_classes"], rngs)
    )

    def apply(params: Params, frames: Float[Array, "n h w c"]) -> tuple[Array, Array]:
        if frames.ndim != 4 or frames.shape[1:] != shape:
            raise ValueError(f"this classifier takes frames [n, {', '.join(map(str, shape))}], got {frames.shape}")
        return module(params)(frames)

    def taps(params: Params, clips: Float[Array, "b f h w c"]) -> tuple[Float[Array, "b f h w c"], ...]:
        if clips.ndim != 5 or clips.shape[2:] != shape:
            raise ValueError(f"this classifier takes clips [b, f, {', '.join(map(str, shape))}], got {clips.shape}")
        return module(params).taps(clips)

    return ClassifierDef(init, apply, taps, widths)
