"""Batches by the global-index rule: what a step reads does not depend on the number of hosts."""

import functools
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from experiments.data.source import Damaged, Source, check_example, check_whole


def read(source: Source, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The clips of these indices, stacked: all at once where the source has `take`, else one by one.

    Raises Damaged for one that isn't what the source says.
    """
    if hasattr(source, "take"):
        batch = source.take(indices)
        for name, rows in batch.items():
            if np.shape(rows)[:1] != (len(indices),):
                raise Damaged(
                    f"{source!r}: expected {len(indices)} clips at once, got {name} of shape {np.shape(rows)}"
                )

        def check(row: int) -> None:
            check_example({name: rows[row] for name, rows in batch.items()}, source, indices[row])

        check(0)
        # The rows of an array share their shape and dtype: of the others only a label can be wrong, the least or the greatest.
        check(int(np.argmin(batch["label"])))
        check(int(np.argmax(batch["label"])))
        return batch
    examples = [check_example(source[i], source, i) for i in indices]
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


class Batches:
    """An endless iterator of this process's part of every global batch.

    The source is shuffled and repeated, each epoch in an order of its own, into one endless index map. Global
    batch s is its indices [s B, (s + 1) B), which may cross an epoch; process p of P reads the rows
    [p B/P, (p + 1) B/P) of it. So the parts of all processes, one after another, are the batch that a single
    process would read, and a run may be continued on another number of processes.

    An element is `dict(video=uint8 [B/P, f, h, w, c], label=int32 [B/P])`.

    Args:
        source: what to read.
        batch_size: the global batch size B.
        seed: of the order, 0 to 2**32 - 1.
        process_index, process_count: p and P, as `jax.process_index()` and `jax.process_count()` tell.
        shuffle: False reads in the source's order.
        threads, prefetch: how many threads keep how many batches ready; 0 reads in the caller's thread.

    Raises ValueError for a batch that P does not divide or that is longer than the source, and, when read,
    Damaged for an example that isn't what the source says.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seed: int = 0,
        process_index: int = 0,
        process_count: int = 1,
        *,
        shuffle: bool = True,
        threads: int = 1,
        prefetch: int = 2,
    ):
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0, 2**32 - 1)
        check_whole("process_count", process_count, 1)
        check_whole("process_index", process_index, 0, process_count - 1)
        check_whole("threads", threads, 0)
        check_whole("prefetch", prefetch, 0)
        if batch_size % process_count:
            raise ValueError(f"batch_size {batch_size} is not divisible by process_count {process_count}")
        if len(source) < batch_size:
            raise ValueError(f"{source!r} has {len(source)} clips, fewer than one batch of {batch_size}")
        self.source = source
        self.batch_size = batch_size
        order = dict(seed=int(seed), batch_size=int(batch_size), shuffle=bool(shuffle))
        self._identity = dict(order, source=repr(source))
        indices = grain.MapDataset.range(len(source)).seed(int(seed))
        if shuffle:
            indices = indices.shuffle()
        # Parts of B/P rows in a row: global batch s is the parts s P .. s P + P - 1.
        # Repeated to 2^62 and not without end: grain counts the parts in floats, where 2^63 - 1 of one row are 2^63, too many.
        rows = indices.repeat(2**62 // len(source)).batch(batch_size // process_count)
        parts = rows.map(functools.partial(read, source))
        self._dataset = parts[process_index::process_count]
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
        self._iterator = iter(self._dataset.to_iter_dataset(options))

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """This process's part of global batch `step`; the position stays where it is."""
        check_whole("step", step, 0)
        batch: Any = self._dataset[int(step)]
        return batch

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position, as a small dict for JSON: the step to be read next and what it is a step of.

        It is the same on every process.
        """
        return dict(step=self._iterator.get_state()["next_index"], **self._identity)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to `state['step']`: the next batch is the one that was next when the state was taken.

        Raises ValueError if the state is of another seed, batch size, order or source: a step of theirs is
        another batch. KeyError if it has no step.
        """
        if "step" not in state:
            raise KeyError(f"a data state needs the key step, got {', '.join(sorted(state)) or 'nothing'}")
        check_whole("step", state["step"], 0)
        for key, value in self._identity.items():
            if state.get(key, value) != value:
                raise ValueError(f"the data state is of {key} {state[key]!r}, this run has {key} {value!r}")
        self._iterator.set_state(dict(next_index=int(state["step"])))
