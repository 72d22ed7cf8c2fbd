"""Selects the generator for the next job, from the load that each generator reported. No network, no clock.

The score of a generator is the estimated time in seconds until it would have finished the job: the work of others that
is queued there, our own work in flight there, and the job itself at the generator's latest pace. The lowest score wins.
"""

import math
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
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    ZrelayError,
)

_PACE_WEIGHT = 0.3
"""Weight of the latest measurement in the moving average of a generator's pace."""
_MIN_REST_S = 0.05
_MAX_REST_S = 5.0
"""An unreachable generator is retried after 0.2, 0.4, ... up to this many seconds."""
MAX_PAUSE_S = 60.0
"""Longest pause before a retry, whatever hint the service sends."""


class FailureKind(Enum):
    """What a failed call means for where the job can run next."""

    BUSY = auto()
    """The generator can take the job later; another can take it now."""
    GOING = auto()
    """The generator loads a model or shuts down. As BUSY; a job that runs there should move."""
    LOST = auto()
    """The connection failed, not the job. The job may still run there."""
    UNFIT = auto()
    """This generator cannot run the job; another may."""
    CONTENT = auto()
    """The generator does not hold the inputs that the request names. Send them again."""
    FORGOTTEN = auto()
    """The generator does not know the job. Submit it again."""
    FINAL = auto()
    """The job fails in the same way on every generator."""


def failure_kind(error: ZrelayError) -> FailureKind:
    """Classifies a failed call to a generator or an encoder."""
    by_transport = "grpc" in error.metadata  # the status comes from gRPC, not from the service
    if isinstance(error, (ModelLoading, Draining)):
        return FailureKind.GOING
    if isinstance(error, Unavailable) and error.retry_after_s is not None:
        return FailureKind.BUSY  # the service answers but cannot take the job now, for example because its disk is full
    if isinstance(error, Unavailable) or (by_transport and isinstance(error, (Cancelled, InternalError))):
        return FailureKind.LOST  # CANCELLED or a reset stream from gRPC means that the server ended (grpc issue 41785)
    if isinstance(error, (OutOfMemory, FeatureMissing, Unauthenticated, PermissionDenied)):
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
    """The load and availability of one generator. The caller chooses the unit of work, e.g. pixels times steps."""

    endpoint: str
    fresh: bool = False
    """Whether the generator has answered since the last lost connection. Only such a generator gets jobs."""
    others_s: float = 0.0
    """Seconds of other callers' work, as last reported."""
    pace: float = 0.0
    """Seconds per unit of work; 0 while unknown."""
    jobs: int = 0
    """Number of our jobs in flight."""
    work: float = 0.0
    """Units of our work in flight."""
    rests_until: float = 0.0
    """Clock time before which the generator gets no job."""
    failures: int = 0
    """Number of lost connections in a row."""

    def report(self, wait_s: float) -> None:
        """Records an answer: a job that is sent now would start after `wait_s` seconds."""
        self.fresh, self.failures = True, 0
        self.others_s = max(0.0, wait_s - self.work * self.pace)

    def accepted(self, work: float, run_s: float) -> None:
        """Records that a job of `work` units was accepted, with its estimated duration (0: unknown)."""
        if 0 < run_s < math.inf and work > 0:
            latest = run_s / work
            self.pace = latest if self.pace == 0.0 else (1 - _PACE_WEIGHT) * self.pace + _PACE_WEIGHT * latest

    def rest(self, now: float, seconds: float | None) -> None:
        """Records that the generator is full, loads or drains: it gets no job for `seconds`, at most a minute."""
        self.rests_until = max(self.rests_until, now + min(max(_MIN_REST_S, seconds or 1.0), MAX_PAUSE_S))

    def lost(self, now: float) -> None:
        """Records a lost connection: no job until the generator answers again, with growing pauses between attempts."""
        self.fresh = False
        self.failures += 1
        self.rests_until = now + min(_MAX_REST_S, 0.1 * 2 ** min(self.failures, 10))


@dataclass(slots=True)
class Fleet:
    """The generators of one client."""

    members: Sequence[Member]
    _turn: int = field(default=0)

    def choose(self, work: float, now: float, without: Collection[str] = ()) -> Member | None:
        """Returns the member that would finish a job of `work` units first, or None if no member can take a job now.

        Members with equal scores take turns. Endpoints in `without` are left out.
        """
        free = [m for m in self.members if m.fresh and m.rests_until <= now and m.endpoint not in without]
        if not free:
            return None
        unknown = min((m.pace for m in self.members if m.pace), default=1.0)  # assume the best pace, to try it out
        self._turn += 1

        def score(index: int) -> tuple[float, int, int]:
            member = free[index]
            done_s = member.others_s + (member.work + work) * (member.pace or unknown)
            return done_s, member.jobs, (index + self._turn) % len(free)

        return free[min(range(len(free)), key=score)]

    def due(self, now: float, without: Collection[str] = ()) -> list[Member]:
        """Returns the members that must answer before they get a job, and may be called now."""
        return [m for m in self.members if not m.fresh and m.rests_until <= now and m.endpoint not in without]

    def wakes_in(self, now: float, without: Collection[str] = ()) -> float | None:
        """Returns the seconds until the next rest ends, 0 if one has ended, or None if no member is left."""
        return min((max(0.0, m.rests_until - now) for m in self._left(without)), default=None)

    def _left(self, without: Collection[str]) -> Iterable[Member]:
        return (m for m in self.members if m.endpoint not in without)
