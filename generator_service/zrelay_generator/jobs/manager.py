"""The jobs of a generator: accepted, watched, cancelled, continued after a restart."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import JobFailed, StageProgress
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.features.expected_encoder import ExpectedEncoder
from zrelay_generator.jobs.directory import JobDirectory
from zrelay_generator.jobs.events import EventLog, ImageFinished, JobAccepted, JobEvent
from zrelay_generator.jobs.intake import DescribeJob, JobIntake, SerialTasks, Submission, device_lost, draining
from zrelay_generator.jobs.live import LiveJob, stored_job
from zrelay_generator.jobs.prefetcher import LoadSpec, Prefetcher
from zrelay_generator.jobs.relations import EncoderRelations, IsRelated, Relate
from zrelay_generator.jobs.saver import DEFAULT_HELD_LIMITS, HeldLimits, ResultSaver
from zrelay_generator.jobs.transitions import queued_again, transition
from zrelay_generator.model.identity import generates_same
from zrelay_generator.scheduling.scheduler import QueueStanding, Scheduler
from zrelay_generator.store.blobs import ContentDamaged, ContentMissing
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.records import JobRecord, JobState, damaged
from zrelay_shared.errors import (
    Cancelled,
    Draining,
    FailedPrecondition,
    InternalError,
    PayloadCorrupt,
    Unavailable,
    ZrelayError,
)
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.service.roles import GeneratorConfig

log = logging.getLogger(__name__)
_EVENTS_AT_ONCE = 200
"""Heartbeat events after which other work of the event loop runs."""
_DRAIN_POLL_S = 0.05
TakeRoom: TypeAlias = Callable[[int], AbstractAsyncContextManager[None]]
"""Has room for so many bytes while a block runs."""
_MAX_DEVICE_LOSSES = 3
"""Losses of the device after which a job is given up. After the first it runs alone, so that others are not blamed."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Intervals in seconds.

    Attributes:
        heartbeat_s: Between two heartbeats of a job that waits.
        retry_s: Until a job that could not be read is tried again.
        retain_s: Between two applications of the limits of what the store keeps.
        sweep_s: Between two searches for files that belong to nothing.
        first_watch_s: Least time from acceptance until somebody must watch a job, however short its lease is.
    """

    heartbeat_s: float = 2.0
    retry_s: float = 2.0
    retain_s: float = 10.0
    sweep_s: float = 600.0
    first_watch_s: float = 5.0


DEFAULT_INTERVALS = Intervals()


def _unlimited(size: int) -> AbstractAsyncContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What the job manager works with.

    Attributes:
        store: Where jobs are kept.
        estimator: Estimates the work of jobs.
        scheduler: Orders the jobs.
        start: Hands a job to the device.
        load: Reads the spec of a waiting job.
        describe: Makes the JobAccepted message of a new job.
        model: Digest of what generates the images.
        intervals: Intervals of heartbeats, retries and leases.
        expected: The encoder of the checkpoint.
        is_related, relate: Check and complete the JobAccepted of a job, see `EncoderRelations`.
        held_limits: Limits of the results that are kept in memory while the disk refuses them.
        clock: Seconds that only grow.
    """

    store: JobStore
    estimator: JobEstimator
    scheduler: Scheduler
    start: Callable[[DeviceJob], None]
    load: LoadSpec
    describe: DescribeJob
    model: str = ""
    intervals: Intervals = DEFAULT_INTERVALS
    expected: ExpectedEncoder = field(default_factory=ExpectedEncoder)
    is_related: IsRelated = lambda _: True
    relate: Relate = lambda accepted, *_: accepted
    held_limits: HeldLimits = DEFAULT_HELD_LIMITS
    clock: Callable[[], float] = time.monotonic


