"""Whether the state folder's disk accepts writes: the error for callers, and the problem for the operator."""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator

from zrelay_shared import descriptors
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
    """State of the disk of the state folder. The start and the end of each problem is logged once.

    Attributes:
        problem: What is wrong and what to do, for the operator; "" if nothing is wrong.
        damaged: Whether the database cannot be read as it was written.
    """

    def __init__(self) -> None:
        self.problem = ""
        self.damaged = False

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Converts disk errors of the `with` block to Unavailable, and records the problem.

        Raises:
            Unavailable: The disk failed (STATE_UNWRITABLE), or no descriptor is free (DESCRIPTORS_EXHAUSTED).
        """
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if isinstance(error, _BUGS):
                raise
            self._record(error)
            raise _refusal_of(error) from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Converts OSError of the `with` block, which reads one file, to Unavailable. It does not change `problem`.

        Raises:
            Unavailable: The file cannot be read (STATE_UNWRITABLE), or no descriptor is free (DESCRIPTORS_EXHAUSTED).
        """
        try:
            yield
        except OSError as error:
            log.warning("a file of the state folder cannot be read: %s", error)
            raise _refusal_of(error) from error

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
            log.error("the disk of the state folder refuses writes: %s", error)
        self.damaged = self.damaged or damaged
        what = "the database of jobs is damaged" if self.damaged else "the disk of the state folder refuses writes"
        self.problem = f"{what}: {_REMEDY_DAMAGED if self.damaged else _REMEDY}"


def _refusal_of(error: OSError | sqlite3.Error) -> Unavailable:
    return descriptors.refusal() if descriptors.exhausted(error) else refusal()


def refusal() -> Unavailable:
    """Returns the error that callers receive while the disk does not work."""
    return Unavailable(
        "this generator's disk refuses writes, so it can neither accept nor find jobs: use another generator or try "
        "again later; its operator should check the disk of its state folder",
        reason="STATE_UNWRITABLE",
        retry_after_s=_RETRY_S,
    )
