"""The jobs as the event loop sees them: admitted, watched, cancelled, kept for a while when they have ended."""

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from zrelay_generator.config import GeneratorConfig
from zrelay_generator.events import Accepted, Done, Event, Failed, Image, Preview, Progress, Waiting
from zrelay_generator.job import Job, JobSpec, Sampling
from zrelay_generator.work import Speed
from zrelay_shared.errors import Cancelled, Draining, IdempotencyConflict, NotFound, QueueFull, ZrelayError

HEARTBEAT_S = 2.0
_KEPT_JOBS = 1000


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(slots=True, eq=False)
class Entry:
    """One job on the board. `job` is None once it has ended: its embeddings are let go, its events are kept."""

    id: str
    request_id: str
    identity: str
    arrival: int
    sampling: Sampling
    relation: str
    differences: tuple[str, ...]
    job: Job | None
    state: State = State.QUEUED
    error: ZrelayError | None = None
    accepted_at: float = field(default_factory=time.time)
    ended_at: float = 0.0
    watchers: int = 0
    sequence: int = 0
    events: list[tuple[int, Event]] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        return self.state not in (State.QUEUED, State.RUNNING)

    @property
    def kept_bytes(self) -> int:
        return sum(len(event.data) for _, event in self.events if isinstance(event, Image))

    def publish(self, event: Event) -> None:
        """Adds an event; of heart-beats and of previews of one image only the latest is kept."""
        if isinstance(event, Waiting | Preview):
            self.events = [(n, old) for n, old in self.events if not _replaces(event, old)]
        self.sequence += 1
        self.events.append((self.sequence, event))
        self.changed.set()
        self.changed = asyncio.Event()

    def after(self, sequence: int) -> list[tuple[int, Event]]:
        """Events behind a sequence number."""
        return self.events[bisect_right(self.events, sequence, key=lambda pair: pair[0]) :]