class JobManager:
    """Owns every job of this process. Used from the event loop; the device reports through `publish`.

    Attributes:
        directory: Finds jobs.
        scheduler: Orders them.
    """

    def __init__(self, config: GeneratorConfig, dependencies: Dependencies) -> None:
        """Creates a manager without jobs.

        Args:
            config: Limits and the lease.
            dependencies: What it works with.
        """
        self._store, self._model = dependencies.store, dependencies.model
        self._lease_s, self._intervals, self._clock = config.lease_s, dependencies.intervals, dependencies.clock
        self.scheduler = dependencies.scheduler
        self.directory = JobDirectory(dependencies.store)
        self._prefetcher = Prefetcher(
            self.scheduler,
            self,
            dependencies.load,
            dependencies.start,
            self._intervals.retry_s,
            dependencies.store.clock,
        )
        self._saver = ResultSaver(dependencies.store, self, self._prefetcher.wake, dependencies.held_limits)
        self._submissions = SerialTasks()
        self._expected = dependencies.expected
        self._relations = EncoderRelations(
            dependencies.store, dependencies.load, dependencies.is_related, dependencies.relate
        )
        self._leases: dict[str, asyncio.TimerHandle] = {}
        self._sweep_at = self._clock() + self._intervals.sweep_s
        self._intake = JobIntake(
            config,
            dependencies.store,
            self.directory,
            self.scheduler,
            dependencies.estimator,
            dependencies.describe,
            dependencies.model,
        )

    # Calls of the API.

    async def submit(self, submission: Submission) -> LiveJob:
        """Returns the job of a submission, durable when this returns. Raises as `JobIntake.accept`.

        A caller that goes away meanwhile leaves a job whose lease runs.
        """
        name = submission.owner, submission.request_id
        return await self._submissions.run(name, lambda: self._submit(submission))

    def cancel(self, job: LiveJob, error: Cancelled | None = None) -> None:
        """Cancels a job: the device is free within one step, a waiting job ends at once.

        A job that is over stays as it is.

        Args:
            job: The job.
            error: What its watchers receive.
        """
        if job.device_job is not None:
            job.device_job.cancelled = True
        job.suspended = False  # a suspended job ends too: otherwise the next process would continue it
        self._record(job, JobFailed(error or Cancelled("the job was cancelled on request")))

    async def watch(
        self, job: LiveJob, after: int = 0, room: TakeRoom = _unlimited
    ) -> AsyncGenerator[tuple[int, JobEvent], None]:
        """Yields the events of a job after a sequence number, until its last. Without watchers its lease runs.

        Args:
            job: The job.
            after: The sequence number.
            room: Has room in memory for an image of so many bytes, from before it is read until it was taken.
        """
        job.watchers += 1
        self._update_lease(job)
        try:
            while True:
                changed = job.log.changed
                while (following := job.log.after(after)) is not None:
                    if job.held:
                        break
                    after, event = following
                    if not job.unrelated or isinstance(event, JobFailed):  # a failure need not wait for the relation
                        if isinstance(event, ImageFinished):
                            async with room(3 * event.width * event.height):
                                yield after, await self._with_bytes(job, event)
                        else:
                            yield after, event
                if job.over and not job.held:
                    return
                await changed.wait()
        finally:
            job.watchers -= 1
            self._update_lease(job)

    async def set_encoder(self, fingerprint: EncoderFingerprint) -> None:
        """Completes the jobs that were accepted before the encoder of the checkpoint was known, and releases them."""
        try:
            await self._relations.settle(fingerprint)
        finally:
            self._expected.set(fingerprint)

    def standing(self, job: LiveJob) -> QueueStanding | None:
        """Returns the standing of a job, None if it does not wait."""
        if job.record.state is not JobState.QUEUED or job.suspended:
            return None
        return self.scheduler.standing(job.record)

    async def settled(self, job: LiveJob) -> None:
        """Waits until everything that happened to a job so far is in the store."""
        await self._saver.settled(job)

    async def flush(self) -> None:
        """Waits until everything that happened so far is in the store."""
        await self._saver.flush()

    # What the device and the clock do.

    def publish(self, device_job: DeviceJob, event: JobEvent) -> None:
        """Records what the device or the image writer reports. Nothing follows the last event of a job."""
        job = self.directory.living(device_job.id)
        if job is not None:
            self._record(job, event)

    async def heartbeat(self) -> None:
        """Sends heartbeats: its standing to the watchers of a waiting job, a new ETA to those of a job passed over."""
        for sent, (record, standing) in enumerate(list(self.scheduler.standings())):
            if sent % _EVENTS_AT_ONCE == _EVENTS_AT_ONCE - 1:
                await asyncio.sleep(0)
            job = self.directory.living(record.job_id)
            if job is not None and job.watchers and job.record.state is JobState.QUEUED and not job.over:
                job.log.append(standing)
        silent_since = self._clock() - self._intervals.heartbeat_s
        for job in self._loaded_jobs():
            latest = job.log.latest_progress
            if job.watchers and not job.over and isinstance(latest, StageProgress) and job.progressed_at < silent_since:
                job.log.append(replace(latest, eta_s=self.scheduler.standing(job.record).eta_s))

    async def recover(self) -> None:
        """Applies the limits of the store, and saves again what the disk refused if the disk works again.

        Files that belong to nothing are removed too, at intervals and after a problem of the disk, which leaves some.
        """
        failed = bool(self._store.problem)
        if not failed or await self._store.recover():
            self._saver.retry()
            self._sweep_at = self._clock() if failed else self._sweep_at
        with contextlib.suppress(Unavailable):  # the store has logged it
            await self._store.retain()
            if self._clock() >= self._sweep_at:
                self._sweep_at = self._clock() + self._intervals.sweep_s
                await self._store.sweep()

    def device_lost(self, suspects: Collection[str]) -> None:
        """Stops this process's work: the device is unusable, and the next process continues unfinished jobs.

        Args:
            suspects: Ids of the jobs that the device was working at.
        """
        self._intake.refusal = device_lost
        self._prefetcher.close()
        self._saver.record_device_loss(suspects)
        for job in self.directory:
            self._suspend(job)

    # Start and stop.

    async def restore(self) -> int:
        """Continues what the previous process did not finish; returns the number of those jobs."""
        records, unreadable = await self._store.unfinished()
        losses = await self._store.device_losses()
        if unreadable:
            log.error("%d jobs cannot be read from the store and are removed", len(unreadable))
            await self._store.forget(unreadable)
        for record in records:
            await self._restore(record, losses.get(record.job_id, 0))
        await self._relations.settle(self._expected.known)
        return len(records)

    async def drain(self, grace_s: float) -> None:
        """Accepts no new work, finishes what can be finished in `grace_s` seconds, and suspends the rest.

        Returns when everything that happened is in the store.
        """
        self._intake.refusal = self._intake.refusal or draining
        deadline = self._clock() + grace_s
        for record, standing in list(self.scheduler.standings()):
            job = self.directory.living(record.job_id)
            if job is not None and standing.eta_s > grace_s:
                self._suspend(job)
        while any(not job.over for job in self.directory) and self._clock() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        for job in self.directory:
            self._suspend(job)
        await self._saver.flush()

    async def close(self) -> None:
        """Ends what runs on the event loop; unfinished jobs stay in the store."""
        self._prefetcher.close()
        self._intake.refusal = self._intake.refusal or draining
        for job in self.directory:
            self._suspend(job)
        await self._saver.flush()

    # `PrefetchOwner` and `SaverListener`.

    def living(self, job_id: str) -> LiveJob | None:
        """Returns a job of this process."""
        return self.directory.living(job_id)

    def fail(self, job: LiveJob, error: ZrelayError) -> None:
        """Ends a job that cannot continue."""
        self._record(job, JobFailed(error))

    def saving_backlog(self) -> int:
        """Returns the number of jobs whose results are being saved."""
        return self._saver.backlog

    async def storage_works(self) -> bool:
        """Tests whether the storage accepts writes."""
        return await self._store.recover()

    def job_saved(self, job: LiveJob) -> None:
        """The end of a job is in the store, which answers for it from now on."""
        self.directory.remove(job)

    def results_dropped(self, job: LiveJob) -> None:
        """Replaces a job whose results could not be saved by a suspended one, so that a repeat does not run twice."""
        self.directory.remove(job)
        if self._store.durable:
            self.directory.add(_suspended_copy(job))

    # Private helpers.

    async def _submit(self, submission: Submission) -> LiveJob:
        result = await self._intake.accept(submission)
        job = result.job
        if result.new:
            self.directory.add(job)
            self.scheduler.enter(job.record)
            if self._intake.refusal is not None:
                self._suspend(job)
            else:
                self._prefetcher.offer(job, submission.job)
            self._relations.add(job, submission.job)
        self._update_lease(job, self._intervals.first_watch_s)
        await self._relations.settle(self._expected.known)
        return job

    def _record(self, job: LiveJob, event: JobEvent) -> None:
        """Applies an event to a job: its record, its watchers, the scheduler, the store."""
        if job.over:
            return
        if isinstance(event, ImageFinished) and any(image.image_index == event.image_index for image in job.log.images):
            return  # generated before a restart, and sent then
        if isinstance(event, StageProgress):
            job.progressed_at = self._clock()
            self.scheduler.started(job.record.job_id)
        job.record = transition(job.record, event, sequence=job.log.sequence + 1, at=self._store.clock.now())
        sequence = job.log.append(event)
        if job.record.state.ended:
            self._leave(job)
        self._saver.save(job, sequence, event)

    def _suspend(self, job: LiveJob) -> None:
        """Ends a job for this process alone: it is stored, and the next process continues it."""
        if job.over:
            return
        if job.device_job is not None:
            job.device_job.cancelled = True
        job.suspended = True
        self._leave(job)
        next_step = (
            "it continues when the generator is back: watch it there" if self._store.durable else "send it again"
        )
        error = Draining(
            f"this generator shuts down before the job is done; {next_step}",
            metadata={"job_id": job.record.job_id, "parked": str(self._store.durable).lower()},
        )
        job.log.append(JobFailed(error))

    def _leave(self, job: LiveJob) -> None:
        self.scheduler.leave(job.record)
        job.device_job = None
        self._update_lease(job)
        self._prefetcher.wake()

    def _update_lease(self, job: LiveJob, least_s: float = 0.0) -> None:
        """Starts or ends the lease of a job: the time for which it continues without a watcher."""
        job_id = job.record.job_id
        if (timer := self._leases.pop(job_id, None)) is not None:
            timer.cancel()
        if not (job.record.detached or job.watchers or job.over):
            seconds = max(self._lease_s, least_s)
            self._leases[job_id] = asyncio.get_running_loop().call_later(seconds, self._lease_expired, job)

    def _lease_expired(self, job: LiveJob) -> None:
        self._leases.pop(job.record.job_id, None)
        log.info("job %s: nobody watches it any more", job.record.job_id)
        reason = "nobody watches it any more: submit it again, detached if it is to run without a watcher"
        self.cancel(job, Cancelled(f"the job was cancelled: {reason}", reason="LEASE_EXPIRED"))

    async def _restore(self, record: JobRecord, losses: int) -> None:
        refusal: ZrelayError | None = self._model_changed(record) or _given_up(losses)
        try:
            results = await self._store.results(record.arrival) if record.sequence > 1 else []
            job = stored_job(record, results)
        except PayloadCorrupt as error:
            job, refusal = stored_job(record, []), error
        job.log.sequence = max(job.log.sequence, self._store.first_sequence)
        job.alone = losses > 0
        self._relations.add(job)
        self.directory.add(job)
        self.scheduler.enter(record)
        if self._intake.refusal is not None:
            self._suspend(job)  # the device was lost meanwhile
        elif refusal is None:
            self._prefetcher.wake()
            self._update_lease(job, self._intervals.first_watch_s)
        else:
            self.fail(job, refusal)

    def _loaded_jobs(self) -> Iterator[LiveJob]:
        for record in self.scheduler.loaded:
            if (job := self.directory.living(record.job_id)) is not None:
                yield job

    async def _with_bytes(self, job: LiveJob, event: ImageFinished) -> ImageFinished:
        """Returns an image with the bytes of its file."""
        if event.data:
            return event
        try:
            return replace(event, data=await self._store.read(event.file_sha256))
        except (ContentMissing, ContentDamaged) as error:
            record = job.record
            log.error("job %s: its image %d cannot be read: %s", record.job_id, event.image_index, type(error).__name__)
            refusal = damaged(f"image {event.image_index} of this job")
            await self._saver.settled(job)
            # Otherwise a repeat of the request would find this job for ever.
            if job.record.state is JobState.SUCCEEDED and not self._saver.is_held(job):
                with contextlib.suppress(Unavailable):  # the store has logged it; the next reader does this
                    await self._store.spoil(record.arrival, refusal, event.file_sha256)
            raise refusal from error

    def _model_changed(self, record: JobRecord) -> FailedPrecondition | None:
        if generates_same(record.model, self._model):
            return None
        return FailedPrecondition(
            "this job was accepted for another checkpoint than the generator has now, which would generate another "
            "image: send it again",
            reason="MODEL_CHANGED",
            metadata={"expected": record.model, "got": self._model},
        )


def _suspended_copy(job: LiveJob) -> LiveJob:
    """Returns a suspended job with only the stored results of a job. It runs again after the next start."""
    error = Draining(
        "this generator's disk refused the results of the job: it runs again after the generator's next start; watch "
        "it then",
        metadata={"job_id": job.record.job_id, "parked": "true"},
    )
    kept: list[tuple[int, JobEvent]] = [
        (sequence, event)
        for sequence, event in job.log
        if isinstance(event, JobAccepted) or (isinstance(event, ImageFinished) and not event.data)
    ]
    copy = LiveJob(queued_again(job.record), EventLog(kept, job.log.sequence), suspended=True)
    copy.log.append(JobFailed(error))
    return copy


def _given_up(losses: int) -> InternalError | None:
    if losses < _MAX_DEVICE_LOSSES:
        return None
    return InternalError(
        f"the generator lost its device {losses} times while it worked at this job, and does not try again: request "
        "another size or fewer features; its operator should check the log",
        reason="DEVICE_LOST",
        metadata={"times": losses},
    )
