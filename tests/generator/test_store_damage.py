"""What the store makes of a database that is damaged, emptied or gone, and of rows that are."""

import os
from pathlib import Path

import pytest

from zrelay_generator.store.opening import DATABASE, connect, salvaged
from zrelay_generator.store.records import JobState, ResultRecord
from zrelay_generator.store.retention import Retention

from .fixture_types import OpenStore
from .stores import KEPT, ended, named, row


async def test_a_damaged_row_is_one_jobs_trouble(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    for arrival in (1, 2):
        await store.accept(row(arrival), b"spec", {}, {})
    store.close()
    db = connect(tmp_path / "state" / DATABASE)
    db.execute("UPDATE jobs SET accepted_at = 'yesterday' WHERE arrival = 1")
    db.close()
    store = opened()
    assert await store.unfinished() == ([row(2)], [1])


@pytest.mark.parametrize("damage", ["no database", "pages", "header"])
async def test_a_damaged_database_never_keeps_a_server_from_starting(
    damage: str, opened: OpenStore, tmp_path: Path
) -> None:
    store = opened()
    for arrival in range(1, 201):
        await store.accept(row(arrival, accepted=b"x" * 500), b"spec" * 100, *KEPT)
    first = store.first_sequence
    store.close()
    path = tmp_path / "state" / DATABASE
    data = bytearray(path.read_bytes())
    if damage == "no database":
        data[:] = os.urandom(len(data))
    elif damage == "header":
        data[:100] = bytes(100)
    else:
        middle = len(data) // 2 // 4096 * 4096
        data[middle : middle + 4 * 4096] = os.urandom(4 * 4096)
    path.write_bytes(data)
    store = opened()
    unfinished, _ = await store.unfinished()
    assert store.first_sequence > first
    assert store.blobs.names() == set(KEPT[0]), "with the database its contents stay, until the next start"
    if damage == "pages":
        assert 20 < len(unfinished) < 200, "what can be read goes on"
    await store.accept(row(1000), b"spec", *KEPT)
    assert list((tmp_path / "state").glob("jobs.db.damaged-*"))


async def test_contents_beside_a_database_that_is_gone_stay_until_the_next_start(
    opened: OpenStore, tmp_path: Path
) -> None:
    store = opened()
    await store.accept(row(1), b"spec", *KEPT)
    store.close()
    (tmp_path / "state" / DATABASE).write_bytes(b"")
    store = opened()
    assert store.blobs.names() == set(KEPT[0])
    store.close()
    assert opened().blobs.names() == set()


async def test_a_damaged_row_does_not_cut_a_list_short(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    for arrival in range(1, 11):
        await store.accept(row(arrival), b"spec", {}, {})
        await store.finish(ended(arrival))
    store.close()
    db = connect(tmp_path / "state" / DATABASE)
    db.execute("UPDATE jobs SET sequence = 'x' WHERE arrival IN (8, 9)")
    db.close()
    store = opened()
    assert [one.arrival for one in await store.before(1 << 62, [JobState.SUCCEEDED], 4, None)] == [10, 7, 6, 5]
    assert [one.arrival for one in await store.before(5, [JobState.SUCCEEDED], 9, None)] == [4, 3, 2, 1]


async def test_what_belonged_to_a_lost_row_is_let_go(opened: OpenStore, tmp_path: Path) -> None:
    store = opened()
    image, result = b"a picture", ResultRecord(2, "{}", named(b"a picture"), 9)
    for arrival in (1, 2, 3):
        await store.accept(row(arrival), b"spec", *KEPT)
    await store.add_image(2, result, image)
    await store.finish(ended(3, sequence=2), ResultRecord(2, "{}"))
    store.close()
    path = tmp_path / "state" / DATABASE
    db = connect(path)
    db.execute("DELETE FROM jobs WHERE arrival < 3")
    db.execute("DELETE FROM events WHERE arrival = 3")
    salvaged(path)[0].close()
    db.close()
    store = opened(Retention(results_s=3600.0, results=100, result_bytes=0, content_bytes=0))
    lost = await store.by_id("job-3", None)
    assert lost is not None and lost.state is JobState.FAILED, "it is said to be done without its end"
    await store.retain()
    assert store.blobs.names() == set()
