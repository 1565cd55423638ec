"""From a config to a ModelDef: the only place of this package that reads names and checks options."""

import functools
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from flax import nnx

from models.attention import NO_ATTENTION, attention_kind
from models.definition import INPUTS, ModelDef, define, is_count
from models.dit import REMAT, DiT
from models.layers import LEVELS, Rngs
from models.mlp import MLP
from models.names import hint
from models.rope import axis_split
from models.unet import UNet

REQUIRED = ("kind", "shape", "num_classes")
COMMON = {"attention": "xla", "cond": (), "level": "logsnr"}
"""What every network may be told beside its kind's own options."""


class Kind(NamedTuple):
    """A kind of network: its options with their defaults, how to construct it, how to check them; has it attention, and can
    it be built without?
    """

    options: dict[str, Any]
    construct: Callable[[dict[str, Any], Rngs], nnx.Module]
    check: Callable[[dict[str, Any]], None]
    attends: bool = True
    optional: bool = False


def build(config: Mapping[str, Any], attention: str | None = None) -> ModelDef:
    """The network that `config` describes.

    `config` (a dict or ConfigDict) has `kind`, `shape` (frames, height, width, channels), `num_classes` (0
    for no conditioning), and optionally `attention` ("none": a U-Net without any), `cond` (names of further conditioning:
    "logsnr_to", "guidance", "low", "aug_logsnr"), `level` ("logsnr" or "angle", how the level is embedded) and any of the
    kind's own options. The argument `attention`, if given, takes the place of the config's; the params are the same for all
    kinds of attention, and a network without any has no use for it. Equal configs give the same ModelDef, so that what
    was compiled for one serves the other.

    Raises KeyError for an unknown or missing name, ValueError for a value that makes no network.
    """
    config = {name: _frozen(config[name]) for name in config}
    for name in REQUIRED:
        if name not in config:
            near = get_close_matches(name, config, n=1)
            meant = f"; is {near[0]!r} meant to be it?" if near else ""
            raise KeyError(f"a model config needs the key {name!r}{meant}")
    if config["kind"] not in KINDS:
        known = ", ".join(KINDS)
        raise KeyError(f"unknown model kind {config['kind']!r}, expected one of {known}{hint(config['kind'], KINDS)}")
    kind = KINDS[config["kind"]]
    allowed = (*REQUIRED, *COMMON, *kind.options)
    for name in config:
        if name not in allowed:
            raise KeyError(f"unknown key {name!r} for a {config['kind']!r} model{hint(name, allowed)}")
    options = COMMON | kind.options | config
    without = kind.optional and options["attention"] == NO_ATTENTION
    if attention is not None and not without:
        options["attention"] = attention
    if not without:
        attention_kind(options["attention"])
    if not kind.attends:
        options["attention"] = NO_ATTENTION
    _check_common(options)
    for name, default in kind.options.items():
        _check_option(name, options[name], default)
    kind.check(options)
    return _build(tuple(sorted(options.items())))


COMPUTED = ("attention", "remat", "scan", "dropout", "dtype")
"""Options of how a network's answers are computed, in use or in training: networks that differ in these share weights."""


def weights_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a network's weights are weights of: its config without `COMPUTED`, and all else spelt out. A network of a kind from
    elsewhere as its config has it.
    """
    kind = KINDS.get(config.get("kind", ""))
    whole = {**(COMMON | kind.options if kind else {}), **config}
    return {name: _frozen(value) for name, value in whole.items() if name not in COMPUTED}


@functools.lru_cache(maxsize=128)
def _build(items: tuple[tuple[str, Any], ...]) -> ModelDef:
    options = dict(items)
    return define(
        options["kind"],
        functools.partial(KINDS[options["kind"]].construct, options),
        shape=options["shape"],
        num_classes=options["num_classes"],
        inputs=options["cond"],
        attention=options["attention"],
        dropout=options["dropout"],
        caches=options.get("causal", False),
        maps=options["kind"] != "mlp",
    )


def _arguments(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A module's arguments: those of `names` as they are, and what the common options mean to every network."""
    return {name: options[name] for name in (*names, "num_classes", "level")} | {"inputs": options["cond"]}


