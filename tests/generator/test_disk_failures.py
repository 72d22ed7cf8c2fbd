"""A disk that refuses or a database that breaks while a generator runs: told to everybody, and no end of it."""

import asyncio
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from tests.helpers.jobs import SMALL
from zrelay_generator.engine.events import JobFailed
from zrelay_generator.engine.job import StageTimings
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.events import ImageFinished, JobSucceeded
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.jobs.manager import Intervals
from zrelay_generator.jobs.saver import HeldLimits
from zrelay_generator.store.opening import DATABASE
from zrelay_generator.store.records import JobState
from zrelay_shared.callers import NOBODY
from zrelay_shared.errors import Draining, IdempotencyConflict, PayloadCorrupt, Unavailable

from .fault_injection import ready
from .fixture_types import MakeManager, RequestOf, Serve
from .generator_client import SOON_S, GeneratorClient, digest, serialized
from .managed_jobs import ManagedJobs, collected
from .stores import intercepted_writes

QUICK = Intervals(heartbeat_s=0.2, retain_s=0.2)


async def on_database(caller: GeneratorClient, *statements: str) -> None:
    """Runs SQL on the generator's own connection, outside of its transactions."""

    def call(db: sqlite3.Connection) -> None:
        db.execute("ROLLBACK TO call")
        for statement in statements:
            db.execute(statement).fetchall()

    await asyncio.wrap_future(caller.store.database.run(call))


async def set_full(caller: GeneratorClient, is_full: bool = True) -> None:
    """Makes the database of a generator refuse to grow, as on a full disk, or lets it grow again."""
    await on_database(caller, f"PRAGMA max_page_count = {1 if is_full else 1 << 30}")


async def fill(caller: GeneratorClient, request_of: RequestOf) -> Unavailable:
    """Submits until the database has no page left; the refusal."""
    with pytest.raises(Unavailable) as refused:
        for number in range(500):
            labels = request_of(request_id=f"fill-{number}", **SMALL)
            labels.message.spec.provenance.labels["a"] = "x" * 900
            await caller.submit(labels, detached=True)
    return refused.value


async def test_a_full_disk_is_reported_everywhere_until_it_has_room(
    serve_kept: Serve, request_of: RequestOf, caplog: pytest.LogCaptureFixture
) -> None:
    caller = await serve_kept(parts={"intervals": QUICK})
    request = request_of(request_id="before", seed=1, **SMALL)
    before = await caller.submit(request, detached=True)
    assert (await caller.watch(before.job_id))[-1].WhichOneof("event") == "done"
    await set_full(caller)
    refusal = await fill(caller, request_of)
    assert (refusal.reason, refusal.code) == ("STATE_UNWRITABLE", "UNAVAILABLE") and refusal.retry_after_s
    assert "use another" in refusal.message and "disk" in refusal.message
    await ready(caller.channel, False)
    for _ in range(3):
        await fill(caller, request_of)
    told = [record for record in caplog.records if "disk of the state folder refuses" in record.getMessage()]
    assert len(told) <= 2, "once by the store, once by health"
    assert (await caller.watch(before.job_id))[-1].WhichOneof("event") == "done", "what is kept can be had"
    await set_full(caller, False)
    await ready(caller.channel)
    assert (await caller.generate(request_of(request_id="after", **SMALL)))[-1].WhichOneof("event") == "done"


async def test_a_database_that_cannot_be_read_is_no_bug(
    serve_kept: Serve, request_of: RequestOf, tmp_path: Path
) -> None:
    caller = await serve_kept(parts={"intervals": QUICK})
    request = request_of(request_id="a", seed=1, **SMALL)
    job = await caller.submit(request, detached=True)
    await caller.watch(job.job_id)
    path = tmp_path / "state" / "jobs.db"
    await caller.runtime.jobs.flush()
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    other.close()
    sound = path.read_bytes()
    path.write_bytes(b"\xa5" * len(sound))
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
    assert "restart this generator" in caller.service.unhealthy_reason
    path.write_bytes(sound)
    caller = await serve_kept()
    await ready(caller.channel)


