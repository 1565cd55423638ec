"""`python -m experiments.run --config=configs/X.py --workdir=DIR`: runs a config's stages in order.

A finished stage is skipped, a broken one goes on from its last checkpoint. `--stage=NAME` runs one stage,
`--config.a.b=VALUE` overrides a key. The workdir belongs to one config: a stage that has begun with other settings is refused.
Several processes are given the same command with `--processes=auto` (or HOST:PORT,COUNT,INDEX each) and share the workdir.
"""

import contextlib
import fcntl
import functools
import logging
import pathlib
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
from absl import flags
from ml_collections import config_flags

from experiments import config as configs
from experiments import mesh as meshes
from experiments import report, stages, weights
from experiments.command import command
from experiments.config import ConfigError
from experiments.loop import Stopped, duration, stop_signal


@functools.partial(command, about=__doc__)
def main(argv: list[str] | None = None) -> int:
    """Returns the exit status, as `command` says: 0 also of a run that was stopped, and saved."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("experiments").setLevel(logging.INFO)
    config, source, workdir, stage, processes = parse(argv if argv is not None else sys.argv)
    if processes is not None:
        join(processes)
    if "sweep" in config:
        raise ConfigError(f"this config is a sweep: python -m experiments.ablate sweep --config={source}")
    context = stages.Context(config, workdir, meshes.make(config.get("mesh")), source)
    with exclusively(workdir), stop_signal(at_once=True) as stopping:
        run(context, stage, stopping)
    return 0


def join(processes: str) -> None:
    """Makes this process one of several, before JAX starts: "auto" asks the cluster (TPU, Slurm, ...), "HOST:PORT,COUNT,INDEX"
    tells where process 0 listens, how many there are and which this is.
    """
    if processes == "auto":
        jax.distributed.initialize()
        return
    address, *numbers = processes.split(",")
    if (
        ":" not in address
        or len(numbers) != 2
        or not all(n.isdecimal() for n in numbers)
        or int(numbers[1]) >= int(numbers[0])
    ):
        raise ConfigError(
            f"--processes is 'auto' or HOST:PORT,COUNT,INDEX, the index below the count, got {processes!r}"
        )
    jax.distributed.initialize(address, num_processes=int(numbers[0]), process_id=int(numbers[1]))


def parse(argv: list[str]) -> tuple[dict[str, Any], str, pathlib.Path, str | None, str | None]:
    """(config as a plain dict, its name, workdir, stage, processes) from the command line."""
    argv = joined(argv)
    given = [a for a in argv[1:] if a.startswith("--config=")]
    name = given[-1].removeprefix("--config=") if given else None
    if name is not None and not pathlib.Path(name.split(":")[0]).is_file():
        raise ConfigError(f"no config file {name.split(':')[0]}")
    try:
        # First without overrides: a key that isn't there is then named with the nearest one that is.
        alone, _ = read_flags([argv[0], *given])
        if alone["config"].value is not None:
            check_overrides(configs.plain(alone["config"].value), argv[1:])
        found, rest = read_flags(argv)
        config = found["config"].value
    except Exception as error:  # a config file is a program of the user's, which may raise anything
        raise ConfigError(_readable(error, name)) from error
    if config is None or not found["workdir"].value:
        raise ConfigError(
            "usage: python -m experiments.run --config=configs/X.py --workdir=DIR [--stage=NAME] [--config.a.b=VALUE]"
        )
    if rest:
        raise ConfigError(
            f"arguments not understood: {' '.join(rest)} (flags are --config, --workdir, --stage, --processes)"
        )
    workdir, stage, processes = (found[flag].value for flag in ("workdir", "stage", "processes"))
    return configs.plain(config), name or "config", pathlib.Path(workdir).resolve(), stage, processes


def own_options(argv: list[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(the values of a program's own options, what is left of the arguments): `--name=value`, or `--name value`."""
    argv = joined(argv, names)
    own = {name: [a for a in argv[1:] if a.startswith(f"--{name}=")] for name in names}
    values = {name: given[-1].partition("=")[2] for name, given in own.items() if given}
    return values, [a for a in argv if not any(a in given for given in own.values())]


