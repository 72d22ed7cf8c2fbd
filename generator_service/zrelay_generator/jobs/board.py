"""The jobs as the event loop sees them: taken, watched, cancelled, gone on with after a restart."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection
from dataclasses import dataclass, replace

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.events import Accepted, Done, Event, Failed, Image, Progress
from zrelay_generator.engine.job import Job, JobSpec, Priority
from zrelay_generator.jobs.accepting import Acceptor, OneAtATime, device_lost, draining
from zrelay_generator.jobs.archive import entry_of, stub_of
from zrelay_generator.jobs.entry import Entry, State
from zrelay_generator.jobs.leases import Leases
from zrelay_generator.jobs.prefetcher import Feeder, Load
from zrelay_generator.jobs.records import damaged, error_text
from zrelay_generator.jobs.registry import Registry
from zrelay_generator.jobs.request import Request
from zrelay_generator.jobs.saving import Saver
from zrelay_generator.scheduling.line import Line
from zrelay_generator.scheduling.workload import Workload
from zrelay_generator.settings import GeneratorConfig
from zrelay_generator.store.blobs import ContentDamaged, ContentMissing
from zrelay_generator.store.rows import JobRow
from zrelay_generator.store.store import JobStore
from zrelay_shared.errors import (
    Cancelled,
    Draining,
    FailedPrecondition,
    InternalError,
    PayloadCorrupt,
    Unavailable,
    ZrelayError,
)

log = logging.getLogger(__name__)
HEARTBEAT_S = 2.0
_TOLD_AT_ONCE = 200
_TO_BEGIN_S = 5.0
"""Least seconds from a job's acceptance until somebody must watch it, however short a lease is."""


_MOST_LOSSES = 3
"""Times that the device may be lost at a job; from the first on it runs alone, so that its company is cleared."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the board works with: the store; `speed` for estimates; `start` hands a job to the device; `load` reads a
    waiting job's spec; `describe` makes the serialized JobAccepted of (job id, request id, spec, event); `model` tells
    what paints apart from all else."""

    store: JobStore
    speed: Speed
    start: Callable[[Job], None]
    load: Load
    describe: Callable[[str, str, JobSpec, Accepted], bytes]
    model: str = ""