class JobBoard:
    """Admission, watching and cancelling. Lives on the event loop; hands jobs over with `start`, hears of them
    through `publish`."""

    def __init__(self, config: GeneratorConfig, speed: Speed, start: Callable[[Job], None]) -> None:
        self._config = config
        self._speed = speed
        self._start = start
        self._entries: dict[str, Entry] = {}
        self._by_request: dict[str, Entry] = {}
        self._arrivals = count(1)
        self._draining = False

    def submit(self, job_id: str, request_id: str, spec: JobSpec) -> Entry:
        """Admits a job, or finds the one that the same request made before.

        Raises Draining, QueueFull with a retry hint, IdempotencyConflict.
        """
        known = self._by_request.get(request_id)
        if known is not None and known.state not in (State.FAILED, State.CANCELLED):
            if known.identity != spec.identity:
                raise IdempotencyConflict(
                    f"request_id {request_id!r} was used for another request; make a new one for each",
                    field="request_id",
                    metadata={"request_id": request_id, "job_id": known.id},
                )
            return known
        if self._draining:
            raise Draining("this generator is going away and takes no new work; use another or try again shortly")
        job = Job(job_id, spec, next(self._arrivals))
        ahead = list(self._ahead_of(job))
        wait_s = sum(self._speed.remaining_s(other) for other in ahead)
        self._refuse_overload(ahead, wait_s)
        entry = Entry(
            id=job.id,
            request_id=request_id,
            identity=spec.identity,
            arrival=job.arrival,
            sampling=spec.sampling,
            relation=spec.origin.relation,
            differences=spec.origin.differences,
            job=job,
        )
        self._entries[job.id] = self._by_request[request_id] = entry
        entry.publish(Accepted(len(ahead), wait_s, self._speed.remaining_s(job)))
        self._start(job)
        return entry

    def publish(self, job: Job, event: Event) -> None:
        """What the device or the writer says of a job; nothing follows a job's last event."""
        entry = self._entries.get(job.id)
        if entry is None or entry.ended:
            return
        if isinstance(event, Progress):
            entry.state = State.RUNNING
        elif isinstance(event, Done):
            self._end(entry, State.SUCCEEDED)
        elif isinstance(event, Failed):
            entry.error = event.error
            self._end(entry, State.CANCELLED if isinstance(event.error, Cancelled) else State.FAILED)
        entry.publish(event)

    async def watch(self, entry: Entry, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """The events of a job behind a sequence number, until its last. A job that nobody watches is cancelled."""
        entry.watchers += 1
        try:
            while True:
                changed = entry.changed
                for sequence, event in entry.after(after):
                    after = sequence
                    yield sequence, event
                if entry.ended and entry.sequence <= after:
                    return
                await changed.wait()
        finally:
            entry.watchers -= 1
            if entry.watchers == 0:
                self.cancel(entry, "its caller went away")

    def cancel(self, entry: Entry, why: str = "it was asked for") -> None:
        """Frees the device within one step; a job that waits ends at once, one that has ended stays as it is."""
        if entry.ended or entry.job is None:
            return
        entry.job.cancelled = True
        self.publish(entry.job, Failed(Cancelled(f"the job was cancelled: {why}")))

    def find(self, job_id: str = "", request_id: str = "") -> Entry:
        """The job of an id or of a request's id. Raises NotFound."""
        entry = self._entries.get(job_id) if job_id else self._by_request.get(request_id)
        if entry is None:
            raise NotFound(
                f"no job {job_id or request_id!r} here: it never was, or ended long ago and is no longer kept",
                reason="JOB_UNKNOWN",
                field="job_id" if job_id else "request_id",
            )
        return entry

    def newest_first(self) -> Iterator[Entry]:
        return reversed(self._entries.values())

    @property
    def waiting(self) -> int:
        return sum(entry.state is State.QUEUED for entry in self._entries.values())

    @property
    def running(self) -> int:
        return sum(entry.state is State.RUNNING for entry in self._entries.values())

    @property
    def estimated_wait_s(self) -> float:
        return sum(self._speed.remaining_s(job) for job in self._unfinished())

    def heartbeat(self) -> None:
        """Tells every job that waits where it stands."""
        for entry in list(self._entries.values()):
            if entry.state is State.QUEUED and entry.job is not None:
                ahead = list(self._ahead_of(entry.job))
                eta = sum(self._speed.remaining_s(job) for job in [*ahead, entry.job])
                entry.publish(Waiting(len(ahead), eta))

    async def drain(self, grace_s: float) -> None:
        """Takes no new work; returns when all is done or `grace_s` are over, and cancels what is left."""
        self._draining = True
        deadline = time.monotonic() + grace_s
        while self._unfinished() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for entry in [entry for entry in self._entries.values() if not entry.ended]:
            if entry.job is not None:
                entry.job.cancelled = True
                self.publish(entry.job, Failed(Draining("this generator went away before the job was done")))

    def _unfinished(self) -> list[Job]:
        return [entry.job for entry in self._entries.values() if entry.job is not None]

    def _ahead_of(self, job: Job) -> Iterator[Job]:
        mine = (job.spec.priority, job.arrival)
        return (other for other in self._unfinished() if (other.spec.priority, other.arrival) < mine)

    def _refuse_overload(self, ahead: list[Job], wait_s: float) -> None:
        config = self._config
        # A job is always taken when nothing is before it: it may be longer than any limit by itself.
        if self.waiting < config.max_waiting and (not ahead or wait_s <= config.max_wait_s):
            return
        least = min((self._speed.remaining_s(job) for job in ahead), default=1.0)
        retry = min(60.0, max(1.0, wait_s - config.max_wait_s, least))
        raise QueueFull(
            f"{self.waiting} requests wait here (at most {config.max_waiting}), about {wait_s:.0f} s of work (at most "
            f"{config.max_wait_s:.0f} s); try again in {retry:.0f} s, or use another generator",
            metadata={"waiting": self.waiting, "max_waiting": config.max_waiting, "wait_s": f"{wait_s:.1f}"},
            retry_after_s=retry,
        )

    def _end(self, entry: Entry, state: State) -> None:
        entry.state, entry.ended_at, entry.job = state, time.time(), None
        ended = [old for old in self._entries.values() if old.ended]
        kept = sum(old.kept_bytes for old in ended)
        while ended and (kept > self._config.kept_results_bytes or len(ended) > _KEPT_JOBS):
            oldest = ended.pop(0)
            kept -= oldest.kept_bytes
            self._forget(oldest)

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.id]
        if self._by_request.get(entry.request_id) is entry:
            del self._by_request[entry.request_id]


def _replaces(event: Event, old: Event) -> bool:
    if isinstance(event, Preview):
        return isinstance(old, Preview) and old.image_index == event.image_index
    return isinstance(old, Waiting)
