"""Jobs grow old, and are ordered, by a clock that setting the system's time does not change."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.jobs import SMALL
from tests.helpers.polling import until_async
from zrelay_generator.jobs.manager import Intervals
from zrelay_generator.scheduling.scheduler import LOADED_PER_CLASS
from zrelay_generator.store.clock import MAX_GAP_S
from zrelay_generator.store.records import ResultRecord
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.errors import NotFound

from .fixture_types import MakeManager, OpenStore, RequestOf, Serve
from .stores import KEEP, Machine, ended, row

DAY_S = 86_400.0
YEAR_S = 365.0 * DAY_S
KEEP_A_DAY = Retention(results_s=DAY_S, results=100, result_bytes=1 << 20, content_bytes=1 << 20)


async def finished(store: SqliteJobStore, arrival: int) -> None:
    """Stores a job that ends now."""
    now = store.clock.now()
    await store.accept(row(arrival, accepted_at=now.at, accepted_s=now.clock_s), b"spec", {}, {})
    await store.finish(ended(arrival, ended_at=now.at, ended_s=now.clock_s), ResultRecord(3, "{}"))


@pytest.mark.parametrize("jump_s", [30 * DAY_S, YEAR_S, -YEAR_S])
async def test_setting_the_time_removes_no_result(opened: OpenStore, jump_s: float) -> None:
    machine = Machine()
    store = opened(KEEP_A_DAY, clocks=machine.clocks)
    await finished(store, 1)
    machine.wall_s += jump_s
    assert await store.retain() == 0
    store = opened(KEEP_A_DAY, clocks=machine.clocks)
    assert await store.retain() == 0, "nor after a restart"
    machine.passes(DAY_S + 1.0)
    assert await store.retain() == 1, "its time has passed"


async def test_the_age_of_a_result_counts_across_restarts_and_suspends(opened: OpenStore) -> None:
    machine = Machine()
    await finished(opened(KEEP_A_DAY, clocks=machine.clocks), 1)
    for _ in range(4):
        machine.passes(DAY_S / 5)  # a restart, or a lid that was closed
        assert await opened(KEEP_A_DAY, clocks=machine.clocks).retain() == 0
    machine.passes(DAY_S / 4)
    assert await opened(KEEP_A_DAY, clocks=machine.clocks).retain() == 1


@pytest.mark.parametrize("wall_s", [0.0, 1e9 + DAY_S, 1e9 + 100 * YEAR_S])
async def test_a_boot_counts_as_at_most_an_hour_whatever_the_time_is_then(opened: OpenStore, wall_s: float) -> None:
    machine = Machine(1e9)
    store = opened(KEEP_A_DAY, clocks=machine.clocks)
    before_s = store.clock.now_s
    await finished(store, 1)
    store = opened(KEEP_A_DAY, clocks=machine.booted(wall_s).clocks)
    assert store.clock.now_s - before_s == (MAX_GAP_S if wall_s > 1e9 else 0.0)
    assert await store.retain() == 0
    await finished(store, 2)
    newest, oldest = await store.by_id("job-2", None), await store.by_id("job-1", None)
    assert newest is not None and oldest is not None and newest.ended_s >= oldest.ended_s


async def test_a_power_failure_loses_little_of_the_clock(opened: OpenStore, tmp_path: Path) -> None:
    """The clock is saved at times, not with each job: rows may lie ahead of it then."""
    machine = Machine()
    store = opened(KEEP, clocks=machine.clocks)
    for _ in range(100):
        machine.passes(60.0)
        await store.retain()
    await finished(store, 1)
    copy = tmp_path / "after"
    copy.mkdir()
    for name in ("jobs.db", "jobs.db-wal"):
        (copy / name).write_bytes((tmp_path / "state" / name).read_bytes())
    now_s, store = store.clock.now_s, opened(KEEP, copy, machine.booted(0.0).clocks)
    assert 0.0 <= now_s - store.clock.now_s <= 660.0
    found = await store.by_id("job-1", None)
    assert found is not None and found.ended_s <= store.clock.now_s


async def test_jobs_of_a_wrong_time_are_not_passed_by_later_ones(manager: MakeManager) -> None:
    machine = Machine()
    made = manager(clocks=machine.clocks)
    made.measured()
    for number in range(LOADED_PER_CLASS):
        await made.submit(f"{number}")
    machine.wall_s += YEAR_S
    early = await made.submit("while the time is wrong")
    machine.wall_s -= YEAR_S
    machine.passes(1.0)
    late = await made.submit("later")
    assert early.record.accepted_at > late.record.accepted_at, "people see the system's time"
    assert made.scheduler.standing(early.record).queue_position < made.scheduler.standing(late.record).queue_position


@pytest.mark.deep
async def test_a_running_generator_keeps_its_results_while_the_time_is_set(
    serve_kept: Serve, request_of: RequestOf
) -> None:
    machine = Machine()
    parts: dict[str, Any] = {"clocks": machine.clocks, "intervals": Intervals(heartbeat_s=0.02, retain_s=0.02)}
    caller = await serve_kept(parts=parts)
    job = await caller.submit(request_of(request_id="a", **SMALL), detached=True)
    assert (await caller.watch(job.job_id))[-1].WhichOneof("event") == "done"
    machine.wall_s += YEAR_S
    others = [await caller.submit(request_of(request_id=f"{n}", **SMALL), detached=True) for n in range(2)]
    for other in others:
        await caller.watch(other.job_id)
    machine = machine.booted(machine.wall_s + YEAR_S)
    caller = await serve_kept(parts={**parts, "clocks": machine.clocks})
    assert (await caller.watch(job.job_id))[-1].WhichOneof("event") == "done"
    machine.passes(2 * DAY_S)

    async def removed() -> bool:
        try:
            await caller.job(job.job_id)
        except NotFound:
            return True
        return False

    await until_async(removed, "what is too old is removed")
