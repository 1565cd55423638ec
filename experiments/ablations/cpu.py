"""CPU time on one core: what two programs cost can be compared on a machine that does other things too."""

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Within it this process has one core, where the system lets it choose: JAX and PyTorch then start one thread each. JAX
    must not have looked at its devices before.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def in_turn(runs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median CPU seconds of each, all in turn, `rounds` times after one that doesn't count."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begun = time.process_time()
            run()
            found[name].append(time.process_time() - begun)
    return {name: statistics.median(seconds[1:]) for name, seconds in found.items()}
