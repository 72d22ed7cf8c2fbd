"""How much work is before whom: the ground of admission, of queue positions and of what GetInfo says."""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.events import Waiting
from zrelay_generator.engine.job import Priority
from zrelay_generator.jobs.entry import Entry, State
from zrelay_generator.jobs.prefetcher import Feeder
from zrelay_generator.scheduling.line import Line, key_now, left_s


class Workload:
    """Looks at the line and at the jobs near the device; changes neither."""

    def __init__(self, line: Line, feeder: Feeder, speed: Speed) -> None:
        self._line, self._feeder, self._speed = line, feeder, speed

    @property
    def waiting(self) -> int:
        return len(self._line) + sum(entry.state is State.QUEUED for entry in self._feeder.near)

    @property
    def running(self) -> int:
        return sum(entry.state is State.RUNNING for entry in self._feeder.near)

    @property
    def total_s(self) -> float:
        """Seconds until all that was admitted is done."""
        return self._line.work_s + sum(self._near_s(entry) for entry in self._feeder.near)

    def waiting_of(self, caller: str) -> int:
        """Jobs of one caller that wait."""
        near = sum(entry.caller == caller and entry.state is State.QUEUED for entry in self._feeder.near)
        return self._line.waiting_of(caller) + near

    def ahead(self, key: float, arrival: int, priority: Priority) -> tuple[int, float, float]:
        """Jobs before a place in the line, their seconds of work, and the seconds until the first of them is done."""
        near = self._near_before(key, arrival) or self._place_s(priority)
        count, work_s = self._line.ahead(key, arrival)
        return count + len(near), work_s + sum(near), min(near, default=0.0)

    def standing(self, entry: Entry) -> Waiting:
        """Where one job stands that waits."""
        own_s = self._near_s(entry)
        key = key_now(entry, own_s)
        if entry not in self._feeder.near:
            count, work_s, _ = self.ahead(key, entry.arrival, entry.priority)
            return Waiting(count, work_s + own_s)
        near = self._near_before(key, entry.arrival)
        count, work_s = self._line.ahead(key, entry.arrival)
        return Waiting(count + len(near), work_s + sum(near) + own_s)

    def standings(self) -> Iterator[tuple[Entry, Waiting]]:
        """Where every job stands that waits; one pass over all of them."""
        near = self._feeder.near
        for entry in near:
            if entry.state is State.QUEUED:
                yield entry, self.standing(entry)
        left = sorted((key_now(entry, self._near_s(entry)), entry.arrival, self._near_s(entry)) for entry in near)
        places = [(key, arrival) for key, arrival, _ in left]
        sums = list(accumulate((own_s for _, _, own_s in left), initial=0.0))
        first = {priority: self._place_s(priority) for priority in Priority}
        for entry, place, work_s in self._line.standings():
            at = bisect_left(places, (entry.key, entry.arrival))
            before, before_s = (at, sums[at]) if at else (len(first[entry.priority]), sum(first[entry.priority]))
            yield entry, Waiting(before + place, before_s + work_s)

    def _near_before(self, key: float, arrival: int) -> list[float]:
        """Seconds left of each job near the device that is before a place."""
        left = [(self._near_s(entry), entry) for entry in self._feeder.near]
        return [own_s for own_s, entry in left if (key_now(entry, own_s), entry.arrival) < (key, arrival)]

    def _place_s(self, priority: Priority) -> list[float]:
        """Of a job that is before all those near the device: one of them must be done before it comes near, where there
        is no place left; else nothing."""
        if not self._feeder.full(priority):
            return []
        return [min(self._near_s(entry) for entry in self._feeder.near if entry.priority <= priority)]

    def _near_s(self, entry: Entry) -> float:
        return left_s(entry, self._speed)
