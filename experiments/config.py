"""Configs: read, checked and turned into the objects they name.

A config file returns an `ml_collections.ConfigDict`; from here on it is a plain dict, as it stands in config.json. Every
name and key is checked before any work starts, and an error names the nearest valid choice.
"""

import dataclasses
import functools
import inspect
import json
import math
import pathlib
import tempfile
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from diffusion import grids, levels, predictions, sampling, schedules, solvers
from diffusion import noise as noises
from distill import METHODS, Method, Network
from distill import optimiser as make_optimiser
from distill.method import number
from experiments import data
from experiments.data import source as source_lib
from experiments.data.source import nearest
from experiments.names import imported, is_outside
from models import ModelDef
from models import build as build_model


def _by_name(*functions: Callable) -> dict[str, Callable]:
    return {function.__name__: function for function in functions}


def ddpm_chain(num: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> schedules.Schedule:
    """DDPM's discrete linear betas (Ho et al. 2020, arXiv 2006.11239, section 4)."""
    return schedules.vp_discrete(schedules.ddpm_betas(beta_start, beta_end, num))


def scaled_linear(
    num: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, zero_terminal_snr: bool = False
) -> schedules.Schedule:
    """Latent diffusion's betas, linear in their square root (Rombach et al. 2022), as they are or with no signal at t = 1."""
    betas = schedules.scaled_linear_betas(beta_start, beta_end, num)
    return schedules.vp_discrete(schedules.rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas)


def rescaled(of: Any, scaling: str) -> schedules.Schedule:
    """Another schedule's log-SNR over time, with the scaling of x that is named: VP, VE or Flow."""
    kind = choose(scaling, {part.__name__: part for part in (schedules.VP, schedules.VE, schedules.Flow)}, "scaling")
    return dataclasses.replace(named(of, SCHEDULES, "of"), scaling=kind())


SCHEDULES = _by_name(
    schedules.vp_linear, schedules.vp_cosine, schedules.vp_cosine_interpolated, ddpm_chain, scaled_linear, schedules.ve,
    schedules.edm, schedules.sub_vp, schedules.flow, schedules.sigmoid, schedules.laplace, rescaled,
)  # fmt: skip
GRIDS = _by_name(
    grids.uniform_time, grids.quadratic_time, grids.uniform_logsnr, grids.exponential, grids.karras, grids.flow_shift,
    grids.two_parameter, grids.beta_quantiles, grids.linear_quadratic, grids.align_your_steps, grids.leading,
    grids.linspace, grids.trailing,
)  # fmt: skip
SOLVERS = _by_name(
    solvers.ddim, solvers.ddpm, solvers.euler, solvers.heun, solvers.dpm_solver, solvers.dpmpp, solvers.exponential_adams,
    solvers.unipc, solvers.deis, solvers.adams, solvers.ipndm, solvers.pndm, solvers.sa_solver, solvers.er_sde,
    solvers.restart, solvers.consistency, solvers.overshoot, solvers.flow_map,
)  # fmt: skip
LAWS = _by_name(
    levels.uniform_time, levels.uniform_logsnr, levels.logit_normal, levels.edm_lognormal, levels.cosine, levels.laplace,
    levels.ict_discretised,
)  # fmt: skip
WEIGHTS = _by_name(
    levels.uniform, levels.snr, levels.v, levels.velocity, levels.truncated_snr, levels.min_snr, levels.edm,
    levels.sigmoid, levels.fused_min_snr,
)  # fmt: skip
NOISES = _by_name(
    noises.iid, noises.mixed, noises.progressive, noises.window_shuffled, noises.block_correlated, noises.offset,
    noises.warped,
)  # fmt: skip


PLAIN = {bool: "True or False", int: "a whole number", float: "a number", str: "a name", type(None): "None"}
"""Plain types -> how errors call what they hold."""


class ConfigError(ValueError):
    """A mistake in a config or on the command line: shown as one line, without a traceback."""


def choose(name: str, choices: Mapping[str, Any], what: str) -> Any:
    """choices[name], or an error that names the nearest valid one.

    Where the choices are functions, one from outside may be named as "package.module:function".
    """
    if is_outside(name) and choices and all(map(callable, choices.values())):
        try:
            return imported(name, what)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if not isinstance(name, str) or name not in choices:
        raise ConfigError(f"{what} {name!r} is not known; {nearest(name, choices)}")
    return choices[name]


def check_keys(given: Mapping[str, Any], allowed: Iterable[str], required: Iterable[str], where: str) -> None:
    """Refuses unknown and missing keys of a config block by name."""
    if not hasattr(given, "keys"):
        raise ConfigError(f"{where}: expected a block of keys, got {given!r}")
    allowed = set(allowed) | set(required)
    for key in given:
        if key not in allowed:
            raise ConfigError(f"{where} has no key {key!r}; {nearest(key, allowed)}")
    for key in required:
        if key not in given:
            raise ConfigError(f"{where} lacks the key {key!r}")


LIST = (list, tuple)
"""A form of `check_forms`."""


def check_forms(block: Mapping[str, Any], forms: Mapping[str, Any], where: str) -> None:
    """Refuses a key whose value is of another form than `forms` has for it: Mapping, a block of keys, str, bool or LIST."""
    for key in forms.keys() & block.keys():
        if not isinstance(block[key], forms[key]):
            said = {Mapping: "a block of keys", bool: PLAIN[bool], LIST: "a list"}.get(forms[key], PLAIN[str])
            raise ConfigError(f"{where}.{key}: expected {said}, got {block[key]!r}")


def check_whole(where: str, value: object, low: int, high: int | None = None) -> None:
    """Refuses what is not a whole number from `low` to `high`."""
    try:
        source_lib.check_whole(where, value, low, high)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def check_finite(value: object, where: str) -> None:
    """Refuses what is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}")


def call(function: Callable, block: Mapping[str, Any], where: str, *, skip: Iterable[str] = (), **given: Any) -> Any:
    """function(**block, **given), the block's keys held against the function's own parameters first.

    `skip` names parameters that a config may not set.
    """
    check_options(function, block, where, skip={*skip, *given})
    try:
        return function(**block, **given)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}: {said(error)}") from error


def check_options(function: Callable, block: Mapping[str, Any], where: str, *, skip: Iterable[str]) -> None:
    """A block's keys held against the function's parameters, but for those in `skip`, which the program gives, and its values
    against their annotations, where these are numbers, texts or truth values.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # of a class or a function written in C
        raise ConfigError(f"{where}: expected a function whose parameters Python knows, got {function!r}") from None
    free = {k: p for k, p in parameters.items() if k not in skip and p.kind is not p.VAR_KEYWORD}
    required = [k for k, p in free.items() if p.default is inspect.Parameter.empty]
    check_keys(block, free, required, where)
    for key, value in block.items():
        # Of a function that takes any keys, some have no parameter of their own.
        annotation = free[key].annotation if key in free else Any
        forms = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        if set(forms) <= PLAIN.keys() and not any(is_plain(value, form) for form in forms):
            raise ConfigError(f"{where}: {key}: expected {' or '.join(PLAIN[form] for form in forms)}, got {value!r}")


def is_plain(value: Any, form: type) -> bool:
    """Whether a value is of a plain type. A whole number is a number too; neither True nor nan is one."""
    if isinstance(value, bool):
        return form is bool
    return isinstance(value, int | float if form is float else form) and value == value  # nan is not itself


def said(error: BaseException) -> str:
    """An error's own words: a KeyError shows them in quotes."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def named(block: Any, choices: Mapping[str, Callable], where: str, **given: Any) -> Any:
    """The object of a block {kind: name, **options}, or of a bare name."""
    function, options = chosen(block, choices, where)
    return call(function, options, where, **given)


def chosen(block: Any, choices: Mapping[str, Callable], where: str) -> tuple[Callable, dict[str, Any]]:
    """The function that a block {kind: name, **options}, or a bare name, calls for, and its options."""
    if not isinstance(block, str | Mapping):
        raise ConfigError(f"{where}: expected a name, or a block of keys with 'kind', got {block!r}")
    options = {"kind": block} if isinstance(block, str) else dict(block)
    if "kind" not in options:
        raise ConfigError(f"{where} lacks the key 'kind'; choices: {', '.join(sorted(choices))}")
    return choose(options.pop("kind"), choices, f"{where}.kind"), options


def made(value: Any, kind: type, where: str) -> Any:
    """value, if it is of this kind: a function from outside may return anything."""
    if not isinstance(value, kind):
        raise ConfigError(f"{where}: expected a function that returns a {kind.__name__}, got {type(value).__name__}")
    return value


def schedule(config: Mapping[str, Any]) -> schedules.Schedule:
    if "schedule" not in config:
        raise ConfigError("config lacks the key 'schedule'")
    found = made(named(config["schedule"], SCHEDULES, "config.schedule"), schedules.Schedule, "config.schedule")
    block = config["schedule"]
    if is_outside(block.get("kind") if isinstance(block, Mapping) else block):
        _check_schedule(found, "config.schedule")
    return found


def _check_schedule(schedule: schedules.Schedule, where: str) -> None:
    """Refuses a schedule from outside that isn't what it says, or that no record of weights could hold."""
    levels = np.linspace(max(schedule.logsnr_start, -20.0), min(schedule.logsnr_end, 20.0), 9)
    try:
        schedules.restore(json.loads(json.dumps(schedules.record(schedule))), schedule_part)
        times, alpha, sigma = schedule.time(levels), schedule.alpha(levels), schedule.sigma(levels)
        back = schedule.logsnr(times)
        for function in (schedule.time, schedule.alpha, schedule.sigma):
            jax.eval_shape(function, levels)
        jax.eval_shape(schedule.logsnr, times)
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {said(error)}") from error
    if not (np.allclose(back, levels, atol=1e-2) and np.all(np.diff(times) < 0)):
        raise ConfigError(f"{where}: its clock's logsnr and time are to fall, and each is to undo the other")
    if not (np.all(alpha > 0) and np.all(sigma > 0) and np.allclose(2 * np.log(alpha / sigma), levels, atol=1e-2)):
        raise ConfigError(
            f"{where}: its scaling's alpha and sigma are to be above 0, with alpha^2 / sigma^2 = exp(logsnr)"
        )


def schedule_part(kind: str) -> type:
    """The class of a schedule's clock or scaling from outside, by the name that its record has. Records travel with weights,
    so nothing is called but a dataclass that can do what one of the two does.
    """
    try:
        found = imported(kind, "the schedule's part")
    except ValueError as error:
        raise ConfigError(str(error)) from None
    clock, scaling = (all(hasattr(found, name) for name in names) for names in (("logsnr", "time"), ("alpha", "sigma")))
    if not (isinstance(found, type) and dataclasses.is_dataclass(found) and (clock or scaling)):
        raise ConfigError(f"the schedule's part {kind!r} is no dataclass with logsnr and time, or with alpha and sigma")
    return found


def model(config: Mapping[str, Any]) -> ModelDef:
    block = config["model"]
    if is_outside(block.get("kind")):
        return _outside_model(json.dumps(dict(block), sort_keys=True))
    try:
        return build_model(block)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"config.model: {said(error)}") from error


