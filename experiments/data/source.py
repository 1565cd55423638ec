"""What a data source is, and the checks that every source shares."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from ml_collections import ConfigDict

SPLITS = ("train", "test")
Example = dict[str, np.ndarray | np.generic]


class Damaged(ValueError):
    """What can't be read though it was there when the run began, an example or a file of logs, or an example that isn't what
    its source says: the message names it."""


@runtime_checkable
class Source(Protocol):
    """Random access to clips: `source[i]` is `dict(video=uint8 [f, h, w, c], label=int32 [])`.

    `repr(source)` is stable between processes (it is part of a checkpoint's record). `num_classes` is 0 where
    the data has no labels; `label` is then 0, which is also the models' index of "no class".

    It may have `take(indices)`, the examples of many indices stacked, where that is faster than one by one, and
    `cut(index, frames, rows, columns)`, an example with these slices of its video, where that is faster than all of it.
    One with a `low_shape` gives `low` too, the clip of that shape which `video` is made from in a cascade.
    """

    shape: tuple[int, int, int, int]
    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def low_shape(source: Source) -> tuple[int, int, int, int] | None:
    """The shape of the clips `low` that a source gives beside its videos; None where it gives none."""
    return getattr(source, "low_shape", None)


def nearest(name: object, valid: Iterable[str]) -> str:
    """The end of an error message: the closest valid name if one is close, and the whole choice."""
    valid = sorted(valid)
    by_case = {one.lower(): one for one in valid}
    close = difflib.get_close_matches(str(name).lower(), by_case, n=1)
    return (f"did you mean {by_case[close[0]]!r}? " if close else "") + f"valid: {', '.join(valid)}"


def from_config(kind: type, config: ConfigDict | Mapping[str, Any], split: str) -> Any:
    """Makes the dataclass `kind` from a config whose keys are its fields (all but `split`, which is given).

    Raises KeyError for a key that is not a field and for a field without default that the config lacks, ValueError for what is
    no dataclass.
    """
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"config.data.kind {config['kind']!r}: expected a dataclass, got {kind!r}")
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init and field.name != "split"}
    options = {key: config[key] for key in config if key != "kind"}
    name = config["kind"]
    for key in options:
        if key not in fields:
            raise KeyError(f"config.data has no key {key!r} for kind {name!r}; {nearest(key, fields)}")
    for key, field in fields.items():
        if key not in options and field.default is field.default_factory is dataclasses.MISSING:
            raise KeyError(f"config.data lacks the key {key!r}, which kind {name!r} needs")
    return kind(**options, split=split)


def checked(source: Any) -> Source:
    """source, if it has what a source has and a first example that is what it says; ValueError if not."""
    needed = ("shape", "num_classes", "__len__", "__getitem__")
    if lacking := [name for name in needed if not hasattr(source, name)]:
        raise ValueError(f"{type(source).__name__} is no data source: it lacks {', '.join(lacking)}")
    if len(source.shape) != 4:
        raise ValueError(
            f"{type(source).__name__}.shape: expected (frames, height, width, channels), got {source.shape}"
        )
    if not len(source):
        raise ValueError(f"{source!r} has no clips")
    check_example(source[0], source, 0)
    return source


def check_split(split: str) -> None:
    """Raises ValueError for a split other than train and test."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; {nearest(split, SPLITS)}")


def check_whole(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer from `low` to `high` (no upper end if None)."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise ValueError(f"{name} must be at least {low}{upper}, got {value}")


def check_index(index: int, length: int) -> int:
    """`index` as a plain int; raises IndexError (which also ends a for loop) outside 0..length-1."""
    index = int(index)
    if not 0 <= index < length:
        raise IndexError(f"clip {index} of a source with {length} clips")
    return index


def check_example(example: Mapping[str, Any], source: Source, index: int | None = None) -> Mapping[str, Any]:
    """Returns `example` if it is `dict(video=uint8 source.shape, label=int32 [])`, the label a class or 0; a source that has
    `video_dtype` gives videos of that, one that has `low_shape` also `low`.

    Raises Damaged naming the source, what was expected and what came (the keys, the frame count, the
    shape, the dtype or the label), and the clip, where its `index` is given.
    """
    dtype = getattr(source, "video_dtype", np.uint8)
    wrong = _mismatch(example, tuple(source.shape), low_shape(source), max(source.num_classes, 1), dtype)
    if wrong:
        raise Damaged(f"{source!r}: {wrong}" + ("" if index is None else f" (clip {index})"))
    return example


def _mismatch(
    example: Mapping[str, Any], shape: tuple[int, ...], low: tuple[int, ...] | None, labels: int, dtype: Any
) -> str:
    """What was expected and what came, or '' if the example is as it should be."""
    keys = ("video", "label") if low is None else ("video", "label", "low")
    if not isinstance(example, Mapping):
        return f"expected a dict with {' and '.join(keys)}, got a {type(example).__name__}"
    if set(example) != set(keys):
        return f"expected the keys {' and '.join(keys)}, got {', '.join(sorted(example))}"
    if low is not None and (np.shape(example["low"]) != tuple(low) or np.asarray(example["low"]).dtype != dtype):
        got = np.asarray(example["low"])
        return f"expected low of shape {low}, {np.dtype(dtype)}, got {got.shape}, {got.dtype}"
    video, label = np.asarray(example["video"]), np.asarray(example["label"])
    if video.ndim == 4 and video.shape[0] != shape[0]:
        return f"expected clips of {shape[0]} frames, got one of {video.shape[0]} frames"
    if video.shape != shape:
        return f"expected a video of shape {shape}, got {video.shape}"
    if video.dtype != dtype:
        return f"expected a {np.dtype(dtype)} video, got {video.dtype}"
    if label.shape != () or label.dtype != np.int32:
        return f"expected a scalar int32 label, got {label.dtype} of shape {label.shape}"
    return "" if 0 <= label < labels else f"expected a label below {labels}, got {label}"
