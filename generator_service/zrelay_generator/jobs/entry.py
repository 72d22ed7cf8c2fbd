"""One job as the event loop sees it: where it stands, and what happened to it."""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from zrelay_generator.engine.events import Event, Image, Preview, Progress, Waiting
from zrelay_generator.engine.job import Job, Priority
from zrelay_shared.errors import ZrelayError

_STEPS_KEPT = 32
"""Latest units of work that a watcher can still be told of; one that is further behind misses some."""


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)


@dataclass(slots=True, eq=False)
class Entry:
    """One job.

    Attributes: `key` its place in the line, lower is earlier; `accepted` the serialized JobAccepted; `work_s` estimated
    seconds on the device; `job` while it is on the device or near it; `moved_at` (monotonic seconds) when the device
    last said something of it; `parked` once this process will not go on with it; `unkept` once the disk has refused
    something of it; `alone` where it must have no company on the device; `events` the latest progress and previews, all
    results.
    """

    id: str
    request_id: str
    identity: str
    arrival: int
    priority: Priority
    caller: str
    key: float
    work_s: float
    input_bytes: int
    accepted_at: float
    accepted: bytes
    detached: bool = False
    state: State = State.QUEUED
    error: ZrelayError | None = None
    ended_at: float = 0.0
    job: Job | None = None
    sequence: int = 0
    watchers: int = 0
    moved_at: float = 0.0
    parked: bool = False
    unkept: bool = False
    alone: bool = False
    events: list[tuple[int, Event]] = field(default_factory=list)
    unsaved: "deque[tuple[int, Event]] | None" = None
    saving: "asyncio.Task[None] | None" = None
    lease: asyncio.TimerHandle | None = None
    _changed: asyncio.Event | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def over(self) -> bool:
        """Whether nothing more will be told here."""
        return self.ended or self.parked

    @property
    def images(self) -> Iterator[Image]:
        return (event for _, event in self.events if isinstance(event, Image))

    @property
    def latest(self) -> Progress | Waiting | None:
        """The latest progress."""
        return next((event for _, event in reversed(self.events) if isinstance(event, Progress | Waiting)), None)

    def tell(self, event: Event) -> int:
        """Adds an event; its sequence number. Of what a slow watcher may miss only the latest is kept."""
        self._make_room(event)
        self.sequence += 1
        self.events.append((self.sequence, event))
        if self._changed is not None:
            self._changed.set()
            self._changed = None
        return self.sequence

    def replace(self, sequence: int, event: Event) -> None:
        """Another value for an event that was told."""
        self.events = [(n, event if n == sequence else old) for n, old in self.events]

    def after(self, sequence: int) -> tuple[int, Event] | None:
        """The first event behind a sequence number that is still kept."""
        at = bisect_right(self.events, sequence, key=lambda pair: pair[0])
        return self.events[at] if at < len(self.events) else None

    @property
    def changed(self) -> asyncio.Event:
        """Set with the next event."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    def _make_room(self, event: Event) -> None:
        if isinstance(event, Waiting | Preview):
            self.events = [(n, old) for n, old in self.events if not _replaces(event, old)]
        elif isinstance(event, Progress):
            steps = [n for n, old in self.events if isinstance(old, Progress)]
            if len(steps) >= _STEPS_KEPT:
                self.events = [(n, old) for n, old in self.events if n != steps[0]]


def _replaces(event: Event, old: Event) -> bool:
    if isinstance(event, Preview):
        return isinstance(old, Preview) and old.image_index == event.image_index
    return isinstance(old, Waiting)