@functools.lru_cache(maxsize=128)
def _outside_model(block_json: str) -> ModelDef:
    """The network of a function from outside; equal blocks give the same one, as models.build does.

    Its name travels with weights, which are no code: only a function that says of itself that it returns a ModelDef is called.
    """
    block, where = {k: _frozen(v) for k, v in json.loads(block_json).items()}, "config.model"
    kind = block.pop("kind")
    function = choose(kind, {"": build_model}, f"{where}.kind")
    if not inspect.isfunction(function) or typing.get_type_hints(function).get("return") is not ModelDef:
        raise ConfigError(f"{where}.kind {kind!r}: expected a function annotated as '-> models.ModelDef'")
    check_keys(block, block, ("shape", "num_classes"), where)
    definition = made(call(function, block, where), ModelDef, where)
    clip = np.zeros((1, *definition.shape), np.float32)
    cond = {"low": clip} if "low" in definition.cond_keys else {}
    try:
        answer = jax.eval_shape(lambda: definition.apply(definition.init(jax.random.key(0)), clip, 0.0, cond))
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: {said(error)}") from error
    if getattr(answer, "shape", None) != clip.shape:
        raise ConfigError(f"{where}: its network answers clips of shape {clip.shape} with {answer}")
    for key in ("shape", "num_classes"):
        if getattr(definition, key) != block[key]:
            raise ConfigError(
                f"{where}: its function made a network of {key} {getattr(definition, key)}, not {block[key]}"
            )
    return definition


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def prediction(config: Mapping[str, Any]) -> str:
    """By name only: weights, their records and what is measured of them speak of it."""
    choose(config["prediction"], dict.fromkeys(predictions.PREDICTIONS), "config.prediction")
    return config["prediction"]


