"""What the disk refuses, as callers and the operator hear of it; and that it is well again."""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

from zrelay_shared.errors import Unavailable

log = logging.getLogger(__name__)
_OURS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.NotSupportedError)
"""Of SQLite's errors those that a disk does not make: bugs."""
_RETRY_S = 30.0
_REMEDY = "look at the disk of the state folder; when it is well, this generator goes on by itself"
_REMEDY_DAMAGED = (
    "start this generator again: the damaged database is put aside then, and what can be read of it goes on"
)


class Disk:
    """Where the state folder's disk stands. Each trouble is told in the log once, and its end.

    Attributes: `trouble` what is wrong and what to do, for the operator, "" while all is well; `damaged` whether the
    database cannot be read as it was written.
    """

    def __init__(self) -> None:
        self.trouble = ""
        self.damaged = False

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Around what the disk may refuse. Raises Unavailable (STATE_UNWRITABLE) in place of its errors."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, _OURS):
                raise
            self._note(error)
            raise refusal() from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Around the reading of one file: that it cannot be read says nothing of the disk, what is written there does.
        Raises Unavailable (STATE_UNWRITABLE) in place of OSError."""
        try:
            yield
        except OSError as error:
            log.warning("a file of the state folder cannot be read: %s", error)
            raise refusal() from error

    def recovered(self) -> None:
        """What was refused works again."""
        if self.trouble:
            log.info("the disk of the state folder is well again")
        self.trouble, self.damaged = "", False

    def _note(self, error: OSError | sqlite3.Error) -> None:
        damaged = isinstance(error, sqlite3.DatabaseError) and any(
            word in str(error) for word in ("malformed", "not a database")
        )
        if not self.trouble or (damaged and not self.damaged):
            log.error("the disk of the state folder refuses: %s", error)
        self.damaged = self.damaged or damaged
        what = "the database of jobs is damaged" if self.damaged else "the disk of the state folder refuses"
        self.trouble = f"{what}: {_REMEDY_DAMAGED if self.damaged else _REMEDY}"


def refusal() -> Unavailable:
    """What a caller is told."""
    return Unavailable(
        "this generator's disk refuses, so it can neither take jobs nor look them up: use another, or come back; its "
        "operator should look at the disk of its state folder",
        reason="STATE_UNWRITABLE",
        retry_after_s=_RETRY_S,
    )
