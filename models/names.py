"""Names in configs: one that is unknown is refused with the nearest that is known."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any


def hint(name: Any, known: Iterable[str]) -> str:
    """The end of an error's message."""
    return f"; did you mean {get_close_matches(str(name), list(known), n=1, cutoff=0.0)[0]!r}?"


def spelt_out(config: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The defaults, and what `config` has in their place. KeyError for a key that they have not; what: it is for."""
    for name in config:
        if name not in defaults:
            raise KeyError(f"unknown key {name!r} for {what}{hint(name, defaults)}")
    return {**defaults, **{name: config[name] for name in config}}
