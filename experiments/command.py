"""How every command ends: an exit status, and one line on stderr for whatever went wrong."""

import functools
import inspect
import sys
from collections.abc import Callable

from experiments.config import ConfigError
from experiments.data.source import Damaged
from experiments.loop import Stopped

Main = Callable[[list[str] | None], int]


def command(main: Main, about: str | None = None) -> Main:
    """`main`, which is given the arguments of a command, with what it raises told in one line: status 0 for a run that was
    asked to stop, 2 for a mistake of the user's, 3 for a non-finite loss, 4 for a refusal by the system, as of a full disk, or
    data that became unreadable, 130 for Ctrl-C. about: what `--help` prints, of a command that doesn't answer it itself.
    """

    @functools.wraps(main)
    def ended(argv: list[str] | None = None) -> int:
        if about is not None and {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
            print(inspect.cleandoc(about))
            return 0
        try:
            return main(argv)
        except ConfigError as error:
            return fail(str(error), 2)
        except FloatingPointError as error:
            return fail(str(error), 3)
        except OSError as error:
            return fail(system_line(error), 4)
        except Damaged as error:
            return fail(str(error), 4)
        except KeyboardInterrupt:
            return fail("interrupted", 130)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 0

    return ended


def fail(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def system_line(error: OSError) -> str:
    """What the system refused, and of which file; our own remarks as they are."""
    if error.strerror is None:
        return str(error)
    return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
