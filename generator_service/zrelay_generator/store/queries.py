"""Records as rows of SQLite: values in, values out, each function within a transaction of its caller."""

import sqlite3
from collections.abc import Collection, Sequence

from zrelay_generator.priority import Priority
from zrelay_generator.store.records import JobRecord, JobState, ResultRecord, error_from_json, error_json

UNFINISHED = "unfinished"
"""`jobs.state` of every job that is not over."""
_COLUMNS = {
    "arrival": int,
    "job_id": str,
    "request_id": str,
    "identity": str,
    "state": str,
    "detached": int,
    "priority": int,
    "caller": str,
    "owner": str,
    "model": str,
    "work_s": float,
    "input_bytes": int,
    "accepted_at": float,
    "accepted_s": float,
    "accepted": bytes,
    "ended_at": float,
    "ended_s": float,
    "sequence": int,
    "error": str,
}
"""Columns of a record and the type that SQLite returns for each; another type means a damaged row."""
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM jobs"
_LOSSES = "lost at "
"""Prefix in `meta` of the number of times that the device was lost while it worked at an unfinished job."""


def insert_job(db: sqlite3.Connection, record: JobRecord, spec: bytes, inputs: Collection[str]) -> None:
    """Writes a job and what it needs. Its contents must have been added with `add_content`."""
    values = _values(record)
    marks = ", ".join("?" * (len(values) + 1))
    db.execute(f"INSERT INTO jobs ({', '.join(_COLUMNS)}, spec) VALUES ({marks})", [*values, spec])
    db.executemany("INSERT INTO inputs VALUES (?, ?)", [(record.arrival, sha256) for sha256 in inputs])


def add_content(db: sqlite3.Connection, sha256: str, size: int) -> None:
    """Adds a row for a content that is on disk."""
    db.execute("INSERT OR IGNORE INTO contents VALUES (?, ?)", (sha256, size))


def add_sender(db: sqlite3.Connection, sha256: str, owner: str, now_s: float) -> None:
    """Records that an owner sent a content, or used it again, at `now_s` of the store's clock."""
    db.execute("INSERT OR REPLACE INTO senders VALUES (?, ?, ?)", (sha256, owner, now_s))


def sent_contents(db: sqlite3.Connection, contents: Collection[str], owner: str) -> set[str]:
    """Returns which of these contents an owner sent."""
    query = "SELECT EXISTS (SELECT 1 FROM senders WHERE sha256 = ? AND owner = ?)"
    return {sha256 for sha256 in contents if db.execute(query, (sha256, owner)).fetchone()[0]}


def content_size(db: sqlite3.Connection, sha256: str, owner: str) -> int | None:
    """Returns the bytes of a content that an owner may name: it sent it, or a job of it produced it."""
    found = db.execute(
        "SELECT bytes FROM contents WHERE sha256 = ?1 AND ("
        "EXISTS (SELECT 1 FROM senders WHERE sha256 = ?1 AND owner = ?2) OR EXISTS ("
        "SELECT 1 FROM events e JOIN jobs j ON j.arrival = e.arrival WHERE e.sha256 = ?1 AND j.owner = ?2))",
        (sha256, owner),
    ).fetchone()
    return None if found is None else int(found[0])


def named_contents(db: sqlite3.Connection) -> set[str]:
    """Returns every content that some row names."""
    return {
        sha256
        for table in ("contents", "inputs", "events")
        for (sha256,) in db.execute(f"SELECT sha256 FROM {table} WHERE sha256 IS NOT NULL")
    }


def unnamed_contents(db: sqlite3.Connection, contents: Collection[str]) -> set[str]:
    """Returns which of these contents no row names."""
    query = (
        "SELECT EXISTS (SELECT 1 FROM contents WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM inputs WHERE sha256 = ?1) "
        "OR EXISTS (SELECT 1 FROM events WHERE sha256 = ?1)"
    )
    return {sha256 for sha256 in contents if not db.execute(query, (sha256,)).fetchone()[0]}


