"""Light discriminator heads on the feature maps of another network, for adversarial distillation.

The maps come from the fake score's own network (DMD2: Yin et al. 2024, arXiv 2405.14867, section 4.3) or from a frozen
one, several layers of it (ADD: Sauer et al. 2023, arXiv 2311.17042, section 3.2). In space and in time they are judged
apart, as in SF-V (Zhang et al. 2024, arXiv 2406.04324): a spatial head sees a frame at a time, a temporal head a
pixel at a time.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models.definition import Params, checked_label, is_count, seam
from models.layers import LEVELS, Conv, Embedding, Linear, Rngs, Sinusoids, TemporalMix, rms_normalise
from models.names import hint, spelt_out

Map = Float[Array, "b f h w c"]
Logits = Float[Array, "b k"] | tuple[Float[Array, "b f h w"], ...]

MIXERS: dict[str, Callable[..., nnx.Module]] = {"spatial": Conv, "temporal": TemporalMix}
"""What a head's hidden layers are, by its kind: convolutions of 3x3 in every frame, of 3 taps in time at every pixel."""


class Options(NamedTuple):
    """The keys of a config of heads, as `build_heads` describes them, and what they are unless given."""

    kinds: tuple[str, ...] = ("spatial", "temporal")
    width: int = 32
    depth: int = 1
    level: bool = False
    places: bool = False


DEFAULTS = Options()._asdict()


