"""Brings jobs from the line to the device, a few ahead of need: the rest costs no memory but its entry."""

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from zrelay_generator.engine.job import Job, JobSpec, Priority
from zrelay_generator.engine.refusals import device_failure
from zrelay_generator.jobs.entry import Entry
from zrelay_generator.jobs.line import Line
from zrelay_shared.errors import Unavailable, ZrelayError

log = logging.getLogger(__name__)
NEAR_DEVICE = 16
"""Jobs of one priority, and of more urgent ones, that are on the device or next to it: enough to fill any tick."""
_DISK_AGAIN_S = 2.0
Load = Callable[[Entry], Awaitable[JobSpec]]


class Feeder:
    """Owns which jobs are near the device. `load` reads a job's spec, `start` hands it over, `fail` ends an entry."""

    def __init__(
        self, line: Line, load: Load, start: Callable[[Job], None], fail: Callable[[Entry, ZrelayError], None]
    ) -> None:
        self._line, self._load, self._start, self._fail = line, load, start, fail
        self._near: dict[str, Entry] = {}
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
        if not self.closed and self._allowed(entry.priority) and self._line.first(self._allowed) is None:
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

    def close(self) -> None:
        self.closed = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while not self.closed and (entry := self._line.first(self._allowed)) is not None:
                self._line.remove(entry)
                self._near[entry.id] = entry
                await self._fetch(entry)

    async def _fetch(self, entry: Entry) -> None:
        try:
            spec = await self._load(entry)
        except Unavailable:  # the disk refuses: no fault of the job, which waits until it is well
            if self._near.pop(entry.id, None) is not None:
                self._line.add(entry)
                await asyncio.sleep(_DISK_AGAIN_S)
                self._wake.set()
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

    def _begin(self, entry: Entry, spec: JobSpec) -> None:
        waited_s = max(0.0, time.time() - entry.accepted_at)
        accepted_at = time.monotonic() - waited_s
        if entry.alone:
            spec = replace(spec, deterministic=True)
        entry.job = Job(entry.id, spec, entry.arrival, accepted_at=accepted_at, caller=entry.caller)
        self._start(entry.job)

    def _allowed(self, priority: Priority) -> bool:
        near = sum(entry.priority <= priority for entry in self._near.values())
        return near < NEAR_DEVICE and self._unsaved < NEAR_DEVICE
