"""The sampling table of a run, from a block {solver, grid, matrix}, each a name or {kind: name, **options}.

Some samplers ask the network before they sample: `best` and `fitted`, which choose their grid themselves, DPM-Solver-v3 for
its statistics, and the `optimised` grid. What asking found is kept beside the run and used again; pretrained/*/tables has what
was found for shipped networks. The `searched` grid is what a `times` stage found: it lies beside the weights, in
WEIGHTS.times.json.
"""

import hashlib
import inspect
import json
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from diffusion import fitted, frames, grids, optimised, sampling, schedules, solvers
from experiments import config as configs
from experiments import weights
from experiments.config import ConfigError


class Model(NamedTuple):
    """The network that a table is for: denoise (x, logsnr) -> denoised, for any batch size; the shape of one sample; a key
    for the noises that it is asked about, which are never those that the source makes of the same key; the source of noise
    that it was trained with.
    """

    denoise: Callable[..., Array]
    shape: tuple[int, ...]
    key: Array
    noise: Callable[..., Array] = sampling.normal


def dpm_solver_v3(
    schedule: schedules.Schedule,
    grid: Float[Any, " points"],
    denoise: Callable[..., Array],
    shape: tuple[int, ...],
    key: Array,
    *,
    order: int = 3,
    corrector: bool = True,
    num_noises: int = 16,
    levels: int = 128,
) -> solvers.Table:
    """`solvers.dpm_solver_v3` with statistics from `num_noises` trajectories of `levels` calls."""
    x = float(schedule.size(schedule.logsnr_start)) * sampling.normal(key, (num_noises, *shape), "float32")
    statistics = solvers.ems_statistics(denoise, schedule, x, key, levels=levels)
    return solvers.dpm_solver_v3(schedule, grid, statistics, order, corrector=corrector)


def written(num_steps: int, levels: list[float]) -> Float[np.ndarray, " points"]:
    """A grid whose num_steps + 1 levels of log-SNR are written out."""
    if len(levels) != num_steps + 1:
        raise ValueError(f"{num_steps} calls need {num_steps + 1} levels, got {len(levels)}")
    return grids.validate(levels)


def from_weights():
    """Stands for the grid that `searched` puts in its place."""
    raise ValueError("a searched grid lies beside weights, and there are none here")


PARTS = ("solver", "grid", "matrix")
SEARCHED = "searched"
ALONE = {"best": solvers.best, "fitted": fitted.fit_recorded}
ASKING = {**ALONE, "dpm_solver_v3": dpm_solver_v3, "optimised": optimised.optimised}
SOLVERS = {**configs.SOLVERS, **ALONE, "dpm_solver_v3": dpm_solver_v3}
GRIDS = {**configs.GRIDS, "optimised": optimised.optimised, "levels": written, SEARCHED: from_weights}
MATRICES = {f.__name__: f for f in (frames.full, frames.autoregressive, frames.pyramid, frames.trapezoid, frames.sweep)}
CHOICES = {"solver": ("ddim", SOLVERS), "grid": ("uniform_time", GRIDS), "matrix": ("full", MATRICES)}
APART = 2**31 - 4
"""Keeps the noises that are asked about apart from those that are sampled from."""
GIVEN = ("schedule", "grid", "nfe", "num_steps", "progress", *Model._fields)
EVERY = 30.0
"""Seconds between two lines on how far it is."""