def network(config: Mapping[str, Any]) -> tuple[ModelDef, Network]:
    """The model of a config, and the same as distillation sees it."""
    definition = model(config)
    network = Network(
        definition.apply, schedule(config), prediction(config), definition.num_classes, definition.cond_keys,
        augmentation=augmentation(config, definition), noise=noise(config, definition.shape),
    )  # fmt: skip
    return definition, network


def noise(config: Mapping[str, Any], shape: tuple[int, ...]) -> Callable[..., Any]:
    """config.noise, the source of the forward process's noise: independent by default. Checked on one clip of `shape`."""
    if config.get("noise") is None:
        return sampling.normal
    chosen(config["noise"], dict.fromkeys(NOISES), "config.noise")  # by name only: records of weights speak of it
    source = named(config["noise"], NOISES, "config.noise")
    try:
        jax.eval_shape(lambda key: source(key, (1, *shape)), jax.random.key(0))
    except ValueError as error:
        raise ConfigError(f"config.noise: {error}") from error
    return source


def independent(source: Callable[..., Any]) -> bool:
    """Whether a source of noise is standard normal everywhere."""
    return source is sampling.normal or source == noises.iid()


def same_noise(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    if independent(one) or independent(other):
        return independent(one) and independent(other)
    # Trees of two sources with as many numbers are equal: JAX compares what a node holds, not whose it is.
    equal = type(one) is type(other) and jax.tree.structure(one) == jax.tree.structure(other)
    return equal and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(other)))