def joined(argv: list[str], names: Sequence[str] = ()) -> list[str]:
    """The arguments with every `--flag value` of ours, or of `names`, as `--flag=value`."""
    flags = [f"--{name}" for name in ("config", "workdir", "stage", "processes", *names)]
    found: list[str] = []
    for argument in argv:
        last = found[-1] if len(found) > 1 else ""
        ours = last.startswith("--config.") or last in flags
        if ours and "=" not in last and not argument.startswith("--"):
            found[-1] = f"{last}={argument}"
        else:
            found.append(argument)
    return found


def read_flags(argv: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags of a command line, and what is left of it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a config file", flag_values=values, lock_config=True)
    flags.DEFINE_string("workdir", None, "where results and checkpoints go", flag_values=values)
    flags.DEFINE_string("stage", None, "run this stage only", flag_values=values)
    flags.DEFINE_string("processes", None, "auto, or HOST:PORT,COUNT,INDEX", flag_values=values)
    # config_flags looks for overrides in sys.argv, whatever it is asked to parse.
    with mock.patch.object(sys, "argv", argv):
        return values, values(argv)[1:]


def check_overrides(config: Mapping[str, Any], arguments: list[str]) -> None:
    """Every --config.a.b must name a key that the config has (an optional key is first written into the file)."""
    for argument in arguments:
        if not argument.startswith("--config."):
            continue
        path, node = argument.removeprefix("--config.").split("=", 1)[0].split("."), config
        for depth, key in enumerate(path):
            where = ".".join(["config", *path[:depth]])
            if not isinstance(node, Mapping):
                raise ConfigError(f"{where} is a value, it has no key {key!r}")
            if key not in node:
                raise ConfigError(
                    f"{where} has no key {key!r}; {configs.nearest(key, node)} (a key that is left to its default is"
                    " changed in the file)"
                )
            node = node[key]


def _readable(error: Exception, name: str | None) -> str:
    """What a config file, or reading it, raised. ml_collections prints the whole config into its message; the hint at its end
    is what helps.
    """
    path = pathlib.Path((name or "").split(":")[0]).resolve()
    own = [one for one in traceback.extract_tb(error.__traceback__) if pathlib.Path(one.filename).resolve() == path]
    place = f"{own[-1].filename}, line {own[-1].lineno}: {type(error).__name__}: " if own else ""
    lines = [line.strip() for line in configs.said(error).splitlines() if line.strip()]
    if lines and "Error whilst parsing config file" in lines[0] and len(lines) > 1:
        # A traceback follows, which ends with what the file itself raised, and before that names the place.
        places = [m for line in lines if (m := re.match(r'File "(.+)", line (\d+)', line))]
        place = next(
            (m for m in reversed(places) if pathlib.Path(m[1]).resolve() == path), places[-1] if places else None
        )
        # A message of several lines begins with its kind.
        kinds = [i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exception|Interrupt|Exit)\b", line)]
        return (f"{place[1]}, line {place[2]}: " if place else "") + " ".join(lines[kinds[-1] if kinds else -1 :])
    hint = [line for line in lines if line.startswith("Did you mean")]
    head = lines[0].split(". Other fields present")[0] if lines else type(error).__name__
    return place + (f"{head}. {hint[-1]}" if hint else head)


def run(context: stages.Context, only: str | None = None, stopping: Callable[[], bool] = lambda: False) -> None:
    """Checks the whole config and the workdir first; then the stages. stopping: whether SIGTERM came and was passed over (an
    exception that it raises is lost in a destructor, say).
    """
    plan = context.config["stages"] if "stages" in context.config else {}
    stages.check(context)
    if only is not None:
        configs.choose(only, plan, "--stage")
    check_workdir(context, [name for name in plan if only in (None, name)])
    if meshes.leads():
        configs.write_json(context.workdir / "config.json", context.config)
    for name, block in plan.items():
        if only is not None and name != only:
            continue
        folder = context.workdir / name
        if (folder / weights.DONE).exists():
            configs.read_json(folder / weights.DONE)  # a damaged one says nothing
            print(f"{name}: already done, skipped", flush=True)
            continue
        if stopping():
            raise Stopped(f"stopped before {name}; run the same command to go on")
        begun, resumed = time.monotonic(), (folder / "config.json").exists()
        if meshes.leads():
            configs.write_json(folder / "config.json", stage_config(context.config, name))
        meshes.meet(f"{name} begins")
        if meshes.leads() or block["kind"] in stages.TRAINED:
            try:
                figures = stages.KINDS[block["kind"]](context, name, block) or {}
            except ConfigError:
                if meshes.leads():
                    forget(folder)
                raise
            if meshes.leads():
                # Of a stage that went on after a stop nobody knows what it took in all.
                seconds = None if resumed else round(time.monotonic() - begun, 1)
                device = jax.devices()[0].device_kind
                configs.write_json(folder / weights.DONE, {"seconds": seconds, "device": device, **figures})
                print(f"{name}: done in {duration(time.monotonic() - begun)}", flush=True)
                report.attempt(context.workdir)
        meshes.meet(f"{name} is done")


def forget(folder: pathlib.Path) -> None:
    """Takes back that a stage has begun, if it has left no result: refused at its start, it must not stand in the way of the
    config that mends it. TensorBoard's file is there before the first step, and alone is no result either.
    """
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent != folder / "tensorboard")
    if {path.name for path in files} <= {"config.json", "parameters.txt"}:
        shutil.rmtree(folder)


