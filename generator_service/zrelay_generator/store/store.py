"""The store as the event loop sees it: awaited calls, answered from its threads."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from zrelay_generator.store import rows
from zrelay_generator.store.blobs import Blobs, Buffer, ContentMissing, FolderBlobs, Incoming, MemoryBlobs
from zrelay_generator.store.database import Database
from zrelay_generator.store.disk import Disk, refusal
from zrelay_generator.store.lock import FolderLock
from zrelay_generator.store.opening import connect, open_database
from zrelay_generator.store.retention import LEAST_BYTES, Retention, forget, retain, spoil
from zrelay_generator.store.rows import EventRow, JobRow
from zrelay_generator.store.schema import prepare
from zrelay_shared.errors import FailedPrecondition, Unavailable

log = logging.getLogger(__name__)
T = TypeVar("T")
_SEQUENCES_A_START = 1 << 32
_FILE_THREADS = 2
_BLOBS = "blobs"
_TRIED_BYTES = 1 << 20
"""Of a file that shows whether a disk has room again."""
_LOOKS = 16
"""Looks at the limits while as many bytes come in as they allow."""


class JobStore:
    """Jobs, results and contents. Made by `open_store`; every method but `close` is for the event loop.

    What the disk refuses is raised as Unavailable (STATE_UNWRITABLE) by all of them.

    Attributes: `durable` False where all of it ends with the process; `first_sequence` what events of this start
    are numbered after; `last_arrival` of the jobs so far; `disk` whether it is well.
    """

    def __init__(
        self, db: sqlite3.Connection, blobs: Blobs, retention: Retention, starts: int, lock: FolderLock | None
    ) -> None:
        self.durable = lock is not None
        self.first_sequence = (starts - 1) * _SEQUENCES_A_START
        self.last_arrival = rows.last_arrival(db)
        self.blobs = blobs
        self.disk = Disk()
        self._retention = retention
        self._look_after = max(1, min(retention.result_bytes, retention.content_bytes) // _LOOKS)
        self._lock = lock
        self._closed = False
        self._added = 0
        self._database = Database(db)
        self._files = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="jobs-files")

    async def accept(
        self, row: JobRow, spec: bytes, inputs: Mapping[str, Buffer | None], sizes: Mapping[str, int]
    ) -> None:
        """Writes a job; it is on disk when this returns. `inputs` are the contents it needs, None for those that were
        sent before; `sizes` their bytes. Raises ContentMissing where one of those is gone."""
        for _ in range(3):
            for sha256, data in inputs.items():
                if data is not None:
                    await self.file(self.blobs.put, sha256, data)

            def write(db: sqlite3.Connection) -> str | None:
                missing = next((sha256 for sha256 in inputs if not self.blobs.has(sha256)), None)
                if missing is None:
                    for sha256, size in sizes.items():
                        rows.add_content(db, sha256, size, sent=True)
                    rows.insert_job(db, row, spec, inputs)
                return missing

            missing = await self._run(write)
            if missing is None:
                await self._grown(sum(len(data) for data in inputs.values() if data is not None))
                return
            if inputs[missing] is None:
                raise ContentMissing(missing)
        raise refusal()  # let go three times between writing and naming it

    async def add_image(self, arrival: int, event: EventRow, data: Buffer) -> None:
        """An image of a job, `event.sha256` its file's name."""
        sha256 = event.sha256
        if sha256 is None:
            raise ValueError("sha256: expected that of the image, got none")

        def write(db: sqlite3.Connection) -> bool:
            # An older job may have made the same file, and was forgotten with it just now.
            there = self.blobs.has(sha256)
            if there:
                rows.add_content(db, sha256, event.bytes, sent=False)
                rows.insert_event(db, arrival, event)
            return there

        for _ in range(3):
            await self.file(self.blobs.put, sha256, data)
            if await self._run(write):
                await self._grown(event.bytes)
                return
        raise refusal()

    async def finish(
        self, arrival: int, state: str, error: str, ended_at: float, sequence: int, last: EventRow | None = None
    ) -> None:
        """A job has ended, with a last event where it succeeded."""

        def write(db: sqlite3.Connection) -> None:
            if last is not None:
                rows.insert_event(db, arrival, last)
            rows.finish_job(db, arrival, state, error, ended_at, sequence)

        await self._run(write)

    async def spoil(self, arrival: int, error: str, sha256: str) -> None:
        """A job that had succeeded has failed after all: one of its images cannot be read."""
        await self._run(lambda db: spoil(db, self.blobs, arrival, error, sha256))

    async def detach(self, arrival: int) -> None:
        await self._run(lambda db: rows.detach_job(db, arrival))

    async def unfinished(self) -> tuple[list[JobRow], list[int]]:
        """Jobs to go on with, and the arrivals of damaged rows."""
        return await self._run(rows.unfinished_jobs)

    async def by_id(self, job_id: str) -> JobRow | None:
        return await self._run(lambda db: rows.job_by_id(db, job_id))

    async def by_request(self, request_id: str) -> JobRow | None:
        """The latest job of a request's id."""
        return await self._run(lambda db: rows.job_by_request(db, request_id))

    async def before(self, arrival: int, states: Sequence[str], limit: int) -> list[JobRow]:
        """Jobs that arrived before another, newest first."""
        return await self._run(lambda db: rows.jobs_before(db, arrival, states, limit))

    async def blame(self, job_ids: Collection[str]) -> None:
        """The device was lost while it worked at these jobs."""
        await self._run(lambda db: rows.blame_jobs(db, job_ids))

    async def blamed(self) -> dict[str, int]:
        """How often the device was lost while it worked at unfinished jobs, by job id."""
        return await self._run(rows.blamed_jobs)

    async def spec(self, arrival: int) -> bytes:
        """The spec of an unfinished job. Raises rows.RowDamaged."""
        return await self._run(lambda db: rows.spec_of(db, arrival))

    async def events(self, arrival: int) -> list[EventRow]:
        return await self._run(lambda db: rows.events_of(db, arrival))

    async def read(self, sha256: str) -> bytes:
        """A content. Raises ContentMissing, ContentDamaged."""
        with self.disk.reading():
            return await asyncio.get_running_loop().run_in_executor(self._files, self.blobs.read, sha256)

    async def keep_incoming(self, incoming: Incoming, sha256: str, size: int) -> None:
        """Content that arrived whole gets its name and may be used by it."""
        await self.file(incoming.keep, sha256)
        await self._run(lambda db: rows.add_content(db, sha256, size, sent=True))
        await self._grown(size)

    async def known_size(self, sha256: str) -> int | None:
        """The bytes of a content that is here, None where it is not; it counts as used now."""

        def look(db: sqlite3.Connection) -> int | None:
            size = rows.content_size(db, sha256)
            if size is None or not self.blobs.has(sha256):
                return None
            rows.add_content(db, sha256, size, sent=True)
            return size

        return await self._run(look)

    async def needed(self, contents: Collection[str]) -> set[str]:
        """Those of some contents that unfinished jobs need."""
        return await self._run(lambda db: rows.needed_inputs(db, contents))

    async def forget(self, arrivals: Collection[int]) -> None:
        """Jobs that cannot even be told of."""

        def write(db: sqlite3.Connection) -> None:
            for arrival in arrivals:
                forget(db, self.blobs, arrival)

        await self._run(write)

    async def retain(self) -> int:
        """Lets go what is over the limits; the number of jobs forgotten."""
        return await self._run(lambda db: retain(db, self.blobs, self._retention, time.time()))

    async def file(self, call: Callable[..., T], *arguments: object) -> T:
        """A blocking call about files, on a thread for them."""
        with self.disk.guard():
            return await asyncio.get_running_loop().run_in_executor(self._files, call, *arguments)

    async def recover(self) -> bool:
        """Tries whether a disk that refused takes a file and a row again; whether it does."""

        def write(db: sqlite3.Connection) -> None:
            if self.disk.damaged and db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("database disk image is malformed")
            rows.touch(db)

        def file() -> None:
            incoming = self.blobs.incoming()
            try:
                incoming.write(bytes(_TRIED_BYTES))
            finally:
                incoming.drop()

        try:
            await self.file(file)
            await self._run(write)
        except Unavailable:
            return False
        self.disk.recovered()
        return True

    def close(self) -> None:
        """Commits what waits and lets the folder go. Blocks; does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._files.shutdown(wait=True)
        self._database.close()
        if self._lock is not None:
            self._lock.release()

    async def _grown(self, size: int) -> None:
        """Looks at the limits each time that a share of them has come in."""
        self._added += max(size, LEAST_BYTES)
        if self._added < self._look_after:
            return
        self._added = 0
        with contextlib.suppress(Unavailable):  # what was written is written
            await self.retain()

    async def _run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        with self.disk.guard():
            return await asyncio.wrap_future(self._database.run(call))


def open_store(folder: Path | None, retention: Retention) -> JobStore:
    """The store of a state folder, made where it is missing; None keeps everything in memory. Blocks.

    Raises FailedPrecondition: STATE_UNWRITABLE, STATE_LOCKED, STATE_NEWER.
    """
    if folder is None:
        db = connect(":memory:")
        return JobStore(db, MemoryBlobs(), retention, prepare(db), None)
    lock = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock(folder)
        blobs = FolderBlobs(folder / _BLOBS)
        opened = open_database(folder)
        known = rows.needed_contents(opened.db)
        if opened.whole:
            swept = blobs.sweep(known)
            if swept:
                log.info("%d files of a process that was killed removed", swept)
        elif strangers := len(blobs.names() - known):
            log.warning("%d contents in %s belong to no job known here: the next start removes them", strangers, folder)
        return JobStore(opened.db, blobs, retention, opened.starts, lock)
    except FailedPrecondition:
        if lock is not None:
            lock.release()
        raise
    except OSError as error:
        if lock is not None:
            lock.release()
        raise FailedPrecondition(
            f"the state folder {folder} cannot be written ({error.strerror or error}): make it writable, name another "
            "with --state DIR, or keep jobs in memory only with --state none",
            reason="STATE_UNWRITABLE",
        ) from error
