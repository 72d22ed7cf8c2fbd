"""The store on a disk: what it keeps and what it lets go."""

import asyncio
import contextlib
import os
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.helpers.polling import eventually
from zrelay.v1.content_pb2 import ContentRef
from zrelay.v1.generator_pb2 import UploadBlobRequest
from zrelay_generator.api.contents import Uploads
from zrelay_generator.store.blobs import Buffer, ContentDamaged, ContentMissing, FolderBlobs, MemoryBlobs
from zrelay_generator.store.database import Database
from zrelay_generator.store.opening import DATABASE, connect
from zrelay_generator.store.records import JobState, ResultRecord
from zrelay_generator.store.retention import LEAST_BYTES, Retention
from zrelay_generator.store.schema import MIGRATIONS
from zrelay_generator.store.sqlite import open_store
from zrelay_shared.callers import NOBODY
from zrelay_shared.errors import Cancelled, FailedPrecondition, InternalError, PayloadCorrupt
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.service.settings import describe
from zrelay_shared.wire import Parcel

from .fixture_types import OpenStore
from .stores import KEEP, KEPT, Put, ended, intercepted_writes, named, row

DOCS = Path(__file__).parents[2] / "docs/explanation/jobs.md"


def test_the_numbers_in_the_docs_are_the_defaults() -> None:
    told = dict(re.findall(r"^\| `--([a-z-]+)` \| (\w+) \|", DOCS.read_text(), re.MULTILINE))
    defaults = {one.flags[0][2:]: one.to_user(one.default) for one in describe(GeneratorConfig, "generator")}
    assert len(told) == 10
    assert told.pop("max-caller-waiting") == "none"
    assert {flag: float(number) for flag, number in told.items()} == {flag: defaults[flag] for flag in told}


