"""The jobs that wait for a place near the device, in their order."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from itertools import accumulate

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.job import Priority
from zrelay_generator.jobs.entry import Entry

LEAD_S = {Priority.INTERACTIVE: 0.0, Priority.NORMAL: 60.0, Priority.BATCH: 3600.0}
"""Seconds that a job of a class lets more urgent ones pass; so every job's turn comes (aging)."""
_WORK_WEIGHT = 2.0


def order_key(accepted_at: float, priority: Priority, work_s: float, backlog_s: float) -> float:
    """A job's place: lower is earlier. Seconds since 1970 of its acceptance, later by its class's lead, by twice its
    own work (short ones first), and by the work that its caller has waiting already in jobs no longer than this one
    (fairness between callers; among a caller's own jobs the short ones are first as well)."""
    return accepted_at + LEAD_S[priority] + _WORK_WEIGHT * work_s + backlog_s


def left_s(entry: Entry, speed: Speed) -> float:
    """Seconds of work that are left of a job, as they are estimated now."""
    return entry.work_s if entry.job is None else speed.remaining_s(entry.job)


def key_now(entry: Entry, left_s: float) -> float:
    """A job's place by the work that is left of it; never later than it was at its acceptance. What is known of the
    device changes, but those that wait keep their first estimate, and none may pass for that alone."""
    return entry.key + _WORK_WEIGHT * min(0.0, left_s - entry.work_s)


class Line:
    """Sorted by `Entry.key`, one row for each priority, since each has places of its own near the device.

    Adding, removing and looking up take time logarithmic in the jobs that wait, but for moving pointers and adding
    floats.
    """

    def __init__(self) -> None:
        self._rows = {priority: _Row() for priority in Priority}
        self._callers: dict[str, list[float]] = {}
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

    def first(self, allowed: Callable[[Entry], bool]) -> Entry | None:
        """The first of the heads of the classes, of those that are allowed to go on."""
        heads = [row.entries[0] for row in self._rows.values() if row.entries and allowed(row.entries[0])]
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

    def backlog_s(self, caller: str, work_s: float) -> float:
        """Seconds of work that a caller has waiting in jobs of `work_s` at most."""
        works = self._callers.get(caller, [])
        return sum(works[: bisect_right(works, work_s)])

    def waiting_of(self, caller: str) -> int:
        """How many jobs of a caller wait."""
        return len(self._callers.get(caller, ()))

    def _count(self, entry: Entry, sign: int) -> None:
        self.input_bytes += sign * entry.input_bytes
        self.work_s = max(0.0, self.work_s + sign * entry.work_s) if len(self) else 0.0
        works = self._callers.setdefault(entry.caller, [])
        if sign > 0:
            insort(works, entry.work_s)
        else:
            del works[bisect_left(works, entry.work_s)]
        if not works:
            del self._callers[entry.caller]


class _Row:
    __slots__ = ("entries", "keys", "works")

    def __init__(self) -> None:
        self.keys: list[tuple[float, int]] = []
        self.works: list[float] = []
        self.entries: list[Entry] = []
