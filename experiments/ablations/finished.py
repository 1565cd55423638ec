"""Finished runs that a page reads, and the commands that make those which are missing."""

import json
import pathlib
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from experiments import config as configs
from experiments.config import ConfigError
from experiments.figures import write_atomically


class Wanted(NamedTuple):
    """A workdir, and the arguments of `experiments.run` that fill it."""

    workdir: pathlib.Path
    arguments: tuple[str, ...]


class Record(NamedTuple):
    """The files of a finished workdir, and the seconds that its stages took, and on which device, where that is known."""

    report: dict[str, Any]
    config: dict[str, Any]
    seconds: dict[str, float]
    devices: dict[str, str] = {}


class Missing(NamedTuple):
    """A run that can't be read, and why."""

    wanted: Wanted
    reason: str


class Run(Protocol):
    """What a page knows of a run. shared: what must be equal in all runs that stand in one table; parts: name -> what must
    be equal in all of them that have it.
    """

    @property
    def shared(self) -> dict[str, Any]: ...

    @property
    def parts(self) -> dict[str, Any]: ...


Key = TypeVar("Key", bound=Hashable)
Read = TypeVar("Read", bound=Run)


def gather(
    wanted: Mapping[Key, Wanted], parse: Callable[[Key, Record], Read], kept: Mapping[str, Record] | None = None
) -> tuple[dict[Key, Read], list[Missing]]:
    """What `parse` makes of every workdir, or of the record in `kept` under its name where it is no longer there. One that
    `parse` can't read, or that was run in another way than those before it, is missing: a page is made of what is there.
    """
    found, missing, kept = {}, [], kept or {}
    known: dict[str, tuple[Key, Any]] = {}
    for key, one in wanted.items():
        try:
            record = None if is_finished(one.workdir) else kept.get(one.workdir.name)
            run = parse(key, read(one.workdir) if record is None else record)
            parts = {"run": run.shared, **run.parts}
            for name, part in parts.items():
                first, other = known.get(name, (key, part))
                if differs := configs.differences(other, part, name):
                    more = f" and {len(differs) - 1} more" if len(differs) > 1 else ""
                    raise ConfigError(f"not run as {wanted[first].workdir} was: {differs[0]}{more}")
            known = {name: (key, part) for name, part in parts.items()} | known
            found[key] = run
        except ConfigError as error:
            missing.append(Missing(one, str(error)))
        # Whatever else stands in a file of that name.
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError) as error:
            missing.append(Missing(one, f"its report isn't one of these runs ({type(error).__name__}: {error})"))
    return found, missing


def collect(
    wanted: Mapping[Key, Wanted],
    parse: Callable[[Key, Record], Read],
    path: pathlib.Path,
    trim: Callable[[Record, Read], Record] = lambda record, _: record,
) -> tuple[dict[Key, Read], list[Missing]]:
    """As `gather`, with the records that `path` has; it then has those of the runs that are there, as `trim` leaves them."""
    found, missing = gather(wanted, parse, load(path))
    there = {key: wanted[key].workdir for key in found if is_finished(wanted[key].workdir)}
    keep(path, {workdir.name: trim(read(workdir), found[key]) for key, workdir in there.items()})
    return found, missing


FILES = ("report.json", "config.json")
"""What a finished workdir has."""


def is_finished(workdir: pathlib.Path) -> bool:
    return all((workdir / name).is_file() for name in FILES)


def read(workdir: pathlib.Path) -> Record:
    """The record of a finished workdir; a ConfigError says which file is missing."""
    if not workdir.is_dir():
        raise ConfigError("not run")
    for name in FILES:
        if not (workdir / name).is_file():
            raise ConfigError(f"not finished: it has no {name}")
    report, config = (configs.read_json(workdir / name) for name in FILES)
    done = {path.parent.name: configs.read_json(path) for path in workdir.glob("*/done.json")}
    seconds = {name: float(one["seconds"]) for name, one in done.items() if one["seconds"] is not None}
    return Record(report, config, seconds, {name: one["device"] for name, one in done.items() if "device" in one})


def load(path: pathlib.Path) -> dict[str, Record]:
    """The records that `keep` left there."""
    if not path.is_file():
        return {}
    return {name: Record(**record) for name, record in configs.read_json(path).items()}


def keep(path: pathlib.Path, records: Mapping[str, Record]) -> None:
    """Adds records, by the names of their workdirs, to those that are there: as JSON, a line for each."""
    if not records:
        return
    lines = [f"{json.dumps(name)}: {json.dumps(record._asdict())}" for name, record in (load(path) | records).items()]
    write_atomically(path, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def commands(missing: Sequence[Missing]) -> str:
    """Markdown that lists missing runs, with the command that makes each."""
    if not missing:
        return ""
    lines = []
    for (workdir, arguments), reason in missing:
        command = ["python", "-m", "experiments.run", *arguments, f"--workdir={workdir}"]
        lines += [f"# {workdir}: {' '.join(reason.split())}", shlex.join(command)]
    return "\n".join(["Missing:", "", "```bash", *lines, "```"])
