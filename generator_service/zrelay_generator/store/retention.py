"""What is removed, and when: results by age, number and bytes; unused contents by bytes, least recently used first.

Each limit holds for all owners together. If they exceed it, those with the least keep what they have, and the others
keep equal shares (`shares.equal_share`): what one owner sends does not remove what another keeps within its share.

The functions delete rows. They add the contents that belonged to them to `removed`, whose files may be deleted once the
transaction is committed: otherwise a transaction that fails would leave rows without their files.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from zrelay_generator.store.queries import UNFINISHED, clear_device_losses
from zrelay_generator.store.records import error_json
from zrelay_shared.errors import ZrelayError
from zrelay_shared.shares import equal_share

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
        result_bytes: Bytes of their images; the latest job of each owner is always kept.
        content_bytes: Bytes of contents that were sent and that no job of their sender needs. A content counts for
            each owner that sent it.
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
        "SELECT s.sha256, s.owner, max(c.bytes, ?) FROM senders s JOIN contents c ON c.sha256 = s.sha256 "
        "WHERE NOT EXISTS (SELECT 1 FROM inputs i JOIN jobs j ON j.arrival = i.arrival "
        "WHERE i.sha256 = s.sha256 AND j.owner = s.owner) "
        "AND NOT EXISTS (SELECT 1 FROM events e JOIN jobs j ON j.arrival = e.arrival "
        "WHERE e.sha256 = s.sha256 AND j.owner = s.owner) ORDER BY s.used_at DESC",
        (LEAST_BYTES,),
    ).fetchall()
    share = _equal_share(((owner, size) for _, owner, size in unneeded), limits.content_bytes)
    kept: Counter[str] = Counter()
    for sha256, owner, size in unneeded:
        kept[owner] += size
        if kept[owner] > share:
            kept[owner] -= size
            db.execute("DELETE FROM senders WHERE sha256 = ? AND owner = ?", (sha256, owner))
            _delete_unneeded(db, sha256, removed)
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


def _delete_unneeded(db: sqlite3.Connection, sha256: str, removed: set[str]) -> None:
    """Removes a content if no job produced it or needs it, and no sender of it is kept."""
    needed = db.execute(
        "SELECT EXISTS (SELECT 1 FROM events WHERE sha256 = ?1) OR EXISTS (SELECT 1 FROM inputs WHERE sha256 = ?1) "
        "OR EXISTS (SELECT 1 FROM senders WHERE sha256 = ?1)",
        (sha256,),
    ).fetchone()[0]
    if not needed:
        db.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))
        removed.add(sha256)


def _over(db: sqlite3.Connection, limits: Retention, now_s: float) -> list[int]:
    """Returns the arrival numbers of ended jobs that exceed a limit."""
    ended = db.execute(
        "SELECT arrival, owner, ended_s, (SELECT coalesce(sum(bytes), 0) FROM events WHERE arrival = j.arrival) "
        "FROM jobs j WHERE state <> ? ORDER BY ended_s DESC, arrival DESC",
        (UNFINISHED,),
    ).fetchall()
    most = _equal_share(((owner, 1) for _, owner, _, _ in ended), limits.results)
    most_bytes = _equal_share(((owner, size) for _, owner, _, size in ended), limits.result_bytes)
    over = []
    seen: Counter[str] = Counter()
    kept_bytes: Counter[str] = Counter()
    for arrival, owner, ended_s, size in ended:
        seen[owner] += 1
        kept_bytes[owner] += size
        too_many = seen[owner] > most or (kept_bytes[owner] > most_bytes and size and seen[owner] > 1)
        if now_s - ended_s > limits.results_s or too_many:
            over.append(arrival)
            kept_bytes[owner] -= size
    return over


def _equal_share(used: Iterable[tuple[str, int]], limit: int) -> float:
    """Returns how much each owner may keep of what they use, given as pairs of owner and amount."""
    totals: Counter[str] = Counter()
    for owner, amount in used:
        totals[owner] += amount
    return equal_share(totals.values(), limit)
