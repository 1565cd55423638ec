"""Names of what stands outside the project: "package.module:function", wherever a registered function's name is accepted.

This is how Fewstep is extended: a config names a function of yours, and nothing here is changed. docs/extending.md shows it.
"""

import difflib
import importlib
from typing import Any


def is_outside(name: Any) -> bool:
    """Whether a name says where it is to be imported from; no registered name has a colon."""
    return isinstance(name, str) and ":" in name


def imported(name: str, what: str) -> Any:
    """The function or class that "package.module:function" names. `what` stands at the head of the errors.

    Raises ValueError where the name has another form, there is no such module (it is looked for where Python looks: the current
    folder, PYTHONPATH, what is installed), or the module has nothing of that name that can be called. An error inside of the
    module is its own.
    """
    module, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), attribute)):
        raise ValueError(f"{what} {name!r}: what is outside is named as 'package.module:function'")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{what} {name!r}: there is no module {error.name!r} in the current folder, in PYTHONPATH or installed"
        ) from None
    if not callable(getattr(found, attribute, None)):
        # What it imported itself is hardly meant, unless it is all there is.
        own = [k for k, v in vars(found).items() if callable(v) and getattr(v, "__module__", None) == module]
        near = difflib.get_close_matches(attribute, own, 1)
        raise ValueError(
            f"{what} {name!r}: module {module!r} has no function {attribute!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"it has: {', '.join(own) or 'none'}"
        )
    return getattr(found, attribute)
