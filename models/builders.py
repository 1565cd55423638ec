"""From a config to a ModelDef: the only place of this package that reads names and checks options."""

import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from flax import nnx

from models.attention import attention_kind
from models.definition import ModelDef, define
from models.unet import UNet

REQUIRED = ("kind", "shape", "num_classes")


class Kind(NamedTuple):
    """A kind of network: its own options with their defaults, and how to construct the module from all of them."""

    options: dict[str, Any]
    construct: Callable[[dict[str, Any], nnx.Rngs], nnx.Module]
    check: Callable[[dict[str, Any]], None]


def build(config: Mapping[str, Any], attention: str | None = None) -> ModelDef:
    """The network that `config` describes.

    `config` (a dict or ConfigDict) has `kind`, `shape` (frames, height, width, channels), `num_classes` (0 for an
    unconditional network), optionally `attention`, and any of the kind's own options. The argument `attention`, if
    given, takes the place of the config's; the params are the same for all kinds of attention. Equal configs give the
    same ModelDef, so that what was compiled for one serves the other.
    """
    config = {name: _frozen(config[name]) for name in config}
    _require(config, REQUIRED)
    kind = KINDS.get(config["kind"])
    if kind is None:
        raise KeyError(f"unknown model kind {config['kind']!r}; kinds are {tuple(KINDS)}" + _hint(config["kind"], KINDS))
    known = (*REQUIRED, "attention", *kind.options)
    for name in config:
        if name not in known:
            raise KeyError(f"unknown key {name!r} for a {config['kind']!r} model" + _hint(name, known))
    options = {"attention": "xla"} | kind.options | config
    if attention is not None:
        options["attention"] = attention
    attention_kind(options["attention"])
    _check_common(options)
    kind.check(options)
    return _build(tuple(sorted(options.items())))


@functools.lru_cache(maxsize=128)
def _build(items: tuple[tuple[str, Any], ...]) -> ModelDef:
    options = dict(items)
    return define(
        options["kind"],
        functools.partial(KINDS[options["kind"]].construct, options),
        shape=options["shape"],
        num_classes=options["num_classes"],
        attention=options["attention"],
        dropout=options["dropout"],
    )


def _unet(options: dict[str, Any], rngs: nnx.Rngs) -> UNet:
    return UNet(
        channels=options["shape"][-1],
        num_classes=options["num_classes"],
        widths=options["widths"],
        blocks=options["blocks"],
        patch=options["patch"],
        embed=options["embed"],
        head_dim=options["head_dim"],
        dropout=options["dropout"],
        attend=attention_kind(options["attention"]),
        rope_base=options["rope_base"],
        dtype=options["dtype"],
        rngs=rngs,
    )


def _check_unet(options: dict[str, Any]) -> None:
    _, height, width, _ = options["shape"]
    widths, blocks = options["widths"], options["blocks"]
    if not widths or len(widths) != len(blocks) or min(blocks) < 1:
        raise ValueError(f"widths and blocks give each level of a 'unet' its channels and blocks, got {widths}, {blocks}")
    factor = options["patch"] * 2 ** (len(options["widths"]) - 1)
    if height % factor or width % factor:
        raise ValueError(f"frames of {height}x{width} do not divide by patch * 2^(levels - 1) = {factor}")
    if options["widths"][-1] % options["head_dim"]:
        raise ValueError(f"the last of widths, {options['widths'][-1]}, is no multiple of head_dim {options['head_dim']}")


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

KINDS: dict[str, Kind] = {"unet": Kind(UNET_OPTIONS, _unet, _check_unet)}


def _check_common(options: dict[str, Any]) -> None:
    shape = options["shape"]
    if not isinstance(shape, tuple) or len(shape) != 4 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise ValueError(f"shape is (frames, height, width, channels), got {shape!r}")
    if not isinstance(options["num_classes"], int) or options["num_classes"] < 0:
        raise ValueError(f"num_classes is 0 or the number of classes, got {options['num_classes']!r}")
    if not 0 <= options["dropout"] < 1:
        raise ValueError(f"dropout is in [0, 1), got {options['dropout']!r}")
    if options["dtype"] not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is 'float32' or 'bfloat16', got {options['dtype']!r}")


def _require(config: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if name not in config:
            near = get_close_matches(name, config, n=1)
            raise KeyError(f"a model config needs the key {name!r}" + (f"; did you mean it by {near[0]!r}?" if near else ""))


def _hint(name: Any, known: Any) -> str:
    return f"; did you mean {get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]!r}?"


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