def needed_inputs(db: sqlite3.Connection, contents: Collection[str], owner: str) -> set[str]:
    """Returns which of these contents unfinished jobs of an owner need."""
    query = (
        "SELECT EXISTS (SELECT 1 FROM inputs i JOIN jobs j ON j.arrival = i.arrival WHERE i.sha256 = ? AND j.owner = ?)"
    )
    return {sha256 for sha256 in contents if db.execute(query, (sha256, owner)).fetchone()[0]}


def insert_result(db: sqlite3.Connection, arrival: int, result: ResultRecord) -> None:
    """Writes a result of a job; it replaces one of the same sequence number."""
    values = (arrival, result.sequence, result.body, result.sha256, result.bytes)
    db.execute("INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?, ?)", values)
    db.execute("UPDATE jobs SET sequence = max(sequence, ?) WHERE arrival = ?", (result.sequence, arrival))


def finish_job(db: sqlite3.Connection, record: JobRecord) -> None:
    """Writes the end of a job, which needs its spec and inputs no longer."""
    error = "" if record.error is None else error_json(record.error)
    db.execute(
        "UPDATE jobs SET state = ?, error = ?, ended_at = ?, ended_s = ?, sequence = ?, spec = NULL WHERE arrival = ?",
        (record.state.value, error, record.ended_at, record.ended_s, record.sequence, record.arrival),
    )
    db.execute("DELETE FROM inputs WHERE arrival = ?", (record.arrival,))
    clear_device_losses(db, record.arrival)


def update_accepted(db: sqlite3.Connection, arrival: int, accepted: bytes) -> None:
    """Replaces the stored JobAccepted message of a job."""
    db.execute("UPDATE jobs SET accepted = ? WHERE arrival = ?", (accepted, arrival))


def add_device_loss(db: sqlite3.Connection, job_ids: Collection[str]) -> None:
    """Increments the number of device losses of these jobs; jobs that are over are left out."""
    db.executemany(
        "INSERT INTO meta SELECT ?1 || job_id, 1 FROM jobs WHERE job_id = ?2 AND state = ?3 "
        "ON CONFLICT (name) DO UPDATE SET value = value + 1",
        [(_LOSSES, job_id, UNFINISHED) for job_id in job_ids],
    )


def clear_device_losses(db: sqlite3.Connection, arrival: int) -> None:
    """Removes the number of device losses of a job."""
    db.execute("DELETE FROM meta WHERE name = ? || (SELECT job_id FROM jobs WHERE arrival = ?)", (_LOSSES, arrival))


def device_losses(db: sqlite3.Connection) -> dict[str, int]:
    """Returns how often the device was lost at each unfinished job, by job id."""
    found = db.execute("SELECT name, value FROM meta WHERE name LIKE ?", (f"{_LOSSES}%",))
    return {name.removeprefix(_LOSSES): int(times) for name, times in found.fetchall()}


def try_write(db: sqlite3.Connection) -> None:
    """Tests a write: writes about as much as a job needs and removes it. A full disk still accepts a few bytes."""
    db.execute("INSERT OR REPLACE INTO meta VALUES ('tried', zeroblob(65536))")
    db.execute("DELETE FROM meta WHERE name = 'tried'")


def detach_job(db: sqlite3.Connection, arrival: int) -> None:
    """Marks a job as detached."""
    db.execute("UPDATE jobs SET detached = 1 WHERE arrival = ?", (arrival,))


def job_by_id(db: sqlite3.Connection, job_id: str, owner: str | None) -> JobRecord | None:
    """Returns a job of an owner, or of any (None); None if there is none or its row is damaged."""
    return _first(db, f"WHERE job_id = ?{_of(owner)}", (job_id, *_given(owner)))


def job_by_request(db: sqlite3.Connection, request_id: str, owner: str | None) -> JobRecord | None:
    """Returns the latest job that an owner sent with a request id; None as owner stands for all owners."""
    where = f"WHERE request_id = ?{_of(owner)} ORDER BY arrival DESC LIMIT 1"
    return _first(db, where, (request_id, *_given(owner)))


