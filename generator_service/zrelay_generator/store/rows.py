"""Jobs and results as rows: values in, values out, one transaction of the caller's around each function."""

import sqlite3
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job, but for its spec. `arrival` orders jobs for ever; times in seconds since 1970; `accepted` a serialized
    JobAccepted; `sequence` of its latest event that is kept; `error` JSON or ""."""

    arrival: int
    job_id: str
    request_id: str
    identity: str
    state: str
    detached: bool
    priority: int
    caller: str
    model: str
    work_s: float
    input_bytes: int
    accepted_at: float
    accepted: bytes
    ended_at: float = 0.0
    sequence: int = 1
    error: str = ""


@dataclass(frozen=True, slots=True)
class EventRow:
    """A result: `body` JSON, `sha256` and `bytes` of the file that belongs to it, None and 0 where there is none."""

    sequence: int
    body: str
    sha256: str | None = None
    bytes: int = 0


_COLUMNS = tuple(field.name for field in fields(JobRow))
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"
_BLAME = "lost at "
"""In `meta`: how often the device was lost while it worked at an unfinished job."""
_TYPES: dict[str, tuple[type, ...]] = {
    "arrival": (int,),
    "priority": (int,),
    "sequence": (int,),
    "input_bytes": (int,),
    "detached": (int,),
    "work_s": (float,),
    "accepted_at": (float,),
    "ended_at": (float,),
    "accepted": (bytes,),
}


class RowDamaged(Exception):
    """A row does not hold what was written; `args[0]` is its arrival, or 0."""


def insert_job(db: sqlite3.Connection, row: JobRow, spec: bytes, inputs: Collection[str]) -> None:
    """A job and what it needs. The contents must have been added (`add_content`)."""
    values = [getattr(row, name) for name in _COLUMNS]
    marks = ", ".join("?" * (len(values) + 1))
    db.execute(f"INSERT INTO jobs ({', '.join(_COLUMNS)}, spec) VALUES ({marks})", [*values, spec])
    db.executemany("INSERT INTO inputs VALUES (?, ?)", [(row.arrival, sha256) for sha256 in inputs])


def add_content(db: sqlite3.Connection, sha256: str, size: int, *, sent: bool) -> None:
    """A content that is on disk; one that is known was used again."""
    db.execute(
        "INSERT INTO contents VALUES (?1, ?2, ?3, ?4) "
        "ON CONFLICT (sha256) DO UPDATE SET used_at = ?4, sent = max(sent, ?3)",
        (sha256, size, sent, time.time()),
    )


def content_size(db: sqlite3.Connection, sha256: str) -> int | None:
    """Bytes of a content that has a row."""
    found = db.execute("SELECT bytes FROM contents WHERE sha256 = ?", (sha256,)).fetchone()
    return None if found is None else int(found[0])


def needed_contents(db: sqlite3.Connection) -> set[str]:
    """Everything that some row names."""
    return {
        sha256
        for table in ("contents", "inputs", "events")
        for (sha256,) in db.execute(f"SELECT sha256 FROM {table} WHERE sha256 IS NOT NULL")
    }


def needed_inputs(db: sqlite3.Connection, contents: Collection[str]) -> set[str]:
    """Those of some contents that unfinished jobs need."""
    asked = "SELECT EXISTS (SELECT 1 FROM inputs WHERE sha256 = ?)"
    return {sha256 for sha256 in contents if db.execute(asked, (sha256,)).fetchone()[0]}


def insert_event(db: sqlite3.Connection, arrival: int, event: EventRow) -> None:
    """A result of a job, told once more after a restart it takes the first one's place."""
    values = (arrival, event.sequence, event.body, event.sha256, event.bytes)
    db.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", values)
    db.execute("UPDATE jobs SET sequence = max(sequence, ?) WHERE arrival = ?", (event.sequence, arrival))


def finish_job(db: sqlite3.Connection, arrival: int, state: str, error: str, ended_at: float, sequence: int) -> None:
    """A job has ended: it needs its spec and inputs no more."""
    db.execute(
        "UPDATE jobs SET state = ?, error = ?, ended_at = ?, sequence = ?, spec = NULL WHERE arrival = ?",
        (state, error, ended_at, sequence, arrival),
    )
    db.execute("DELETE FROM inputs WHERE arrival = ?", (arrival,))
    pardon_job(db, arrival)