def augmentation(config: Mapping[str, Any], definition: ModelDef) -> tuple[float, float] | None:
    """config.augmentation, (low, high): where training draws the log-SNR of the noise in the clip to upsample."""
    given, told = config.get("augmentation"), "aug_logsnr" in definition.cond_keys
    if given is None and not told:
        return None
    if given is None:
        raise ConfigError("config lacks the key 'augmentation', (low, high): config.model.cond has 'aug_logsnr'")
    if not told:
        raise ConfigError(
            f"config.augmentation {given!r}: the network must be told the level of the noise in the clip to upsample;"
            f" put 'aug_logsnr' into config.model.cond, it has {list(definition.cond_keys)}"
        )
    pair = isinstance(given, list | tuple) and len(given) == 2
    numbers = pair and all(isinstance(n, int | float) and math.isfinite(n) for n in given)
    if not (numbers and given[0] <= given[1]):
        raise ConfigError(f"config.augmentation: expected (low, high), log-SNR with low <= high, got {given!r}")
    return float(given[0]), float(given[1])


def source(config: Mapping[str, Any], split: str) -> data.Source:
    """The data of a config, with its mistakes as one line each."""
    try:
        return data.build(config["data"], split)
    except (ValueError, KeyError, TypeError, ImportError, OSError) as error:
        raise ConfigError(f"config.data: {said(error)}") from error


def check_rows(samplers: Mapping[str, Any], taken: Iterable[str], where: str) -> None:
    """At least one row, and none by a name that the table has already."""
    if not samplers:
        raise ConfigError(f"{where}.samplers is empty")
    for name in samplers.keys() & set(taken):
        raise ConfigError(f"{where}.samplers.{name}: the table has a row {name!r} of its own; choose another name")


def check_enough(source: data.Source, asked: int, what: str, split: str) -> None:
    """Refuses more clips than a split has."""
    if asked > (have := len(source)):
        raise ConfigError(f"{what} asks for {asked} clips, the {split} split has {have}; nearest: {have}")