def jobs_before(
    db: sqlite3.Connection, before: int, states: Sequence[JobState], limit: int, owner: str | None
) -> list[JobRecord]:
    """Returns jobs of an owner, or of all (None), in these states that arrived before another, newest first.

    Damaged rows are left out. There are fewer than `limit` only if there are no more.
    """
    marks = ", ".join("?" * len(states))
    query = f"{_SELECT} WHERE arrival < ? AND state IN ({marks}){_of(owner)} ORDER BY arrival DESC LIMIT ?"
    records: list[JobRecord] = []
    more = True
    while more and len(records) < limit:
        wanted = limit - len(records)
        found = db.execute(query, (before, *(state.value for state in states), *_given(owner), wanted)).fetchall()
        records += [record for record in map(_record, found) if record is not None]
        more = len(found) == wanted
        before = found[-1][0] if found else before
    return records


def unfinished_jobs(db: sqlite3.Connection) -> tuple[list[JobRecord], list[int]]:
    """Returns the jobs to continue, sorted by arrival number, and the arrival numbers of damaged rows."""
    good, bad = [], []
    for values in db.execute(f"{_SELECT} WHERE state = ? ORDER BY arrival", (UNFINISHED,)).fetchall():
        record = _record(values)
        if record is not None:
            good.append(record)
        else:
            bad.append(int(values[0]))
    return good, bad


def spec_of(db: sqlite3.Connection, arrival: int) -> bytes | None:
    """Returns the stored spec of an unfinished job, None if it is not there."""
    found = db.execute("SELECT spec FROM jobs WHERE arrival = ?", (arrival,)).fetchone()
    return found[0] if found is not None and isinstance(found[0], bytes) else None


def results_of(db: sqlite3.Connection, arrival: int) -> list[ResultRecord]:
    """Returns the results of a job, in order."""
    found = db.execute(
        "SELECT sequence, body, sha256, bytes FROM events WHERE arrival = ? ORDER BY sequence", (arrival,)
    )
    return [ResultRecord(*values) for values in found.fetchall()]


def last_arrival(db: sqlite3.Connection) -> int:
    """Returns the highest arrival, 0 without jobs."""
    return int(db.execute("SELECT coalesce(max(arrival), 0) FROM jobs").fetchone()[0])


def _first(db: sqlite3.Connection, where: str, values: Sequence[str]) -> JobRecord | None:
    found = db.execute(f"{_SELECT} {where}", values).fetchone()
    return None if found is None else _record(found)


def _of(owner: str | None) -> str:
    """Returns the condition that a job has this owner, to be followed by `_given`."""
    return "" if owner is None else " AND owner = ?"


def _given(owner: str | None) -> tuple[str, ...]:
    return () if owner is None else (owner,)


def _values(record: JobRecord) -> list[object]:
    state = record.state.value if record.state.ended else UNFINISHED
    error = "" if record.error is None else error_json(record.error)
    replaced = {"state": state, "error": error, "priority": int(record.priority), "detached": int(record.detached)}
    return [replaced[name] if name in replaced else getattr(record, name) for name in _COLUMNS]


def _record(values: Sequence[object]) -> JobRecord | None:
    """The record of a row; None if a value has the wrong type, or a state is unknown.

    An unknown priority is read as normal, because the rest of the job is intact.
    """
    for (_, kind), value in zip(_COLUMNS.items(), values, strict=True):
        if not isinstance(value, kind):
            return None
    fields: dict[str, object] = dict(zip(_COLUMNS, values, strict=True))
    try:
        state = JobState.QUEUED if fields["state"] == UNFINISHED else JobState(str(fields["state"]))
    except ValueError:
        return None
    known = fields["priority"] in tuple(Priority)
    failed = state in (JobState.FAILED, JobState.CANCELLED)
    fields |= {
        "state": state,
        "priority": Priority(int(str(fields["priority"]))) if known else Priority.NORMAL,
        "detached": bool(fields["detached"]),
        "error": error_from_json(str(fields["error"])) if failed else None,
    }
    return JobRecord(**fields)  # type: ignore[arg-type]