class HeadsDef(NamedTuple):
    """Heads as two pure functions.

    init(key) -> params: a nested dict of float32 arrays, with string keys and nothing else in it.
    apply(params, features, label=None, logsnr=None) -> logits [b, k], float32: features is a tuple of maps [b, f, h, w, c_i],
    of any f, h, w down to 1; label is integers [b], of which `num_classes` means "no class", as does None; logsnr, [b|1], is
    the level at which the clips were seen, needed by heads that are told it. Heads are ordered by map, then by kind; k = maps
    x kinds. Of heads with `places` the logits are a tuple of k maps [b, f, h, w].
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Logits]


class Head(nnx.Module):
    """`depth` hidden layers, then a map of logits, plus projections of label and level; without `places` its mean."""

    def __init__(self, kind: str, options: Options, channels: int, num_classes: int, rngs: Rngs):
        width, inputs = options.width, [2 * channels] + [options.width] * (options.depth - 1)
        self.hidden = nnx.List([MIXERS[kind](i, width, rngs, scale=2**0.5) for i in inputs])
        self.logit = Linear(width, 1, rngs)
        self.label = Embedding(num_classes, width, rngs) if num_classes else None
        self.level = Sinusoids(1, *LEVELS["logsnr"][1:], width, rngs) if options.level else None
        self.places = options.places

    def __call__(
        self, x: Map, label: Int[Array, " b"] | None, logsnr: Float[Array, " b"] | None
    ) -> Float[Array, "b ..."]:
        h = both_scales(x.astype(jnp.float32))
        for layer in self.hidden:
            h = jax.nn.silu(layer(h))
        # The logits are linear in h: their mean over positions is the logit of the mean.
        h = h if self.places else h.mean((1, 2, 3))
        logit = self.logit(h)[..., 0]
        if self.label is not None:
            # The projection of Miyato & Koyama 2018 (arXiv 1802.05637) over sqrt(width): at the start as large as the
            # logit itself, whose weights are normal with a variance of 1 / width.
            embedding = self.label.no_class() if label is None else self.label(label)
            logit = logit + projected(embedding, h)
        if self.level is not None:
            logit = logit + projected(self.level(LEVELS["logsnr"][0](logsnr)), h)
        return logit


def projected(embedding: Float[Array, "... d"], h: Float[Array, "b ... d"]) -> Float[Array, "b ..."]:
    """<embedding, h> / sqrt(d), for each place of h."""
    if embedding.ndim == 2:
        embedding = embedding.reshape(len(embedding), *(1,) * (h.ndim - 2), -1)
    return jnp.sum(embedding * h, axis=-1) / embedding.shape[-1] ** 0.5


class Heads(nnx.Module):
    """A head for every map and kind."""

    def __init__(self, options: Options, channels: tuple[int, ...], num_classes: int, rngs: Rngs):
        self.places = options.places
        self.names = tuple(tuple(f"{kind}{i}" for kind in options.kinds) for i in range(len(channels)))
        for names, inputs in zip(self.names, channels, strict=True):
            for name, kind in zip(names, options.kinds, strict=True):
                setattr(self, name, Head(kind, options, inputs, num_classes, rngs))

    def __call__(
        self, features: tuple[Map, ...], label: Int[Array, " b"] | None, logsnr: Float[Array, " b"] | None
    ) -> Logits:
        pairs = zip(self.names, features, strict=True)
        logits = tuple(getattr(self, name)(x, label, logsnr) for names, x in pairs for name in names)
        return logits if self.places else jnp.stack(logits, axis=-1)


def both_scales(x: Map) -> Map:
    """x / rms(x), and arcsinh(x), on the channel axis.

    The norm brings features of any size to one: the bottleneck of the shipped U-Net has an rms of 0.5 to 16, depending on
    the level, and the maps of the shipped classifier 0.1 to 5. But it takes away their length, and with it what tells two
    points of a plane on one ray apart. arcsinh keeps that: linear at 0, logarithmic far out, of slope at most 1.
    """
    return jnp.concatenate([rms_normalise(x), jnp.arcsinh(x)], axis=-1)


def build_heads(config: Mapping[str, Any], channels: tuple[int, ...], num_classes: int) -> HeadsDef:
    """The heads that `config` describes, on maps of `channels` channels: any of the keys of DEFAULTS.

    `kinds`, some of "spatial" and "temporal"; `width` and `depth` of each head's hidden layers; `level`, whether they are told
    the level at which the clips were seen (Sauer et al. 2024, LADD, arXiv 2403.12015, section 3); `places`, whether each place
    of a map is judged alone, as by ADD's heads and LADD's, which are those of StyleGAN-T (Sauer et al. 2023, arXiv 2301.09515,
    section 3.2), or all of it by one logit, as in DMD2. `num_classes` is 0 for no labels. Equal arguments give the same
    HeadsDef. Raises KeyError for an unknown key and ValueError for a value that makes no heads.
    """
    options = spelt_out(config, DEFAULTS, "heads")
    kinds = options["kinds"]
    if not isinstance(kinds, list | tuple) or not kinds or len(set(map(str, kinds))) < len(kinds):
        raise ValueError(f"kinds is a tuple of different names among {tuple(MIXERS)}, got {kinds!r}")
    for kind in kinds:
        if kind not in MIXERS:
            raise ValueError(f"kinds has names among {tuple(MIXERS)}, got {kind!r}{hint(kind, MIXERS)}")
    for name in ("width", "depth"):
        if not is_count(options[name]):
            raise ValueError(f"{name} is a whole number from 1 up, got {options[name]!r}")
    for name in ("level", "places"):
        if not isinstance(options[name], bool):
            raise ValueError(f"{name} is True or False, got {options[name]!r}")
    if not isinstance(channels, list | tuple) or not channels or not all(map(is_count, channels)):
        raise ValueError(f"heads need the channels of each map, a tuple of whole numbers from 1 up, got {channels!r}")
    if num_classes != 0 and not is_count(num_classes):
        raise ValueError(f"num_classes is the number of classes or 0 for none, got {num_classes!r}")
    return _build(Options(**options | {"kinds": tuple(kinds)}), tuple(channels), num_classes)


@functools.lru_cache(maxsize=128)
def _build(options: Options, channels: tuple[int, ...], num_classes: int) -> HeadsDef:
    init, module = seam(lambda rngs: Heads(options, channels, num_classes, rngs))

    def apply(
        params: Params,
        features: tuple[Map, ...],
        label: Int[Array, " b"] | None = None,
        logsnr: Float[Array, " b"] | None = None,
    ) -> Logits:
        shapes = tuple(x.shape for x in features)
        if any(len(shape) != 5 for shape in shapes) or tuple(shape[-1] for shape in shapes) != channels:
            raise ValueError(f"these heads take maps [b, f, h, w, c] with c of {channels}, got shapes {shapes}")
        if label is not None:
            if not num_classes:
                raise ValueError("these heads were built with num_classes 0 and take no label")
            label = checked_label(label, shapes[0][0], "label")
        if options.level and logsnr is None:
            raise ValueError("these heads were built with level True and need logsnr, [b|1]")
        if options.level and jnp.shape(logsnr) not in ((1,), (shapes[0][0],)):
            raise ValueError(f"logsnr of these heads is [{shapes[0][0]}] or [1], got shape {jnp.shape(logsnr)}")
        return module(params)(tuple(features), label, logsnr if options.level else None)

    return HeadsDef(init, apply)
