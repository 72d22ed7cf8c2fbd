"""Brings what happened to a job to the store, in order, while its watchers are already told."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from zrelay_generator.engine.events import Done, Event, Failed, Image
from zrelay_generator.jobs.entry import Entry
from zrelay_generator.jobs.records import error_text, event_row
from zrelay_generator.store.store import JobStore

log = logging.getLogger(__name__)


class Saver:
    """Saves results and ends. A crash before they are saved makes the job run again, to the same image."""

    def __init__(self, store: JobStore, saved: Callable[[Entry], None], backlog: Callable[[int], None]) -> None:
        """`saved` hears of every job whose end is in the store; `backlog` of how many jobs are being saved."""
        self._store, self._saved, self._backlog = store, saved, backlog
        self._busy: set[asyncio.Task[None]] = set()

    def save(self, entry: Entry, sequence: int, event: Event) -> None:
        """Takes an event over; those that do not outlive the job are not kept."""
        if entry.unkept or not isinstance(event, Image | Done | Failed):
            return
        if entry.unsaved is None:
            entry.unsaved = deque()
        entry.unsaved.append((sequence, event))
        if entry.saving is None:
            entry.saving = asyncio.create_task(self._save(entry, entry.unsaved))
            self._busy.add(entry.saving)
            entry.saving.add_done_callback(self._ended)
            self._backlog(len(self._busy))

    async def settled(self, entry: Entry) -> None:
        """Returns when all that happened to the job so far is in the store."""
        while entry.saving is not None:
            await asyncio.wait({entry.saving})

    async def flush(self) -> None:
        """Returns when everything is in the store."""
        while self._busy:
            await asyncio.wait(set(self._busy))

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
            entry.unkept = True  # an end without all that came before it would be another job's: it runs again
            log.error("job %s: its results are in memory alone, and cannot be kept: %s", entry.id, error)
        finally:
            entry.saving = None

    async def _write(self, entry: Entry, sequence: int, event: Event) -> None:
        if isinstance(event, Image):
            await self._store.add_image(entry.arrival, event_row(sequence, event), event.data)
            entry.replace(sequence, replace(event, data=b""))  # from now on it is read from the store
        elif isinstance(event, Done):
            row = event_row(sequence, event)
            await self._store.finish(entry.arrival, entry.state.value, "", entry.ended_at, sequence, row)
        elif isinstance(event, Failed):
            error = error_text(event.error)
            await self._store.finish(entry.arrival, entry.state.value, error, entry.ended_at, sequence)
