"""The sampling table of a run, from a block {solver, grid}, each a name or {kind: name, **options}.

Some samplers ask the network before they sample: `best` and `fitted`, which choose their grid themselves, DPM-Solver-v3 for
its statistics, and the `optimised` grid. What asking found is kept beside the run and used again.
"""

import hashlib
import inspect
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from diffusion import fitted, optimised, sampling, schedules, solvers
from experiments import config as configs
from experiments.config import ConfigError


class Model(NamedTuple):
    """The network that a table is for: denoise (x, logsnr) -> denoised, for any batch size; the shape of one sample; a key
    for the noises that it is asked about.
    """

    denoise: Callable[..., Array]
    shape: tuple[int, ...]
    key: Array


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
    x = float(schedule.sigma(schedule.logsnr_start)) * sampling.normal(key, (num_noises, *shape), "float32")
    statistics = solvers.ems_statistics(denoise, schedule, x, key, levels=levels)
    return solvers.dpm_solver_v3(schedule, grid, statistics, order, corrector=corrector)


ALONE = {"best": solvers.best, "fitted": fitted.fit_recorded}
ASKING = {**ALONE, "dpm_solver_v3": dpm_solver_v3, "optimised": optimised.optimised}
SOLVERS = {**configs.SOLVERS, **ALONE, "dpm_solver_v3": dpm_solver_v3}
GRIDS = {**configs.GRIDS, "optimised": optimised.optimised}
GIVEN = ("schedule", "grid", "nfe", "num_steps", *Model._fields)


def check(block: Mapping[str, Any], steps: int, schedule: schedules.Schedule, where: str) -> None:
    """Names, options and the step count of a sampler, before any work."""
    configs.check_keys(block, ("solver", "grid"), (), where)
    if asks(block, "solver") in ALONE and "grid" in block:
        raise ConfigError(f"{where}: solver {asks(block, 'solver')!r} chooses its own grid; remove the key 'grid'")
    silent = {part: block[part] for part in block if not asks(block, part)}
    for part in block.keys() - silent.keys():
        function, options = configs.chosen(block[part], ASKING, f"{where}.{part}")
        configs.check_options(function, options, f"{where}.{part}", skip=GIVEN)
    make(silent, steps, schedule, where)


def asks(block: Mapping[str, Any], part: str) -> str | None:
    """The name of a block's solver or grid, if it asks the network."""
    kind = block.get(part)
    kind = kind.get("kind") if isinstance(kind, Mapping) else kind
    return kind if kind in ASKING else None


def make(
    block: Mapping[str, Any],
    steps: int,
    schedule: schedules.Schedule,
    where: str,
    model: Model | None = None,
    folder: pathlib.Path | None = None,
) -> solvers.Table:
    """The table of a block at a number of calls. One that asks needs `model`; it is kept in `folder`, and taken from there
    when the same block, steps and network (by its fingerprint) come again.
    """
    names = [name for part in ("solver", "grid") if (name := asks(block, part))]
    if not names:
        return _build(block, steps, schedule, where)[0]
    if model is None:
        raise ConfigError(f"{where}: {' and '.join(names)} must ask the network, and there is none here")
    made_for = {
        "block": json.loads(json.dumps(dict(block))), "steps": steps,
        "fingerprint": fitted.fingerprint(model.denoise, schedule, model.shape),
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(made_for, sort_keys=True).encode()).hexdigest()[:8]
    path = None if folder is None else folder / f"{'_'.join(names)}_{steps}_{digest}.npz"
    if path is not None and path.is_file():
        return solvers.load(path, **made_for)[0]
    print(f"{where}: {' and '.join(names)} asks the network about {steps} calls", flush=True)
    table, record = _build(block, steps, schedule, where, **model._asdict())
    if path is not None:
        solvers.save(path, table, record | made_for)
        print(f"{where}: kept as {path}", flush=True)
    return table


def _build(block, steps, schedule, where, **asked):
    """(table, record of the fit)."""
    given = {"schedule": schedule, "num_steps": steps, "nfe": steps, **asked}

    def part(name, default, choices):
        function, options = configs.chosen(block.get(name, default), choices, f"{where}.{name}")
        takes = inspect.signature(function).parameters
        return configs.call(function, options, f"{where}.{name}", **{k: v for k, v in given.items() if k in takes})

    if asks(block, "solver") not in ALONE:
        given["grid"] = part("grid", "uniform_time", GRIDS)
    table = part("solver", "ddim", SOLVERS)
    if isinstance(table, solvers.Table):
        return table, {}
    table, record = table
    start, fit = (record["errors"][which]["held_out"]["rmse"] for which in ("start", "fitted"))
    print(f"{where}: RMSE on held-out noises {fit:.4g} fitted, {start:.4g} before", flush=True)
    return table, record


def load(
    path: pathlib.Path, schedule: schedules.Schedule, model: Model, where: str
) -> tuple[solvers.Table, dict[str, Any]]:
    """A kept table and its record, refused for another network than it was made for."""
    try:
        return solvers.load(path, fingerprint=fitted.fingerprint(model.denoise, schedule, model.shape))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
