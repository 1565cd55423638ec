"""Finished weights: one safetensors file that carries the record of what it holds.

A finished stage, a shipped teacher and a metric network are the same kind of file, so a teacher may be another stage's
result, `pretrained:NAME` or a path. The record says what a later stage must know: the model's config, prediction, schedule,
shape, labels, EMA or raw, number of steps, and where the weights came from.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from experiments.config import ConfigError, nearest

DONE = "done.json"
"""Of a stage that has ended, with what it took."""

PRETRAINED = pathlib.Path(__file__).resolve().parent.parent / "pretrained"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """A nested dict of arrays as {'a/b/c': array}."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}/") if isinstance(value, Mapping) else {name: np.asarray(value)}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict that `flatten` made flat; ValueError where a name is both an array and a folder of some."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r} lies below an array")
        if leaf in node:
            raise ValueError(f"{name!r} is an array and holds some")
        node[leaf] = value
    return tree


def save(path: pathlib.Path, params: Mapping[str, Any], record: Mapping[str, Any], *, half: bool = False) -> None:
    """Writes weights and record in one file, beside and renamed. half: in float16, which halves what travels with a clone;
    they come back as float32.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".writing")
    arrays = {k: np.asarray(v, order="C") for k, v in flatten(jax.device_get(params)).items()}
    if half:
        arrays = {k: v.astype(np.float16) if v.dtype == np.float32 else v for k, v in arrays.items()}
    # safetensors' own files are for their maker alone; of a shared folder others read, as what else is written there.
    beside.unlink(missing_ok=True)
    beside.touch()
    mode = beside.stat().st_mode
    try:
        save_file(arrays, beside, metadata={"record": json.dumps(record)})
    except SafetensorError as error:  # a full disk, say
        raise OSError(f"can't write {path} ({error})") from error
    beside.chmod(mode)
    beside.replace(path)


def load(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(params, record). ConfigError with one line for a missing or damaged file."""
    if not path.is_file():
        raise ConfigError(f"no weights at {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            record = json.loads((file.metadata() or {})["record"])
            if not isinstance(record, dict):
                raise ValueError(f"its record is {type(record).__name__}, no object")
            params = unflatten({name: whole(file.get_tensor(name)) for name in file.keys()})  # noqa: SIM118 (not a dict)
    # The last two: nesting without end, and a kind of number that NumPy has no word for.
    except (SafetensorError, KeyError, ValueError, OSError, RecursionError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged or was not written by this program ({error}); remove it or restore it"
        ) from None
    return params, record


def whole(array: np.ndarray) -> np.ndarray:
    """float16 is how weights are stored, not what is computed in."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def fingerprint(path: pathlib.Path) -> str:
    """A short text that only these weights have, record and all: a digest of the file. ConfigError where there is none."""
    if not path.is_file():
        raise ConfigError(f"no weights at {path}")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def is_file(reference: str) -> bool:
    """Whether a reference names a file that there is already, and no stage of the run."""
    return reference.startswith("pretrained:") or reference.endswith(".safetensors")


def find(reference: str, workdir: pathlib.Path) -> pathlib.Path:
    """The file that a reference names: `pretrained:NAME`, `STAGE`, `STAGE@STEPS` (of a round), `STAGE@best` or a path."""
    if reference.startswith("pretrained:"):
        name = reference.removeprefix("pretrained:")
        path = (PRETRAINED / f"{name}.safetensors").resolve()
        if not path.is_relative_to(PRETRAINED) or not path.is_file():
            known = [p.relative_to(PRETRAINED).with_suffix("").as_posix() for p in PRETRAINED.rglob("*.safetensors")]
            raise ConfigError(f"no pretrained weights {name!r}; {nearest(name, known)}")
        return path
    if reference.endswith(".safetensors"):
        if not pathlib.Path(reference).is_file():
            raise ConfigError(f"no weights at {reference}")
        return pathlib.Path(reference)
    if not all(part.isidentifier() or part.isdecimal() for part in reference.split("@", 1)):
        raise ConfigError(f"{reference!r} is no STAGE, STAGE@STEPS, pretrained:NAME or path to a .safetensors file")
    stage, _, part = reference.partition("@")
    path = result_path(workdir, stage, part or None)
    # The best yet is there before the stage has ended.
    needed = [path, *([result_path(workdir, stage)] if part == "best" else [])]
    if lacking := [one for one in needed if not one.is_file()]:
        raise ConfigError(
            f"{reference!r} is missing or unfinished: there is no {lacking[0]}; {remedy(workdir, reference)}"
        )
    return path


def remedy(workdir: pathlib.Path, reference: str) -> str:
    """What to do about a stage's weights that aren't there."""
    stage, _, part = reference.partition("@")
    if not workdir.is_dir():
        return f"there is no folder {workdir}"
    if not (workdir / stage / DONE).is_file():
        return "run that stage first"
    if part:
        there = sorted(path.stem.replace("weights", stage) for path in (workdir / stage).glob("weights*.safetensors"))
        return nearest(reference, there) if there else "that stage leaves none"
    return f"that stage is marked as done: restore them, or remove {workdir / stage} and what was made of it, and run it again"


def result_path(workdir: pathlib.Path, stage: str, steps: str | int | None = None) -> pathlib.Path:
    """Where a stage leaves its weights; a stage with rounds leaves one file for each number of steps."""
    return workdir / stage / ("weights.safetensors" if steps is None else f"weights@{steps}.safetensors")


def check_fits(record: Mapping[str, Any], expected: Mapping[str, Any], what: str) -> None:
    """Refuses a wrong pair from the record: model, prediction, schedule or shape of another kind."""
    for key, value in expected.items():
        if key not in record or record[key] == value:
            continue
        own = record[key]
        if isinstance(own, Mapping) and isinstance(value, Mapping) and own.get("kind") == value.get("kind"):
            # Of two networks of a kind what they differ in, not all that they are.
            inner = next(name for name in {**own, **value} if own.get(name) != value.get(name))
            key, own, value = f"{key}.{inner}", own.get(inner), value.get(inner)
        raise ConfigError(f"{what} does not fit: its {key} is {own!r}, this stage needs {value!r}")
