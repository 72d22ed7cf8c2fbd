"""How long jobs and their results live: leases, retention, and a disk that refuses a part."""

import asyncio
from dataclasses import replace

import pytest

from zrelay_generator.engine.events import Accepted, Done, Image
from zrelay_generator.engine.job import Timings
from zrelay_generator.jobs import board as board_module
from zrelay_generator.jobs.entry import State
from zrelay_shared.errors import (
    Cancelled,
    NotFound,
)

from .boards import collected, picture


@pytest.fixture
def at_once(monkeypatch):
    """Nobody is given time to begin watching."""
    monkeypatch.setattr(board_module, "_TO_BEGIN_S", 0.0)


async def test_a_job_that_nobody_watches_has_a_lease(board, at_once):
    made = board(lease_s=0.1)
    watched, detached, forgotten = [await made.submit(n, detached=n == "detached") for n in ("a", "detached", "c")]
    first, second = made.board.watch(watched), made.board.watch(watched)
    await anext(first)
    await anext(second)
    await first.aclose()
    await asyncio.sleep(0.2)
    assert [entry.state for entry in (watched, detached, forgotten)] == [State.QUEUED, State.QUEUED, State.CANCELLED]
    assert made.jobs[2].cancelled and isinstance(forgotten.error, Cancelled)
    assert forgotten.error.reason == "LEASE_EXPIRED", "unlike one that somebody asked for"
    await second.aclose()
    third = made.board.watch(watched)
    await anext(third)
    await asyncio.sleep(0.2)
    assert watched.state is State.QUEUED, "a watcher renews the lease"
    await third.aclose()
    await asyncio.sleep(0.2)
    assert watched.state is State.CANCELLED


async def test_a_job_can_be_detached_later(board, at_once):
    made = board(lease_s=0.1)
    entry = await made.submit("a")
    assert await made.submit("a", detached=True) is entry
    await asyncio.sleep(0.2)
    assert entry.state is State.QUEUED and entry.detached


async def test_a_job_of_which_the_disk_refused_a_part_is_not_said_to_be_done(board, monkeypatch):
    made = board()
    entry = await made.submit("a", num_images=2)
    lost, kept = picture(), picture()
    written = made.store.blobs.put

    def put(sha256, data):
        if sha256 == lost.file_sha256:
            raise OSError(28, "No space left on device")
        written(sha256, data)

    monkeypatch.setattr(made.store.blobs, "put", put)
    made.publish(lost)
    await made.ended(entry)
    made.publish(replace(kept, image_index=1), Done(2, Timings()))
    await made.ended(entry)
    assert [type(event) for event in await collected(made.board, entry)] == [Accepted, Image, Image, Done]
    rows, _ = await made.store.unfinished()
    assert [row.job_id for row in rows] == [entry.id], "it runs again, whole, after the next start"


async def test_only_a_job_that_is_not_over_can_be_blamed(board, tmp_path):
    made = board(state=tmp_path)
    over, under_way = await made.submit("a"), await made.submit("b", detached=True)
    made.publish(picture(), Done(1, Timings()), job=0)
    await made.ended(over)
    await made.store.blame([over.id, under_way.id, "unknown"])
    await made.store.blame([under_way.id])
    assert await made.store.blamed() == {under_way.id: 2}
    await made.store.forget([under_way.arrival])
    assert await made.store.blamed() == {}


@pytest.mark.parametrize(
    ("bound", "left"),
    [({"keep_results_bytes": 25}, "cb"), ({"keep_results": 1}, "c"), ({"keep_results_s": 0.0}, "")],
)
async def test_results_are_kept_within_bounds(board, bound, left):
    made = board(**bound)
    for name in "abc":
        entry = await made.submit(name)
        made.publish(picture(), Done(1, Timings()))
        await made.ended(entry)
    await asyncio.sleep(0.01)
    await made.store.retain()
    with pytest.raises(NotFound):
        await made.board.jobs.of_request("a")
    listed = await made.board.jobs.listed(1 << 62, frozenset(State), 10)
    assert "".join(entry.request_id for entry in listed) == left
    assert len(made.store.blobs.names()) == len(left), "their files are gone too"
