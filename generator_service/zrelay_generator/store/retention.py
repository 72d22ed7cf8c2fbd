"""What is removed, and when: results by age, number and bytes; unused contents by bytes, least recently used first.

The functions delete rows. They add the contents that belonged to them to `removed`, whose files may be deleted once the
transaction is committed: otherwise a transaction that fails would leave rows without their files.
"""

import sqlite3
from dataclasses import dataclass

from zrelay_generator.store.queries import UNFINISHED, clear_device_losses
from zrelay_generator.store.records import error_json
from zrelay_shared.errors import ZrelayError

LEAST_BYTES = 4096
"""Bytes that a content counts as at least: a file takes a block of the disk however small it is."""

_PAGES_AT_ONCE = 2048
"""Pages of the database that are returned to the disk at a time: 8 MiB."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Limits of what is kept beside unfinished jobs.

    Attributes:
        results_s: Seconds that jobs are kept after their end.
        results: Number of ended jobs.
        result_bytes: Bytes of their images; the latest job is always kept.
        content_bytes: Bytes of contents that were sent and that no job needs.
    """

    results_s: float
    results: int
    result_bytes: int
    content_bytes: int


def retain(db: sqlite3.Connection, limits: Retention, now_s: float, removed: set[str]) -> int:
    """Removes what exceeds the limits and is not needed by unfinished jobs.

    Args:
        db: The connection.
        limits: The limits.
        now_s: Seconds of the store's clock.
        removed: Receives the contents whose rows are removed.

    Returns:
        The number of removed jobs.
    """
    forgotten = _over(db, limits, now_s)
    for arrival in forgotten:
        forget(db, arrival, removed)
    unneeded = db.execute(
        "SELECT sha256, bytes FROM contents c WHERE sent AND NOT EXISTS (SELECT 1 FROM inputs WHERE sha256 = c.sha256) "
        "AND NOT EXISTS (SELECT 1 FROM events WHERE sha256 = c.sha256) ORDER BY used_at DESC"
    ).fetchall()
    kept = 0
    for sha256, size in unneeded:
        kept += max(size, LEAST_BYTES)
        if kept > limits.content_bytes:
            kept -= max(size, LEAST_BYTES)
            _delete_content(db, sha256, removed)
    db.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
    return len(forgotten)


def forget(db: sqlite3.Connection, arrival: int, removed: set[str]) -> None:
    """Removes a job, its results, and its images if no other job produced the same."""
    clear_device_losses(db, arrival)
    files = db.execute("SELECT sha256 FROM events WHERE arrival = ? AND sha256 IS NOT NULL", (arrival,)).fetchall()
    for table in ("events", "inputs", "jobs"):
        db.execute(f"DELETE FROM {table} WHERE arrival = ?", (arrival,))
    for (sha256,) in files:
        _delete_unneeded(db, sha256, removed)


def spoil(db: sqlite3.Connection, arrival: int, error: ZrelayError, sha256: str, removed: set[str]) -> None:
    """Changes a job that succeeded to a failed one, because its image `sha256` is damaged. Other images stay."""
    changed = db.execute(
        "UPDATE jobs SET state = 'failed', error = ? WHERE arrival = ? AND state = 'succeeded'",
        (error_json(error), arrival),
    ).rowcount
    if changed:
        # The summary at its end, which has no file, goes with the image.
        db.execute("DELETE FROM events WHERE arrival = ? AND (sha256 IS NULL OR sha256 = ?)", (arrival, sha256))
        _delete_unneeded(db, sha256, removed)


def _delete_content(db: sqlite3.Connection, sha256: str, removed: set[str]) -> None:
    db.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))
    removed.add(sha256)


def _delete_unneeded(db: sqlite3.Connection, sha256: str, removed: set[str]) -> None:
    """Removes a result's content if no other job produced the same and nobody sent it."""
    needed = db.execute(
        "SELECT EXISTS (SELECT 1 FROM events WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM inputs WHERE sha256 = ?1) "
        "OR EXISTS (SELECT 1 FROM contents WHERE sha256 = ?1 AND sent)",
        (sha256,),
    ).fetchone()[0]
    if not needed:
        _delete_content(db, sha256, removed)


def _over(db: sqlite3.Connection, limits: Retention, now_s: float) -> list[int]:
    """Returns the arrival numbers of ended jobs that exceed a limit."""
    ended = db.execute(
        "SELECT arrival, ended_s, (SELECT coalesce(sum(bytes), 0) FROM events WHERE arrival = j.arrival) "
        "FROM jobs j WHERE state <> ? ORDER BY ended_s DESC, arrival DESC",
        (UNFINISHED,),
    ).fetchall()
    over, kept_bytes = [], 0
    for place, (arrival, ended_s, size) in enumerate(ended):
        kept_bytes += size
        too_many = place >= limits.results or (kept_bytes > limits.result_bytes and size and place > 0)
        if now_s - ended_s > limits.results_s or too_many:
            over.append(arrival)
            kept_bytes -= size
    return over
