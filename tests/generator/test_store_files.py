"""The files of contents stay in step with the rows that name them."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zrelay_generator.store.blobs import Buffer, ContentClaims
from zrelay_generator.store.opening import DATABASE
from zrelay_generator.store.records import ResultRecord
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.errors import Unavailable

from .fixture_types import MakeManager, OpenStore
from .stores import KEPT, Put, ended, intercepted_writes, named, row

IMAGE = b"an image"


async def with_image(store: SqliteJobStore, arrival: int) -> None:
    """Stores a job that ended with the image."""
    await store.accept(row(arrival), b"spec", {}, {})
    await store.add_image(arrival, ResultRecord(2, "{}", named(IMAGE), len(IMAGE)), IMAGE)
    await store.finish(ended(arrival), ResultRecord(3, "{}"))


@contextmanager
def one_transaction(store: SqliteJobStore) -> Iterator[None]:
    """Holds the database, so that the calls of the block are committed together after it."""
    begun, ends = threading.Event(), threading.Event()

    def hold(db: sqlite3.Connection) -> None:
        begun.set()
        ends.wait(60)

    store.database.run(hold)
    begun.wait(60)
    try:
        yield
    finally:
        ends.set()


async def turns() -> None:
    """Lets tasks of the event loop run until they wait for the database."""
    for _ in range(20):
        await asyncio.sleep(0)


def refused(db: sqlite3.Connection) -> None:
    """A call at which the disk is full, so that SQLite drops the whole transaction."""
    db.execute("ROLLBACK")
    raise sqlite3.OperationalError("database or disk is full")


async def test_a_file_goes_only_after_the_commit_that_forgets_it(opened: OpenStore) -> None:
    store = opened()
    await with_image(store, 1)
    with one_transaction(store):
        forgetting = asyncio.ensure_future(store.forget([1]))
        await turns()
        failed = store.database.run(refused)
    with pytest.raises(Unavailable):
        await forgetting
    assert failed.exception() is not None
    assert await store.by_id("job-1", None) is not None and await store.read(named(IMAGE)) == IMAGE
    await store.forget([1])
    assert store.blobs.names() == set()


async def test_a_file_that_the_same_commit_names_again_stays(opened: OpenStore) -> None:
    store = opened()
    await with_image(store, 1)
    await store.accept(row(2), b"spec", {}, {})
    with one_transaction(store):
        forgetting = asyncio.ensure_future(store.forget([1]))
        await turns()
        naming = asyncio.ensure_future(store.accept(row(3), b"spec", {named(IMAGE): None}, {named(IMAGE): len(IMAGE)}))
        await turns()
    await asyncio.gather(forgetting, naming)
    assert await store.needed([named(IMAGE)], "") == {named(IMAGE)} and await store.read(named(IMAGE)) == IMAGE


async def test_a_sweep_removes_only_what_belongs_to_nothing(opened: OpenStore, tmp_path: Path) -> None:
    store, folder = opened(), tmp_path / "state" / "blobs"
    await store.accept(row(1), b"spec", *KEPT)
    incoming = store.incoming()
    await store.write_incoming(incoming, b"half")
    (received,) = folder.glob(".*.part")
    (folder / ".half.part").write_bytes(b"hal")
    (folder / named(b"stranger")).write_bytes(b"stranger")
    (folder / "photo.png").write_bytes(b"somebody else's")
    assert await store.sweep() == 2
    assert {path.name for path in folder.iterdir()} == {named(b"kept"), "photo.png", received.name}
    await store.keep_incoming(incoming, named(b"half"), 4, "")
    await store.drop_incoming(incoming)
    assert await store.sweep() == 0 and await store.read(named(b"half")) == b"half"


async def test_a_sweep_spares_a_file_whose_row_comes_next(opened: OpenStore) -> None:
    store, loop = opened(), asyncio.get_running_loop()

    def put(real: Put, sha256: str, data: Buffer) -> None:
        real(sha256, data)
        asyncio.run_coroutine_threadsafe(store.sweep(), loop).result(60)

    with intercepted_writes(store, put):
        await store.accept(row(1), b"spec", *KEPT)
    assert await store.read(named(b"kept")) == b"kept"


async def test_a_sweep_leaves_the_contents_of_a_damaged_database(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    await store.accept(row(1), b"spec", *KEPT)
    store.close()
    (tmp_path / "state" / DATABASE).write_bytes(b"")
    store = opened()
    assert await store.sweep() == 0 and store.blobs.names() == set(KEPT[0])


async def test_a_running_generator_sweeps(manager: MakeManager, tmp_path: Path) -> None:
    made = manager(state=tmp_path)
    stranger = tmp_path / "blobs" / named(b"stranger")
    stranger.write_bytes(b"stranger")
    await made.manager.recover()
    assert stranger.exists(), "not each time: a sweep reads the whole folder"
    made.clock_s += 601.0
    await made.manager.recover()
    assert not stranger.exists()


def test_a_claim_waits_for_a_removal_and_a_removal_passes_over_a_claim() -> None:
    claims, order = ContentClaims(), []
    removing, removed = threading.Event(), threading.Event()

    def delete(sha256: str) -> None:
        removing.set()
        removed.wait(60)
        order.append("removed")

    remover = threading.Thread(target=claims.remove, args=("a", delete))
    remover.start()
    removing.wait(60)
    with claims.claiming() as claim:
        claim("b")

        def claim_a() -> None:
            claim("a")
            order.append("claimed")

        claimer = threading.Thread(target=claim_a)
        claimer.start()
        removed.set()
        for thread in (remover, claimer):
            thread.join(60)
        assert order == ["removed", "claimed"]
        claims.remove("a", order.remove)
    claims.remove("claimed", order.remove)
    assert order == ["removed"]
