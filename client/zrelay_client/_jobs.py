"""Jobs at a glance, as a generator keeps them."""

from dataclasses import dataclass
from typing import Literal

from zrelay_client._events import Progress, Sampling

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job failed: an UPPER_SNAKE reason for programs, a message for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job on the generator at `endpoint`. Times are seconds since 1970; `ended_at` is 0 while it has not ended.

    `sequence` is that of its latest event. `progress` is None while nothing is known of it, `failure` unless it failed.
    """

    job_id: str
    request_id: str
    endpoint: str
    state: str
    sequence: int
    progress: Progress | None
    failure: JobFailure | None
    accepted_at: float
    ended_at: float
    sampling: Sampling

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobPage:
    """Some jobs, newest first; `next_token` is "" where there are no more."""

    jobs: tuple[Job, ...]
    next_token: str
