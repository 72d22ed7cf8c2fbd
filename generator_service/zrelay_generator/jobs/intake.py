"""Accepts jobs: finds the job of a repeated request, refuses overload, and stores a new job before acknowledging it."""

import asyncio
import secrets
from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.jobs.directory import JobDirectory
from zrelay_generator.jobs.events import EventLog, JobAccepted
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.jobs.transitions import Detached, transition
from zrelay_generator.scheduling.admission import Demand, admit
from zrelay_generator.scheduling.scheduler import Scheduler
from zrelay_generator.store.blobs import Buffer, ContentMissing
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.records import JobRecord, JobState
from zrelay_shared.errors import Draining, IdempotencyConflict, NotFound, PayloadCorrupt, Unavailable, ZrelayError
from zrelay_shared.service.roles import GeneratorConfig


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be accepted.

    Attributes:
        request_id: The client's id of the request.
        identity: SHA-256 (hex) of everything that was requested.
        job: What was requested.
        spec: Serialized GenerationSpec that generates the same image at any time, with contents by name.
        inputs: Its contents by SHA-256, None for those that are stored already.
        sizes: Bytes of each content.
        new_bytes: Bytes of the contents that no unfinished job needs yet, and of the spec. Of many jobs with the same
            embeddings one counts for all.
        detached: The job runs without anyone watching it.
        caller: Name of the caller, for shares and quotas.
        owner: Who may see the job.
        budget_s: Seconds that the caller waits, None without a limit.
    """

    request_id: str
    identity: str
    job: JobSpec
    spec: bytes
    inputs: Mapping[str, Buffer | None]
    sizes: Mapping[str, int]
    new_bytes: int = 0
    detached: bool = False
    caller: str = ""
    owner: str = ""
    budget_s: float | None = None


_RESTART_S = 30.0
"""Seconds within which a supervisor usually restarts a process."""
DescribeJob = Callable[[str, str, JobSpec, JobAccepted], bytes]
"""Makes the serialized JobAccepted message of (job id, request id, spec, event)."""


@dataclass(frozen=True, slots=True)
class IntakeResult:
    """The job of a submission, and whether it is new."""

    job: LiveJob
    new: bool


class JobIntake:
    """Accepts submissions: one at a time per owner and request id, any number at once.

    Attributes:
        refusal: Makes the error that new work is refused with; None while work is accepted.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        store: JobStore,
        directory: JobDirectory,
        scheduler: Scheduler,
        estimator: JobEstimator,
        describe: DescribeJob,
        model: str,
    ) -> None:
        """Creates an intake that accepts work.

        Args:
            config: The limits.
            store: Where jobs are written.
            directory: Where earlier jobs are found.
            scheduler: Reports how much work is ahead of a new job.
            estimator: Estimates the work of a job.
            describe: Makes the JobAccepted message.
            model: Digest of what generates the images.
        """
        self._config, self._store, self._directory = config, store, directory
        self._scheduler, self._estimator = scheduler, estimator
        self._describe, self._model = describe, model
        self._arrivals = count(store.last_arrival + 1)
        self.refusal: Callable[[], ZrelayError] | None = None

    async def accept(self, submission: Submission) -> IntakeResult:
        """Returns the job of the owner's earlier identical submission, or a new one that is durable when this returns.

        A submission whose earlier job failed or was cancelled, or cannot be read, makes a new job.

        Raises:
            IdempotencyConflict: The request id was used for another request.
            QueueFull: Too much waits.
            QuotaExceeded: Too many jobs of this caller wait.
            DeadlineExceeded: It cannot be done within its budget.
            NotFound: A content was removed meanwhile (CONTENT_UNKNOWN).
            Unavailable: New work is refused, or the disk refuses (STATE_UNWRITABLE).
        """
        try:
            known = await self._directory.find_request(submission.request_id, submission.owner)
        except PayloadCorrupt:
            known = None
        if known is not None and known.record.identity != submission.identity:
            raise IdempotencyConflict(
                f"request_id {submission.request_id!r} was used for another request; use a new one for each request",
                field="request_id",
                metadata={"request_id": submission.request_id, "job_id": known.record.job_id},
            )
        if known is not None and known.record.state not in (JobState.FAILED, JobState.CANCELLED):
            await self._detach(known, submission)
            return IntakeResult(known, new=False)
        if self.refusal is not None:
            raise self.refusal()
        job = self._admitted(submission)
        with self._scheduler.reserved(job.record):
            await self._write(job.record, submission)
        return IntakeResult(job, new=True)

    async def _detach(self, job: LiveJob, submission: Submission) -> None:
        record = job.record
        if submission.detached and not (record.detached or record.state.ended):
            await self._store.detach(record.arrival)
            job.record = transition(job.record, Detached(), sequence=job.log.sequence, at=self._store.clock.now())

    def _admitted(self, submission: Submission) -> LiveJob:
        """A new job with its first event. Raises as `admit`."""
        run_s = self._estimator.estimate(submission.job).seconds
        now = self._store.clock.now()
        record = JobRecord(
            arrival=next(self._arrivals),
            job_id=secrets.token_hex(8),
            request_id=submission.request_id,
            identity=submission.identity,
            priority=submission.job.priority,
            caller=submission.caller,
            owner=submission.owner,
            model=self._model,
            work_s=run_s,
            input_bytes=submission.new_bytes,
            accepted_at=now.at,
            accepted_s=now.clock_s,
            accepted=b"",
            detached=submission.detached,
        )
        load = self._scheduler.load_before(record)
        admit(Demand(run_s, submission.new_bytes, submission.budget_s), load, self._config)
        accepted = JobAccepted(load.ahead, load.wait_s, run_s)
        described = self._describe(record.job_id, record.request_id, submission.job, accepted)
        job = LiveJob(replace(record, accepted=described), EventLog())
        job.log.append(accepted)
        return job

    async def _write(self, record: JobRecord, submission: Submission) -> None:
        try:
            await self._store.accept(record, submission.spec, submission.inputs, submission.sizes)
        except ContentMissing as error:
            raise content_unknown(str(error.args[0])) from error


