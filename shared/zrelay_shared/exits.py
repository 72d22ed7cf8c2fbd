"""Exit codes of every zrelay command, and which refusal ends in which."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zrelay_shared.errors import ZrelayError

OK = 0
BUG = 1
"""Something that should not happen; the message says where to look."""
USAGE = 2
"""Wrong flags or arguments (click's own code)."""
REFUSED = 3
"""The request cannot be served as it stands: a bad value, parts that do not fit, a feature that is missing."""
UNREACHABLE = 4
"""A service cannot be reached, is still loading, or went away."""
LOCAL_FILE = 5
"""A local file cannot be read or written, or a model folder cannot be loaded."""
BUSY = 6
"""A service is at its limit; try again later."""
TIMEOUT = 7
"""The time was up."""
INTERRUPTED = 130
"""Ctrl-C."""


def code_of(error: "ZrelayError") -> int:
    """The exit code of a command that ends in this refusal."""
    from zrelay_shared import errors  # `zrelay --help` shows the codes above and needs no more

    by_class = (
        (errors.CheckpointError, LOCAL_FILE),
        (errors.OutOfMemory, REFUSED),  # waiting does not help: a smaller request does
        (errors.MessageTooLarge, REFUSED),
        (errors.Unavailable, UNREACHABLE),
        (errors.ResourceExhausted, BUSY),
        (errors.DeadlineExceeded, TIMEOUT),
        (errors.Cancelled, INTERRUPTED),
        (errors.InternalError, BUG),
    )
    return next((code for kind, code in by_class if isinstance(error, kind)), REFUSED)