async def test_a_folder_of_contents_that_is_gone_is_no_bug(
    serve_kept: Serve, request_of: RequestOf, tmp_path: Path
) -> None:
    caller = await serve_kept(parts={"intervals": QUICK})
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


def image_of_size(size: int) -> ImageFinished:
    """A finished image, the same for the same size."""
    return ImageFinished(0, 1, 1, 1, ImageFormat.PNG, b"x" * size, digest(b"x" * size), "")


async def refusing(made: ManagedJobs, path: Path, entries: list[LiveJob], sizes: Sequence[int]) -> None:
    """The jobs are done while the folder of contents is not there."""
    path.rename(path.with_name("gone"))
    for number, (entry, size) in enumerate(zip(entries, sizes, strict=True)):
        made.publish(image_of_size(size), JobSucceeded(1, StageTimings()), job=number)
        await made.ended(entry)
    path.with_name("gone").rename(path)


async def test_what_the_disk_refused_is_kept_as_soon_as_it_is_well(manager: MakeManager, tmp_path: Path) -> None:
    made = manager(state=tmp_path)
    entries = [await made.submit(f"{number}", detached=True) for number in range(3)]
    await refusing(made, tmp_path / "blobs", entries, (10, 11, 12))
    assert made.store.problem and len(list(made.manager.directory)) == 3
    await made.manager.recover()
    for entry in entries:
        await made.ended(entry)
    assert not made.store.problem and not list(made.manager.directory), "they live in the store alone"
    assert (await made.store.unfinished())[0] == []
    kept = await made.manager.directory.by_id(entries[1].record.job_id, NOBODY)
    (_, image), _ = [told async for told in made.manager.watch(kept, 1)]
    assert isinstance(image, ImageFinished) and image.data == b"x" * 11


@pytest.mark.parametrize("held_limits", [HeldLimits(max_bytes=250), HeldLimits(max_jobs=2)], ids=["bytes", "jobs"])
async def test_what_the_disk_refuses_does_not_fill_the_memory(
    manager: MakeManager, tmp_path: Path, held_limits: HeldLimits
) -> None:
    made = manager(state=tmp_path, held_limits=held_limits)
    entries = [await made.submit(f"{number}", detached=True) for number in range(6)]
    await refusing(made, tmp_path / "blobs", entries, (100, 101, 102, 103, 104, 105))
    assert {entry.record.request_id for entry in made.manager.directory if list(entry.log.images)} == {"4", "5"}, (
        "the latest"
    )
    stub = await made.submit("0", detached=True)
    assert stub.record.job_id == entries[0].record.job_id and stub.suspended, "the same request makes no second job"
    with pytest.raises(IdempotencyConflict):
        await made.submit("1", identity="another", detached=True)
    _, last = await collected(made.manager, stub)
    assert isinstance(last, JobFailed) and isinstance(last.error, Draining)
    assert last.error.metadata["parked"] == "true"
    made.manager.cancel(await made.manager.directory.by_id(entries[3].record.job_id, NOBODY))
    await made.manager.recover()
    for entry in entries[4:]:
        await made.ended(entry)
    rows, _ = await made.store.unfinished()
    assert [row.request_id for row in rows] == ["0", "1", "2"], "they run again after the next start"
    assert (await made.manager.directory.by_id(entries[3].record.job_id, NOBODY)).record.state is JobState.CANCELLED


async def test_a_job_that_is_parked_while_the_disk_refuses_goes_on_after_the_next_start(
    manager: MakeManager, tmp_path: Path
) -> None:
    made = manager(state=tmp_path)
    entry = await made.submit("a", detached=True, num_images=2)
    (tmp_path / "blobs").rename(tmp_path / "gone")
    made.publish(image_of_size(10))
    await made.ended(entry)
    await made.manager.drain(0.0)
    (tmp_path / "gone").rename(tmp_path / "blobs")
    await made.manager.recover()
    await made.ended(entry)
    ((row,), _) = await made.store.unfinished()
    assert (row.job_id, await made.store.spec(row.arrival)) == (entry.record.job_id, b"spec")
    assert len(await made.store.results(row.arrival)) == 1, "the image that was done is kept"
    made.manager.cancel(entry)
    await made.ended(entry)
    kept = await made.manager.directory.by_id(entry.record.job_id, NOBODY)
    assert kept.record.state is JobState.CANCELLED
    assert kept.record.error is not None and kept.record.error.code == "CANCELLED"


