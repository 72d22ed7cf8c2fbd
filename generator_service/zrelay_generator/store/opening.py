"""Opening a state folder: locked, readable, swept; a damaged database is put aside and what can be read is kept."""

import logging
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from zrelay_generator.store.schema import prepare
from zrelay_shared.errors import FailedPrecondition

log = logging.getLogger(__name__)
DATABASE = "jobs.db"
_TABLES = ("jobs", "inputs", "events", "contents")
_ORPHANS = (
    "DELETE FROM inputs WHERE arrival NOT IN (SELECT arrival FROM jobs)",
    "DELETE FROM events WHERE arrival NOT IN (SELECT arrival FROM jobs)",
    "DELETE FROM contents WHERE NOT sent AND sha256 NOT IN (SELECT sha256 FROM events WHERE sha256 IS NOT NULL)",
    # Where its last event is lost, nobody who watches it would hear of its end.
    "UPDATE jobs SET state = 'failed' WHERE state = 'succeeded' "
    "AND NOT EXISTS (SELECT 1 FROM events WHERE arrival = jobs.arrival AND sha256 IS NULL)",
)
"""What belonged to a job whose row is lost: nothing would ever let it go. And jobs that lost a part."""


def connect(path: Path | str) -> sqlite3.Connection:
    """A connection in autocommit mode, to be handed to one thread."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA busy_timeout = 5000")
    return db


@dataclass(frozen=True, slots=True)
class Opened:
    """A folder's database, the number of its starts, and whether it is the one that was there, whole: only then is a
    content that it does not name nobody's."""

    db: sqlite3.Connection
    starts: int
    whole: bool


def open_database(folder: Path) -> Opened:
    """What is no database any more never keeps a server from starting: it is put aside, and every row that can still
    be read goes into a new one."""
    path = folder / DATABASE
    there = path.exists() and path.stat().st_size > 0
    db = connect(path)
    try:
        sound = db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
        if sound:
            return Opened(db, prepare(db), there)
    except FailedPrecondition:
        db.close()
        raise
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and not _damaged(error):
            db.close()
            raise OSError(0, str(error), str(path)) from error
    db.close()
    return Opened(*_salvaged(path), whole=False)


def _damaged(error: sqlite3.OperationalError) -> bool:
    return any(word in str(error) for word in ("malformed", "not a database", "no such table"))


def _salvaged(path: Path) -> tuple[sqlite3.Connection, int]:
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))
    db = connect(path)
    prepare(db)
    saved, starts = 0, int(time.time()) // 60  # sequences must rise: more than any count of starts, if that is lost
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
        "the database of jobs was damaged: put aside as %s, %d rows of it were saved; jobs whose rows are lost must be "
        "sent again; the contents that it named stay until the start after this one",
        aside.name,
        saved,
    )
    return db, starts


def _copied(old: sqlite3.Connection, new: sqlite3.Connection, table: str) -> int:
    """Rows of a table that could be read, front to back and back to front around what is damaged."""
    names = [row[1] for row in new.execute(f"PRAGMA table_info({table})")]
    columns, marks = ", ".join(names), ", ".join("?" * len(names))
    copied = 0
    for order in ("ASC", "DESC"):
        try:
            for row in old.execute(f"SELECT {columns} FROM {table} ORDER BY {names[0]} {order}"):
                try:
                    new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)
                    copied += new.execute("SELECT changes()").fetchone()[0]
                except sqlite3.Error:  # what broke its own rules was not written so
                    continue
            break
        except sqlite3.DatabaseError:
            continue
    return copied
