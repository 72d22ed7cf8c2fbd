"""The jobs that wait to be loaded, in the order of `order.ranked`, by priority class and caller."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import accumulate

from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.order import Candidate, place
from zrelay_generator.store.records import JobRecord


def queued_candidate(record: JobRecord) -> Candidate[JobRecord]:
    """Returns a queued job as `order.ranked` takes it."""
    return Candidate(record, record.caller, record.accepted_s, record.arrival, record.work_s)


@dataclass(slots=True)
class CallerQueue:
    """The queued jobs of one caller in one class, sorted by place.

    Finding the position of a job takes logarithmic time; inserting or removing it also moves the entries behind it.

    Attributes:
        places: Place and arrival number of each job.
        records: The jobs.
        input_bytes: Bytes on disk that they need.
    """

    places: list[tuple[float, int]] = field(default_factory=list)
    records: list[JobRecord] = field(default_factory=list)
    input_bytes: int = 0
    _work: list[float] | None = None

    def add(self, record: JobRecord) -> None:
        """Inserts a job."""
        at = self.position(record)
        self.places.insert(at, _place(record))
        self.records.insert(at, record)
        self.input_bytes += record.input_bytes
        self._work = None

    def remove(self, record: JobRecord) -> bool:
        """Removes a job. Returns whether the job was in this queue."""
        at = self.position(record)
        if at == len(self.records) or self.records[at].arrival != record.arrival:
            return False
        del self.places[at], self.records[at]
        self.input_bytes -= record.input_bytes
        self._work = None
        return True

    def position(self, record: JobRecord) -> int:
        """Returns how many jobs of this caller go before a job."""
        return bisect_left(self.places, _place(record))

    @property
    def work_through(self) -> list[float]:
        """Returns the seconds of work up to and including each job, as a running sum."""
        if self._work is None:
            self._work = list(accumulate(record.work_s for record in self.records))
        return self._work

    def work_before(self, position: int) -> float:
        """Returns the seconds of work of the first `position` jobs."""
        return self.work_through[position - 1] if position else 0.0


class JobQueue:
    """All queued jobs. Used from the event loop."""

    def __init__(self) -> None:
        self._classes: dict[Priority, dict[str, CallerQueue]] = {priority: {} for priority in Priority}
        self._jobs = dict.fromkeys(Priority, 0)
        self._work_s = dict.fromkeys(Priority, 0.0)
        self.input_bytes = 0

    def __len__(self) -> int:
        return sum(self._jobs.values())

    @property
    def work_s(self) -> float:
        """Estimated seconds of work of all queued jobs."""
        return sum(self._work_s.values())

    def add(self, record: JobRecord) -> None:
        """Inserts a job."""
        self._classes[record.priority].setdefault(record.caller, CallerQueue()).add(record)
        self._count(record, 1)

    def remove(self, record: JobRecord) -> bool:
        """Removes a job. Returns whether it was queued."""
        callers = self._classes[record.priority]
        own = callers.get(record.caller)
        if own is None or not own.remove(record):
            return False
        if not own.records:
            del callers[record.caller]
        self._count(record, -1)
        return True

    def jobs_of(self, priority: Priority) -> tuple[int, float]:
        """Returns the number of jobs of a class and their seconds of work."""
        return self._jobs[priority], self._work_s[priority]

    def queues_of(self, caller: str) -> dict[Priority, CallerQueue]:
        """Returns the queues of a caller in the classes in which it has jobs."""
        return {priority: callers[caller] for priority, callers in self._classes.items() if caller in callers}

    def callers(self, priority: Priority) -> dict[str, CallerQueue]:
        """Returns the queue of each caller of a class."""
        return self._classes[priority]

    def heads(self, priority: Priority, limit: int, tag: Callable[[JobRecord], float]) -> list[JobRecord]:
        """Returns the first job of each caller of a class, of those with the lowest tags, at most `limit`."""
        heads = [own.records[0] for own in self._classes[priority].values()]
        return nsmallest(limit, heads, key=lambda record: (tag(record), record.arrival))

    def __iter__(self) -> Iterator[JobRecord]:
        for callers in self._classes.values():
            for own in callers.values():
                yield from own.records

    def _count(self, record: JobRecord, sign: int) -> None:
        priority = record.priority
        self.input_bytes += sign * record.input_bytes
        self._jobs[priority] += sign
        self._work_s[priority] = self._work_s[priority] + sign * record.work_s if self._jobs[priority] else 0.0


def _place(record: JobRecord) -> tuple[float, int]:
    return place(record.accepted_s, record.work_s), record.arrival