def _video_arguments(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return _arguments(options, names) | {
        "channels": options["shape"][-1],
        "attend": None if options["attention"] == NO_ATTENTION else attention_kind(options["attention"]),
    }


def _check_unet(options: dict[str, Any]) -> None:
    _, height, width, _ = options["shape"]
    widths, blocks = options["widths"], options["blocks"]
    if not widths or len(widths) != len(blocks):
        raise ValueError(f"widths and blocks of a 'unet' have one entry a level, got {widths} and {blocks}")
    factor = options["patch"] * 2 ** (len(widths) - 1)
    if height % factor or width % factor:
        raise ValueError(f"frames of {height}x{width} do not divide by patch * 2^(levels - 1) = {factor}")
    if options["attention"] != NO_ATTENTION:
        _check_heads("the last of widths", widths[-1], options["head_dim"])


def _check_dit(options: dict[str, Any]) -> None:
    _, height, width, _ = options["shape"]
    if height % options["patch"] or width % options["patch"]:
        raise ValueError(f"frames of {height}x{width} do not divide by patch {options['patch']}")
    _check_heads("width", options["width"], options["head_dim"])
    if options["remat"] not in REMAT:
        raise ValueError(f"remat is one of {tuple(REMAT)}, got {options['remat']!r}{hint(options['remat'], REMAT)}")


def _check_heads(name: str, width: int, head_dim: int) -> None:
    axis_split(head_dim)
    if width % head_dim:
        raise ValueError(f"{name}, {width}, is no multiple of head_dim {head_dim}")


UNET_OPTIONS = {
    "widths": (24, 48, 96),
    "blocks": (1, 1, 2),
    "patch": 1,
    "embed": 128,
    "head_dim": 32,
    "dropout": 0.0,
    "rope_base": 100.0,
    "dtype": "float32",
}

DIT_OPTIONS = {
    "patch": 2,
    "width": 192,
    "depth": 4,
    "head_dim": 48,
    "mlp_ratio": 4,
    "dropout": 0.0,
    "rope_base": 100.0,
    "scan": True,
    "causal": False,
    "block": 1,
    "remat": "none",
    "dtype": "float32",
}

MLP_OPTIONS = {"width": 128, "depth": 3, "dropout": 0.0, "dtype": "float32"}

KINDS: dict[str, Kind] = {
    "unet": Kind(
        UNET_OPTIONS,
        lambda o, rngs: UNet(rngs=rngs, **_video_arguments(o, UNET_OPTIONS)),
        _check_unet,
        optional=True,
    ),
    "dit": Kind(DIT_OPTIONS, lambda o, rngs: DiT(rngs=rngs, **_video_arguments(o, DIT_OPTIONS)), _check_dit),
    "mlp": Kind(
        MLP_OPTIONS,
        lambda o, rngs: MLP(rngs=rngs, shape=o["shape"], **_arguments(o, MLP_OPTIONS)),
        lambda o: None,
        attends=False,
    ),
}


def _check_common(options: dict[str, Any]) -> None:
    shape, classes = options["shape"], options["num_classes"]
    if not (isinstance(shape, tuple) and len(shape) == 4 and all(isinstance(n, int) and n > 0 for n in shape)):
        raise ValueError(f"shape is (frames, height, width, channels), got {shape!r}")
    if not isinstance(classes, int) or classes < 0:
        raise ValueError(f"num_classes is the number of classes or 0 for none, got {classes!r}")
    if not isinstance(options["cond"], tuple):
        raise ValueError(f"cond is a tuple of names among {INPUTS}, got {options['cond']!r}")
    for name in options["cond"]:
        if name not in INPUTS:
            raise ValueError(f"cond has names among {INPUTS}, got {name!r}{hint(name, INPUTS)}")
    if "aug_logsnr" in options["cond"] and "low" not in options["cond"]:
        raise ValueError("cond has 'aug_logsnr', the level of the noise in 'low', and not 'low' itself")
    if options["level"] not in LEVELS:
        raise ValueError(f"level is one of {tuple(LEVELS)}, got {options['level']!r}{hint(options['level'], LEVELS)}")
    if options["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is 'float32' or 'bfloat16', got {options['dtype']!r}")


def _check_option(name: str, value: Any, default: Any) -> None:
    """An option is of its default's type; counts are at least 1, and dropout is in [0, 1)."""
    kind = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, kind) or isinstance(value, bool) != isinstance(default, bool):
        raise ValueError(f"{name} is of the type of its default, {default!r}, got {value!r}")
    counts = value if isinstance(value, tuple) else (value,)
    if isinstance(default, int | tuple) and not isinstance(default, bool):
        if not all(map(is_count, counts)):
            raise ValueError(f"{name} is made of whole numbers from 1 up, got {value!r}")
    if name == "dropout" and not 0 <= value < 1:
        raise ValueError(f"dropout is in [0, 1), got {value!r}")
    if name == "rope_base" and not value > 1:
        raise ValueError(f"rope_base is above 1, got {value!r}")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
