"""Which generator takes the next job: a policy over what each said of its load. No network, no clock of its own.

A generator's score is the estimated second at which it would be done with the job: what others have queued there, our
own work in flight there, and the job itself, at the pace it was last seen to have. The lowest score wins.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from zrelay_shared.errors import (
    Cancelled,
    Draining,
    FeatureMissing,
    InternalError,
    ModelLoading,
    NotFound,
    OutOfMemory,
    ResourceExhausted,
    Unavailable,
    ZrelayError,
)

_NEW = 0.3
"""Share of the latest measurement in a generator's pace."""
_LEAST_REST_S = 0.05
_MOST_REST_S = 5.0
"""An unreachable generator is tried again after 0.2, 0.4, ... up to this many seconds."""


class FailureKind(Enum):
    """What a failure says of where the job can go next."""

    BUSY = auto()
    """Here later, elsewhere now."""
    GOING = auto()
    """This generator loads or goes away: as BUSY, and a job that it had is better moved."""
    LOST = auto()
    """The connection, not the job, has failed: the job may run on there."""
    UNFIT = auto()
    """This generator cannot do it, another may."""
    CONTENT = auto()
    """It does not hold the inputs that were named: send them again."""
    FORGOTTEN = auto()
    """It does not know the job (any more): submit it again."""
    FINAL = auto()
    """The same everywhere."""


def failure_kind(error: ZrelayError) -> FailureKind:
    """What to make of a failed call to a generator."""
    by_wire = "grpc" in error.metadata  # said by gRPC itself, not by the service
    if isinstance(error, (ModelLoading, Draining)):
        return FailureKind.GOING
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        return FailureKind.BUSY  # it answers, and cannot now: its disk refuses
    if isinstance(error, Unavailable) or (by_wire and isinstance(error, (Cancelled, InternalError))):
        return FailureKind.LOST  # an unasked CANCELLED or a reset stream is a server that ended (grpc issue 41785)
    if isinstance(error, (OutOfMemory, FeatureMissing)):
        return FailureKind.UNFIT
    if isinstance(error, ResourceExhausted) and error.retry_after_s is not None:
        return FailureKind.BUSY
    if isinstance(error, NotFound) and error.reason == "CONTENT_UNKNOWN":
        return FailureKind.CONTENT
    if isinstance(error, NotFound) or error.reason == "LEASE_EXPIRED":
        return FailureKind.FORGOTTEN
    return FailureKind.FINAL


@dataclass(slots=True, eq=False)
class Member:
    """One generator as the policy sees it. Work is in units of the caller's choice, e.g. pixels times steps."""

    endpoint: str
    fresh: bool = False
    """Whether it answered since it was last lost; only then it is given jobs."""
    others_s: float = 0.0
    """Seconds of other callers' work there, as last reported."""
    pace: float = 0.0
    """Seconds for a unit of work; 0 while nothing is known."""
    jobs: int = 0
    """Ours in flight there."""
    work: float = 0.0
    """Units of ours in flight there."""
    rests_until: float = 0.0
    failures: int = 0
    """In a row."""

    def report(self, wait_s: float) -> None:
        """It answered, and a job sent now would start in so many seconds."""
        self.fresh, self.failures = True, 0
        self.others_s = max(0.0, wait_s - self.work * self.pace)

    def accepted(self, work: float, run_s: float) -> None:
        """It took a job of so much work, and estimates that it runs so long (0: it cannot tell)."""
        if run_s > 0 and work > 0:
            latest = run_s / work
            self.pace = latest if self.pace == 0.0 else (1 - _NEW) * self.pace + _NEW * latest

    def rest(self, now: float, seconds: float | None) -> None:
        """It is full, loads or drains: no job for so long."""
        self.rests_until = max(self.rests_until, now + max(_LEAST_REST_S, seconds or 1.0))

    def lost(self, now: float) -> None:
        """It cannot be reached: no job before it has answered again, tried at growing intervals."""
        self.fresh = False
        self.failures += 1
        self.rests_until = now + min(_MOST_REST_S, 0.1 * 2 ** min(self.failures, 10))


@dataclass(slots=True)
class Fleet:
    """The generators of one client."""

    members: Sequence[Member]
    _turn: int = field(default=0)

    def choose(self, work: float, now: float, without: Collection[str] = ()) -> Member | None:
        """The member that would be done first, in turns where several would; None where none is free to be given it."""
        free = [m for m in self.members if m.fresh and m.rests_until <= now and m.endpoint not in without]
        if not free:
            return None
        unknown = min((m.pace for m in self.members if m.pace), default=1.0)  # untried counts as fast: try it
        self._turn += 1

        def score(at: int) -> tuple[float, int, int]:
            member = free[at]
            done_s = member.others_s + (member.work + work) * (member.pace or unknown)
            return done_s, member.jobs, (at + self._turn) % len(free)

        return free[min(range(len(free)), key=score)]

    def due(self, now: float, without: Collection[str] = ()) -> list[Member]:
        """Those that have to answer before they are given a job, and may be asked now."""
        return [m for m in self.members if not m.fresh and m.rests_until <= now and m.endpoint not in without]

    def wakes_in(self, now: float, without: Collection[str] = ()) -> float | None:
        """Seconds until the next rest ends, 0 where one has ended; None where nobody is left."""
        return min((max(0.0, m.rests_until - now) for m in self._left(without)), default=None)

    def _left(self, without: Collection[str]) -> Iterable[Member]:
        return (m for m in self.members if m.endpoint not in without)