async def test_what_could_not_be_saved_for_whatever_reason_is_tried_again(manager: MakeManager, tmp_path: Path) -> None:
    made = manager(state=tmp_path)
    entry = await made.submit("a", detached=True)
    with intercepted_writes(made.store, lambda *_: None):  # as if the file went away each time
        made.publish(image_of_size(10), JobSucceeded(1, StageTimings()))
        await made.ended(entry)
    assert not made.store.problem and len((await made.store.unfinished())[0]) == 1, "it is not in the store yet"
    await made.manager.recover()
    await made.ended(entry)
    assert (
        await made.manager.directory.by_id(entry.record.job_id, NOBODY)
    ).record.state is JobState.SUCCEEDED and not list(made.manager.directory)


@pytest.mark.parametrize("damage", ["other bytes", "no file"])
async def test_a_damaged_result_is_made_again_for_a_repeated_request(
    manager: MakeManager, tmp_path: Path, damage: str
) -> None:
    made = manager(state=tmp_path)
    entry = await made.submit("a", detached=True, num_images=2)
    made.publish(image_of_size(10), replace(image_of_size(11), image_index=1), JobSucceeded(2, StageTimings()))
    await made.ended(entry)
    path = tmp_path / "blobs" / digest(b"x" * 11)
    path.unlink()
    if damage == "other bytes":
        path.write_bytes(b"y" * 11)
    with pytest.raises(PayloadCorrupt) as refused:
        await collected(made.manager, await made.submit("a", detached=True))
    assert refused.value.reason == "STORE_DAMAGED"
    spoilt = await made.manager.directory.by_id(entry.record.job_id, NOBODY)
    _, sound, last = await collected(made.manager, spoilt)
    assert isinstance(sound, ImageFinished) and sound.data == b"x" * 10
    assert isinstance(last, JobFailed) and last.error.reason == "STORE_DAMAGED"
    again = await made.submit("a", detached=True)
    assert again.record.job_id != entry.record.job_id
    made.publish(image_of_size(10), replace(image_of_size(11), image_index=1), JobSucceeded(2, StageTimings()))
    await made.ended(again)
    kept = await made.submit("a", detached=True)
    assert (kept.record.job_id, isinstance((await collected(made.manager, kept))[-1], JobSucceeded)) == (
        again.record.job_id,
        True,
    )


@pytest.mark.parametrize("lost", ["image", "done"])
async def test_a_job_whose_row_of_a_result_is_lost_is_made_anew(
    manager: MakeManager, tmp_path: Path, lost: str
) -> None:
    """As after a database that was damaged: what can be read of it goes on."""
    made = manager(state=tmp_path)
    entry = await made.submit("a", detached=True, num_images=2)
    made.publish(image_of_size(10), replace(image_of_size(11), image_index=1), JobSucceeded(2, StageTimings()))
    await made.ended(entry)
    with sqlite3.connect(tmp_path / DATABASE) as db:
        assert db.execute(f"DELETE FROM events WHERE body LIKE '%\"{lost}\"%' AND sequence > 2").rowcount == 1
    db.close()
    with pytest.raises(PayloadCorrupt) as refused:
        await made.manager.directory.by_id(entry.record.job_id, NOBODY)
    assert refused.value.reason == "STORE_DAMAGED"
    again = await made.submit("a", detached=True)
    assert again.record.job_id != entry.record.job_id


async def test_a_result_whose_folder_is_away_is_not_damaged(manager: MakeManager, tmp_path: Path) -> None:
    made = manager(state=tmp_path)
    entry = await made.submit("a", detached=True)
    made.publish(image_of_size(10), JobSucceeded(1, StageTimings()))
    await made.ended(entry)
    (tmp_path / "blobs").rename(tmp_path / "gone")
    kept = await made.manager.directory.by_id(entry.record.job_id, NOBODY)
    with pytest.raises(Unavailable):
        await collected(made.manager, kept)
    (tmp_path / "gone").rename(tmp_path / "blobs")
    assert isinstance((await collected(made.manager, kept))[-1], JobSucceeded)
