"""Ablations by name: each is a function of (folder, only) that writes one page of results and its figures."""

import pathlib
from collections.abc import Callable, Sequence

from experiments.ablations import samplers

ABLATIONS: dict[str, Callable[[pathlib.Path, Sequence[str]], None]] = {"samplers": samplers.run}
