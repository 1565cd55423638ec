"""The seam between networks and everything else: a network is two pure functions over a plain tree of arrays.

Only this file knows how a flax.nnx module is taken apart and put together.
"""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from models.attention import JVP_KINDS, NO_ATTENTION
from models.layers import Normals, averaged

Params = dict[str, Any]

INPUTS = ("logsnr_to", "guidance", "low", "aug_logsnr")
"""Conditioning that a model may be built to take; its weights stand under the same name at the top of the params."""


class ModelDef(NamedTuple):
    """A network as functions, and what a stage must know about it.

    `init(key) -> params`: a nested dict of float32 arrays, with string keys and nothing else in it.
    `apply(params, x, logsnr, cond, *, key=None, train=False) -> prediction`: x is [b, f, h, w, c], as is the
    prediction, in float32; logsnr is [], [b|1] or [b|1, f], or, but for an MLP, a map [b|1, f|1, h|1, w|1, c|1] (trailing
    ones may be left out), of any value up to both infinities; cond is a dict with some of `cond_keys`, or None. `key` is the
    dropout key, needed when training with dropout.
    cond_keys: "label", integers [b]; left out it means "no class", as does the index `num_classes`. "logsnr_to",
    the level to jump to, of any shape of a level; left out it is logsnr itself, a jump of no length, whose answer is the
    denoiser's (Kim et al. 2023, consistency trajectory models, section 3.1). "guidance", the scale g, [] or [b];
    left out it is 1, none. "low", the clip to upsample, of x's shape; such a network can't do without. "aug_logsnr", the
    level of the noise in it, shaped as a level; left out there is none (Ho et al. 2021, cascaded diffusion models, section 4).
    `features(params, x, logsnr, cond=None, layers=None) -> maps`: what the network knows of x before it answers, a tuple of
    float32 maps [b, f|1, h, w, channels[i]] without dropout, for the heads of a discriminator (models/heads.py). layers: which
    of the maps there are, by their places in the order in which the network runs, or "all"; they have hidden[i] channels. There
    is one after each level of a U-Net, down, at the bottom and up again, and one after each block of a DiT; None is a U-Net's
    bottleneck, every block of a DiT, an MLP's last hidden layer. Only what the maps need is computed.
    Of a causal network (else None): `empty_cache(batch, slots, sinks=0) -> cache`, the keys and values of up to `slots` earlier
    frames, of which the first `sinks` stay for good, and `remember(params, x, logsnr, cond) -> cache`, cond["cache"] with these
    frames behind the others. A call with cond["cache"] is the call of the whole video, of which it runs the new frames only.
    With cond["history"], {"clip": of x's shape, "level": of its frames}, every block of frames is answered as if the history's
    stood before it, not x's own: one call for what takes one a block (teacher forcing).
    `attention`: its kind, "none" where the network has none. `jvp`: whether this network can be differentiated
    forward (`jax.jvp`), which its attention decides.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Float[Array, "b f h w c"]]
    kind: str
    shape: tuple[int, int, int, int]
    num_classes: int
    cond_keys: tuple[str, ...]
    attention: str
    jvp: bool
    features: Callable[..., tuple[Float[Array, "b f h w c"], ...]]
    channels: tuple[int, ...]
    hidden: tuple[int, ...]
    empty_cache: Callable[..., dict[str, Array]] | None = None
    remember: Callable[..., dict[str, Array]] | None = None


def is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def seam(
    construct: Callable[[Normals], nnx.Module],
) -> tuple[Callable[[PRNGKeyArray], Params], Callable[[Params], Any]]:
    """(init(key) -> params, module(params) -> the module with these weights).

    The module's structure is fixed here, once; its weights are never part of it. KeyError and ValueError, by name, for
    the weights of another module.
    """
    numbers = Normals()
    graph, blank = nnx.eval_shape(lambda: nnx.split(construct(numbers)))
    expected = _flat(_named(nnx.to_pure_dict(blank)))

    @jax.jit
    def init(key: PRNGKeyArray) -> Params:
        normals = jax.random.normal(key, (numbers.used,), jnp.float32)
        return _named(nnx.to_pure_dict(nnx.state(construct(Normals(normals)), nnx.Param)))

    def module(params: Params) -> Any:
        _check_params(params, expected)
        state = jax.tree.map(lambda leaf: leaf, blank)  # replace_by_pure_dict writes into its argument
        nnx.replace_by_pure_dict(state, nnx.restore_int_paths(params))
        return nnx.merge(graph, state)

    return init, module


def define(
    kind: str,
    construct: Callable[[Normals], nnx.Module],
    *,
    shape: tuple[int, int, int, int],
    num_classes: int,
    inputs: tuple[str, ...],
    attention: str,
    dropout: float,
    caches: bool = False,
    maps: bool = True,
) -> ModelDef:
    """The ModelDef of a module whose call is `module(x, level [b|1, f], cond, key)`; of one that takes `maps` the level is
    [b|1, f, h, w] where it differs within a frame, as may be "logsnr_to".

    In cond the module finds all of `inputs`, of `INPUTS`: levels as [b|1, f], the scale as [b|1, 1], the low clip as x.
    `key` is None unless dropout is to be applied. `module.features(x, level, cond)` is a tuple of maps; a module that has its
    choice of them takes `layers` too, and `hidden` is their number.
    """
    cond_keys = (("label",) if num_classes else ()) + tuple(name for name in INPUTS if name in inputs)
    cond_keys += ("cache", "history") if caches else ()
    init, module = seam(construct)

    def checked(x: Array, logsnr: Array, cond: Mapping[str, Any] | None) -> tuple[Array, Array, dict[str, Any]]:
        x = jnp.asarray(x)
        _check_clip(x, shape)
        level = (level_map if maps else frame_level)(logsnr, *(x.shape if maps else x.shape[:2]))
        return x, level, _checked_cond(cond, cond_keys, level, x.shape, maps)

    def apply(
        params: Params,
        x: Float[Array, "b f h w c"],
        logsnr: Float[Array, "..."],
        cond: Mapping[str, Any] | None = None,
        *,
        key: PRNGKeyArray | None = None,
        train: bool = False,
    ) -> Float[Array, "b f h w c"]:
        inputs = checked(x, logsnr, cond)
        if train and dropout and key is None:
            raise ValueError(f"training with dropout {dropout} needs a key: apply(..., key=key, train=True)")
        answer = module(params)(*inputs, key if train and dropout else None)
        if getattr(answer, "shape", None) != inputs[0].shape:
            got = list(answer.shape) if hasattr(answer, "shape") else type(answer).__name__
            raise ValueError(f"the network {kind!r} answers clips of shape {list(inputs[0].shape)} with {got}")
        return answer

    def features(
        params: Params,
        x: Float[Array, "b f h w c"],
        logsnr: Float[Array, "..."],
        cond: Mapping[str, Any] | None = None,
        layers: Sequence[int] | str | None = None,
    ) -> tuple[Float[Array, "b f h w c"], ...]:
        inputs, net = checked(x, logsnr, cond), module(params)
        count = getattr(net, "hidden", None)
        if isinstance(count, int):  # a layer may have that name, too
            maps = net.features(*inputs, None if layers is None else chosen_layers(layers, count))
        else:
            maps = net.features(*inputs)
            maps = maps if layers is None else tuple(maps[i] for i in chosen_layers(layers, len(maps)))
        return tuple(x.astype(jnp.float32) for x in maps)

    nothing = jnp.zeros((1, *shape))
    given = {"low": nothing} if "low" in cond_keys else {}

    def seen() -> list[tuple[Float[Array, "b f h w c"], ...]]:
        params = init(jax.random.key(0))
        return [features(params, nothing, 0.0, given, layers) for layers in (None, "all")]

    channels, hidden = (tuple(x.shape[-1] for x in maps) for maps in jax.eval_shape(seen))
    jvp = attention in (NO_ATTENTION, *JVP_KINDS)
    made = ModelDef(init, apply, kind, shape, num_classes, cond_keys, attention, jvp, features, channels, hidden)
    if not caches:
        return made
    blank = jax.eval_shape(init, jax.random.key(0))

    def empty_cache(batch: int, slots: int, sinks: int = 0) -> dict[str, Array]:
        if not 0 <= sinks < slots:
            raise ValueError(
                f"a cache of {slots} frames keeps from 0 to {slots - 1} of the first ones, got sinks {sinks}"
            )
        return module(blank).empty_cache(batch, *shape[1:3], slots, sinks)

    def remember(
        params: Params, x: Float[Array, "b f h w c"], logsnr: Float[Array, "..."], cond: Mapping[str, Any]
    ) -> dict[str, Array]:
        if "cache" not in cond:
            raise ValueError("remember: cond lacks 'cache'; empty_cache makes one that holds no frame yet")
        x, level, inputs = checked(x, logsnr, cond)
        if x.shape[1] > inputs["cache"]["keys"].shape[2]:
            raise ValueError(f"{x.shape[1]} frames do not fit a cache of {inputs['cache']['keys'].shape[2]}")
        return module(params).remember(x, level, inputs)

    return made._replace(empty_cache=empty_cache, remember=remember)


def chosen_layers(layers: Sequence[int] | str, count: int) -> tuple[int, ...]:
    """Places among the `count` maps of a network: those of `layers`, or of all."""
    if layers == "all":
        return tuple(range(count))
    if isinstance(layers, list | tuple) and layers and all(type(i) is int and 0 <= i < count for i in layers):
        if len(set(layers)) == len(layers):
            return tuple(layers)
    raise ValueError(f"layers is 'all' or different whole numbers from 0 to {count - 1}, got {layers!r}")


def inherit(params: Params, definition: ModelDef, key: PRNGKeyArray) -> Params:
    """The weights of a network without some of `INPUTS`, completed for one that takes them: a student from its teacher.

    What is missing comes from init(key), where the new paths end in zeros: the student's answers are the teacher's,
    whatever it is told to jump to, to be guided by or to upsample. Nothing else may differ: KeyError and ValueError as in
    `apply`.
    """
    wanted = jax.eval_shape(definition.init, key)
    if new := [name for name in INPUTS if name in wanted and name not in params]:
        fresh = definition.init(key)
        params = {**params, **{name: fresh[name] for name in new}}
    _check_params(params, _flat(wanted))
    return params


def frame_level(logsnr: Float[Array, "..."], batch: int, frames: int) -> Float[Array, "b f"]:
    """A level of shape [], [b|1] or [b|1, f|1], trailing ones allowed, as float32 [b|1, frames]."""
    level = jnp.asarray(logsnr, jnp.float32)
    if level.ndim == 0:
        return jnp.broadcast_to(level, (1, frames))
    if level.shape[0] not in (1, batch):
        hint = "; levels per frame are [1, f] or [b, f]" if level.shape == (frames,) else ""
        raise ValueError(
            f"a level starts with the batch axis: its leading length must be 1 or the batch's {batch}, "
            f"got shape {level.shape}{hint}"
        )
    if level.ndim > 1 and level.shape[1] not in (1, frames):
        raise ValueError(f"a level's axis 1 must have length 1 or the clip's {frames} frames, got {level.shape}")
    if any(length != 1 for length in level.shape[2:]) or level.ndim > 5:
        raise ValueError(f"this network takes one level per frame, [b|1, f], got shape {level.shape}")
    return jnp.broadcast_to(level.reshape(level.shape[0], -1), (level.shape[0], frames))


def level_map(
    logsnr: Float[Array, "..."], batch: int, frames: int, height: int, width: int, channels: int
) -> Float[Array, "b f ..."]:
    """As `frame_level`, but of a level per pixel, [b|1, f|1, h|1, w|1] or with channels behind, [b|1, frames, h, w].

    Of a level per channel a network is told the mean log-SNR over the channels, each clipped to the range that it tells
    apart: enough where the mean tells the rest, as with fixed distances between channels; where it doesn't, the network
    learns the mean of what is possible.
    """
    level = jnp.asarray(logsnr, jnp.float32)
    if level.ndim < 3 or level.ndim > 5 or all(length == 1 for length in level.shape[2:]):
        return frame_level(level, batch, frames)
    per_frame = frame_level(level[(slice(None), slice(None), *(0,) * (level.ndim - 2))], batch, frames)
    for axis, (name, size) in enumerate(
        zip(("rows", "columns", "channels"), (height, width, channels), strict=True), 2
    ):
        if axis < level.ndim and level.shape[axis] not in (1, size):
            raise ValueError(f"a level's axis {axis} must have length 1 or the clip's {size} {name}, got {level.shape}")
    level = level.reshape(level.shape + (1,) * (5 - level.ndim))
    level = (averaged(level, (4,)) if level.shape[4] > 1 else level)[..., 0]
    if level.shape[2:] == (1, 1):
        return jnp.broadcast_to(level[:, :, 0, 0], per_frame.shape)
    return jnp.broadcast_to(level, (*per_frame.shape, height, width))


def _check_clip(x: Array, shape: tuple[int, int, int, int]) -> None:
    if x.ndim != 5 or x.shape[-1] != shape[-1]:
        raise ValueError(f"this model takes clips [b, f, h, w, {shape[-1]}], got shape {x.shape}")


def _checked_cond(
    cond: Mapping[str, Any] | None,
    keys: tuple[str, ...],
    level: Float[Array, "b f ..."],
    shape: tuple[int, ...],
    maps: bool,
) -> dict[str, Any]:
    """What the module gets: the known keys, checked, with the defaults of `INPUTS` filled in. shape: of x."""
    cond, (batch, frames) = dict(cond or {}), shape[:2]
    unknown = [name for name in cond if name not in keys]
    if unknown:
        raise ValueError(f"this model takes cond keys {keys}, got {', '.join(map(repr, unknown))}")
    if cond.get("cache") is not None and cond["cache"]["keys"].shape[1] != batch:
        raise ValueError(f"cond['cache'] is of {cond['cache']['keys'].shape[1]} clips, x has {batch}")
    if cond.get("history") is not None:
        clip = cond["history"]["clip"]
        if clip.shape != shape or cond.get("cache") is not None:
            raise ValueError(
                f"cond['history'] is a clip of x's shape {shape}, without a cache beside it; got shape {clip.shape}"
                f" and {'a' if cond.get('cache') is not None else 'no'} cache"
            )
        cond["history"] = {"clip": clip, "level": frame_level(cond["history"]["level"], batch, frames)}
    if cond.get("label") is not None:
        cond["label"] = checked_label(cond["label"], batch, "cond['label']")
    if "logsnr_to" in keys:
        target = cond.get("logsnr_to")
        told = level_map if maps else frame_level
        cond["logsnr_to"] = level if target is None else told(target, *(shape if maps else shape[:2]))
    if "guidance" in keys:
        scale = 1.0 if cond.get("guidance") is None else cond["guidance"]
        scale = jnp.asarray(scale, jnp.float32)
        if scale.shape not in ((), (1,), (batch,)):
            raise ValueError(f"cond['guidance'] is [] or [{batch}], got shape {scale.shape}")
        cond["guidance"] = scale.reshape(-1, 1)
    if "low" in keys:
        if cond.get("low") is None:
            raise ValueError("cond lacks 'low', the clip to upsample: this network can't do without")
        cond["low"] = jnp.asarray(cond["low"])
        if cond["low"].shape not in (shape, (1, *shape[1:])):
            raise ValueError(
                f"cond['low'] is a clip of x's shape {tuple(shape)}, got {cond['low'].shape}; upsample it first"
            )
    if "aug_logsnr" in keys:
        told = jnp.inf if cond.get("aug_logsnr") is None else cond["aug_logsnr"]
        cond["aug_logsnr"] = frame_level(told, batch, frames)
    return {name: value for name, value in cond.items() if value is not None}


def checked_label(label: Any, batch: int, name: str) -> Int[Array, " b"]:
    label = jnp.asarray(label)
    if label.shape not in ((batch,), (1,)) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"{name} is integers [{batch}], got {label.dtype} of shape {label.shape}")
    return label


def _check_params(params: Params, expected: dict[str, Any]) -> None:
    """Refuses weights of another model by name; shapes only, so that it costs nothing once traced."""
    given = _flat(params)
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if unknown:
        near = get_close_matches(unknown[0], missing or expected, n=1, cutoff=0.0)[0]
        raise KeyError(f"params have {unknown[0]!r}, which this model has not; nearest is {near!r}")
    if missing:
        raise KeyError(f"params lack {missing[0]!r} ({len(missing)} missing of {len(expected)})")
    for path, leaf in expected.items():
        if jnp.shape(given[path]) != leaf.shape:
            raise ValueError(f"parameter {path!r} must have shape {leaf.shape}, got {jnp.shape(given[path])}")


def _named(tree: Any) -> Any:
    """String keys throughout (a list's positions become '0', '1', ...): what a checkpoint can hold."""
    return {str(name): _named(leaf) for name, leaf in tree.items()} if isinstance(tree, Mapping) else tree


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix.removesuffix("/"): tree}
    return {path: leaf for name, sub in tree.items() for path, leaf in _flat(sub, f"{prefix}{name}/").items()}
