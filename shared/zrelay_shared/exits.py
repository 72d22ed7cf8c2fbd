"""Exit codes of the zrelay commands, and the exit code of each error."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zrelay_shared.errors import ZrelayError

OK = 0
BUG = 1
"""An unexpected error; the message explains how to report it."""
USAGE = 2
"""Wrong flags or arguments (click's own code)."""
REFUSED = 3
"""The request was refused: an invalid value, incompatible parts, a missing feature."""
UNREACHABLE = 4
"""A service cannot be reached, is loading, or was shut down."""
LOCAL_FILE = 5
"""A local file cannot be read or written, or a model folder cannot be loaded."""
BUSY = 6
"""A service is at its limit; try again later."""
TIMEOUT = 7
"""A time limit was exceeded."""
HUNG_UP = 129
"""SIGHUP: the terminal was closed."""
INTERRUPTED = 130
"""Ctrl-C."""
TERMINATED = 143
"""SIGTERM."""


def of_signal(number: int) -> int:
    """Returns the exit code of a process that a signal ended, as shells report it."""
    return 128 + number


def code_of(error: "ZrelayError") -> int:
    """Returns the exit code of a command that fails with this error."""
    from zrelay_shared import errors  # not needed by `zrelay --help`, which shows the codes above

    by_class = (
        (errors.CheckpointError, LOCAL_FILE),
        (errors.OutOfMemory, REFUSED),  # not BUSY: only a smaller request helps
        (errors.MessageTooLarge, REFUSED),
        (errors.Unavailable, UNREACHABLE),
        (errors.ResourceExhausted, BUSY),
        (errors.DeadlineExceeded, TIMEOUT),
        (errors.Cancelled, INTERRUPTED),
        (errors.InternalError, BUG),
    )
    return next((code for kind, code in by_class if isinstance(error, kind)), REFUSED)