def block_of(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """The block {solver, grid, matrix} of a sampler, which has other keys, too."""
    return {part: sampler[part] for part in PARTS if part in sampler}


def check(block: Mapping[str, Any], steps: int, schedule: schedules.Schedule, where: str) -> solvers.Table:
    """Names, options and the step count of a sampler, before any work. Returns its table, with the default in the place of what
    asks the network.
    """
    configs.check_keys(block, PARTS, (), where)
    if asks(block, "solver") in ALONE and "grid" in block:
        raise ConfigError(f"{where}: solver {asks(block, 'solver')!r} chooses its own grid; remove the key 'grid'")
    if is_searched(block):  # as the default grid: the levels may not be there yet
        block = {part: block[part] for part in block if part != "grid"}
    silent = {part: block[part] for part in block if not asks(block, part)}
    if "matrix" in block and set(block) != set(silent):
        raise ConfigError(
            f"{where}: a matrix gives every frame a level; what asks the network asks about one for all frames"
        )
    for part in block.keys() - silent.keys():
        function, options = configs.chosen(block[part], ASKING, f"{where}.{part}")
        configs.check_options(function, options, f"{where}.{part}", skip=GIVEN)
    return make(silent, steps, schedule, where)


def check_unasked(block: Mapping[str, Any], where: str, why: str) -> None:
    """Refuses a solver or a grid that asks a network, or was searched with one, where none can be asked. why: it can't."""
    for part, choices in (("solver", configs.SOLVERS), ("grid", configs.GRIDS)):
        if asks(block, part) or (part == "grid" and is_searched(block)):
            raise ConfigError(
                f"{where}.{part} {block[part]!r} is made by asking a network: {why}; choose one of {', '.join(choices)}"
            )


def asks(block: Mapping[str, Any], part: str) -> str | None:
    """The name of a block's solver or grid, if it asks the network."""
    kind = block.get(part)
    kind = kind.get("kind") if isinstance(kind, Mapping) else kind
    return kind if isinstance(kind, str) and kind in ASKING else None


def make(
    block: Mapping[str, Any],
    steps: int,
    schedule: schedules.Schedule,
    where: str,
    model: Model | None = None,
    folder: pathlib.Path | None = None,
) -> solvers.Table:
    """The table of a block at a number of calls. One that asks needs `model`; it is kept in `folder`, and taken from there, or
    from the tables in pretrained/, when the same block, steps and network (by its fingerprint) come again.
    """
    names = [name for part in ("solver", "grid") if (name := asks(block, part))]
    if not names:
        # Without a model a block is only checked, and no matrix is wrong by the number of its frames.
        frames, height, width = (2, 2, 2) if model is None else (*model.shape, 1, 1)[:3]
        return _build(block, steps, schedule, where, frames=frames, height=height, width=width)[0]
    if model is None:
        raise ConfigError(f"{where}: {' and '.join(names)} must ask the network, and there is none here")
    if not configs.independent(model.noise):
        raise ConfigError(
            f"{where}: {' and '.join(names)} asks the network about independent noise, it was trained with another; name a"
            " solver and a grid that don't ask"
        )
    made_for = {
        "block": json.loads(json.dumps(dict(block))), "steps": steps,
        "fingerprint": fitted.fingerprint(model.denoise, schedule, model.shape),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()[:8]
    file = f"{'_'.join(names)}_{steps}_{digest}.npz"
    path = None if folder is None else folder / file
    shipped = next(weights.PRETRAINED.glob(f"*/tables/{file}"), None)
    known = path if path is not None and path.is_file() else shipped
    if known is not None:
        if known is shipped:
            print(f"{where}: {' and '.join(names)} is shipped for this network: {shipped}", flush=True)
        try:
            return solvers.load(known, **made_for)[0]
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
    print(f"{where}: {' and '.join(names)} asks the network about {steps} calls", flush=True)
    asked = {k: v for k, v in model._asdict().items() if k != "noise"}
    # What is sampled, and judged, often begins with noise of the same key, and a larger array of it with the smaller one.
    asked["key"] = jax.random.fold_in(model.key, APART)
    table, record = _build(block, steps, schedule, where, **asked, progress=progress(where))
    if path is not None:
        solvers.save(path, table, record | made_for)
        print(f"{where}: kept as {path}", flush=True)
    return table


def progress(where: str) -> Callable[[int, int], None]:
    """(done, all) -> a line on stderr, now and then."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            print(f"{where}: {done}/{total}", file=sys.stderr, flush=True)

    return tell


def _build(block, steps, schedule, where, **asked):
    """(table, record of the fit)."""
    given = {"schedule": schedule, "num_steps": steps, "nfe": steps, **asked}

    if asks(block, "solver") not in ALONE:
        given["grid"] = grid = part(block, "grid", given, where)
        if np.shape(grid) != (steps + 1,):
            raise ConfigError(f"{where}.grid: expected {steps + 1} levels, got those of shape {list(np.shape(grid))}")
    if "matrix" in block:
        given["grid"] = matrix = part(block, "matrix", given, where)
        if np.ndim(matrix) < 3 or np.shape(matrix)[1:3] != (1, asked["frames"]):
            expected = f"[rows + 1, 1, {asked['frames']}]"
            raise ConfigError(
                f"{where}.matrix: expected levels {expected}, got those of shape {list(np.shape(matrix))}"
            )
    table = part(block, "solver", given, where)
    if isinstance(table, solvers.Table):
        return table, {}
    if asks(block, "solver") not in ALONE:
        configs.made(table, solvers.Table, f"{where}.solver")
    table, record = table
    start, fit = (record["errors"][which]["held_out"]["rmse"] for which in ("start", "fitted"))
    print(f"{where}: RMSE on held-out noises {fit:.4g} fitted, {start:.4g} before", flush=True)
    return table, record


def part(block: Mapping[str, Any], name: str, given: Mapping[str, Any], where: str) -> Any:
    """What a block's solver, grid or matrix makes of those of `given` that it takes."""
    default, choices = CHOICES[name]
    function, options = configs.chosen(block.get(name, default), choices, f"{where}.{name}")
    takes = inspect.signature(function).parameters
    return configs.call(function, options, f"{where}.{name}", **{k: v for k, v in given.items() if k in takes})


def load(
    path: pathlib.Path, schedule: schedules.Schedule, model: Model, where: str
) -> tuple[solvers.Table, dict[str, Any]]:
    """A kept table and its record, refused for another network than it was made for."""
    try:
        return solvers.load(path, fingerprint=fitted.fingerprint(model.denoise, schedule, model.shape))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


# Searched times ---------------------------------------------------------------------------------------------


def is_searched(sampler: Mapping[str, Any]) -> bool:
    return sampler.get("grid") in (SEARCHED, {"kind": SEARCHED})


def sampler_name(sampler: Mapping[str, Any]) -> str:
    """What searched times are for: the solver with its options, and the guidance scale where there is any."""
    function, options = configs.chosen(sampler.get("solver", "ddim"), SOLVERS, "solver")
    text = ", ".join(f"{k}={v:g}" if isinstance(v, float | int) else f"{k}={v}" for k, v in sorted(options.items()))
    scale = sampler.get("guidance", 1.0)
    return function.__name__ + (f"({text})" if text else "") + (f" with guidance {scale:g}" if scale != 1.0 else "")


def times_path(path: pathlib.Path) -> pathlib.Path:
    """Where the times searched for the weights at `path` lie."""
    return path.with_suffix(".times.json")


def searched(sampler: Mapping[str, Any], path: pathlib.Path, where: str) -> dict[str, Any]:
    """The block {solver, grid, matrix} of a sampler {solver, grid, matrix, steps, guidance} of the weights at `path`: grid
    'searched' has become the levels that lie beside them. ConfigError where these times are missing or of other weights.
    """
    block = block_of(sampler)
    if not is_searched(sampler):
        return block
    found, name, steps = read_times(path, where), sampler_name(sampler), str(sampler["steps"])
    if steps not in found.get(name, {}):
        raise ConfigError(
            f"{where}: no times for {name} at {steps} calls in {times_path(path)}; it has {listed(found)}"
        )
    return block | {"grid": {"kind": "levels", "levels": found[name][steps]["levels"]}}


def read_times(path: pathlib.Path, where: str) -> dict[str, dict[str, Any]]:
    """{sampler's name: {calls: {levels, ...}}}, searched for the weights at `path`."""
    file, own = times_path(path), weights.fingerprint(path)
    if not file.is_file():
        raise ConfigError(
            f"{where}: no searched times at {file}; a stage of kind 'times' makes them for weights {path}; if it is done,"
            " remove its folder first"
        )
    kept = configs.read_json(file)
    if kept.get("weights") != own:
        raise ConfigError(
            f"{where}: {file} holds times of other weights (fingerprint {kept.get('weights')}, that of {path} is {own}); "
            "a stage of kind 'times' makes new ones; if it is done, remove its folder first"
        )
    return kept["samplers"]


def keep_times(path: pathlib.Path, name: str, found: Mapping[str, Any]) -> None:
    """Puts {calls: {levels, ...}} of a sampler to the times beside the weights; times of other weights go."""
    file, own = times_path(path), weights.fingerprint(path)
    kept = configs.read_json(file) if file.is_file() else {}
    samplers = kept["samplers"] if kept.get("weights") == own else {}
    samplers[name] = samplers.get(name, {}) | found
    configs.write_json(file, {"format": 1, "weights": own, "samplers": samplers})


def listed(found: Mapping[str, Any]) -> str:
    """{sampler's name: calls} as text."""
    return "; ".join(f"{name} at {', '.join(map(str, calls))} calls" for name, calls in found.items())
