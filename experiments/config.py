"""Configs: read, checked and turned into the objects they name.

A config file returns an `ml_collections.ConfigDict`; from here on it is a plain dict, as it stands in config.json. Every
name and key is checked before any work starts, and an error names the nearest valid choice.
"""

import difflib
import inspect
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from diffusion import grids, levels, predictions, schedules, solvers
from distill import METHODS, Network
from distill import optimiser as make_optimiser
from experiments import data
from models import ModelDef
from models import build as build_model

SCHEDULES: dict[str, Callable] = {
    "vp_linear": schedules.vp_linear,
    "vp_cosine": schedules.vp_cosine,
    "ve": schedules.ve,
    "edm": schedules.edm,
    "sub_vp": schedules.sub_vp,
    "flow": schedules.flow,
}
GRIDS: dict[str, Callable] = {
    "uniform_time": grids.uniform_time,
    "uniform_logsnr": grids.uniform_logsnr,
    "karras": grids.karras,
}
SOLVERS: dict[str, Callable] = {"ddim": solvers.ddim, "dpmpp": solvers.dpmpp}
LAWS: dict[str, Callable] = {"uniform_time": levels.uniform_time, "logit_normal": levels.logit_normal}
WEIGHTS: dict[str, Callable] = {
    "v": levels.v, "snr": levels.snr, "truncated_snr": levels.truncated_snr, "min_snr": levels.min_snr,
    "uniform": levels.uniform, "sigmoid": levels.sigmoid,
}  # fmt: skip


class ConfigError(ValueError):
    """A mistake in a config or on the command line: shown as one line, without a traceback."""


def choose(name: str, choices: Mapping[str, Any], what: str) -> Any:
    """choices[name], or an error that names the nearest valid one."""
    if name not in choices:
        raise ConfigError(f"{what} {name!r} is not known; {nearest(name, choices)}")
    return choices[name]


def nearest(name: str, choices: Iterable[str]) -> str:
    choices = sorted(choices)
    close = difflib.get_close_matches(str(name), choices, n=1)
    return f"did you mean {close[0]!r}? (choices: {', '.join(choices)})" if close else f"choices: {', '.join(choices)}"


def check_keys(given: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str], where: str) -> None:
    """Refuses unknown and missing keys of a config block by name."""
    allowed = set(allowed) | set(required)
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{where} has no key {key!r}; {nearest(key, allowed)}")
    for key in required:
        if key not in given:
            raise ConfigError(f"{where} lacks the key {key!r}")


def call(function: Callable, block: Mapping[str, Any], where: str, *, skip: Iterable[str] = (), **given: Any) -> Any:
    """function(**block, **given), the block's keys held against the function's own parameters first.

    `skip` names parameters that a config may not set.
    """
    parameters = inspect.signature(function).parameters
    free = {k: p for k, p in parameters.items() if k not in given and k not in skip}
    required = [k for k, p in free.items() if p.default is inspect.Parameter.empty and p.kind is not p.VAR_KEYWORD]
    check_keys(block, free, required, where)
    try:
        return function(**block, **given)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def named(block: Any, choices: Mapping[str, Callable], where: str, **given: Any) -> Any:
    """The object of a block {kind: name, **options}, or of a bare name."""
    block = {"kind": block} if isinstance(block, str) else dict(block)
    if "kind" not in block:
        raise ConfigError(f"{where} lacks the key 'kind'; choices: {', '.join(sorted(choices))}")
    function = choose(block.pop("kind"), choices, f"{where}.kind")
    return call(function, block, where, **given)


def schedule(config: Mapping[str, Any]) -> schedules.Schedule:
    return named(config["schedule"], SCHEDULES, "config.schedule")


def model(config: Mapping[str, Any]) -> ModelDef:
    try:
        return build_model(config["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"config.model: {_text(error)}") from error


def network(config: Mapping[str, Any]) -> tuple[ModelDef, Network]:
    """The model of a config, and the same as distillation sees it."""
    choose(config["prediction"], predictions.PREDICTIONS, "config.prediction")
    definition = model(config)
    return definition, Network(definition.apply, schedule(config), config["prediction"], definition.num_classes)


def source(config: Mapping[str, Any], split: str) -> data.Source:
    """The data of a config, with its mistakes as one line each."""
    try:
        return data.build(config["data"], split)
    except (ValueError, KeyError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"config.data: {_text(error)}") from error


def optimiser(block: Mapping[str, Any], steps: int, where: str):
    return call(
        make_optimiser, dict(block), where, skip=("steps",), **({"steps": steps} if "steps" not in block else {})
    )


def table(block: Mapping[str, Any], steps: int, schedule: schedules.Schedule, where: str) -> solvers.Table:
    """The sampling table of a block {solver, grid, options..} at a number of steps."""
    block = dict(block)
    check_keys(block, ("solver", "grid"), (), where)
    grid = named(block.get("grid", "uniform_time"), GRIDS, f"{where}.grid", schedule=schedule, num_steps=steps)
    return named(block.get("solver", "ddim"), SOLVERS, f"{where}.solver", schedule=schedule, grid=grid)


def method(name: str, options: Mapping[str, Any], network: Network, optimiser: Any, where: str):
    """The Method of a train stage; a law of noise levels and a weight are given by name."""
    constructor = choose(name, METHODS, f"{where}.method")
    options = dict(options)
    parameters = inspect.signature(constructor).parameters
    check_keys(options, [k for k in parameters if k not in ("network", "optimiser")], (), f"{where}.options")
    if "law" in parameters:
        law = options.get("law", "uniform_time")
        needs = {"schedule": network.schedule} if _takes_schedule(law) else {}
        options["law"] = named(law, LAWS, f"{where}.options.law", **needs)
    if "weight" in parameters:
        options["weight"] = named(options.get("weight", "v"), WEIGHTS, f"{where}.options.weight")
    return call(constructor, options, f"{where}.options", network=network, optimiser=optimiser)


def _takes_schedule(law: Any) -> bool:
    kind = law if isinstance(law, str) else law.get("kind")
    return kind in LAWS and "schedule" in inspect.signature(LAWS[kind]).parameters


def plain(config: Any) -> dict[str, Any]:
    """A ConfigDict as a plain dict in the order in which it was written (iterating a ConfigDict sorts its keys)."""
    return json.loads(config.to_json())


def differences(old: Any, new: Any, path: str = "config") -> list[str]:
    """Paths at which two configs differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in [*old, *(k for k in new if k not in old)]:
            found += differences(old.get(key, "(absent)"), new.get(key, "(absent)"), f"{path}.{key}")
        return found
    return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def write_json(path: pathlib.Path, value: Any) -> None:
    """Written beside and renamed: a killed write leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    beside.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not readable JSON ({error})") from None
