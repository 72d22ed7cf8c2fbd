"""Brings what happened to a job to the store, in order, while its watchers are already told."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from typing import Any

from zrelay_generator.engine.events import Done, Event, Failed, Image
from zrelay_generator.jobs.entry import Entry
from zrelay_generator.jobs.records import error_text, event_row
from zrelay_generator.store.store import JobStore
from zrelay_shared.errors import Unavailable

log = logging.getLogger(__name__)
UNKEPT_BYTES = 256 << 20
"""Of finished images that the disk has refused and that are in memory alone."""
UNKEPT_JOBS = 1000


class Saver:
    """Saves results and ends. A crash before they are saved makes the job run again, to the same image."""

    def __init__(
        self,
        store: JobStore,
        saved: Callable[[Entry], None],
        dropped: Callable[[Entry], None],
        backlog: Callable[[int], None],
    ) -> None:
        """`saved` hears of every job whose end is in the store; `dropped` of those whose results the disk has refused,
        and that are too many to wait in memory until it takes them; `backlog` of how many jobs are being saved."""
        self._store, self._saved, self._dropped, self._backlog = store, saved, dropped, backlog
        self._busy: set[asyncio.Task[None]] = set()
        self._unkept: dict[str, Entry] = {}

    def save(self, entry: Entry, sequence: int, event: Event) -> None:
        """Takes an event over; those that do not outlive the job are not kept."""
        if not isinstance(event, Image | Done | Failed):
            return
        if entry.unkept:  # an end without all that came before it would be another job's: all of it, or nothing
            self._bound()
            return
        if entry.unsaved is None:
            entry.unsaved = deque()
        entry.unsaved.append((sequence, event))
        if entry.saving is None:
            entry.saving = self._begin(self._save(entry, entry.unsaved))

    def retry(self) -> None:
        """Saves once more what could not be saved."""
        unkept, self._unkept = list(self._unkept.values()), {}
        for entry in unkept:
            entry.unkept = False
            for sequence, event in entry.events:
                in_store = isinstance(event, Image) and not event.data
                # Parked, it has ended for this process alone.
                passing = isinstance(event, Failed) and event.error is not entry.error
                if not (in_store or passing):
                    self.save(entry, sequence, event)

    def blame(self, job_ids: Collection[str]) -> None:
        """Writes down at which jobs the device was lost."""
        self._begin(self._blame(job_ids))

    async def settled(self, entry: Entry) -> None:
        """Returns when all that happened to the job so far is in the store."""
        while entry.saving is not None:
            await asyncio.wait({entry.saving})

    async def flush(self) -> None:
        """Returns when everything is in the store."""
        while self._busy:
            await asyncio.wait(set(self._busy))

    def _begin(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._busy.add(task)
        task.add_done_callback(self._ended)
        self._backlog(len(self._busy))
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._busy.discard(task)
        self._backlog(len(self._busy))

    async def _save(self, entry: Entry, unsaved: deque[tuple[int, Event]]) -> None:
        try:
            while unsaved:
                sequence, event = unsaved.popleft()
                await self._write(entry, sequence, event)
            if entry.ended:
                self._saved(entry)
        except Exception as error:  # the disk's trouble is no reason to end anything but this job's saving
            unsaved.clear()
            entry.unkept = True
            self._unkept[entry.id] = entry
            log.error("job %s: its results are in memory alone until the disk takes them: %s", entry.id, error)
            self._bound()
        finally:
            entry.saving = None

    def _bound(self) -> None:
        """Lets the oldest ended jobs go that are too many: they are unfinished in the store, and run again after the
        next start."""
        ended = [entry for entry in self._unkept.values() if entry.ended]
        sizes = {entry.id: sum(len(image.data) for image in entry.images) for entry in ended}
        over_bytes, over_jobs = sum(sizes.values()) - UNKEPT_BYTES, len(ended) - UNKEPT_JOBS
        for entry in ended[:-1]:  # the latest always stays
            if over_bytes <= 0 and over_jobs <= 0:
                return
            over_bytes, over_jobs = over_bytes - sizes[entry.id], over_jobs - 1
            del self._unkept[entry.id]
            self._dropped(entry)
            log.error("job %s: its results are let go, it runs again after the next start", entry.id)

    async def _blame(self, job_ids: Collection[str]) -> None:
        try:
            await self._store.blame(job_ids)
        except Unavailable as error:
            log.error("at which jobs the device was lost could not be written: %s", error)

    async def _write(self, entry: Entry, sequence: int, event: Event) -> None:
        if isinstance(event, Done | Failed) and not entry.ended:
            raise RuntimeError(f"job {entry.id}: expected one that has ended, got one that is {entry.state}")
        if isinstance(event, Image):
            await self._store.add_image(entry.arrival, event_row(sequence, event), event.data)
            entry.replace(sequence, replace(event, data=b""))  # from now on it is read from the store
        elif isinstance(event, Done):
            row = event_row(sequence, event)
            await self._store.finish(entry.arrival, entry.state.value, "", entry.ended_at, sequence, row)
        elif isinstance(event, Failed):
            error = error_text(event.error)
            await self._store.finish(entry.arrival, entry.state.value, error, entry.ended_at, sequence)
