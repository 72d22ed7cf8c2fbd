"""Loads the next few jobs in advance and passes them to the device; other queued jobs need little memory."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.refusals import device_failure
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.scheduling.scheduler import LOADED_PER_CLASS, Scheduler
from zrelay_generator.store.clock import StoreClock
from zrelay_generator.store.records import JobRecord, damaged
from zrelay_shared.errors import Unavailable, ZrelayError

log = logging.getLogger(__name__)
LoadSpec = Callable[[JobRecord], Awaitable[JobSpec]]
"""Reads the spec of a waiting job. Raises PayloadCorrupt if it is damaged, Unavailable if the disk refuses."""


class PrefetchOwner(Protocol):
    """The jobs, as the prefetcher uses them."""

    def living(self, job_id: str) -> LiveJob | None:
        """Returns a job of this process."""

    def fail(self, job: LiveJob, error: ZrelayError) -> None:
        """Ends a job that cannot continue."""

    def saving_backlog(self) -> int:
        """Returns the number of jobs whose results are being saved."""

    async def storage_works(self) -> bool:
        """Tests whether the storage accepts writes."""


class Prefetcher:
    """Loads the jobs that the scheduler will run next.

    Attributes:
        closed: Whether no more jobs go to the device.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        owner: PrefetchOwner,
        load: LoadSpec,
        start: Callable[[DeviceJob], None],
        retry_s: float,
        clock: StoreClock,
    ) -> None:
        """Creates a prefetcher; it starts with the first job.

        Args:
            scheduler: Decides which job is next.
            owner: The jobs.
            load: Reads the spec of a job.
            start: Hands a job to the device.
            retry_s: Seconds until a job that could not be read is tried again.
            clock: The clock of the jobs' acceptance.
        """
        self._scheduler, self._owner, self._load, self._start = scheduler, owner, load, start
        self._retry_s, self._clock = retry_s, clock
        self._retries: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    def offer(self, job: LiveJob, spec: JobSpec) -> None:
        """Loads a job that was just accepted if it is the next one; else it stays in the queue."""
        if not self.closed and self._next() is job.record:
            self._scheduler.load(job.record)
            self._begin(job, spec)
        else:
            self.wake()

    def wake(self) -> None:
        """Checks again which jobs are to be loaded."""
        self._wake.set()
        if (self._task is None or self._task.done()) and not self.closed:
            self._task = asyncio.create_task(self._run())

    def close(self) -> None:
        """Stops loading jobs."""
        self.closed = True
        for task in (self._task, *self._retries):
            if task is not None:
                task.cancel()

    def _next(self) -> JobRecord | None:
        if self._owner.saving_backlog() >= LOADED_PER_CLASS:
            return None  # the disk falls behind
        return self._scheduler.next_to_load()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self.closed and (record := self._next()) is not None:
                self._scheduler.load(record)
                await self._fetch(record)

    async def _fetch(self, record: JobRecord, second_attempt: bool = False) -> None:
        job = self._owner.living(record.job_id)
        if job is None or job.over:
            self._scheduler.leave(record)
            return
        try:
            spec = await self._load(record)
        except Unavailable:
            await self._refused(job, second_attempt)
        except ZrelayError as error:
            self._owner.fail(job, error)
        except Exception as error:  # a problem of one job must not end the loading of the others
            incident = secrets.token_hex(6)
            log.error("incident %s: job %s could not be loaded", incident, record.job_id, exc_info=error)
            self._owner.fail(job, device_failure(incident))
        else:
            if not job.over and not self.closed:  # not cancelled meanwhile
                self._begin(job, spec)

    async def _refused(self, job: LiveJob, second_attempt: bool) -> None:
        """Handles a job whose data could not be read.

        If the storage does not work at all, all jobs wait. Otherwise other jobs continue, and this one is tried a
        second time. If that fails too, only this job fails.
        """
        works = await self._owner.storage_works()
        record = job.record
        if not self._scheduler.is_loaded(record.job_id) or self.closed:  # ended meanwhile
            return
        if not works:
            self._scheduler.unload(record)
            await asyncio.sleep(self._retry_s)
            self._wake.set()
        elif second_attempt:
            log.error("job %s: the disk works, but does not give what this job needs: it fails", record.job_id)
            self._owner.fail(job, damaged("an input of this job"))
        else:
            task = asyncio.create_task(self._try_again(record))
            self._retries.add(task)
            task.add_done_callback(self._retries.discard)

    async def _try_again(self, record: JobRecord) -> None:
        await asyncio.sleep(self._retry_s)
        if self._scheduler.is_loaded(record.job_id):
            await self._fetch(record, second_attempt=True)

    def _begin(self, job: LiveJob, spec: JobSpec) -> None:
        record = job.record
        waited_s = max(0.0, self._clock.now_s - record.accepted_s)
        if job.alone:
            spec = replace(spec, deterministic=True)
        accepted_at = time.monotonic() - waited_s
        job.device_job = DeviceJob(record.job_id, spec, record.arrival, accepted_at=accepted_at, caller=record.caller)
        self._scheduler.on_device(job.device_job)
        self._start(job.device_job)
