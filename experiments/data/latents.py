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
        except RuntimeError as error:
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
        record = self._records[source_lib.check_index(index, len(self))]
        label = np.frombuffer(record, LABEL, 1)[0]
        return dict(
            video=np.frombuffer(record, NUMBER, offset=LABEL.itemsize).reshape(self.shape), label=np.int32(label)
        )


def read_index(path: str) -> dict[str, Any]:
    """What the latents in a folder are; ValueError where there are none."""
    file = pathlib.Path(path) / INDEX
    if not file.is_file():
        raise ValueError(f"no latents in {path}: a stage of kind 'encode' leaves them in its folder")
    return json.loads(file.read_text(encoding="utf-8"))


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
