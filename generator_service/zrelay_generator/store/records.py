"""The persisted records of a job and of its results, and errors as the JSON that is stored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from zrelay_generator.priority import Priority
from zrelay_shared.errors import PayloadCorrupt, ZrelayError
from zrelay_shared.status import BY_CODE, BY_REASON


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether a job in this state is over."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One job as it is persisted. `jobs.transitions.transition` makes the next record from an event.

    A job that is not over is stored as unfinished; after a restart it is `QUEUED` again.

    Attributes:
        arrival: Number that orders jobs by their acceptance, across restarts.
        job_id: The server's id.
        request_id: The client's id of the request.
        identity: SHA-256 (hex) of everything that was requested.
        priority: The priority class.
        caller: Name of the caller, for shares and quotas.
        model: Digest of what generates the image; a job is not continued by another model.
        work_s: Estimated seconds on the device at acceptance.
        input_bytes: Bytes on disk that the job keeps there while it waits.
        accepted_at: Seconds since 1970 by the system's time, for people.
        accepted_s: Seconds of the store's clock, for the order of jobs and their ages.
        accepted: Serialized JobAccepted message.
        owner: Who may see the job (`zrelay_shared.callers.Caller.owner`).
        detached: The job runs without anyone watching it.
        state: Its state.
        sequence: Sequence number of the latest event that is kept.
        ended_at: Seconds since 1970 by the system's time, 0 while it is not over.
        ended_s: Seconds of the store's clock, 0 while it is not over.
        error: Why it failed or was cancelled.
    """

    arrival: int
    job_id: str
    request_id: str
    identity: str
    priority: Priority
    caller: str
    model: str
    work_s: float
    input_bytes: int
    accepted_at: float
    accepted_s: float
    accepted: bytes
    owner: str = ""
    detached: bool = False
    state: JobState = JobState.QUEUED
    sequence: int = 1
    ended_at: float = 0.0
    ended_s: float = 0.0
    error: ZrelayError | None = None


@dataclass(frozen=True, slots=True)
class ResultRecord:
    """One result of a job: an image, or the summary at its end.

    Attributes:
        sequence: Sequence number of the event.
        body: JSON.
        sha256: SHA-256 (hex) of the file that belongs to it, None without a file.
        bytes: Size of that file.
    """

    sequence: int
    body: str
    sha256: str | None = None
    bytes: int = 0


def error_json(error: ZrelayError) -> str:
    """Returns an error as JSON."""
    return json.dumps(
        {
            "code": error.code,
            "reason": error.reason,
            "message": error.message,
            "field": error.field,
            "metadata": error.metadata,
            "retry_after_s": error.retry_after_s,
        }
    )


def error_from_json(text: str) -> ZrelayError:
    """Returns a stored error. If the text cannot be read, this is a PayloadCorrupt with a message about the damage."""
    try:
        fields: Mapping[str, Any] = json.loads(text)
        kind = BY_REASON.get(fields["reason"]) or BY_CODE[fields["code"]]
        if kind.code != fields["code"]:
            kind = BY_CODE[fields["code"]]
        return kind(
            fields["message"],
            reason=fields["reason"],
            field=fields["field"],
            metadata=fields["metadata"],
            retry_after_s=fields["retry_after_s"],
        )
    except (ValueError, TypeError, KeyError):
        return damaged("the error of this job")


def damaged(what: str) -> PayloadCorrupt:
    """Returns the error for stored data that is damaged."""
    return PayloadCorrupt(
        f"{what} is damaged on the generator's disk: send the request again, and have the operator check that disk",
        reason="STORE_DAMAGED",
    )