def stage_config(config: dict[str, Any], name: str) -> dict[str, Any]:
    """What a stage's result depends on: its own block and all that stages share, but for the devices it runs on."""
    return {k: v for k, v in config.items() if k not in ("stages", "mesh")} | {"stage": config["stages"][name]}


def check_workdir(context: stages.Context, asked: Iterable[str]) -> None:
    """Refuses a workdir in which a stage was begun with other settings, or from what a stage before it had left whose folder
    is gone. Nothing is written or removed. asked: the stages to run.
    """
    plan = context.config["stages"]
    begun = [name for name in plan if (context.workdir / name / "config.json").exists()]
    for name in asked:
        for later in begun if not (context.workdir / name).exists() else ():
            if name in stages.made_from(plan[later], context.config):
                raise ConfigError(
                    f"workdir {context.workdir} holds stage {later!r}, which was made from a stage {name!r} that is no longer"
                    f" there. Remove the folder of {later!r}, too, or choose another --workdir"
                )
    for name in plan:
        path = context.workdir / name / "config.json"
        if not path.exists():
            continue
        found = configs.differences(configs.read_json(path), stage_config(context.config, name))
        if found:
            raise ConfigError(
                f"workdir {context.workdir} holds stage {name!r} of another config: {'; '.join(found[:3])}"
                + (f" and {len(found) - 3} more" if len(found) > 3 else "")
                + ". Choose another --workdir, or remove that stage's folder and those of the stages that were made from it"
            )


@contextlib.contextmanager
def exclusively(workdir: pathlib.Path) -> Iterator[None]:
    """Holds the workdir: a second run in it would write over the first one's files. Of several processes the first does."""
    if not meshes.leads():
        yield
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / ".lock", "w")  # noqa: SIM115 (held as long as the run)
    except OSError as error:
        raise ConfigError(f"can't write to workdir {workdir}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another run is working in {workdir}") from None
        yield


if __name__ == "__main__":
    jax.config.update("jax_threefry_partitionable", True)
    sys.exit(main())
