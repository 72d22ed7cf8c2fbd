"""A job in this process: its record, its events, and who watches it."""

from dataclasses import dataclass

from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.jobs.events import EventLog
from zrelay_generator.store.records import JobRecord


@dataclass(slots=True, eq=False)
class LiveJob:
    """One job. Used from the event loop.

    Attributes:
        record: The job as it is persisted.
        log: Its events.
        device_job: The job on the device, None before it is loaded and after it is over.
        watchers: Streams that watch it.
        progressed_at: Seconds on the monotonic clock at which the device last reported on it.
        suspended: This process will not continue it; the next one will.
        alone: It must run without company on the device.
    """

    record: JobRecord
    log: EventLog
    device_job: DeviceJob | None = None
    watchers: int = 0
    progressed_at: float = 0.0
    suspended: bool = False
    alone: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it in this process."""
        return self.suspended or self.record.state.ended
