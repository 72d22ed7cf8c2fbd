"""Brings jobs from the line to the device, a few ahead of need: the rest costs no memory but its entry."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.job import Job, JobSpec, Priority
from zrelay_generator.engine.refusals import device_failure
from zrelay_generator.jobs.entry import Entry
from zrelay_generator.jobs.records import damaged
from zrelay_generator.scheduling.line import Line, key_now, left_s
from zrelay_shared.errors import Unavailable, ZrelayError

log = logging.getLogger(__name__)
NEAR_DEVICE = 16
"""The first so many jobs of one priority, with those of more urgent ones, are on the device or next to it: enough to
fill any tick."""
MOST_NEAR = 2 * NEAR_DEVICE
"""Those that were among the first, and were passed by shorter ones since, stay near: the device may have begun them."""
_DISK_AGAIN_S = 2.0
Load = Callable[[Entry], Awaitable[JobSpec]]


class Feeder:
    """Owns which jobs are near the device. `load` reads a job's spec, `start` hands it over, `fail` ends an entry,
    `well` tries whether the disk takes writes."""

    def __init__(
        self,
        line: Line,
        speed: Speed,
        load: Load,
        start: Callable[[Job], None],
        fail: Callable[[Entry, ZrelayError], None],
        well: Callable[[], Awaitable[bool]],
    ) -> None:
        self._line, self._speed, self._well = line, speed, well
        self._load, self._start, self._fail = load, start, fail
        self._near: dict[str, Entry] = {}
        self._doubted: set[asyncio.Task[None]] = set()
        self._unsaved = 0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.closed = False
        """Whether no more jobs go to the device."""

    @property
    def near(self) -> list[Entry]:
        """Those on the device or next to it."""
        return list(self._near.values())

    def offer(self, entry: Entry, spec: JobSpec) -> None:
        """A job that was just accepted: at once to the device where it would be the next, else into the line."""
        if not self.closed and self._allowed(entry) and self._line.first(self._allowed) is None:
            self._near[entry.id] = entry
            self._begin(entry, spec)
        else:
            self.wait(entry)

    def wait(self, entry: Entry) -> None:
        """Into the line."""
        self._line.add(entry)
        self._wake.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    def left(self, entry: Entry) -> None:
        """The job is over, wherever it was."""
        if self._near.pop(entry.id, None) is None:
            self._line.remove(entry)
        entry.job = None
        self._wake.set()

    def unsaved(self, jobs: int) -> None:
        """How many jobs' results are on their way to the disk: while it falls behind, the device gets no more."""
        self._unsaved = jobs
        self._wake.set()

    def full(self, priority: Priority) -> bool:
        """Whether even the first of the line has to wait until one of those near the device is done."""
        return len(self._of(priority)) >= MOST_NEAR

    def close(self) -> None:
        self.closed = True
        for task in (self._task, *self._doubted):
            if task is not None:
                task.cancel()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self.closed and (entry := self._line.first(self._allowed)) is not None:
                self._line.remove(entry)
                self._near[entry.id] = entry
                await self._fetch(entry)

    async def _fetch(self, entry: Entry, doubted: bool = False) -> None:
        """`doubted`: the disk has refused what this job needs before, and nothing else."""
        try:
            spec = await self._load(entry)
        except Unavailable:
            await self._refused(entry, doubted)
        except ZrelayError as error:
            self._fail(entry, error)
        except Exception as error:  # one job's trouble must not end the feeding of the others
            incident = secrets.token_hex(6)
            log.error("incident %s: job %s could not be read", incident, entry.id, exc_info=error)
            self._fail(entry, device_failure(incident))
        else:
            if entry.over or self.closed:  # cancelled meanwhile
                self._near.pop(entry.id, None)
            else:
                self._begin(entry, spec)

    async def _refused(self, entry: Entry, doubted: bool) -> None:
        """The disk did not give what a job needs. Where it refuses others as well, that is no fault of the job, and all
        wait until it is well; else the job has a second try, beside the others, and then fails alone."""
        well = await self._well()
        if entry.id not in self._near or self.closed:  # ended meanwhile
            return
        if not well:
            del self._near[entry.id]
            self._line.add(entry)
            await asyncio.sleep(_DISK_AGAIN_S)
            self._wake.set()
        elif doubted:
            log.error("job %s: the disk is well, but does not give what this job needs: it fails", entry.id)
            self._fail(entry, damaged("an input of this job"))
        else:
            task = asyncio.create_task(self._again(entry))
            self._doubted.add(task)
            task.add_done_callback(self._doubted.discard)

    async def _again(self, entry: Entry) -> None:
        await asyncio.sleep(_DISK_AGAIN_S)
        if entry.id in self._near:
            await self._fetch(entry, doubted=True)

    def _begin(self, entry: Entry, spec: JobSpec) -> None:
        waited_s = max(0.0, time.time() - entry.accepted_at)
        accepted_at = time.monotonic() - waited_s
        if entry.alone:
            spec = replace(spec, deterministic=True)
        entry.job = Job(entry.id, spec, entry.arrival, accepted_at=accepted_at, caller=entry.caller)
        self._start(entry.job)

    def _allowed(self, entry: Entry) -> bool:
        """Whether a job is among the first of its priority. A short one is, however many long ones are near: so it is
        the device's policy that it waits for, a step, and not for one of them to end."""
        near = self._of(entry.priority)
        if self._unsaved >= NEAR_DEVICE or len(near) >= MOST_NEAR:
            return False
        if len(near) < NEAR_DEVICE:
            return True
        place = entry.key, entry.arrival
        return sum((key_now(one, left_s(one, self._speed)), one.arrival) < place for one in near) < NEAR_DEVICE

    def _of(self, priority: Priority) -> list[Entry]:
        return [entry for entry in self._near.values() if entry.priority <= priority]
