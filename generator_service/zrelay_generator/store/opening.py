"""Locks a state folder and opens its database. A damaged database is renamed, and every readable row is kept."""

import logging
import os
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from zrelay_generator.store.clock import SYSTEM_CLOCKS, StoreClock, SystemClocks, open_clock
from zrelay_generator.store.schema import prepare
from zrelay_shared import private
from zrelay_shared.errors import FailedPrecondition

log = logging.getLogger(__name__)
DATABASE = "jobs.db"
_LOCK, _OWNER = "jobs.lock", "jobs.owner"
_TABLES = ("jobs", "inputs", "events", "contents", "senders", "clock")
_ORPHANS = (
    "DELETE FROM inputs WHERE arrival NOT IN (SELECT arrival FROM jobs)",
    "DELETE FROM events WHERE arrival NOT IN (SELECT arrival FROM jobs)",
    "INSERT OR IGNORE INTO senders SELECT i.sha256, j.owner, 0 FROM inputs i JOIN jobs j ON j.arrival = i.arrival",
    "DELETE FROM contents WHERE sha256 NOT IN (SELECT sha256 FROM senders) "
    "AND sha256 NOT IN (SELECT sha256 FROM events WHERE sha256 IS NOT NULL)",
    "DELETE FROM senders WHERE sha256 NOT IN (SELECT sha256 FROM contents)",
    # A job whose last event is lost would never end for those who watch it.
    "UPDATE jobs SET state = 'failed' WHERE state = 'succeeded' "
    "AND NOT EXISTS (SELECT 1 FROM events WHERE arrival = jobs.arrival AND sha256 IS NULL)",
)
"""Removes what belonged to jobs whose rows are lost, and fails jobs that lost a part."""


class FolderLock:
    """The lock of a state folder. It is held until `release`, or until the process ends in any way."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder private, and takes the lock.

        Raises:
            FailedPrecondition: Another process holds it (STATE_LOCKED).
            OSError: The folder cannot be written.
        """
        if tightened := private.tighten(folder):
            log.warning("%s", tightened)
        owner, file = folder / _OWNER, folder / _LOCK
        private.refuse_link(file)
        # Acquired and released on different threads of the process.
        self._lock = FileLock(file, mode=private.FILE_MODE, thread_local=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            process = _process_in(owner)
            raise FailedPrecondition(
                f"another generator (process {process}) keeps its jobs in {folder}: stop it, or give this one a folder "
                "of its own with --state DIR (--state none keeps jobs in memory only)",
                reason="STATE_LOCKED",
                metadata={"process": process},
            ) from error
        with private.open_file(owner, "wb") as written:
            written.write(str(os.getpid()).encode())

    def release(self) -> None:
        """Releases the lock."""
        self._lock.release()


def _process_in(owner: Path) -> str:
    """Returns the number of the process that holds the lock, as far as it is known."""
    try:
        found = private.read_text(owner).strip()
    except (OSError, ValueError):
        return "unknown"
    return found if found.isascii() and found.isdecimal() else "unknown"


def connect(path: Path | str) -> sqlite3.Connection:
    """Returns a connection in autocommit mode, to be used by one thread. A database that does not exist is created.

    SQLite gives the files beside a database its mode.

    Raises:
        OSError: A symbolic link stands in its place, or it cannot be created.
    """
    if isinstance(path, Path):
        for suffix in ("", "-wal", "-shm", "-journal"):
            private.refuse_link(path.with_name(path.name + suffix))
        if not path.exists():
            private.open_file(path, "xb").close()
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA busy_timeout = 5000")
    return db


@dataclass(frozen=True, slots=True)
class OpenedDatabase:
    """An opened database.

    Attributes:
        db: The connection.
        starts: Number of starts on this database, including this one.
        clock: The clock of the database.
        whole: Whether the database existed undamaged. Only then are contents without a row known to be unused.
    """

    db: sqlite3.Connection
    starts: int
    clock: StoreClock
    whole: bool


def open_database(folder: Path, clocks: SystemClocks = SYSTEM_CLOCKS) -> OpenedDatabase:
    """Opens or creates the database of a folder.

    A damaged database never prevents a start: it is renamed, and every readable row is copied to a new one.

    Raises:
        FailedPrecondition: A newer zrelay wrote it (STATE_NEWER).
        OSError: It cannot be opened.
    """
    path = folder / DATABASE
    there = path.exists() and path.stat().st_size > 0
    db = connect(path)
    try:
        sound = db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        if sound:
            return OpenedDatabase(db, prepare(db), open_clock(db, clocks), there)
    except FailedPrecondition:
        db.close()
        raise
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not _damaged(error):
            db.close()
            raise OSError(0, str(error), str(path)) from error
    db.close()
    db, starts = salvaged(path)
    return OpenedDatabase(db, starts, open_clock(db, clocks), whole=False)


def _damaged(error: sqlite3.OperationalError) -> bool:
    return any(word in str(error) for word in ("malformed", "not a database", "no such table"))


def salvaged(path: Path) -> tuple[sqlite3.Connection, int]:
    """Renames a damaged database and copies what can be read. Returns the new database and its number of starts."""
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))
    db = connect(path)
    prepare(db)
    saved, starts = (
        0,
        int(time.time()) // 60,
    )  # sequence numbers must grow: more than any count of starts, if that is lost
    try:
        old = connect(aside)
        saved = sum(_copied(old, db, table) for table in _TABLES)
        (before,) = old.execute("SELECT value FROM meta WHERE name = 'starts'").fetchone()
        starts = int(before) + 1
    except (sqlite3.DatabaseError, TypeError, ValueError):
        log.debug("nothing more can be read", exc_info=True)
    for statement in _ORPHANS:
        db.execute(statement)
    db.execute("UPDATE meta SET value = ? WHERE name = 'starts'", (starts,))
    log.error(
        "the database of jobs was damaged: it was set aside as %s, and %d of its rows were saved; jobs whose rows are "
        "lost must be sent again; the contents that it named stay until the start after this one",
        aside.name,
        saved,
    )
    return db, starts


def _copied(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    """Copies the readable rows of a table, from both ends towards the damaged part. Returns their number."""
    known = [row[1] for row in old.execute(f"PRAGMA table_info({table})")]  # an earlier release has fewer
    names = [row[1] for row in new.execute(f"PRAGMA table_info({table})") if row[1] in known]
    if not names:
        return 0
    columns, marks = ", ".join(names), ", ".join("?" * len(names))
    copied = 0
    for order in ("ASC", "DESC"):
        try:
            for row in old.execute(f"SELECT {columns} FROM {table} ORDER BY {names[0]} {order}"):
                try:
                    new.execute(f"INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})", row)
                    copied += new.execute("SELECT changes()").fetchone()[0]
                except sqlite3.Error:  # a row that breaks the table's rules was not written like this
                    continue
            break
        except sqlite3.DatabaseError:
            continue
    return copied
