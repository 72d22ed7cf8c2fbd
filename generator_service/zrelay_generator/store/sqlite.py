"""The job store of one machine: records in SQLite, contents in a folder. Each has its own thread."""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from zrelay_generator.store import queries, retention
from zrelay_generator.store.blobs import (
    Blobs,
    Buffer,
    ContentClaims,
    ContentMissing,
    FolderBlobs,
    IncomingContent,
    MemoryBlobs,
)
from zrelay_generator.store.clock import SYSTEM_CLOCKS, StoreClock, SystemClocks, open_clock
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
_SWEPT_AT_ONCE = 256
"""Contents whose rows a sweep looks up in one transaction, so that it delays no job."""


class SqliteJobStore:
    """Implements `protocol.JobStore`. Made by `open_store`."""

    def __init__(
        self,
        db: sqlite3.Connection,
        blobs: Blobs,
        limits: Retention,
        starts: int,
        clock: StoreClock,
        *,
        lock: FolderLock | None = None,
        complete: bool = True,
    ) -> None:
        """Takes over an opened database.

        Args:
            db: A connection that nobody else uses from now on.
            blobs: Where contents are.
            limits: What is kept.
            starts: Number of starts on this database, this one included.
            clock: The clock of the database.
            lock: The lock of the state folder, None if everything is in memory.
            complete: Whether the database names every content that is in use. One that was damaged may not.
        """
        self.first_sequence = (starts - 1) * _SEQUENCES_PER_START
        self.last_arrival = queries.last_arrival(db)
        self.durable = lock is not None
        self.clock = clock
        self.blobs = blobs
        self.disk = DiskHealth()
        self._limits = limits
        self._check_after = max(1, min(limits.result_bytes, limits.content_bytes) // _CHECKS_PER_LIMIT)
        self._lock, self._complete = lock, complete
        self._claims = ContentClaims()
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
        def write(db: sqlite3.Connection) -> str | None:
            missing = [sha256 for sha256 in inputs if not self.blobs.has(sha256)]
            for sha256, size in sizes.items():
                if sha256 not in missing:  # what was sent stays for the next attempt, within the limits
                    self._add_sent(db, sha256, size, record.owner)
            if not missing:
                queries.insert_job(db, record, spec, inputs)
            return missing[0] if missing else None

        given = {sha256: data for sha256, data in inputs.items() if data is not None}
        sent = await self._run(lambda db: queries.sent_contents(db, given, record.owner)) if given else set()
        with self._claims.claiming() as claim:
            for sha256, data in given.items():
                await self._put(claim, sha256, data, anew=sha256 not in sent)
            missing = await self._run(write)
        if missing is not None:
            raise ContentMissing(missing)
        await self._grown(sum(map(len, given.values())))

    async def add_image(self, arrival: int, result: ResultRecord, data: Buffer) -> None:
        sha256 = result.sha256
        if sha256 is None:
            raise ValueError("sha256: expected that of the image, got none")

        def write(db: sqlite3.Connection) -> None:
            self._require(sha256)
            queries.add_content(db, sha256, result.bytes)
            queries.insert_result(db, arrival, result)

        async def add() -> None:
            # An older job may have produced the same file, which goes with it: claimed, it stays.
            with self._claims.claiming() as claim:
                await self._put(claim, sha256, data, anew=True)  # others may have generated the same image
                await self._run(write)
            await self._grown(result.bytes)

        await _to_its_end(add())

    async def finish(self, record: JobRecord, last: ResultRecord | None = None) -> None:
        def write(db: sqlite3.Connection) -> None:
            if last is not None:
                queries.insert_result(db, record.arrival, last)
            queries.finish_job(db, record)

        await self._run(write)

    async def spoil(self, arrival: int, error: ZrelayError, sha256: str) -> None:
        await self._remove(lambda db, removed: retention.spoil(db, arrival, error, sha256, removed))

    async def update_accepted(self, arrival: int, accepted: bytes) -> None:
        await self._run(lambda db: queries.update_accepted(db, arrival, accepted))

    async def detach(self, arrival: int) -> None:
        await self._run(lambda db: queries.detach_job(db, arrival))

    async def unfinished(self) -> tuple[list[JobRecord], list[int]]:
        return await self._run(queries.unfinished_jobs)

    async def by_id(self, job_id: str, owner: str | None) -> JobRecord | None:
        return await self._run(lambda db: queries.job_by_id(db, job_id, owner))

    async def by_request(self, request_id: str, owner: str | None) -> JobRecord | None:
        return await self._run(lambda db: queries.job_by_request(db, request_id, owner))

    async def before(self, arrival: int, states: Sequence[JobState], limit: int, owner: str | None) -> list[JobRecord]:
        return await self._run(lambda db: queries.jobs_before(db, arrival, states, limit, owner))

    async def spec(self, arrival: int) -> bytes:
        found = await self._run(lambda db: queries.spec_of(db, arrival))
        if found is None:
            raise damaged("this job")
        return found

    async def results(self, arrival: int) -> list[ResultRecord]:
        return await self._run(lambda db: queries.results_of(db, arrival))

    async def forget(self, arrivals: Collection[int]) -> None:
        def write(db: sqlite3.Connection, removed: set[str]) -> None:
            for arrival in arrivals:
                retention.forget(db, arrival, removed)

        await self._remove(write)

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

    async def known_size(self, sha256: str, owner: str) -> int | None:
        def look_up(db: sqlite3.Connection) -> int | None:
            size = queries.content_size(db, sha256, owner)
            if size is None or not self.blobs.has(sha256):
                return None
            queries.add_sender(db, sha256, owner, self.clock.now_s)
            return size

        return await self._run(look_up)

    async def needed(self, contents: Collection[str], owner: str) -> set[str]:
        return await self._run(lambda db: queries.needed_inputs(db, contents, owner))

    def incoming(self) -> IncomingContent:
        return self.blobs.incoming()

    async def write_incoming(self, incoming: IncomingContent, data: Buffer) -> None:
        await _to_its_end(self._file(incoming.write, data))

    async def keep_incoming(self, incoming: IncomingContent, sha256: str, size: int, owner: str) -> None:
        def write(db: sqlite3.Connection) -> None:
            self._require(sha256)
            self._add_sent(db, sha256, size, owner)

        async def keep() -> None:
            with self._claims.claiming() as claim:
                await self._file(_claimed, claim, incoming.keep, sha256)
                await self._run(write)
            await self._grown(size)

        await _to_its_end(keep())

    async def drop_incoming(self, incoming: IncomingContent) -> None:
        await _to_its_end(self._file(incoming.drop))

    # Maintenance.

    async def retain(self) -> int:
        def write(db: sqlite3.Connection, removed: set[str]) -> int:
            self.clock.save_if_due(db)
            return retention.retain(db, self._limits, self.clock.now_s, removed)

        return await self._remove(write)

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

    async def sweep(self) -> int:
        count = await self._file(self.blobs.sweep_partial)
        names = sorted(await self._file(self.blobs.names)) if self._complete else []
        for at in range(0, len(names), _SWEPT_AT_ONCE):
            count += await self._sweep(names[at : at + _SWEPT_AT_ONCE])
        if count:
            log.info("removed %d files that belonged to no job and no upload", count)
        return count

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._files.shutdown(wait=True)
        self.database.run(self.clock.save)
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

    def _require(self, sha256: str) -> None:
        """Raises Unavailable if a content that was just written is gone, so that no row names it."""
        if not self.blobs.has(sha256):
            raise refusal()

    def _add_sent(self, db: sqlite3.Connection, sha256: str, size: int, owner: str) -> None:
        queries.add_content(db, sha256, size)
        queries.add_sender(db, sha256, owner, self.clock.now_s)

    async def _put(self, claim: Callable[[str], None], sha256: str, data: Buffer, *, anew: bool = False) -> None:
        await self._file(_claimed, claim, partial(self.blobs.put, anew=anew), sha256, data)

    async def _remove(self, call: Callable[[sqlite3.Connection, set[str]], T]) -> T:
        """Runs a call that adds to a set the contents whose rows it removed. Their files go after the commit."""
        removed: set[str] = set()
        return await self._run(lambda db: call(db, removed), lambda db: self._unlink(db, removed))

    async def _sweep(self, names: Collection[str]) -> int:
        def look_up(db: sqlite3.Connection, removed: set[str]) -> int:
            removed |= queries.unnamed_contents(db, names)
            return len(removed)

        return await self._remove(look_up)

    def _unlink(self, db: sqlite3.Connection, removed: Collection[str]) -> None:
        """Deletes the files of contents that no row names any more. Runs between two transactions."""
        # Another call of the same transaction may have named one of them again.
        for sha256 in queries.unnamed_contents(db, removed):
            try:
                self._claims.remove(sha256, self.blobs.delete)
            except OSError as error:
                log.warning("a content of the state folder cannot be deleted, a sweep tries again: %s", error)

    async def _file(self, call: Callable[..., T], *arguments: object) -> T:
        with self.disk.writing():
            return await asyncio.get_running_loop().run_in_executor(self._files, call, *arguments)

    async def _run(
        self, call: Callable[[sqlite3.Connection], T], committed: Callable[[sqlite3.Connection], None] | None = None
    ) -> T:
        with self.disk.writing():
            return await asyncio.wrap_future(self.database.run(call, committed))


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Runs work that must not be interrupted. If the caller is cancelled, the cancellation takes effect after the work.

    Otherwise an upload that is cancelled at the wrong moment would leave a file that no row names.
    """
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:  # once when the call ends, and again when the server stops
            cancelled = True
    if cancelled:
        task.exception()  # retrieved here: the caller receives the cancellation
        raise asyncio.CancelledError
    task.result()


def _claimed(claim: Callable[[str], None], write: Callable[..., None], sha256: str, *data: Buffer) -> None:
    """Claims a content, which may wait, and then writes its file."""
    claim(sha256)
    write(sha256, *data)


def open_store(folder: Path | None, limits: Retention, clocks: SystemClocks = SYSTEM_CLOCKS) -> SqliteJobStore:
    """Opens the store of a state folder. Blocks.

    Args:
        folder: The state folder, created if it is missing; None keeps everything in memory.
        limits: What is kept.
        clocks: The clocks of the system.

    Raises:
        FailedPrecondition: STATE_UNWRITABLE, STATE_LOCKED or STATE_NEWER.
    """
    if folder is None:
        db = connect(":memory:")
        return SqliteJobStore(db, MemoryBlobs(), limits, prepare(db), open_clock(db, clocks))
    lock = None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock(folder)
        blobs = FolderBlobs(folder / _BLOBS)
        opened = open_database(folder, clocks)
        known = queries.named_contents(opened.db)
        if opened.whole:
            swept = blobs.sweep(known)
            if swept:
                log.info("%d files of a process that was killed were removed", swept)
        unnamed = len(blobs.names() - known)
        if unnamed:
            log.warning("%d contents in %s belong to no known job: the next start removes them", unnamed, folder)
        return SqliteJobStore(opened.db, blobs, limits, opened.starts, opened.clock, lock=lock, complete=not unnamed)
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
