"""Writes results and ends of jobs to the store, in order, after their watchers have received them."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from zrelay_generator.engine.events import JobFailed
from zrelay_generator.jobs.events import ImageFinished, JobEvent, JobSucceeded
from zrelay_generator.jobs.live import LiveJob, result_record
from zrelay_generator.store.protocol import JobStore
from zrelay_shared.errors import Unavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldLimits:
    """Limits of the results that the disk refused and that are in memory alone.

    Attributes:
        max_bytes: Bytes of finished images.
        max_jobs: Jobs that are over.
    """

    max_bytes: int = 256 << 20
    max_jobs: int = 1000


DEFAULT_HELD_LIMITS = HeldLimits()


class SaverListener(Protocol):
    """Receives what became of jobs that were to be saved."""

    def job_saved(self, job: LiveJob) -> None:
        """The end of a job is in the store."""

    def results_dropped(self, job: LiveJob) -> None:
        """The disk refused the results of a job, and too many of them wait in memory: they were dropped."""


@dataclass(slots=True)
class _Pending:
    events: deque[tuple[int, JobEvent]] = field(default_factory=deque)
    task: "asyncio.Task[None] | None" = None


class ResultSaver:
    """Saves results and ends. After a crash before they are saved the job runs again, to the same image."""

    def __init__(
        self,
        store: JobStore,
        listener: SaverListener,
        changed: Callable[[], None],
        limits: HeldLimits = DEFAULT_HELD_LIMITS,
    ) -> None:
        """Creates a saver with nothing to save.

        Args:
            store: Where results are written.
            listener: Receives the outcome per job.
            changed: Called when `backlog` has changed.
            limits: What is kept in memory while the disk refuses results.
        """
        self._store, self._listener, self._changed, self._limits = store, listener, changed, limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: dict[str, _Pending] = {}
        self._held: dict[str, LiveJob] = {}

    @property
    def backlog(self) -> int:
        """Jobs that are being saved: while the disk falls behind, the device gets no more jobs."""
        return len(self._tasks)

    def is_held(self, job: LiveJob) -> bool:
        """Whether the disk refused results of a job, which are in memory until it takes them."""
        return job.record.job_id in self._held

    def save(self, job: LiveJob, sequence: int, event: JobEvent) -> None:
        """Saves an event in the background; events that do not outlive the job are ignored."""
        if not isinstance(event, ImageFinished | JobSucceeded | JobFailed):
            return
        if self.is_held(job):  # all events of a job in order, or none: an end alone would be another job's
            self._drop_excess()
            return
        pending = self._pending.setdefault(job.record.job_id, _Pending())
        pending.events.append((sequence, event))
        if pending.task is None:
            pending.task = self._begin(self._save(job, pending))

    def retry(self) -> None:
        """Saves again what the disk refused."""
        held, self._held = list(self._held.values()), {}
        for job in held:
            for sequence, event in job.log:
                stored = isinstance(event, ImageFinished) and not event.data
                # The last event of a suspended job ends it for this process alone.
                passing = isinstance(event, JobFailed) and event.error is not job.record.error
                if not (stored or passing):
                    self.save(job, sequence, event)

    def record_device_loss(self, job_ids: Collection[str]) -> None:
        """Writes down at which jobs the device was lost."""
        self._begin(self._record_device_loss(job_ids))

    async def settled(self, job: LiveJob) -> None:
        """Returns when everything that happened to a job so far is in the store."""
        while (pending := self._pending.get(job.record.job_id)) is not None and pending.task is not None:
            await asyncio.wait({pending.task})

    async def flush(self) -> None:
        """Returns when everything is in the store."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        self._changed()
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed()

    async def _save(self, job: LiveJob, pending: _Pending) -> None:
        job_id = job.record.job_id
        try:
            while pending.events:
                sequence, event = pending.events.popleft()
                await self._write(job, sequence, event)
            if job.record.state.ended:
                self._listener.job_saved(job)
        except Exception as error:  # a problem of the disk ends nothing but the saving of this job
            self._held[job_id] = job
            log.error("job %s: its results are in memory alone until the disk takes them: %s", job_id, error)
            self._drop_excess()
        finally:
            del self._pending[job_id]

    def _drop_excess(self) -> None:
        """Drops the results of the oldest ended jobs above the limits: they run again after the next start."""
        ended = [job for job in self._held.values() if job.record.state.ended]
        sizes = [sum(len(image.data) for image in job.log.images) for job in ended]
        excess_bytes, excess_jobs = sum(sizes) - self._limits.max_bytes, len(ended) - self._limits.max_jobs
        for job, size in zip(ended[:-1], sizes, strict=False):  # the latest always stays
            if excess_bytes <= 0 and excess_jobs <= 0:
                return
            excess_bytes, excess_jobs = excess_bytes - size, excess_jobs - 1
            del self._held[job.record.job_id]
            self._listener.results_dropped(job)
            log.error("job %s: its results were dropped; it runs again after the next start", job.record.job_id)

    async def _record_device_loss(self, job_ids: Collection[str]) -> None:
        try:
            await self._store.record_device_loss(job_ids)
        except Unavailable as error:
            log.error("the loss of the device could not be written to its jobs: %s", error)

    async def _write(self, job: LiveJob, sequence: int, event: JobEvent) -> None:
        record = job.record
        if isinstance(event, JobSucceeded | JobFailed) and not record.state.ended:
            raise RuntimeError(f"job {record.job_id}: expected one that is over, got one that is {record.state}")
        if isinstance(event, ImageFinished):
            await self._store.add_image(record.arrival, result_record(sequence, event), event.data)
            job.log.replace(sequence, replace(event, data=b""))  # from now on it is read from the store
        elif isinstance(event, JobSucceeded):
            await self._store.finish(record, result_record(sequence, event))
        elif isinstance(event, JobFailed):
            await self._store.finish(record)
