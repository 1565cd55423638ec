"""`python -m experiments.ablate sweep --config=configs/ablations/X.py`: a config at every point of its sweep, as a table.

A sweep is a config with one more block:

    sweep.axes     name -> {path, values, labels}: where in the config an axis acts, and the values that it takes there. A value
                   that is a mapping is merged into what stands there; labels name the values where their text would not.
    sweep.points   which points: axis -> label, a list of them; an axis that a point leaves out has its first value. Without
                   it, all of the product.
    sweep.seeds    every point is run with each; the table then has means over them.
    sweep.columns  title -> {path, better, over}: what the table shows, from STAGE/report.json on; better "lower" or "higher",
                   over its seeds the "mean", or the "worst", where one that breaks down must not hide in a mean.
    sweep.about    a paragraph above the table.

Every point has a folder of its own in the workdir, filled as `experiments.run` fills it, so that a finished point is skipped
and a broken one goes on. `--index=i/n` runs every n-th point from the i-th (from 0): n hosts that share a workdir do each once.
"""

import copy
import itertools
import math
import pathlib
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from experiments import config as configs
from experiments import mesh as meshes
from experiments import run as runner
from experiments import stages, weights
from experiments.ablations import numbers, page
from experiments.ablations.numbers import Number
from experiments.config import ConfigError
from experiments.figures import write_atomically

KEYS = {"axes", "points", "seeds", "columns", "about"}
CHOICES = {"better": dict.fromkeys(("lower", "higher")), "over": dict.fromkeys(("mean", "worst"))}
"""Of a column, the first of each unless it says otherwise."""
FAILED = "failed.json"
USAGE = "python -m experiments.ablate sweep --config=FILE [--index=i/n] [--workdir=DIR] [--out=docs/results]"


class Run(NamedTuple):
    """A point of the sweep with one seed: its labels by axis, the folder of its run, its config."""

    labels: dict[str, str]
    folder: str
    config: dict[str, Any]


# Points ---------------------------------------------------------------------------------------------------------


def runs(config: Mapping[str, Any]) -> list[Run]:
    """Every run of a sweep, in the order of its points. A ConfigError names what is wrong with the block."""
    if "sweep" not in config:
        raise ConfigError("the config has no block 'sweep': run it with experiments.run")
    sweep = config["sweep"]
    configs.check_keys(sweep, KEYS, {"axes", "columns"}, "config.sweep")
    forms = {"axes": Mapping, "columns": Mapping, "about": str, "seeds": configs.LIST, "points": configs.LIST}
    configs.check_forms(sweep, forms, "config.sweep")
    configs.check_forms(sweep["axes"], dict.fromkeys(sweep["axes"], Mapping), "config.sweep.axes")
    configs.check_forms(sweep["columns"], dict.fromkeys(sweep["columns"], Mapping), "config.sweep.columns")
    for i, seed in enumerate(seeds := sweep.get("seeds", [config["seed"]])):
        configs.check_whole(f"config.sweep.seeds[{i}]", seed, 0, 2**32 - 1)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"config.sweep.seeds: expected at least one, and none twice, got {list(seeds)}")
    axes = {name: axis(name, block) for name, block in sweep["axes"].items()}
    for title, column in sweep["columns"].items():
        where = f"config.sweep.columns[{title!r}]"
        configs.check_keys(column, {"path", *CHOICES}, {"path"}, where)
        path = column["path"]
        if not isinstance(path, configs.LIST) or not path or not all(isinstance(part, str) for part in path):
            raise ConfigError(f"{where}.path: expected (a stage, keys of its report.json ...), got {path!r}")
        configs.choose(path[0], config["stages"], f"{where}.path: the stage")
        for key, known in CHOICES.items():
            configs.choose(column.get(key, next(iter(known))), known, f"{where}.{key}")
    plain = {k: v for k, v in config.items() if k != "sweep"}
    made = []
    for labels in points(sweep, axes):
        for seed in seeds:
            own = {**copy.deepcopy(plain), "seed": seed}
            for name, label in labels.items():
                put(own, sweep["axes"][name]["path"], axes[name][label], f"config.sweep.axes.{name}")
            words = [f"{name}={label}" for name, label in labels.items()] + [f"seed={seed}"]
            made.append(Run(labels, re.sub(r"[^\w=.+-]+", "-", "-".join(words)), own))
    if len({run.folder for run in made}) < len(made):
        raise ConfigError("config.sweep: two of its points have the same labels")
    return made


