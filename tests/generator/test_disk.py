"""A disk that refuses or a database that breaks while a generator runs: told to everybody, and no end of it."""

import asyncio
import sqlite3

import grpc
import pytest

from zrelay_generator import runtime as runtime_module
from zrelay_generator.engine.events import Done, Image
from zrelay_generator.engine.job import Timings
from zrelay_generator.jobs import saving
from zrelay_generator.pictures.images import ImageFormat
from zrelay_shared.errors import NotFound, Unavailable

from .breaking import ready
from .callers import SOON_S, digest, serialized

SMALL = {"num_inference_steps": 2, "width": 64, "height": 64}


async def on_database(caller, *statements):
    """Runs SQL on the generator's own connection, outside of its transactions."""

    def call(db: sqlite3.Connection):
        db.execute("ROLLBACK TO call")
        for statement in statements:
            db.execute(statement).fetchall()

    await asyncio.wrap_future(caller.server._service._runtime.store._database.run(call))


@pytest.fixture
def full(monkeypatch):
    """Makes the database of a generator refuse to grow, as on a full disk, and lets it grow again."""
    monkeypatch.setattr(runtime_module, "_RETAIN_EVERY", 1)

    async def change(caller, is_full=True):
        await on_database(caller, f"PRAGMA max_page_count = {1 if is_full else 1 << 30}")

    return change


async def fill(caller, request_of):
    """Submits until the database has no page left; the refusal."""
    with pytest.raises(Unavailable) as refused:
        for number in range(500):
            labels = request_of(request_id=f"fill-{number}", **SMALL)
            labels.message.spec.provenance.labels["a"] = "x" * 900
            await caller.submit(labels, detached=True)
    return refused.value


async def test_a_full_disk_is_told_everywhere_and_forgotten_when_it_is_not(serve_kept, request_of, full, caplog):
    caller = await serve_kept()
    request = request_of(request_id="before", seed=1, **SMALL)
    before = await caller.submit(request, detached=True)
    assert (await caller.watch(before.job_id))[-1].WhichOneof("event") == "done"
    await full(caller)
    refusal = await fill(caller, request_of)
    assert (refusal.reason, refusal.code) == ("STATE_UNWRITABLE", "UNAVAILABLE") and refusal.retry_after_s
    assert "use another" in refusal.message and "disk" in refusal.message
    await ready(caller.channel, False)
    for _ in range(3):
        await fill(caller, request_of)
    told = [record for record in caplog.records if "disk of the state folder refuses" in record.getMessage()]
    assert len(told) <= 2, "once by the store, once by health"
    assert (await caller.watch(before.job_id))[-1].WhichOneof("event") == "done", "what is kept can be had"
    await full(caller, False)
    await ready(caller.channel)
    assert (await caller.generate(request_of(request_id="after", **SMALL)))[-1].WhichOneof("event") == "done"


async def test_a_database_that_cannot_be_read_is_no_bug(serve_kept, request_of, tmp_path):
    caller = await serve_kept()
    request = request_of(request_id="a", seed=1, **SMALL)
    job = await caller.submit(request, detached=True)
    await caller.watch(job.job_id)
    path = tmp_path / "state" / "jobs.db"
    store = caller.server._service._runtime.store
    await caller.server._service._runtime.board._saver.flush()
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    other.close()
    sound = path.read_bytes()
    path.write_bytes(b"\xa5" * len(sound))
    store._database._db.execute("PRAGMA shrink_memory")
    calls = (
        lambda: caller.job(job.job_id),
        lambda: caller.watch(job.job_id),
        lambda: caller.jobs(),
        lambda: caller.cancel("unknown"),
        lambda: caller.submit(request_of(request_id="b", **SMALL)),
        lambda: caller.generate(request_of(request_id="a", seed=1, **SMALL), timeout=SOON_S),
    )
    for call in calls:
        with pytest.raises(Unavailable) as refused:
            await call()
        assert refused.value.reason == "STATE_UNWRITABLE"
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        await caller.upload(b"content")
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
    await ready(caller.channel, False)
    assert "start this generator again" in caller.server._service.trouble
    path.write_bytes(sound)
    caller = await serve_kept()
    await ready(caller.channel)


async def test_a_folder_of_contents_that_is_gone_is_no_bug(serve_kept, request_of, tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_module, "_RETAIN_EVERY", 1)
    caller = await serve_kept()
    request = request_of(request_id="a", **SMALL)
    data = serialized(request)
    blobs = tmp_path / "state" / "blobs"
    blobs.rename(tmp_path / "gone")
    blobs.write_bytes(b"a file")
    with pytest.raises(Unavailable) as refused:
        await caller.submit(request)
    assert refused.value.reason == "STATE_UNWRITABLE"
    with pytest.raises(grpc.aio.AioRpcError) as broken:
        await caller.upload(data, digest(data))
    assert broken.value.code() is grpc.StatusCode.UNAVAILABLE
    await ready(caller.channel, False)
    blobs.unlink()
    (tmp_path / "gone").rename(blobs)
    await ready(caller.channel)
    assert (await caller.generate(request))[-1].WhichOneof("event") == "done"


def picture(size):
    return Image(0, 1, 1, 1, ImageFormat.PNG, b"x" * size, digest(b"x" * size), "")


async def refusing(made, path, entries, sizes):
    """The jobs are done while the folder of contents is not there."""
    path.rename(path.with_name("gone"))
    for number, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
        made.publish(picture(size), Done(1, Timings()), job=number)
        await made.ended(entry)
    path.with_name("gone").rename(path)


async def test_what_the_disk_refused_is_kept_as_soon_as_it_is_well(board, tmp_path):
    made = board(state=tmp_path)
    entries = [await made.submit(f"{number}", detached=True) for number in range(3)]
    await refusing(made, tmp_path / "blobs", entries, (10, 11, 12))
    assert made.store.disk.trouble and len(list(made.board.jobs)) == 3
    await made.board.recover()
    for entry in entries:
        await made.ended(entry)
    assert not made.store.disk.trouble and not list(made.board.jobs), "they live in the store alone"
    assert (await made.store.unfinished())[0] == []
    kept = await made.board.jobs.by_id(entries[1].id)
    (_, image), _ = [told async for told in made.board.watch(kept, 1)]
    assert image.data == b"x" * 11


@pytest.mark.parametrize("bound", ["UNKEPT_BYTES", "UNKEPT_JOBS"])
async def test_what_the_disk_refuses_does_not_fill_the_memory(board, tmp_path, monkeypatch, bound):
    monkeypatch.setattr(saving, bound, {"UNKEPT_BYTES": 250, "UNKEPT_JOBS": 2}[bound])
    made = board(state=tmp_path)
    entries = [await made.submit(f"{number}", detached=True) for number in range(6)]
    await refusing(made, tmp_path / "blobs", entries, (100, 101, 102, 103, 104, 105))
    assert [entry.request_id for entry in made.board.jobs] == ["4", "5"], "the latest"
    with pytest.raises(NotFound):
        await made.board.jobs.by_id(entries[0].id)
    await made.board.recover()
    for entry in entries[4:]:
        await made.ended(entry)
    rows, _ = await made.store.unfinished()
    assert [row.request_id for row in rows] == ["0", "1", "2", "3"], "they run again after the next start"
