"""The jobs that wait for a place near the device, in their order."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from zrelay_generator.engine.job import Priority
from zrelay_generator.jobs.entry import Entry

LEAD_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 60.0, Priority.BATCH: 3600.0}
"""Seconds that a job of a class lets more urgent ones pass; so every job's turn comes (aging)."""
_WORK_WEIGHT = 2.0


def order_key(accepted_at: float, priority: Priority, work_s: float, backlog_s: float) -> float:
    """A job's place: lower is earlier. Seconds since 1970 of its acceptance, later by its class's lead, by twice its
    own work (short ones first), and by the work that its caller has waiting already (fairness between callers)."""
    return accepted_at + LEAD_S[priority] + _WORK_WEIGHT * work_s + backlog_s


def key_now(entry: Entry, left_s: float) -> float:
    """A job's place by the work that is left of it, as it is estimated now: what is known of the device changes, so
    the places of what runs and of what comes are comparable only by the same estimate."""
    return entry.key + _WORK_WEIGHT * (left_s - entry.work_s)


class Line:
    """Sorted by `Entry.key`, one row for each priority, since each has places of its own near the device.

    Adding, removing and looking up take time logarithmic in the jobs that wait, but for moving pointers and adding
    floats.
    """

    def __init__(self) -> None:
        self._rows = {priority: _Row() for priority in Priority}
        self._callers: dict[str, tuple[int, float]] = {}
        self.work_s = 0.0
        self.input_bytes = 0

    def __len__(self) -> int:
        return sum(len(row.entries) for row in self._rows.values())

    def add(self, entry: Entry) -> None:
        row = self._rows[entry.priority]
        at = bisect_left(row.keys, (entry.key, entry.arrival))
        row.keys.insert(at, (entry.key, entry.arrival))
        row.works.insert(at, entry.work_s)
        row.entries.insert(at, entry)
        self._count(entry, 1)

    def remove(self, entry: Entry) -> bool:
        """Whether the entry was in the line."""
        row = self._rows[entry.priority]
        at = bisect_left(row.keys, (entry.key, entry.arrival))
        if at == len(row.entries) or row.entries[at] is not entry:
            return False
        del row.keys[at], row.works[at], row.entries[at]
        self._count(entry, -1)
        return True

    def first(self, allowed: Callable[[Priority], bool]) -> Entry | None:
        """The first of those whose class is allowed to go on."""
        heads = [row.entries[0] for priority, row in self._rows.items() if row.entries and allowed(priority)]
        return min(heads, key=lambda entry: (entry.key, entry.arrival), default=None)

    def ahead(self, key: float, arrival: int) -> tuple[int, float]:
        """How many jobs come before a place, and their work in seconds."""
        count, work_s = 0, 0.0
        for row in self._rows.values():
            at = bisect_left(row.keys, (key, arrival))
            count += at
            work_s += sum(row.works[:at])
        return count, work_s

    def standings(self) -> Iterator[tuple[Entry, int, float]]:
        """Every entry in order, with the number of jobs before it and the seconds of work up to its end."""
        everyone = sorted(
            (entry for row in self._rows.values() for entry in row.entries), key=lambda e: (e.key, e.arrival)
        )
        sums = accumulate(entry.work_s for entry in everyone)
        return ((entry, place, work_s) for place, (entry, work_s) in enumerate(zip(everyone, sums, strict=True)))

    def backlog_s(self, caller: str) -> float:
        """Seconds of work that a caller has waiting."""
        return self._callers.get(caller, (0, 0.0))[1]

    def waiting_of(self, caller: str) -> int:
        """How many jobs of a caller wait."""
        return self._callers.get(caller, (0, 0.0))[0]

    def _count(self, entry: Entry, sign: int) -> None:
        self.input_bytes += sign * entry.input_bytes
        self.work_s = max(0.0, self.work_s + sign * entry.work_s) if len(self) else 0.0
        waiting, backlog_s = self._callers.pop(entry.caller, (0, 0.0))
        if waiting + sign > 0:
            self._callers[entry.caller] = waiting + sign, max(0.0, backlog_s + sign * entry.work_s)


class _Row:
    __slots__ = ("entries", "keys", "works")

    def __init__(self) -> None:
        self.keys: list[tuple[float, int]] = []
        self.works: list[float] = []
        self.entries: list[Entry] = []