def optimiser(block: Mapping[str, Any], steps: int, where: str):
    return call(make_optimiser, dict(block), where, skip=("steps",), steps=steps)


def method(
    name: str, options: Mapping[str, Any], network: Network, optimiser: Any, steps: int, where: str, **given: Any
):
    """The Method of a train stage of `steps` steps; laws of noise levels and weights are given by name.

    given: what else the constructor takes that no option says.
    """
    constructor = choose(name, METHODS, f"{where}.method")
    options = dict(options)
    parameters = inspect.signature(constructor).parameters
    check_keys(options, [k for k in parameters if k not in ("network", "optimiser", *given)], (), f"{where}.options")
    if "total_steps" in parameters:
        options.setdefault("total_steps", steps)
    options |= laws(name, options, network.schedule, where)
    dropped = options.get("label_dropout", 0.0)
    call(number, {}, f"{where}.options", name="label_dropout", value=dropped, least=0.0, below=1.0)
    built = call(constructor, options, f"{where}.options", network=network, optimiser=optimiser, **given)
    return made(built, Method, f"{where}.method {name!r}")


def laws(
    name: str, options: Mapping[str, Any], schedule: schedules.Schedule, where: str
) -> dict[str, Callable[..., Any]]:
    """The laws of noise levels and the weights that a method's options name, by option."""
    parameters, found = inspect.signature(choose(name, METHODS, f"{where}.method")).parameters, {}
    for key, default, choices in (
        ("law", "uniform_time", LAWS), ("critic_law", None, LAWS), ("weight", "v", WEIGHTS), ("critic_weight", None, WEIGHTS),
    ):  # fmt: skip
        if key not in parameters:
            continue
        # A constructor with a default of its own keeps it.
        chosen_ = options.get(key, default if parameters[key].default is inspect.Parameter.empty else None)
        if chosen_ is not None:
            function, _ = chosen(chosen_, choices, f"{where}.options.{key}")
            takes_it = choices is LAWS and "schedule" in inspect.signature(function).parameters
            needs = {"schedule": schedule} if takes_it else {}
            found[key] = named(chosen_, choices, f"{where}.options.{key}", **needs)
    return found


def takes(name: str, parameter: str) -> bool:
    """Whether a method's constructor has this parameter."""
    return parameter in inspect.signature(choose(name, METHODS, "the method")).parameters


def method_option(name: str, options: Mapping[str, Any], option: str) -> Any:
    """A method's option as given or by default; None where it has no such option."""
    parameter = inspect.signature(choose(name, METHODS, "the method")).parameters.get(option)
    return options.get(option, None if parameter is None else parameter.default)


def has_critic(name: str) -> bool:
    """Whether a method is a game, against a critic that keeps moving."""
    return takes(name, "critic_optimiser")


def plain(config: Any) -> dict[str, Any]:
    """A ConfigDict as a plain dict in the order in which it was written (iterating a ConfigDict sorts its keys)."""
    if not hasattr(config, "to_json"):
        raise ConfigError(f"get_config() is to return an ml_collections.ConfigDict, got a {type(config).__name__}")
    try:
        return json.loads(config.to_json())
    except TypeError:
        path, value = next(_not_plain(config, "config"))
        raise ConfigError(
            f"{path}: a config holds numbers, texts, lists and blocks of them, got a {type(value).__name__}: {value!r:.80}"
        ) from None


def _not_plain(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Where a config holds what JSON can't, and what."""
    if hasattr(value, "to_json") or isinstance(value, Mapping):
        for key in value:
            yield from _not_plain(value[key], f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, one in enumerate(value):
            yield from _not_plain(one, f"{path}[{i}]")
    elif not isinstance(value, str | int | float | None):
        yield path, value


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


def make_folder(folder: pathlib.Path, where: str) -> None:
    """The folder that a result goes to, before the work that would be lost if it couldn't."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ConfigError(f"can't write to {where} {folder}: {error.strerror}") from error


def read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise ConfigError(f"{path} is not readable JSON ({error}); remove it or restore it") from None