async def test_jobs_and_results_outlive_the_store(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    data, image = b"embeddings", b"a picture"
    sizes = {named(data): len(data)}
    await store.accept(row(1), b"spec", {named(data): data}, sizes)
    await store.accept(row(2), b"spec", {named(data): None}, sizes)
    await store.add_image(2, ResultRecord(7, "{}", named(image), len(image)), image)
    await store.finish(ended(2, sequence=8), ResultRecord(8, "{}"))
    first = store.first_sequence
    store = opened()
    assert store.durable and store.last_arrival == 2 and store.first_sequence > first + 1000
    unfinished, damaged = await store.unfinished()
    assert (unfinished, damaged) == ([row(1)], []) and await store.spec(1) == b"spec"
    found = await store.by_request("request-2", None)
    assert found is not None and found.sequence == 8
    assert [event.sequence for event in await store.results(2)] == [7, 8]
    assert await store.read(named(image)) == image
    with pytest.raises(PayloadCorrupt):
        await store.spec(2)
    assert {path.name for path in (tmp_path / "state" / "blobs").iterdir()} == {named(data), named(image)}


async def test_a_content_is_needed_or_named(opened: OpenStore) -> None:
    store = opened()
    with pytest.raises(ContentMissing):
        await store.accept(row(1), b"spec", {named(b"x"): None, named(b"y"): b"y"}, {named(b"x"): 1, named(b"y"): 1})
    assert await store.unfinished() == ([], [])
    assert store.blobs.names() == {named(b"y")} and await store.known_size(named(b"y"), "") == 1, "sent, so kept"


@pytest.mark.parametrize("appears", [".*.part", "[!.]*"])
@pytest.mark.parametrize("turn", range(4))
async def test_an_upload_that_is_broken_off_leaves_no_file_without_a_row(
    opened: OpenStore, tmp_path: Path, appears: str, turn: int
) -> None:
    """It is broken off as soon as its file appears: first as a part, then under its name."""
    store, data, folder = opened(), bytes([turn]) * 1000, tmp_path / "state" / "blobs"

    async def chunks() -> AsyncIterator[Parcel[UploadBlobRequest]]:
        for _ in range(2):
            yield Parcel(UploadBlobRequest(content=ContentRef(sha256=named(data), size_bytes=1000), data=data[:500]))

    upload = asyncio.ensure_future(Uploads(store).receive(chunks(), NOBODY))
    async with asyncio.timeout(60):
        while not any(folder.glob(appears)):
            await asyncio.sleep(0)  # not `eventually`: this looks after each turn of the event loop
    upload.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upload
    size = await store.known_size(named(data), "")
    assert {path.name for path in folder.iterdir()} == (set() if size is None else {named(data)})


async def test_the_second_process_is_refused(opened: OpenStore, tmp_path: Path) -> None:
    opened()
    with pytest.raises(FailedPrecondition, match="another generator") as refused:
        open_store(tmp_path / "state", KEEP)
    assert refused.value.reason == "STATE_LOCKED" and refused.value.metadata["process"] == str(os.getpid())


async def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(FailedPrecondition, match="--state none") as refused:
        open_store(file / "state", KEEP)
    assert refused.value.reason == "STATE_UNWRITABLE"


async def test_tables_of_a_newer_version_are_left_alone(opened: OpenStore, tmp_path: Path) -> None:
    opened().close()
    db = connect(tmp_path / "state" / DATABASE)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(FailedPrecondition, match="newer zrelay"):
        open_store(tmp_path / "state", KEEP)


async def test_only_what_a_crash_left_is_swept(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    await store.accept(row(1), b"spec", *KEPT)
    folder = tmp_path / "state" / "blobs"
    (folder / ".half.part").write_bytes(b"hal")
    (folder / named(b"stranger")).write_bytes(b"stranger")
    (folder / "photo.png").write_bytes(b"somebody else's")
    opened()
    assert {path.name for path in folder.iterdir()} == {named(b"kept"), "photo.png"}


@pytest.mark.parametrize("kind", ["folder", "memory"])
async def test_contents(kind: str, tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path) if kind == "folder" else MemoryBlobs()
    name = named(b"some content")
    incoming = blobs.incoming()
    incoming.write(b"some ")
    incoming.write(b"content")
    assert not blobs.has(name)
    incoming.keep(name)
    incoming.drop()
    assert blobs.read(name) == b"some content" and blobs.names() == {name}
    dropped = blobs.incoming()
    dropped.write(b"x")
    dropped.drop()
    assert blobs.names() == {name} and (kind == "memory" or len(list(tmp_path.iterdir())) == 1)
    blobs.delete(name)
    with pytest.raises(ContentMissing):
        blobs.read(name)


async def test_a_damaged_content_is_never_given_out_and_can_be_sent_again(tmp_path: Path) -> None:
    blobs, name = FolderBlobs(tmp_path), named(b"whole")
    blobs.put(name, b"whole")
    (tmp_path / name).write_bytes(b"whola")
    with pytest.raises(ContentDamaged):
        blobs.read(name)
    assert not blobs.has(name)
    blobs.put(name, b"whole")
    assert blobs.read(name) == b"whole"


async def test_contents_go_by_their_last_use_and_never_while_needed(opened: OpenStore) -> None:
    store = opened(Retention(3600.0, 100, 1 << 20, content_bytes=5 * LEAST_BYTES // 2))  # of small ones two
    contents = [bytes([letter]) * 10 for letter in b"abcd"]
    await store.accept(row(1), b"spec", {named(contents[0]): contents[0]}, {named(contents[0]): 10})
    for data in contents[1:]:
        assert await store.known_size(named(contents[1]), "") in (None, 10)  # used again and again
        await _later_than(time.time())
        incoming = store.blobs.incoming()
        incoming.write(data)
        await store.keep_incoming(incoming, named(data), 10, "")
    assert store.blobs.names() == {named(contents[n]) for n in (0, 1, 3)}
    assert await store.known_size(named(contents[2]), "") is None
    await store.finish(ended(1, JobState.FAILED, error=InternalError("a bug")))
    await store.retain()
    assert store.blobs.names() == {named(contents[n]) for n in (1, 3)}


async def _later_than(moment: float) -> None:
    """Returns once the system's clock has passed a moment, so that two uses of contents have an order."""
    await eventually(lambda: time.time() > moment, "the clock moves on")


async def test_the_same_image_of_two_jobs_is_kept_once_and_until_the_last(opened: OpenStore) -> None:
    store = opened(Retention(results_s=3600.0, results=1, result_bytes=1 << 20, content_bytes=0))
    for arrival in (1, 2):
        await store.accept(row(arrival), b"spec", {}, {})
        await store.add_image(arrival, ResultRecord(2, "{}", named(b"image"), 5), b"image")
        await store.finish(ended(arrival, ended_s=time.time() + arrival), ResultRecord(3, "{}"))
    assert await store.retain() == 1
    assert await store.by_id("job-1", None) is None and store.blobs.names() == {named(b"image")}


async def test_an_image_outlives_the_older_job_that_made_the_same(opened: OpenStore) -> None:
    store = opened(Retention(results_s=3600.0, results=0, result_bytes=0, content_bytes=0))
    for arrival in (1, 2):
        await store.accept(row(arrival), b"spec", {}, {})
    await store.add_image(1, ResultRecord(2, "{}", named(b"image"), 5), b"image")
    await store.finish(ended(1), ResultRecord(3, "{}"))
    removed: list[int] = []

    def put(real: Put, sha256: str, data: Buffer) -> None:
        """The older job is removed after the file is written and before the row that names it."""
        real(sha256, data)
        if not removed:
            removed.append(asyncio.run_coroutine_threadsafe(store.retain(), loop).result(10))

    loop = asyncio.get_running_loop()
    with intercepted_writes(store, put):
        await store.add_image(2, ResultRecord(2, "{}", named(b"image"), 5), b"image")
    assert removed == [1]
    assert await store.by_id("job-1", None) is None and await store.read(named(b"image")) == b"image"


async def test_contents_that_unfinished_jobs_need(opened: OpenStore) -> None:
    store = opened()
    await store.accept(row(1), b"spec", *KEPT)
    assert await store.needed([named(b"kept"), named(b"other")], "") == {named(b"kept")}
    await store.finish(ended(1, JobState.CANCELLED, error=Cancelled("on request")))
    assert await store.needed([named(b"kept")], "") == set()


async def test_calls_that_wait_together_do_not_harm_each_other() -> None:
    database = Database(sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False))
    database.run(lambda db: db.execute("CREATE TABLE t (x INTEGER PRIMARY KEY)").close()).result()

    def insert(value: int) -> Future[int]:
        return database.run(lambda db: db.execute("INSERT INTO t VALUES (?)", (value,)).rowcount)

    outcomes = [insert(value) for value in (1, 2, 1, 3)]
    failures = [future.exception() for future in outcomes]
    assert isinstance(failures[2], sqlite3.IntegrityError) and failures.count(None) == 3
    assert database.run(lambda db: db.execute("SELECT count(*) FROM t").fetchone()).result() == (3,)
    database.close()
    assert isinstance(database.run(lambda db: None).exception(), sqlite3.ProgrammingError)
