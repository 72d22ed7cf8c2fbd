"""The clock that counts the age of what the store keeps. Setting the system's time does not change it.

It starts as the system's time (seconds since 1970) and then advances by a clock that nobody can set. Between two
processes of one boot the same clock measures the gap. After a reboot only the system's time can, and it may be wrong
then: a gap counts as at most `MAX_GAP_S`.
"""

import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_GAP_S = 3600.0
"""Largest gap between two processes that counts if the machine was started again in between."""
_SAVE_S = 600.0
"""Seconds until the clock is saved again, so that a power failure loses little of it."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)
_TIMES = (("jobs", "accepted_s"), ("jobs", "ended_s"), ("senders", "used_at"))
"""Tables and columns that hold seconds of this clock."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment on two clocks.

    Attributes:
        at: Seconds since 1970 by the system's time, for people.
        clock_s: Seconds of the store's clock, for ages and order.
    """

    at: float
    clock_s: float


def _elapsed_s() -> float:
    """Returns seconds that only grow, including the time that the machine was suspended where the system counts it."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)


def _boot_id() -> str:
    """Returns the id of the present boot of the machine, "" where the system has none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class SystemClocks:
    """The clocks of the system.

    Attributes:
        wall_s: Seconds since 1970. Anybody may set this clock.
        elapsed_s: Seconds that only grow, from an unknown origin that a boot changes.
        boot_id: Names the present boot, "" if it is not known.
    """

    wall_s: Callable[[], float] = time.time
    elapsed_s: Callable[[], float] = _elapsed_s
    boot_id: Callable[[], str] = _boot_id


SYSTEM_CLOCKS = SystemClocks()


class StoreClock:
    """The running clock. Any thread may call it."""

    def __init__(self, start_s: float, clocks: SystemClocks = SYSTEM_CLOCKS) -> None:
        """Starts the clock at `start_s`. Use `open_clock` to continue that of a database."""
        self._clocks = clocks
        self._offset_s = start_s - clocks.elapsed_s()
        self._saved_s = -math.inf

    @property
    def now_s(self) -> float:
        """Seconds of this clock."""
        return self._offset_s + self._clocks.elapsed_s()

    def now(self) -> Moment:
        """Returns the present moment."""
        return Moment(self._clocks.wall_s(), self.now_s)

    def save(self, db: sqlite3.Connection) -> None:
        """Writes the clock, for the next process to continue it."""
        values = (self.now_s, self._clocks.wall_s(), self._clocks.elapsed_s(), self._clocks.boot_id())
        db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?, ?)", values)
        self._saved_s = values[0]

    def save_if_due(self, db: sqlite3.Connection) -> None:
        """Writes the clock if that was long ago."""
        if self.now_s - self._saved_s >= _SAVE_S:
            self.save(db)


def open_clock(db: sqlite3.Connection, clocks: SystemClocks = SYSTEM_CLOCKS) -> StoreClock:
    """Continues the clock of a database, or starts one.

    Stored times that lie ahead of the clock are set to it.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        saved = db.execute("SELECT clock_s, wall_at, elapsed_s, boot_id FROM clock").fetchone()
        start_s = _first(db, clocks) if saved is None else _continued(clocks, *saved)
        for table, column in _TIMES:
            db.execute(f"UPDATE {table} SET {column} = ?1 WHERE {column} > ?1", (start_s,))
        clock = StoreClock(start_s, clocks)
        clock.save(db)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    return clock


def _continued(clocks: SystemClocks, clock_s: float, wall_at: float, elapsed_s: float, boot_id: str) -> float:
    elapsed = clocks.elapsed_s() - elapsed_s
    if boot_id and boot_id == clocks.boot_id() and elapsed >= 0.0:
        return clock_s + elapsed
    return clock_s + min(max(clocks.wall_s() - wall_at, 0.0), MAX_GAP_S)


def _first(db: sqlite3.Connection, clocks: SystemClocks) -> float:
    """Starts the clock of a database that has none: a new one, one of an earlier release, or what was saved of one.

    An earlier release wrote the system's time only. What it stored last may be as old as a gap can be.
    """
    wall_s = clocks.wall_s()
    db.execute("UPDATE jobs SET accepted_s = accepted_at WHERE accepted_s = 0")
    db.execute("UPDATE jobs SET ended_s = ended_at WHERE ended_s = 0")
    latest = [
        db.execute(f"SELECT max({column}) FROM {table} WHERE {column} <= ?", (wall_s,)).fetchone()[0]
        for table, column in _TIMES
    ]
    known = [float(found) for found in latest if found]
    return min(wall_s, max(known) + MAX_GAP_S) if known else wall_s
