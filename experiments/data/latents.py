"""Clips in the latent space of an autoencoder, written once and read as any other source.

A folder holds `train.array_record`, `test.array_record` or both, and `latents.json`, which says what they are: their shape and
classes, the autoencoder with a fingerprint of its weights, and the config of the clips of pixels that they stand for.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from experiments.data import source as source_lib

INDEX = "latents.json"
LABEL = np.dtype("<i4")
NUMBER = np.dtype("<f4")


@dataclasses.dataclass(frozen=True, repr=False)
class Latents:
    """The source: float32 latents of unit variance (no bytes, no [-1, 1]) of the folder `path`; `index` is its latents.json.

    Raises ValueError for a folder without latents of the split, or with other ones than it says, and for another split than
    train and test.
    """

    path: str
    split: str = "train"
    video_dtype = np.float32

    def __post_init__(self):
        source_lib.check_split(self.split)
        if self.split not in self.index["clips"]:
            raise ValueError(
                f"{self.path} has no latents of the split {self.split!r}: it has {list(self.index['clips'])}"
            )
        # Only the end of the file is read, where the number of its records stands.
        if len(self._records) != len(self):
            raise ValueError(f"{self._file}: expected {len(self)} latents, got {len(self._records)}; encode them again")

    @functools.cached_property
    def index(self) -> dict[str, Any]:
        return read_index(self.path)

    @property
    def _file(self) -> pathlib.Path:
        return pathlib.Path(self.path) / f"{self.split}.array_record"

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        try:
            return ArrayRecordDataSource([str(self._file)])
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(
                f"{self._file}: expected {len(self)} latents, got a missing or damaged file ({error}); encode them again"
            ) from error

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return tuple(self.index["shape"])

    @property
    def num_classes(self) -> int:
        return self.index["num_classes"]

    def __repr__(self) -> str:
        # What was encoded and how, not where it lies: a run may be continued with a copy.
        return f"Latents({json.dumps(self.index, sort_keys=True)}, split={self.split!r})"

    def __len__(self) -> int:
        return self.index["clips"][self.split]

    def __getitem__(self, index: int) -> source_lib.Example:
        place = source_lib.check_index(index, len(self))
        # The library raises what it likes for a record whose bytes are others than were written.
        try:
            record = self._records[place]
            label = np.frombuffer(record, LABEL, 1)[0]
            video = np.frombuffer(record, NUMBER, offset=LABEL.itemsize).reshape(self.shape)
        except Exception as error:  # noqa: BLE001
            raise source_lib.Damaged(f"{self._file}: latent {place} is damaged ({error}); encode them again") from error
        return dict(video=video, label=np.int32(label))


def is_whole(file: pathlib.Path, count: int) -> bool:
    """Whether a file has that many records and an end that tells of them, as a file that was cut off has not."""
    try:
        return len(ArrayRecordDataSource([str(file)])) == count
    except (RuntimeError, ValueError, OSError):
        return False


WRITTEN = {"shape": list, "num_classes": int, "clips": dict, "data": dict}


def read_index(path: str) -> dict[str, Any]:
    """What the latents in a folder are; ValueError where there are none, or where it isn't said."""
    file = pathlib.Path(path) / INDEX
    if not file.is_file():
        raise ValueError(f"no latents in {path}: a stage of kind 'encode' leaves them in its folder")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not readable JSON ({error}); encode them again") from None
    for key, kind in WRITTEN.items():
        if not isinstance(index, dict) or not isinstance(index.get(key), kind):
            got = index.get(key, "nothing") if isinstance(index, dict) else index
            raise ValueError(
                f"{file} is damaged: expected {key}, a {kind.__name__}, got {got!r:.80}; encode them again"
            )
    numbers = [*index["shape"], index["num_classes"], *index["clips"].values()]
    if len(index["shape"]) != 4 or not all(type(n) is int and n >= 0 for n in numbers) or 0 in index["shape"]:
        raise ValueError(f"{file} is damaged: shape, num_classes and clips are {numbers!r:.80}; encode them again")
    return index


def write(path: pathlib.Path, examples: Iterable[Mapping[str, np.ndarray]]) -> int:
    """Writes examples dict(video=float32 clip, label=integer) to one file, beside and renamed; how many there were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, count = path.with_name(path.name + ".writing"), 0
    # One record a group: clips are read one by one, in any order.
    writer = ArrayRecordWriter(str(beside), "group_size:1")
    for example in examples:
        count += 1
        label = np.asarray(example["label"], LABEL)
        writer.write(label.tobytes() + np.ascontiguousarray(example["video"], NUMBER).tobytes())
    writer.close()
    beside.replace(path)
    return count