def blame_jobs(db: sqlite3.Connection, job_ids: Collection[str]) -> None:
    """The device was lost while it worked at these jobs; those that have ended meanwhile are left out."""
    db.executemany(
        "INSERT INTO meta SELECT ?1 || job_id, 1 FROM jobs WHERE job_id = ?2 AND state = ?3 "
        "ON CONFLICT (name) DO UPDATE SET value = value + 1",
        [(_BLAME, job_id, UNFINISHED) for job_id in job_ids],
    )


def pardon_job(db: sqlite3.Connection, arrival: int) -> None:
    """Nothing is blamed on a job any more."""
    db.execute("DELETE FROM meta WHERE name = ? || (SELECT job_id FROM jobs WHERE arrival = ?)", (_BLAME, arrival))


def blamed_jobs(db: sqlite3.Connection) -> dict[str, int]:
    """How often the device was lost while it worked at unfinished jobs, by job id."""
    found = db.execute("SELECT name, value FROM meta WHERE name LIKE ?", (f"{_BLAME}%",))
    return {name.removeprefix(_BLAME): int(times) for name, times in found.fetchall()}


def touch(db: sqlite3.Connection) -> None:
    """Writes about what a job takes and removes it, to see whether that can be done: a full disk takes a few bytes."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('tried', zeroblob(65536))")
    db.execute("DELETE FROM meta WHERE name = 'tried'")


def detach_job(db: sqlite3.Connection, arrival: int) -> None:
    db.execute("UPDATE jobs SET detached = 1 WHERE arrival = ?", (arrival,))


def job_by_id(db: sqlite3.Connection, job_id: str) -> JobRow | None:
    return _first(db, "WHERE job_id = ?", job_id)


def job_by_request(db: sqlite3.Connection, request_id: str) -> JobRow | None:
    """The latest job of a request's id."""
    return _first(db, "WHERE request_id = ? ORDER BY arrival DESC LIMIT 1", request_id)


def jobs_before(db: sqlite3.Connection, before: int, states: Sequence[str], limit: int) -> list[JobRow]:
    """Jobs in these states that arrived before another, newest first; damaged rows are left out. Fewer than `limit`
    only where there are no more."""
    query = f"{_SELECT} WHERE arrival < ? AND state IN ({', '.join('?' * len(states))}) ORDER BY arrival DESC LIMIT ?"
    rows: list[JobRow] = []
    more = True
    while more and len(rows) < limit:
        asked = limit - len(rows)
        found = db.execute(query, (before, *states, asked)).fetchall()
        rows += [row for row in map(_readable, found) if row is not None]
        more = len(found) == asked
        before = found[-1][0] if found else before
    return rows


def unfinished_jobs(db: sqlite3.Connection) -> tuple[list[JobRow], list[int]]:
    """Jobs to go on with in the order of their arrival, and the arrivals of those whose rows are damaged."""
    good, bad = [], []
    for values in db.execute(f"{_SELECT} WHERE state = ? ORDER BY arrival", (UNFINISHED,)).fetchall():
        row = _readable(values)
        if row is not None:
            good.append(row)
        else:
            bad.append(int(values[0]))
    return good, bad


def spec_of(db: sqlite3.Connection, arrival: int) -> bytes:
    """The stored spec of an unfinished job. Raises RowDamaged where there is none."""
    found = db.execute("SELECT spec FROM jobs WHERE arrival = ?", (arrival,)).fetchone()
    if found is None or not isinstance(found[0], bytes):
        raise RowDamaged(arrival)
    return found[0]


def events_of(db: sqlite3.Connection, arrival: int) -> list[EventRow]:
    """The results of a job, in their order."""
    found = db.execute(
        "SELECT sequence, body, sha256, bytes FROM events WHERE arrival = ? ORDER BY sequence", (arrival,)
    )
    return [EventRow(*values) for values in found.fetchall()]


def last_arrival(db: sqlite3.Connection) -> int:
    """The highest arrival so far; 0 where there was none."""
    return int(db.execute("SELECT coalesce(max(arrival), 0) FROM jobs").fetchone()[0])


def _first(db: sqlite3.Connection, where: str, value: str) -> JobRow | None:
    found = db.execute(f"{_SELECT} {where}", (value,)).fetchone()
    return None if found is None else _readable(found)


def _readable(values: Sequence[object]) -> JobRow | None:
    for name, value in zip(_COLUMNS, values, strict=True):
        if not isinstance(value, _TYPES.get(name, (str,))):
            return None
    pairs = dict(zip(_COLUMNS, values, strict=True))
    return JobRow(**{**pairs, "detached": bool(pairs["detached"])})  # type: ignore[arg-type]
