"""How much work is before whom: the ground of admission, of queue positions and of what GetInfo says."""

from collections.abc import Iterator

from zrelay_generator.engine.events import Waiting
from zrelay_generator.engine.work import Speed
from zrelay_generator.jobs.entry import Entry, State
from zrelay_generator.jobs.feeding import Feeder
from zrelay_generator.jobs.line import Line, key_now


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

    def ahead(self, key: float, arrival: int) -> tuple[int, float, float]:
        """Jobs before a place, their seconds of work, and the seconds until the first of them is done."""
        left = [(self._near_s(entry), entry) for entry in self._feeder.near]
        near = [left_s for left_s, entry in left if (key_now(entry, left_s), entry.arrival) < (key, arrival)]
        count, work_s = self._line.ahead(key, arrival)
        return count + len(near), work_s + sum(near), min(near, default=0.0)

    def standing(self, entry: Entry) -> Waiting:
        """Where one job stands that waits."""
        own_s = self._near_s(entry)
        count, work_s, _ = self.ahead(key_now(entry, own_s), entry.arrival)
        return Waiting(count, work_s + own_s)

    def standings(self) -> Iterator[tuple[Entry, Waiting]]:
        """Where every job stands that waits; one pass over all of them."""
        near = self._feeder.near
        for entry in near:
            if entry.state is State.QUEUED:
                yield entry, self.standing(entry)
        near_s = sum(self._near_s(entry) for entry in near)
        for entry, place, work_s in self._line.standings():
            yield entry, Waiting(len(near) + place, near_s + work_s)

    def _near_s(self, entry: Entry) -> float:
        return entry.work_s if entry.job is None else self._speed.remaining_s(entry.job)
