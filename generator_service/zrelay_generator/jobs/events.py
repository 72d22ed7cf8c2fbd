"""What happens to a job, as its watchers see it, and the log that keeps it for them."""

import asyncio
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

from zrelay_generator.engine.events import JobFailed, StageProgress
from zrelay_generator.engine.job import StageTimings
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.scheduling.scheduler import QueueStanding

_UNITS_KEPT = 32
"""Latest progress events that are kept for watchers; a slower watcher misses some."""


@dataclass(frozen=True, slots=True)
class JobAccepted:
    """Always the first event.

    Attributes:
        queue_position: Jobs that go before it.
        wait_s: Estimated seconds of their work, 0 until the device was measured.
        run_s: Estimated seconds of its own work, 0 until the device was measured.
    """

    queue_position: int
    wait_s: float
    run_s: float


@dataclass(frozen=True, slots=True)
class PreviewReady:
    """A small JPEG of an image after a step."""

    image_index: int
    step: int
    jpeg: bytes


@dataclass(frozen=True, slots=True)
class ImageFinished:
    """A finished image.

    Attributes:
        image_index: Index of the image in the job.
        seed: Seed of the image.
        width: Pixels.
        height: Pixels.
        format: Format of the file.
        data: The file; empty if it is in the store alone.
        file_sha256: SHA-256 (hex) of the file.
        pixels_sha256: SHA-256 (hex) of the RGB pixels.
    """

    image_index: int
    seed: int
    width: int
    height: int
    format: ImageFormat
    data: bytes
    file_sha256: str
    pixels_sha256: str


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    """The last event of a job that succeeded: its number of images and the seconds per stage."""

    images: int
    timings: StageTimings


JobEvent = JobAccepted | QueueStanding | StageProgress | PreviewReady | ImageFinished | JobSucceeded | JobFailed
"""What watchers see. QueueStanding and repeated StageProgress are heartbeats."""


class EventLog:
    """The events of one job in order: its results, and the latest progress and previews.

    Attributes:
        sequence: Sequence number of the latest event.
    """

    __slots__ = ("_changed", "_events", "sequence")

    def __init__(self, events: list[tuple[int, JobEvent]] | None = None, sequence: int = 0) -> None:
        """Creates a log.

        Args:
            events: Events so far with their sequence numbers.
            sequence: Sequence number of the latest event.
        """
        self._events = events or []
        self._changed: asyncio.Event | None = None
        self.sequence = sequence

    def __iter__(self) -> Iterator[tuple[int, JobEvent]]:
        return iter(self._events)

    def append(self, event: JobEvent) -> int:
        """Adds an event and returns its sequence number. Of progress and previews only the latest ones are kept."""
        self._drop_replaced(event)
        self.sequence += 1
        self._events.append((self.sequence, event))
        self.wake()
        return self.sequence

    def wake(self) -> None:
        """Lets the watchers look at the events again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def replace(self, sequence: int, event: JobEvent) -> None:
        """Replaces an event."""
        self._events = [(n, event if n == sequence else old) for n, old in self._events]

    def after(self, sequence: int) -> tuple[int, JobEvent] | None:
        """Returns the first kept event after a sequence number."""
        at = bisect_right(self._events, sequence, key=lambda pair: pair[0])
        return self._events[at] if at < len(self._events) else None

    @property
    def changed(self) -> asyncio.Event:
        """Set by the next event."""
        if self._changed is None:
            self._changed = asyncio.Event()
        return self._changed

    @property
    def images(self) -> list[ImageFinished]:
        """The finished images so far."""
        return [event for _, event in self._events if isinstance(event, ImageFinished)]

    @property
    def latest_progress(self) -> StageProgress | QueueStanding | None:
        """The latest progress or standing."""
        kinds = StageProgress | QueueStanding
        return next((event for _, event in reversed(self._events) if isinstance(event, kinds)), None)

    def _drop_replaced(self, event: JobEvent) -> None:
        if isinstance(event, QueueStanding | PreviewReady):
            self._events = [(n, old) for n, old in self._events if not _replaces(event, old)]
        elif isinstance(event, StageProgress):
            units = [n for n, old in self._events if isinstance(old, StageProgress)]
            if len(units) >= _UNITS_KEPT:
                self._events = [(n, old) for n, old in self._events if n != units[0]]


def _replaces(event: QueueStanding | PreviewReady, old: JobEvent) -> bool:
    if isinstance(event, PreviewReady):
        return isinstance(old, PreviewReady) and old.image_index == event.image_index
    return isinstance(old, QueueStanding)
