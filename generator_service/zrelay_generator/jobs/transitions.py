"""The state machine of a job: the next record from a record and an event.

    QUEUED ──StageProgress──> RUNNING ──JobSucceeded──> SUCCEEDED
       │                         │
       └────────JobFailed────────┴──> FAILED, or CANCELLED if the error is a Cancelled

A job that is over stays as it is, with one exception: `queued_again`. A job that was running when its process ended is
QUEUED in the next one: the store knows it as unfinished.
"""

from dataclasses import dataclass, replace

from zrelay_generator.engine.events import JobFailed, StageProgress
from zrelay_generator.jobs.events import ImageFinished, JobEvent, JobSucceeded
from zrelay_generator.store.clock import Moment
from zrelay_generator.store.records import JobRecord, JobState
from zrelay_shared.errors import Cancelled


@dataclass(frozen=True, slots=True)
class Detached:
    """Event: the job continues without watchers from now on."""


def transition(record: JobRecord, event: JobEvent | Detached, *, sequence: int, at: Moment) -> JobRecord:
    """Returns the record after an event. A pure function.

    Args:
        record: The job before the event.
        event: What happened.
        sequence: Sequence number of the event.
        at: When it happened.
    """
    if record.state.ended:
        return record
    match event:
        case Detached():
            return replace(record, detached=True)
        case StageProgress():
            return record if record.state is JobState.RUNNING else replace(record, state=JobState.RUNNING)
        case ImageFinished():
            return replace(record, sequence=sequence)
        case JobSucceeded():
            return replace(record, state=JobState.SUCCEEDED, ended_at=at.at, ended_s=at.clock_s, sequence=sequence)
        case JobFailed(error):
            state = JobState.CANCELLED if isinstance(error, Cancelled) else JobState.FAILED
            return replace(record, state=state, ended_at=at.at, ended_s=at.clock_s, sequence=sequence, error=error)
        case _:
            return record


def queued_again(record: JobRecord) -> JobRecord:
    """Returns the record of a job whose results the disk refused: the next process runs it again. A pure function."""
    return replace(record, state=JobState.QUEUED, error=None, ended_at=0.0, ended_s=0.0)
