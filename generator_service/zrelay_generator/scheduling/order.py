"""The order of jobs of one priority class: shortest first within a caller, equal device time between callers.

Each caller's jobs are sorted by `place`: the time of acceptance plus twice the remaining work. A short job passes a
long one of the same caller, and waiting raises a job's place, because jobs that arrive later have later places.

Each job then has a finish tag: the device seconds that its caller has received, plus the remaining work of the caller's
jobs up to and including this one. The lowest tag goes first. While a job runs, its tag does not change (what its caller
receives is what the job no longer needs), so a job that has started is only passed by one that is shorter than what is
left of it, or whose caller has received less. This is weighted fair queueing with equal weights (Demers, Keshav and
Shenker, 1989) with finish tags that are recomputed from estimates of the remaining work.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
WORK_WEIGHT = 2.0
"""Seconds of waiting that outweigh one second of remaining work among the jobs of one caller."""


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """A job to be ordered.

    Attributes:
        item: What is ordered.
        caller: Identity of the caller.
        accepted_at: Seconds at which the job was accepted; one clock for all candidates of a call.
        arrival: Number of the job in the order of acceptance; breaks ties.
        remaining_s: Estimated seconds on the device that it still needs.
    """

    item: T
    caller: str
    accepted_at: float
    arrival: int
    remaining_s: float

    @property
    def place(self) -> tuple[float, int]:
        """Order among the jobs of the same caller; lower goes first."""
        return place(self.accepted_at, self.remaining_s), self.arrival


@dataclass(frozen=True, slots=True)
class Ranked(Generic[T]):
    """A job in its order, with its finish tag."""

    candidate: Candidate[T]
    tag: float


def place(accepted_at: float, remaining_s: float) -> float:
    """Returns a job's place among the jobs of its caller; lower goes first."""
    return accepted_at + WORK_WEIGHT * remaining_s


def ranked(candidates: Iterable[Candidate[T]], received_s: Callable[[str], float]) -> list[Ranked[T]]:
    """Orders jobs of one priority class.

    Args:
        candidates: The jobs.
        received_s: Device seconds that a caller has received in this class.

    Returns:
        The jobs by finish tag, then by arrival.
    """
    by_caller: dict[str, list[Candidate[T]]] = defaultdict(list)
    for candidate in candidates:
        by_caller[candidate.caller].append(candidate)
    tagged = []
    for caller, own in by_caller.items():
        tag = received_s(caller)
        for candidate in sorted(own, key=lambda one: one.place):
            tag += candidate.remaining_s
            tagged.append(Ranked(candidate, tag))
    return sorted(tagged, key=lambda one: (one.tag, one.candidate.arrival))
