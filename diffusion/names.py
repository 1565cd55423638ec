"""Things by name: one that is unknown is refused with all that there are, and the nearest of them."""

import difflib
from collections.abc import Mapping
from typing import Any


def choice(name: Any, choices: Mapping[str, Any], what: str, error: type[Exception] = ValueError) -> Any:
    """choices[name], or an error: a KeyError where the choices are a registry."""
    if name not in choices:
        near = difflib.get_close_matches(str(name), choices, 1, 0)[0]
        raise error(f"{what} {name!r} is not known: expected one of {', '.join(choices)}; nearest: {near!r}")
    return choices[name]
