"""Jobs of this process, the stored records of their results, and jobs that are restored from such records."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from zrelay_generator.engine.events import JobFailed
from zrelay_generator.engine.job import DeviceJob, StageTimings
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.events import EventLog, ImageFinished, JobAccepted, JobEvent, JobSucceeded
from zrelay_generator.store.records import JobRecord, JobState, ResultRecord, damaged

_ACCEPTED = JobAccepted(0, 0.0, 0.0)
"""Stands for the first event; its numbers are in `JobRecord.accepted`."""


@dataclass(slots=True, eq=False)
class LiveJob:
    """One job. Used from the event loop.

    Attributes:
        record: The job as it is persisted.
        log: Its events.
        device_job: The job on the device, None before it is loaded and after it is over.
        watchers: Streams that watch it.
        progressed_at: Seconds on the monotonic clock at which the device last reported on it.
        suspended: Whether this process has stopped it, for the next process to continue.
        alone: Whether it must run on the device without other jobs.
        unrelated: Whether the relation of its encoder is not known yet; until then its watchers receive nothing.
    """

    record: JobRecord
    log: EventLog
    device_job: DeviceJob | None = None
    watchers: int = 0
    progressed_at: float = 0.0
    suspended: bool = False
    alone: bool = False
    unrelated: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more happens to it in this process."""
        return self.suspended or self.record.state.ended

    @property
    def held(self) -> bool:
        """Whether its events wait for the relation of its encoder; those of a job that failed do not."""
        failed = self.suspended or self.record.state in (JobState.FAILED, JobState.CANCELLED)
        return self.unrelated and not failed


def result_record(sequence: int, event: ImageFinished | JobSucceeded) -> ResultRecord:
    """Returns the record of a result; the bytes of an image are in its file, not in the record."""
    if isinstance(event, JobSucceeded):
        return ResultRecord(sequence, json.dumps({"done": asdict(event)}))
    fields = asdict(replace(event, data=b""))
    del fields["data"]
    return ResultRecord(sequence, json.dumps({"image": fields}), event.file_sha256, len(event.data))


def event_of(record: ResultRecord) -> ImageFinished | JobSucceeded:
    """Returns the event of a record; an image comes without its bytes.

    Raises:
        PayloadCorrupt: The record is damaged (STORE_DAMAGED).
    """
    try:
        (kind, fields), *_ = json.loads(record.body).items()
        if kind == "done":
            return JobSucceeded(int(fields["images"]), StageTimings(**fields["timings"]))
        return ImageFinished(**{**fields, "format": ImageFormat(fields["format"])}, data=b"")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise damaged("a result of this job") from error


def stored_job(record: JobRecord, results: Sequence[ResultRecord]) -> LiveJob:
    """Returns a job as it is stored.

    Raises:
        PayloadCorrupt: A result is damaged (STORE_DAMAGED).
    """
    events: list[tuple[int, JobEvent]] = [(1, _ACCEPTED)]
    events += [(result.sequence, event_of(result)) for result in results]
    if record.error is not None:
        events.append((record.sequence, JobFailed(record.error)))
    return LiveJob(record, EventLog(events, record.sequence))


def complete_stored_job(record: JobRecord, results: Sequence[ResultRecord]) -> LiveJob:
    """Returns a job with all its results.

    Raises:
        PayloadCorrupt: A result is damaged, or images of the job are missing (STORE_DAMAGED).
    """
    job = stored_job(record, results)
    images = sum(event.images for _, event in job.log if isinstance(event, JobSucceeded))
    if record.state is JobState.SUCCEEDED and images != len(job.log.images):
        raise damaged("a result of this job")
    return job
