"""SQLite on a thread of its own: calls that wait at the same time are committed in one transaction."""

import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_MAX_CALLS = 256
_Call = tuple[Callable[[sqlite3.Connection], Any], "Future[Any]"]


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

    def run(self, call: Callable[[sqlite3.Connection], T]) -> "Future[T]":
        """Runs `call` on the thread in a transaction: all of it is committed or, if it raises, nothing."""
        future: Future[T] = Future()
        if self._closed:
            future.set_exception(sqlite3.ProgrammingError("the store is closed"))
        else:
            self._calls.put((call, future))
        return future

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
            self._commit([call for call in calls if call[1].set_running_or_notify_cancel()])
            if last:
                break
        self._db.close()

    def _commit(self, calls: list[_Call]) -> None:
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            if self._db.in_transaction:  # the disk refused to roll back
                self._db.execute("ROLLBACK")
            self._db.execute("BEGIN IMMEDIATE")
            for call, future in calls:
                self._db.execute("SAVEPOINT call")
                try:
                    outcomes.append((future, call(self._db), None))
                except Exception as error:  # its caller receives it; the other calls are not affected
                    if not self._db.in_transaction:
                        raise  # the disk is full or broken: SQLite has rolled back everything
                    self._db.execute("ROLLBACK TO call")
                    outcomes.append((future, None, error))
                self._db.execute("RELEASE call")
            self._db.execute("COMMIT")
        except Exception as error:  # nothing was committed: every caller receives that
            with contextlib.suppress(sqlite3.Error):  # the next BEGIN tries again
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
            outcomes = [(future, None, error) for _, future in calls]
        for future, result, failure in outcomes:
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
