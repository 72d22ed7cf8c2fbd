"""The job store of one machine: records in SQLite, contents in a folder. Each has its own thread."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from zrelay_generator.store import queries, retention
from zrelay_generator.store.blobs import Blobs, Buffer, ContentMissing, FolderBlobs, IncomingContent, MemoryBlobs
from zrelay_generator.store.database import Database
from zrelay_generator.store.disk import DiskHealth, refusal
from zrelay_generator.store.opening import FolderLock, connect, open_database
from zrelay_generator.store.records import JobRecord, JobState, ResultRecord, damaged
from zrelay_generator.store.retention import LEAST_BYTES, Retention
from zrelay_generator.store.schema import prepare
from zrelay_shared.errors import FailedPrecondition, Unavailable, ZrelayError

log = logging.getLogger(__name__)
T = TypeVar("T")
_SEQUENCES_PER_START = 1 << 32
_FILE_THREADS = 2
_BLOBS = "blobs"
_PROBE_BYTES = 1 << 20
"""Size of the file that shows whether a disk has room again."""
_CHECKS_PER_LIMIT = 16
"""How often the limits are checked while as many bytes come in as they allow."""
_ATTEMPTS = 3
"""Attempts at naming a content that retention may remove between writing and naming it."""


class SqliteJobStore:
    """Implements `protocol.JobStore`. Made by `open_store`."""

    def __init__(
        self, db: sqlite3.Connection, blobs: Blobs, limits: Retention, starts: int, lock: FolderLock | None
    ) -> None:
        """Takes over an opened database.

        Args:
            db: A connection that nobody else uses from now on.
            blobs: Where contents are.
            limits: What is kept.
            starts: Number of starts on this database, this one included.
            lock: The lock of the state folder, None if everything is in memory.
        """
        self.first_sequence = (starts - 1) * _SEQUENCES_PER_START
        self.last_arrival = queries.last_arrival(db)
        self.durable = lock is not None
        self.blobs = blobs
        self.disk = DiskHealth()
        self._limits = limits
        self._check_after = max(1, min(limits.result_bytes, limits.content_bytes) // _CHECKS_PER_LIMIT)
        self._lock = lock
        self._closed = False
        self._added = 0
        self.database = Database(db)
        self._files = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="jobs-files")

    @property
    def problem(self) -> str:
        return self.disk.problem

    # Jobs.

    async def accept(
        self, record: JobRecord, spec: bytes, inputs: Mapping[str, Buffer | None], sizes: Mapping[str, int]
    ) -> None:
        await _to_its_end(self._accept(record, spec, inputs, sizes))

    async def _accept(
        self, record: JobRecord, spec: bytes, inputs: Mapping[str, Buffer | None], sizes: Mapping[str, int]
    ) -> None:
        for _ in range(_ATTEMPTS):
            for sha256, data in inputs.items():
                if data is not None:
                    await self._file(self.blobs.put, sha256, data)

            def write(db: sqlite3.Connection) -> str | None:
                missing = [sha256 for sha256 in inputs if not self.blobs.has(sha256)]
                for sha256, size in sizes.items():
                    if sha256 not in missing:  # what was sent stays for the next attempt, within the limits
                        queries.add_content(db, sha256, size, sent=True)
                if not missing:
                    queries.insert_job(db, record, spec, inputs)
                return missing[0] if missing else None

            missing = await self._run(write)
            if missing is None:
                await self._grown(sum(len(data) for data in inputs.values() if data is not None))
                return
            if inputs[missing] is None:
                raise ContentMissing(missing)
        raise refusal()

    async def add_image(self, arrival: int, result: ResultRecord, data: Buffer) -> None:
        sha256 = result.sha256
        if sha256 is None:
            raise ValueError("sha256: expected that of the image, got none")

        def write(db: sqlite3.Connection) -> bool:
            # An older job may have produced the same file and was removed with it just now.
            there = self.blobs.has(sha256)
            if there:
                queries.add_content(db, sha256, result.bytes, sent=False)
                queries.insert_result(db, arrival, result)
            return there

        async def add() -> None:
            for _ in range(_ATTEMPTS):
                await self._file(self.blobs.put, sha256, data)
                if await self._run(write):
                    await self._grown(result.bytes)
                    return
            raise refusal()

        await _to_its_end(add())

    async def finish(self, record: JobRecord, last: ResultRecord | None = None) -> None:
        def write(db: sqlite3.Connection) -> None:
            if last is not None:
                queries.insert_result(db, record.arrival, last)
            queries.finish_job(db, record)

        await self._run(write)

    async def spoil(self, arrival: int, error: ZrelayError, sha256: str) -> None:
        await self._run(lambda db: retention.spoil(db, self.blobs, arrival, error, sha256))

    async def update_accepted(self, arrival: int, accepted: bytes) -> None:
        await self._run(lambda db: queries.update_accepted(db, arrival, accepted))

    async def detach(self, arrival: int) -> None:
        await self._run(lambda db: queries.detach_job(db, arrival))

    async def unfinished(self) -> tuple[list[JobRecord], list[int]]:
        return await self._run(queries.unfinished_jobs)

    async def by_id(self, job_id: str) -> JobRecord | None:
        return await self._run(lambda db: queries.job_by_id(db, job_id))

    async def by_request(self, request_id: str) -> JobRecord | None:
        return await self._run(lambda db: queries.job_by_request(db, request_id))

    async def before(self, arrival: int, states: Sequence[JobState], limit: int) -> list[JobRecord]:
        return await self._run(lambda db: queries.jobs_before(db, arrival, states, limit))

    async def spec(self, arrival: int) -> bytes:
        found = await self._run(lambda db: queries.spec_of(db, arrival))
        if found is None:
            raise damaged("this job")
        return found

    async def results(self, arrival: int) -> list[ResultRecord]:
        return await self._run(lambda db: queries.results_of(db, arrival))

    async def forget(self, arrivals: Collection[int]) -> None:
        def write(db: sqlite3.Connection) -> None:
            for arrival in arrivals:
                retention.forget(db, self.blobs, arrival)

        await self._run(write)

    async def record_device_loss(self, job_ids: Collection[str]) -> None:
        await self._run(lambda db: queries.add_device_loss(db, job_ids))

    async def device_losses(self) -> dict[str, int]:
        return await self._run(queries.device_losses)

    # Contents.

    async def read(self, sha256: str) -> bytes:
        with self.disk.reading():
            return await asyncio.get_running_loop().run_in_executor(self._files, self.blobs.read, sha256)

    def read_now(self, sha256: str) -> bytes:
        with self.disk.reading():
            return self.blobs.read(sha256)

    async def known_size(self, sha256: str) -> int | None:
        def look_up(db: sqlite3.Connection) -> int | None:
            size = queries.content_size(db, sha256)
            if size is None or not self.blobs.has(sha256):
                return None
            queries.add_content(db, sha256, size, sent=True)
            return size

        return await self._run(look_up)

    async def needed(self, contents: Collection[str]) -> set[str]:
        return await self._run(lambda db: queries.needed_inputs(db, contents))

    def incoming(self) -> IncomingContent:
        return self.blobs.incoming()

    async def write_incoming(self, incoming: IncomingContent, data: Buffer) -> None:
        await _to_its_end(self._file(incoming.write, data))

    async def keep_incoming(self, incoming: IncomingContent, sha256: str, size: int) -> None:
        async def keep() -> None:
            await self._file(incoming.keep, sha256)
            await self._run(lambda db: queries.add_content(db, sha256, size, sent=True))
            await self._grown(size)

        await _to_its_end(keep())

    async def drop_incoming(self, incoming: IncomingContent) -> None:
        await _to_its_end(self._file(incoming.drop))

    # Maintenance.

    async def retain(self) -> int:
        return await self._run(lambda db: retention.retain(db, self.blobs, self._limits, time.time()))

    async def recover(self) -> bool:
        def write(db: sqlite3.Connection) -> None:
            if self.disk.damaged and db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("database disk image is malformed")
            queries.try_write(db)

        def write_file() -> None:
            incoming = self.blobs.incoming()
            try:
                incoming.write(bytes(_PROBE_BYTES))
            finally:
                incoming.drop()

        try:
            await self._file(write_file)
            await self._run(write)
        except Unavailable:
            return False
        self.disk.recovered()
        return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._files.shutdown(wait=True)
        self.database.close()
        if self._lock is not None:
            self._lock.release()

    async def _grown(self, size: int) -> None:
        """Counts `size` added bytes, and applies the limits each time that a share of them was added."""
        self._added += max(size, LEAST_BYTES)
        if self._added < self._check_after:
            return
        self._added = 0
        with contextlib.suppress(Unavailable):  # what was written is written
            await self.retain()

    async def _file(self, call: Callable[..., T], *arguments: object) -> T:
        with self.disk.writing():
            return await asyncio.get_running_loop().run_in_executor(self._files, call, *arguments)

    async def _run(self, call: Callable[[sqlite3.Connection], T]) -> T:
        with self.disk.writing():
            return await asyncio.wrap_future(self.database.run(call))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs work that must not be interrupted. If the caller is cancelled, the cancellation takes effect after the work.

    Otherwise an upload that is cancelled at the wrong moment would leave a file that no row names.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def open_store(folder: Path | None, limits: Retention) -> SqliteJobStore:
    """Opens the store of a state folder. Blocks.

    Args:
        folder: The state folder, created if it is missing; None keeps everything in memory.
        limits: What is kept.

    Raises:
        FailedPrecondition: STATE_UNWRITABLE, STATE_LOCKED or STATE_NEWER.
    """
    if folder is None:
        db = connect(":memory:")
        return SqliteJobStore(db, MemoryBlobs(), limits, prepare(db), None)
    lock = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock(folder)
        blobs = FolderBlobs(folder / _BLOBS)
        opened = open_database(folder)
        known = queries.named_contents(opened.db)
        if opened.whole:
            swept = blobs.sweep(known)
            if swept:
                log.info("%d files of a process that was killed were removed", swept)
        elif unnamed := len(blobs.names() - known):
            log.warning("%d contents in %s belong to no known job: the next start removes them", unnamed, folder)
        return SqliteJobStore(opened.db, blobs, limits, opened.starts, lock)
    except FailedPrecondition:
        if lock is not None:
            lock.release()
        raise
    except OSError as error:
        if lock is not None:
            lock.release()
        raise FailedPrecondition(
            f"the state folder {folder} cannot be written ({error.strerror or error}): make it writable, name another "
            "with --state DIR or the variable ZRELAY_STATE, or keep jobs in memory only with --state none",
            reason="STATE_UNWRITABLE",
        ) from error
