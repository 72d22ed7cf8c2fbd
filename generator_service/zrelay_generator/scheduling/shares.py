"""Shares of device time: priority classes take turns in units of work; callers of a class share seconds equally."""

import threading
from collections.abc import Collection
from dataclasses import dataclass, field

from zrelay_generator.priority import Priority

UNITS_PER_LOWER_UNIT = {Priority.INTERACTIVE: 19, Priority.NORMAL: 9}
"""Units (steps, decodes) that a class gets before a waiting lower class gets one: 19 of 20 and 9 of 10."""


@dataclass(slots=True)
class ClassTurns:
    """Decides which priority class leads the next unit of work.

    The most urgent class that has work leads, except that after 19 interactive units one unit goes to the lower classes
    that wait, and after 9 normal units one goes to a waiting batch job. Used by the device thread alone.
    """

    _led: dict[Priority, int] = field(default_factory=lambda: dict.fromkeys(UNITS_PER_LOWER_UNIT, 0))

    def next_class(self, waiting: Collection[Priority]) -> Priority:
        """Returns the class that leads the next unit.

        Args:
            waiting: The classes that have work; at least one.
        """
        order = sorted(waiting)
        for priority in order[:-1]:
            if self._led.get(priority, 0) < UNITS_PER_LOWER_UNIT[priority]:
                return priority
        return order[-1]

    def completed(self, priority: Priority, waiting: Collection[Priority]) -> None:
        """Records that a unit of work was run, so that the next call of `next_class` takes it into account.

        Args:
            priority: The class that led it.
            waiting: The classes that had work when it was chosen.
        """
        for urgent in UNITS_PER_LOWER_UNIT:
            if urgent < priority:
                self._led[urgent] = 0  # a lower class had its unit
        if priority in self._led and any(other > priority for other in waiting):
            self._led[priority] += 1


class ServiceLedger:
    """Device seconds that callers have received, per priority class.

    Each class has a level: the seconds that each of its callers would have received if they had always shared the
    device equally (the virtual time of weighted fair queueing). A caller without jobs starts at this level when it
    sends one. Therefore nobody saves up device time by waiting, nobody is charged for time in which nobody else
    waited, and a stream of new callers cannot keep a long job waiting forever. Any thread may call it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes = {priority: _ClassLedger() for priority in Priority}

    def enter(self, priority: Priority, caller: str) -> None:
        """Records that a job of the caller waits or runs."""
        with self._lock:
            self._classes[priority].enter(caller)

    def leave(self, priority: Priority, caller: str) -> None:
        """Records that a job of the caller is over."""
        with self._lock:
            self._classes[priority].leave(caller)

    def charge(self, priority: Priority, caller: str, seconds: float) -> None:
        """Adds device seconds that the caller received."""
        with self._lock:
            self._classes[priority].charge(caller, seconds)

    def received_s(self, priority: Priority, caller: str) -> float:
        """Returns the device seconds that the caller has received, on a scale that all callers of the class share."""
        with self._lock:
            return self._classes[priority].received_s(caller)


@dataclass(slots=True)
class _ClassLedger:
    """One class: the jobs of each caller that has some, the seconds that callers have received, and the level."""

    jobs: dict[str, int] = field(default_factory=dict)
    received: dict[str, float] = field(default_factory=dict)
    level: float = 0.0

    def enter(self, caller: str) -> None:
        if caller not in self.jobs:
            self.received[caller] = max(self.received.get(caller, 0.0), self.level)
            self.jobs[caller] = 0
        self.jobs[caller] += 1

    def leave(self, caller: str) -> None:
        if caller not in self.jobs:
            return
        self.jobs[caller] -= 1
        if self.jobs[caller]:
            return
        del self.jobs[caller]
        if not self.jobs:
            self.received.clear()  # nobody waits: what was received is forgotten
            self.level = 0.0
            return
        self._raise_level(0.0)
        for idle in [one for one, received in self.received.items() if one not in self.jobs and received <= self.level]:
            del self.received[idle]

    def charge(self, caller: str, seconds: float) -> None:
        if caller in self.jobs:
            self.received[caller] += seconds
            self._raise_level(seconds / len(self.jobs))

    def received_s(self, caller: str) -> float:
        received = self.received.get(caller, 0.0)
        return received if caller in self.jobs else max(received, self.level)

    def _raise_level(self, seconds: float) -> None:
        least = min(self.received[caller] for caller in self.jobs)
        self.level = max(self.level + seconds, least)
