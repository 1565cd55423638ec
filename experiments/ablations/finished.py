"""Finished runs that a page reads, and the commands that make those which are missing."""

import pathlib
import shlex
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from experiments import config as configs
from experiments.config import ConfigError


class Wanted(NamedTuple):
    """A workdir, and the arguments of `experiments.run` that fill it."""

    workdir: pathlib.Path
    arguments: tuple[str, ...]


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
    wanted: Mapping[Key, Wanted], parse: Callable[[Key, pathlib.Path], Read]
) -> tuple[dict[Key, Read], list[Missing]]:
    """What `parse` makes of every workdir. One that it can't read, or that was run in another way than those before it, is
    missing: a page is made of what is there.
    """
    found, missing = {}, []
    known: dict[str, tuple[Key, Any]] = {}
    for key, one in wanted.items():
        try:
            run = parse(key, one.workdir)
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


def report_and_config(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both files that a finished workdir has; a ConfigError says which is missing."""
    if not workdir.is_dir():
        raise ConfigError("not run")
    for name in ("report.json", "config.json"):
        if not (workdir / name).is_file():
            raise ConfigError(f"not finished: it has no {name}")
    return configs.read_json(workdir / "report.json"), configs.read_json(workdir / "config.json")


def seconds(workdir: pathlib.Path, stage: str) -> float | None:
    """How long the stage ran; None where it isn't known."""
    path = workdir / stage / "done.json"
    return float(configs.read_json(path)["seconds"]) if path.is_file() else None


def commands(missing: Sequence[Missing]) -> str:
    """Markdown that lists missing runs, with the command that makes each."""
    if not missing:
        return ""
    lines = []
    for (workdir, arguments), reason in missing:
        command = ["python", "-m", "experiments.run", *arguments, f"--workdir={workdir}"]
        lines += [f"# {workdir}: {' '.join(reason.split())}", shlex.join(command)]
    return "\n".join(["Missing:", "", "```bash", *lines, "```"])
