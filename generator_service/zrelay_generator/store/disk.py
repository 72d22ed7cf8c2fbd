"""Whether the state folder's disk takes writes: refusals for callers, and the problem for the operator."""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

from zrelay_shared.errors import Unavailable

log = logging.getLogger(__name__)
_BUGS = (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.DataError, sqlite3.NotSupportedError)
"""Errors of SQLite that no disk causes."""
_RETRY_S = 30.0
_REMEDY = "check the disk of the state folder; this generator continues by itself when the disk works again"
_REMEDY_DAMAGED = (
    "restart this generator: it then sets the damaged database aside and continues with what can be read of it"
)


class DiskHealth:
    """The state of the state folder's disk. Each problem and its end is logged once.

    Attributes:
        problem: What is wrong and what to do, for the operator; "" while all is well.
        damaged: Whether the database cannot be read as it was written.
    """

    def __init__(self) -> None:
        self.problem = ""
        self.damaged = False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Encloses work that the disk may refuse.

        Raises:
            Unavailable: In place of the disk's errors (STATE_UNWRITABLE).
        """
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, _BUGS):
                raise
            self._record(error)
            raise refusal() from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Encloses the reading of one file. A file that cannot be read says nothing about writing.

        Raises:
            Unavailable: In place of OSError (STATE_UNWRITABLE).
        """
        try:
            yield
        except OSError as error:
            log.warning("a file of the state folder cannot be read: %s", error)
            raise refusal() from error

    def recovered(self) -> None:
        """Records that the disk works again."""
        if self.problem:
            log.info("the disk of the state folder works again")
        self.problem, self.damaged = "", False

    def _record(self, error: OSError | sqlite3.Error) -> None:
        damaged = isinstance(error, sqlite3.DatabaseError) and any(
            words in str(error) for words in ("malformed", "not a database")
        )
        if not self.problem or (damaged and not self.damaged):
            log.error("the disk of the state folder refuses: %s", error)
        self.damaged = self.damaged or damaged
        what = "the database of jobs is damaged" if self.damaged else "the disk of the state folder refuses"
        self.problem = f"{what}: {_REMEDY_DAMAGED if self.damaged else _REMEDY}"


def refusal() -> Unavailable:
    """Returns what a caller receives while the disk refuses."""
    return Unavailable(
        "this generator's disk refuses writes, so it can neither accept nor find jobs: use another generator or try "
        "again later; its operator should check the disk of its state folder",
        reason="STATE_UNWRITABLE",
        retry_after_s=_RETRY_S,
    )