class SerialTasks:
    """Runs tasks of the same name one after another; a task continues if its caller is cancelled."""

    def __init__(self) -> None:
        self._running: dict[Hashable, asyncio.Task[LiveJob]] = {}

    async def run(self, name: Hashable, work: Callable[[], Coroutine[Any, Any, LiveJob]]) -> LiveJob:
        """Runs `work` once no other task of this name runs. It continues if the caller is cancelled."""
        while (other := self._running.get(name)) is not None:
            await asyncio.wait({other})
        task = self._running[name] = asyncio.create_task(work())
        task.add_done_callback(lambda task: self._ended(name, task))
        return await asyncio.shield(task)

    def _ended(self, name: Hashable, task: "asyncio.Task[LiveJob]") -> None:
        del self._running[name]
        if not task.cancelled():
            task.exception()  # retrieved here: the caller may be gone


def draining() -> Draining:
    """Returns the error of a generator that is shutting down."""
    return Draining("this generator is shutting down and accepts no new work: use another, or try again shortly")


def device_lost() -> Unavailable:
    """Returns the error of a generator whose device works again only after a restart of the process."""
    return Unavailable(
        "this generator has lost its device and accepts no new work: use another, or try again after its restart",
        reason="DEVICE_LOST",
        retry_after_s=_RESTART_S,
    )


def content_unknown(sha256: str, field: str = "") -> NotFound:
    """Returns the error for a ContentRef whose content is not stored; it asks the caller to send the content again."""
    return NotFound(
        f"{field or 'spec'}: the content {sha256} is not stored here: upload it (UploadBlob) or include it in the "
        "request, and send the request again",
        reason="CONTENT_UNKNOWN",
        field=field,
        metadata={"sha256": sha256},
    )
