"""What is let go, and when: results by age, number and bytes; contents that no job needs by bytes, oldest use first."""

import sqlite3
from dataclasses import dataclass

from zrelay_generator.store.blobs import Blobs
from zrelay_generator.store.rows import UNFINISHED, pardon_job

LEAST_BYTES = 4096
"""What a content counts for at least: a file takes a block of the disk however small it is."""

_PAGES_AT_ONCE = 2048
"""Of the database given back to the disk at a look: 8 MiB."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds of what is kept beside unfinished jobs: ended jobs by seconds, number and bytes of their images (the
    latest is always kept), and bytes of contents that were sent by name or by value."""

    results_s: float
    results: int
    result_bytes: int
    content_bytes: int


def retain(db: sqlite3.Connection, blobs: Blobs, limits: Retention, now: float) -> int:
    """Forgets what is over the limits; the number of jobs forgotten. Never touches what an unfinished job needs."""
    forgotten = _over(db, limits, now)
    for arrival in forgotten:
        forget(db, blobs, arrival)
    unneeded = db.execute(
        "SELECT sha256, bytes FROM contents c WHERE sent AND NOT EXISTS (SELECT 1 FROM inputs WHERE sha256 = c.sha256) "
        "AND NOT EXISTS (SELECT 1 FROM events WHERE sha256 = c.sha256) ORDER BY used_at DESC"
    ).fetchall()
    kept = 0
    for sha256, size in unneeded:
        kept += max(size, LEAST_BYTES)
        if kept > limits.content_bytes:
            kept -= max(size, LEAST_BYTES)
            delete_content(db, blobs, sha256)
    db.execute(f"PRAGMA incremental_vacuum({_PAGES_AT_ONCE})").fetchall()
    return len(forgotten)


def forget(db: sqlite3.Connection, blobs: Blobs, arrival: int) -> None:
    """A job that has ended, its events, and its images where no other job made the same."""
    pardon_job(db, arrival)
    files = db.execute("SELECT sha256 FROM events WHERE arrival = ? AND sha256 IS NOT NULL", (arrival,)).fetchall()
    for table in ("events", "inputs", "jobs"):
        db.execute(f"DELETE FROM {table} WHERE arrival = ?", (arrival,))
    for (sha256,) in files:
        _delete_unneeded(db, blobs, sha256)


def spoil(db: sqlite3.Connection, blobs: Blobs, arrival: int, error: str, sha256: str) -> None:
    """A job that had succeeded has failed after all: this one of its images is damaged. The others stay."""
    changed = db.execute(
        "UPDATE jobs SET state = 'failed', error = ? WHERE arrival = ? AND state = 'succeeded'", (error, arrival)
    ).rowcount
    if changed:
        # With the image goes its end, the event without a file.
        db.execute("DELETE FROM events WHERE arrival = ? AND (sha256 IS NULL OR sha256 = ?)", (arrival, sha256))
        _delete_unneeded(db, blobs, sha256)


def delete_content(db: sqlite3.Connection, blobs: Blobs, sha256: str) -> None:
    """The row and the file. A crash in between leaves a file that the next start sweeps, or a row without a file,
    which counts as not there."""
    db.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))
    blobs.delete(sha256)


def _delete_unneeded(db: sqlite3.Connection, blobs: Blobs, sha256: str) -> None:
    """A result's content, where no other job made the same and nobody sent it."""
    needed = db.execute(
        "SELECT EXISTS (SELECT 1 FROM events WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM inputs WHERE sha256 = ?1) "
        "OR EXISTS (SELECT 1 FROM contents WHERE sha256 = ?1 AND sent)",
        (sha256,),
    ).fetchone()[0]
    if not needed:
        delete_content(db, blobs, sha256)


def _over(db: sqlite3.Connection, limits: Retention, now: float) -> list[int]:
    """Arrivals of ended jobs that are over a limit."""
    ended = db.execute(
        "SELECT arrival, ended_at, (SELECT coalesce(sum(bytes), 0) FROM events WHERE arrival = j.arrival) "
        "FROM jobs j WHERE state <> ? ORDER BY ended_at DESC, arrival DESC",
        (UNFINISHED,),
    ).fetchall()
    over, kept_bytes = [], 0
    for place, (arrival, ended_at, size) in enumerate(ended):
        kept_bytes += size
        too_many = place >= limits.results or (kept_bytes > limits.result_bytes and size and place > 0)
        if now - ended_at > limits.results_s or too_many:
            over.append(arrival)
            kept_bytes -= size
    return over