class JobBoard:
    """Lives on the event loop; hears of jobs through `publish`."""

    def __init__(self, config: GeneratorConfig, around: Surroundings) -> None:
        self._store, self._model = around.store, around.model
        self._line = Line()
        self._feeder = Feeder(self._line, around.speed, around.load, around.start, self.fail, around.store.recover)
        self._saver = Saver(around.store, self._saved, self._dropped, self._feeder.unsaved)
        self._leases = Leases(config.lease_s, self._expired)
        self._submitting = OneAtATime()
        self.jobs = Registry(around.store)
        self.workload = Workload(self._line, self._feeder, around.speed)
        self._acceptor = Acceptor(
            config, around.store, self.jobs, self._line, self.workload, around.speed, around.describe, around.model
        )

    async def submit(self, request: Request) -> Entry:
        """The job of a request, on disk when this returns. Raises as `Acceptor.take`."""
        # A caller that goes away meanwhile leaves a job whose lease runs.
        return await self._submitting.run(request.request_id, lambda: asyncio.create_task(self._submit(request)))

    async def _submit(self, request: Request) -> Entry:
        taken = await self._acceptor.take(request)
        entry = taken.entry
        if taken.accepted is not None:
            entry.tell(taken.accepted)
            self.jobs.enter(entry)
            if self._acceptor.closed is not None:
                self._park(entry)
            else:
                self._feeder.offer(entry, request.job)
        self._leases.look(entry, _TO_BEGIN_S)
        return entry

    def publish(self, job: Job, event: Event) -> None:
        """What the device or the writer says of a job; nothing follows a job's last event."""
        entry = self.jobs.living(job.id)
        if entry is not None:
            self._tell(entry, event)

    def fail(self, entry: Entry, error: ZrelayError) -> None:
        """Ends a job that cannot go on."""
        self._tell(entry, Failed(error))

    def cancel(self, entry: Entry, error: Cancelled | None = None) -> None:
        """Frees the device within one step; a job that waits ends at once, one that has ended stays as it is."""
        if entry.job is not None:
            entry.job.cancelled = True
        # One that is parked ends as well: else the next process would go on with it.
        entry.parked = False
        self._tell(entry, Failed(error or Cancelled("the job was cancelled: it was asked for")))

    async def settled(self, entry: Entry) -> None:
        """Returns when what happened to the job so far is in the store."""
        await self._saver.settled(entry)

    async def watch(self, entry: Entry, after: int = 0) -> AsyncGenerator[tuple[int, Event], None]:
        """The events of a job behind a sequence number, until its last. Without a watcher its lease runs."""
        entry.watchers += 1
        self._leases.look(entry)
        try:
            while True:
                changed = entry.changed
                while (following := entry.after(after)) is not None:
                    after, event = following
                    yield after, await self._whole(entry, after, event)
                if entry.over:
                    return
                await changed.wait()
        finally:
            entry.watchers -= 1
            self._leases.look(entry)

    async def restore(self) -> int:
        """Goes on with what the process before this one did not finish; the number of those jobs."""
        rows, unreadable = await self._store.unfinished()
        blamed = await self._store.blamed()
        if unreadable:
            log.error("%d jobs cannot be read from the store and are forgotten", len(unreadable))
            await self._store.forget(unreadable)
        for row in rows:
            times = blamed.get(row.job_id, 0)
            trouble: ZrelayError | None = self._misfit(row) or _given_up(times)
            try:
                events = await self._store.events(row.arrival) if row.sequence > 1 else []
                entry = entry_of(row, events, self._line.backlog_s(row.caller, row.work_s))
            except PayloadCorrupt as error:
                entry, trouble = entry_of(replace(row, priority=int(Priority.NORMAL)), []), error
            entry.sequence = max(entry.sequence, self._store.first_sequence)
            entry.alone = times > 0
            self.jobs.enter(entry)
            if self._acceptor.closed is not None:
                self._park(entry)  # the device was lost meanwhile
            elif trouble is None:
                self._feeder.wait(entry)
                self._leases.look(entry, _TO_BEGIN_S)
            else:
                self.fail(entry, trouble)
        return len(rows)

    async def heartbeat(self) -> None:
        """Tells every job that waits and is watched where it stands, and one that has begun and moves no further when
        it will be done; lets other work pass in between."""
        for told, (entry, standing) in enumerate(list(self.workload.standings())):
            if told % _TOLD_AT_ONCE == _TOLD_AT_ONCE - 1:
                await asyncio.sleep(0)
            if entry.watchers and entry.state is State.QUEUED and not entry.parked:
                entry.tell(standing)
        silent_since = time.monotonic() - HEARTBEAT_S
        for entry in self._feeder.near:
            latest = entry.latest
            if entry.watchers and not entry.over and isinstance(latest, Progress) and entry.moved_at < silent_since:
                entry.tell(replace(latest, eta_s=self.workload.standing(entry).eta_s))

    async def recover(self) -> None:
        """Lets go what is over the limits and saves what could not be saved; where the disk has refused, only if it is
        well again."""
        if not self._store.disk.trouble or await self._store.recover():
            self._saver.retry()
        with contextlib.suppress(Unavailable):  # the store has told
            await self._store.retain()

    def lost(self, suspects: Collection[str]) -> None:
        """The device does nothing more in this process: nothing is taken, what is unfinished is left to the next one.
        `suspects` are the jobs it was at."""
        self._acceptor.closed = device_lost
        self._feeder.close()
        self._saver.blame(suspects)
        for entry in self.jobs:
            self._park(entry)

    async def drain(self, grace_s: float) -> None:
        """Takes no new work; finishes what can be finished in `grace_s`, parks the rest, and returns when all that
        happened is in the store."""
        self._acceptor.closed = self._acceptor.closed or draining
        deadline = time.monotonic() + grace_s
        for entry, standing in list(self.workload.standings()):
            if standing.eta_s > grace_s:
                self._park(entry)
        while any(not entry.over for entry in self.jobs) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for entry in self.jobs:
            self._park(entry)
        await self._saver.flush()

    async def close(self) -> None:
        """Ends what runs on the event loop; unfinished jobs stay in the store."""
        self._feeder.close()
        self._acceptor.closed = self._acceptor.closed or draining
        for entry in self.jobs:
            self._park(entry)
        await self._saver.flush()

    def _tell(self, entry: Entry, event: Event) -> None:
        if entry.over:
            return
        if isinstance(event, Image) and any(image.image_index == event.image_index for image in entry.images):
            return  # painted before a restart, and told
        if isinstance(event, Progress):
            entry.state, entry.moved_at = State.RUNNING, time.monotonic()
        elif isinstance(event, Done):
            entry.state = State.SUCCEEDED
        elif isinstance(event, Failed):
            entry.error = event.error
            entry.state = State.CANCELLED if isinstance(event.error, Cancelled) else State.FAILED
        if entry.ended:
            entry.ended_at = time.time()
            self._feeder.left(entry)
            self._leases.look(entry)
        self._saver.save(entry, entry.tell(event), event)

    def _park(self, entry: Entry) -> None:
        """Ends a job for this process alone: it is on disk, and the next one goes on with it."""
        if entry.over:
            return
        if entry.job is not None:
            entry.job.cancelled = True
        self._feeder.left(entry)
        entry.parked = True
        self._leases.look(entry)
        what = "it goes on when the generator is back: watch it there" if self._store.durable else "send it again"
        error = Draining(
            f"this generator goes away before the job is done; {what}",
            metadata={"job_id": entry.id, "parked": str(self._store.durable).lower()},
        )
        entry.tell(Failed(error))

    async def _whole(self, entry: Entry, sequence: int, event: Event) -> Event:
        """An event with its bytes."""
        if not isinstance(event, Image) or event.data:
            return event
        try:
            return replace(event, data=await self._store.read(event.file_sha256))
        except (ContentMissing, ContentDamaged) as error:
            log.error("job %s: its image %d cannot be read: %s", entry.id, event.image_index, type(error).__name__)
            trouble = damaged(f"image {event.image_index} of this job")
            await self._saver.settled(entry)
            if entry.state is State.SUCCEEDED and not entry.unkept:  # else the same request would get it for ever
                with contextlib.suppress(Unavailable):  # the store has told; the next one to look does it
                    await self._store.spoil(entry.arrival, error_text(trouble), event.file_sha256)
            raise trouble from error

    def _misfit(self, row: JobRow) -> FailedPrecondition | None:
        if row.model == self._model:
            return None
        return FailedPrecondition(
            "this job was accepted for another checkpoint than the generator has now, and would come out as another "
            "picture: send it again",
            reason="MODEL_CHANGED",
            metadata={"expected": row.model, "got": self._model},
        )

    def _expired(self, entry: Entry) -> None:
        log.info("job %s: nobody watches it any more", entry.id)
        why = "nobody watched it any more: submit it again, detached if it is to run on by itself"
        self.cancel(entry, Cancelled(f"the job was cancelled: {why}", reason="LEASE_EXPIRED"))

    def _saved(self, entry: Entry) -> None:
        self.jobs.leave(entry)

    def _dropped(self, entry: Entry) -> None:
        self.jobs.leave(entry)
        if self._store.durable:
            self.jobs.enter(stub_of(entry))


def _given_up(times: int) -> InternalError | None:
    if times < _MOST_LOSSES:
        return None
    return InternalError(
        f"the generator lost its device {times} times while it worked at this job, and tries no more: ask for another "
        "size or fewer features; its operator should look at the log",
        reason="DEVICE_LOST",
        metadata={"times": times},
    )
