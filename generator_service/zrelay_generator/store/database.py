"""SQLite on a thread of its own: calls that wait at the same time are committed in one transaction."""

import contextlib
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
_MAX_CALLS = 256


@dataclass(frozen=True, slots=True)
class _Call:
    run: Callable[[sqlite3.Connection], Any]
    committed: Callable[[sqlite3.Connection], None] | None
    future: "Future[Any]" = field(default_factory=Future)


class Database:
    """Takes calls from any thread and returns futures. A future is done when its call is committed."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """Takes over a connection and starts the thread.

        Args:
            db: A connection in autocommit mode, made with check_same_thread=False; nobody else uses it from now on.
        """
        self._db = db
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="jobs-database", daemon=True)
        self._thread.start()

    def run(
        self,
        call: Callable[[sqlite3.Connection], T],
        committed: Callable[[sqlite3.Connection], None] | None = None,
    ) -> "Future[T]":
        """Runs `call` on the thread in a transaction: all of it is committed or, if it raises, nothing.

        Args:
            call: The work.
            committed: Runs on the thread after the commit and before the next transaction, if the call succeeded. The
                future is done after it.
        """
        queued = _Call(call, committed)
        if self._closed:
            queued.future.set_exception(sqlite3.ProgrammingError("the store is closed"))
        else:
            self._calls.put(queued)
        return queued.future

    def close(self) -> None:
        """Commits what waits and ends the thread."""
        self._closed = True
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._calls.get()) is not None:
            calls, last = [first], False
            while not last and len(calls) < _MAX_CALLS and not self._calls.empty():
                following = self._calls.get()
                last = following is None
                if following is not None:
                    calls.append(following)
            self._commit([call for call in calls if call.future.set_running_or_notify_cancel()])
            if last:
                break
        self._db.close()

    def _commit(self, calls: list[_Call]) -> None:
        outcomes: list[tuple[_Call, Any, Exception | None]] = []
        try:
            if self._db.in_transaction:  # the disk refused to roll back
                self._db.execute("ROLLBACK")
            self._db.execute("BEGIN IMMEDIATE")
            for call in calls:
                self._db.execute("SAVEPOINT call")
                try:
                    outcomes.append((call, call.run(self._db), None))
                except Exception as error:  # its caller receives it; the other calls are not affected
                    if not self._db.in_transaction:
                        raise  # the disk is full or broken: SQLite has rolled back everything
                    self._db.execute("ROLLBACK TO call")
                    outcomes.append((call, None, error))
                self._db.execute("RELEASE call")
            self._db.execute("COMMIT")
        except Exception as error:  # nothing was committed: every caller receives that
            with contextlib.suppress(sqlite3.Error):  # the next BEGIN tries again
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            outcomes = [(call, None, error) for call in calls]
        for call, result, failure in sorted(outcomes, key=lambda outcome: outcome[0].committed is not None):
            if failure is not None:
                call.future.set_exception(failure)
                continue
            if call.committed is not None:
                self._follow(call.committed)
            call.future.set_result(result)

    def _follow(self, committed: Callable[[sqlite3.Connection], None]) -> None:
        try:
            committed(self._db)
        except Exception:  # what was committed is committed, and the thread must live on
            log.exception("the work after a transaction failed")