def axis(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    """label -> value"""
    where = f"config.sweep.axes.{name}"
    configs.check_keys(block, {"path", "values", "labels"}, {"path", "values"}, where)
    configs.check_forms(block, {"path": str, "values": configs.LIST, "labels": configs.LIST}, where)
    labels = [str(label) for label in block.get("labels", block["values"])]
    if len(labels) != len(block["values"]) or len({*labels}) < len(labels) or not labels:
        raise ConfigError(
            f"{where}: expected a label of its own for each of its {len(block['values'])} values, got {labels}"
        )
    return dict(zip(labels, block["values"], strict=True))


def points(sweep: Mapping[str, Any], axes: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """axis -> label of every point."""
    if "points" not in sweep:
        return [dict(zip(axes, labels, strict=True)) for labels in itertools.product(*axes.values())]
    first = {name: next(iter(values)) for name, values in axes.items()}
    made = []
    for index, given in enumerate(sweep["points"]):
        where = f"config.sweep.points[{index}]"
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}: expected labels by axis, got {given!r}")
        for name, label in given.items():
            configs.choose(str(label), configs.choose(name, axes, f"{where}: the axis"), f"{where}.{name}")
        made.append(first | {name: str(label) for name, label in given.items()})
    return made


def put(config: dict[str, Any], path: str, value: Any, where: str) -> None:
    """Sets config.PATH, or merges a mapping into it. All but the last key of the path must be there."""
    *parents, last = path.split(".")
    node: Any = config
    for depth, key in enumerate(parents):
        if not isinstance(node, dict) or key not in node:
            there = node if isinstance(node, dict) else {}
            raise ConfigError(
                f"{where}.path: {'.'.join(['config', *parents[:depth]])} has no key {key!r}; {configs.nearest(key, there)}"
            )
        node = node[key]
    if not isinstance(node, dict):
        raise ConfigError(f"{where}.path: {'.'.join(['config', *parents])} is a value, it has no key {last!r}")
    if isinstance(value, Mapping) and isinstance(node.get(last), dict):
        node[last] = {**node[last], **value}
    else:
        node[last] = value


def shard(everything: Sequence[Run], index: str) -> list[Run]:
    """Those of host i of n, for index "i/n": every run is some host's, and no other's."""
    found = re.fullmatch(r"(\d+)/(\d+)", index)
    if not found or not int(found[1]) < int(found[2]):
        raise ConfigError(f"--index is i/n with i from 0 to n - 1, as 0/4, got {index!r}")
    return list(everything)[int(found[1]) :: int(found[2])]


# Running --------------------------------------------------------------------------------------------------------


def sweep(config: Mapping[str, Any], workdir: pathlib.Path, index: str = "0/1", source: str = "config") -> None:
    """Runs this host's part of a sweep; all of its configs are checked first."""
    mine = shard(runs(config), index)
    contexts = [
        stages.Context(run.config, workdir / run.folder, meshes.make(run.config.get("mesh")), source) for run in mine
    ]
    for run, context in zip(mine, contexts, strict=True):
        try:
            stages.check(context)
        except ConfigError as error:
            raise ConfigError(f"point {run.folder}: {error}") from None
    for count, (run, context) in enumerate(zip(mine, contexts, strict=True), 1):
        print(f"== {count}/{len(mine)}: {run.folder}", flush=True)
        failed = context.workdir / FAILED
        if failed.exists():
            print(f"its loss was not finite, skipped; remove {failed} to try again", flush=True)
            continue
        try:
            with runner.exclusively(context.workdir):
                runner.run(context)
        except FloatingPointError as error:
            # A point of a sweep may be one that can't be trained: that is a result.
            configs.write_json(failed, {"error": str(error)})
            print(f"its loss is not finite: {error}", flush=True)
        jax.clear_caches()


# The table ------------------------------------------------------------------------------------------------------


def measured(folder: pathlib.Path, path: Sequence[str]) -> list[float] | None:
    """[value, low, high] at PATH of a run, whose first key is the stage; None where it isn't finished."""
    report = folder / path[0] / "report.json"
    if not report.is_file() or not (folder / path[0] / weights.DONE).is_file():
        return None
    node = configs.read_json(report)
    for key in path[1:]:
        if not isinstance(node, Mapping) or key not in node:
            known = ", ".join(node) if isinstance(node, Mapping) else "no further keys"
            raise ConfigError(f"{report} has no {'/'.join(path[1:])}: at {key!r} it has {known}")
        node = node[key]
    triple = [node.get(k) for k in ("value", "low", "high")] if isinstance(node, Mapping) else node
    if (
        not isinstance(triple, list)
        or len(triple) != 3
        or not all(isinstance(number, int | float) for number in triple)
    ):
        raise ConfigError(f"{report}: {'/'.join(path[1:])} is no measure (value, low, high), got {node!r:.80}")
    return [float(number) for number in triple]


def best(found: Sequence[Number | None], better: str) -> set[int]:
    """The rows that are best, or can't be told from the best: their intervals overlap with its own."""
    rows = {i: n for i, n in enumerate(found) if n is not None and math.isfinite(n.value)}
    if not rows:
        return set()
    first = (max if better == "higher" else min)(rows.values(), key=lambda n: n.value)
    return {i for i, n in rows.items() if n.low <= first.high and first.low <= n.high}


def table(config: Mapping[str, Any], workdir: pathlib.Path) -> str:
    """A row for each point, a column for each measure: means over seeds, the best of a column bold."""
    block = config["sweep"]
    by_point: dict[tuple[str, ...], list[Run]] = {}
    for run in runs(config):
        by_point.setdefault(tuple(run.labels.values()), []).append(run)
    rows: list[list[Any]] = [list(labels) for labels in by_point]
    for column in block["columns"].values():
        found = [over(workdir, own, column) for own in by_point.values()]
        bold = best(found, column.get("better", "lower"))
        for i, (row, number) in enumerate(zip(rows, found, strict=True)):
            text = None if number is None else str(number)
            row.append(f"**{text}**" if i in bold else text)
    for row, own in zip(rows, by_point.values(), strict=True):
        if lost := sum((workdir / run.folder / FAILED).exists() for run in own):
            row[-1] = f"{row[-1] or ''} not finite ({lost} of {len(own)})".strip()
    return page.table([*block["axes"], *block["columns"]], rows)


def over(workdir: pathlib.Path, own: Sequence[Run], column: Mapping[str, Any]) -> Number | None:
    """A column's measure over the runs of one point that are finished."""
    triples = [t for run in own if (t := measured(workdir / run.folder, column["path"])) is not None]
    if not triples:
        return None
    if column.get("over") == "worst":
        return numbers.over_seeds([(min if column.get("better") == "higher" else max)(triples)])
    return numbers.over_seeds(triples)


def write(
    config: Mapping[str, Any], source: str, workdir: pathlib.Path, out: pathlib.Path, overrides: Sequence[str] = ()
) -> pathlib.Path:
    """OUT/ablations_NAME.md from what is finished in the workdir. source: FILE[:ARGUMENT]; overrides: --config.KEY=VALUE."""
    block, everything = config["sweep"], runs(config)
    command = " ".join(["python -m experiments.ablate sweep", f"--config={source}", *map(shlex.quote, overrides)])
    folders = [workdir / run.folder for run in everything]
    waiting = [f for f in folders if not (f / FAILED).exists() and not finished(f, block)]
    count = len(block.get("seeds", [0]))
    spread = (
        f"the mean of {count} seeds with its 95 % t-interval"
        if count > 1
        else "of one seed, with its 95 % interval over clips"
    )
    if count > 1 and any(column.get("over") == "worst" for column in block["columns"].values()):
        spread += ", or that of the worst seed with its own"
    note = (
        f"A row is a point of the sweep, a number {spread}. Bold: the best of a column, and what can't be told from it."
    )
    parts = [
        f"# Ablation: {name_of(source)}",
        f"Made by\n\n```bash\n{command}\n```",
        *([textwrap.fill(" ".join(block["about"].split()), 125, break_on_hyphens=False)] if "about" in block else []),
        textwrap.fill(note, 125),
        table(config, workdir),
    ]
    if waiting:
        parts.append(f"Not run yet: {len(waiting)} of {len(folders)} runs; the command above goes on with them.")
    path = out / f"ablations_{name_of(source)}.md"
    write_atomically(path, ("\n\n".join(parts) + "\n").encode())
    return path


def name_of(source: str) -> str:
    """Of FILE[:ARGUMENT]: other arguments have pages and workdirs of their own."""
    file, _, argument = source.partition(":")
    return re.sub(r"[^\w.+-]+", "_", "_".join([pathlib.Path(file).stem, *([argument] if argument else [])]))


def finished(folder: pathlib.Path, block: Mapping[str, Any]) -> bool:
    return all((folder / column["path"][0] / weights.DONE).is_file() for column in block["columns"].values())


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status, as `experiments.ablate` does."""
    given = {"index": "0/1", "workdir": "", "out": "docs/results", "config": ""}
    rest = []
    for argument in arguments:
        key, equals, value = argument.removeprefix("--").partition("=")
        if key.startswith("config."):
            rest.append(argument)
            continue
        if not argument.startswith("--") or key not in given:
            raise ConfigError(f"there is no option {argument!r}; {configs.nearest(key, given)} (usage: {USAGE})")
        if not equals or not value:
            raise ConfigError(f"--{key} needs a value: --{key}=...")
        given[key] = value
    if not given["config"]:
        raise ConfigError(f"usage: {USAGE}")
    folder = given["workdir"] or f"runs/ablations/{name_of(given['config'])}"
    config, source, workdir, _, _ = runner.parse(
        ["ablate", f"--config={given['config']}", f"--workdir={folder}", *rest]
    )
    out = pathlib.Path(given["out"])
    configs.make_folder(out, "--out")
    sweep(config, workdir, given["index"], source)
    print(write(config, given["config"], workdir, out, rest), flush=True)
    return 0
