"""What is taken, what is refused before it costs anything, and the order of the line."""

import asyncio
import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.polling import eventually
from zrelay_generator.cost.model import Size
from zrelay_generator.engine.job import StageTimings
from zrelay_generator.jobs.events import JobAccepted, JobSucceeded
from zrelay_generator.jobs.intake import Submission
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.scheduler import LOADED_PER_CLASS, MOST_LOADED_PER_CLASS
from zrelay_shared.errors import (
    DeadlineExceeded,
    QueueFull,
    QuotaExceeded,
)
from zrelay_shared.service.roles import GeneratorConfig

from .fixture_types import MakeManager
from .managed_jobs import ManagedJobs


async def test_overload_is_refused_by_count_by_work_and_by_disk(manager: MakeManager) -> None:
    made = manager(max_waiting=2)
    await made.submit("a"), await made.submit("b")
    with pytest.raises(QueueFull):
        await made.submit("c")
    made = manager(max_wait_s=5.0)
    made.measured()
    first = await made.submit("a", steps=9)
    _, accepted = next(iter(first.log))
    assert isinstance(accepted, JobAccepted) and accepted.wait_s == 0.0 and accepted.run_s > 5.0
    with pytest.raises(QueueFull) as refused:
        await made.submit("b", steps=9)
    assert (refused.value.retry_after_s or 0.0) >= 5.0 and refused.value.metadata["max_wait_s"] == "5"
    made.manager.cancel(first)
    await made.submit("b", steps=50), "a job longer than the limit is taken when nothing is before it"
    made = manager(max_waiting_bytes=100)
    for number in range(LOADED_PER_CLASS + 1):
        await made.submit(f"{number}", new_bytes=60)
    with pytest.raises(QueueFull):
        await made.submit("too much", new_bytes=60)


async def test_one_caller_may_not_fill_the_queue(manager: MakeManager) -> None:
    made = manager(max_caller_waiting=2)
    for name in "ab":
        await made.submit(name, caller="somebody")
    with pytest.raises(QuotaExceeded) as refused:
        await made.submit("c", caller="somebody")
    assert (refused.value.retry_after_s or 0.0) >= 1.0
    await made.submit("c", caller="another")


async def fill(made: ManagedJobs, caller: str, **changed: Any) -> int:
    """Submits jobs of a caller until one is refused because of its share; their number."""
    for number in itertools.count():
        try:
            await made.submit(f"{caller} {number} {changed}", caller=caller, **changed)
        except QuotaExceeded as error:
            assert error.retry_after_s and "--caller-share" in error.message
            return number
    raise AssertionError("unreachable")


async def test_by_default_one_caller_leaves_a_part_of_the_queue(manager: MakeManager) -> None:
    made = manager(max_waiting=100)
    assert [await fill(made, caller) for caller in "abc"] == [75, 19, 5]
    await made.submit("d", caller="d")
    with pytest.raises(QueueFull):
        await made.submit("e", caller="e")
    made = manager(max_waiting=100, caller_share=100)
    for number in range(100):
        await made.submit(f"{number}")
    with pytest.raises(QueueFull):
        await made.submit("100")


async def test_one_caller_leaves_disk_space_and_work_for_the_others(manager: MakeManager) -> None:
    made = manager(max_waiting_bytes=1000)
    for number in range(LOADED_PER_CLASS):
        await made.submit(f"{number}", caller="loaded")
    assert await fill(made, "a", new_bytes=100) == 7
    await made.submit("b", caller="b", new_bytes=300), "its first job may exceed its share"
    made = manager(max_wait_s=100.0)
    made.measured()
    urgent = {"priority": Priority.INTERACTIVE, "steps": 9}
    assert await fill(made, "a", **urgent) == 8, "10 s each: a job may come while at most 75 s are before it"
    await made.submit("b", caller="b", steps=1, priority=Priority.BATCH)
    await made.submit("short", caller="a", steps=1, priority=Priority.INTERACTIVE), "it passes its caller's long ones"


async def test_one_caller_may_not_fill_the_queue_at_once_either(manager: MakeManager, tmp_path: Path) -> None:
    made = manager(max_caller_waiting=2, state=tmp_path)
    calls = [made.submit(f"{number}", caller="somebody") for number in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, QuotaExceeded)]
    assert len(refused) == 18 and made.manager.scheduler.waiting == 2
    assert {error.metadata["waiting"] for error in refused} == {"2"}


async def test_what_cannot_be_done_in_time_is_refused_before_it_costs_anything(manager: MakeManager) -> None:
    made = manager()
    made.measured()
    for budget_s, stage in ((5.0, "generate"), (0.5, "generate")):
        with pytest.raises(DeadlineExceeded) as refused:
            await made.submit("a", steps=20, budget_s=budget_s)
        assert refused.value.metadata["stage"] == stage
    await made.submit("a", steps=20, budget_s=1000.0)
    with pytest.raises(DeadlineExceeded) as refused:
        await made.submit("b", steps=30, budget_s=10.0)
    assert refused.value.metadata["stage"] == "queue"
    assert len(made.jobs) == 1


async def test_jobs_come_near_the_device_in_their_order(manager: MakeManager) -> None:
    made = manager()
    for number in range(LOADED_PER_CLASS):
        await made.submit(f"filler {number}")
    made.measured()
    names: dict[str, dict[str, Any]] = {
        "long": {"steps": 90},
        "short": {"steps": 2},
        "batch": {"steps": 2, "priority": Priority.BATCH},
    }
    waiting = {name: await made.submit(name, **options) for name, options in names.items()}
    urgent = await made.submit("urgent", priority=Priority.INTERACTIVE)
    assert [job.id for job in made.jobs[-2:]] == [waiting["batch"].record.job_id, urgent.record.job_id], (
        "each class has places of its own"
    )
    for number in range(3):
        made.publish(JobSucceeded(1, StageTimings()), job=number)
    both = {waiting["short"].record.job_id, waiting["long"].record.job_id}

    def loaded() -> list[str]:
        return [job.id for job in made.jobs[LOADED_PER_CLASS:] if job.id in both]

    await eventually(lambda: len(loaded()) == len(both), "both are loaded")
    assert loaded() == [waiting[name].record.job_id for name in ("short", "long")]


async def test_a_short_job_comes_near_the_device_however_many_long_ones_are_there(manager: MakeManager) -> None:
    made = manager(max_wait_s=1e9)
    made.measured()
    posters = [await made.submit(f"poster {number}", steps=90) for number in range(LOADED_PER_CLASS + 4)]
    assert len(made.jobs) == LOADED_PER_CLASS
    short = await made.submit("short", caller="another", steps=2, budget_s=5.0)
    assert made.jobs[-1].id == short.record.job_id and standing_of(made, short) == (0, 3.0)
    position, eta_s = standing_of(made, posters[-1])
    assert position == LOADED_PER_CLASS + 4 and eta_s == pytest.approx(3.0 + 91.0 * (LOADED_PER_CLASS + 4))
    same = await made.submit("as long as they are", caller="another", steps=90)
    assert standing_of(made, same)[0] == 2, "callers share the device: it follows its caller's short job and one poster"
    last = await made.submit("one poster more", steps=90)
    assert not made.scheduler.is_loaded(last.record.job_id) and standing_of(made, last)[0] > LOADED_PER_CLASS
    own = await made.submit("short beside one's own", steps=2)
    assert made.jobs[-1].id == own.record.job_id and standing_of(made, own)[0] == 1


async def test_a_short_job_without_a_free_place_gets_its_queue_position(manager: MakeManager) -> None:
    made = manager(max_wait_s=1e9)
    made.measured()
    for number in range(LOADED_PER_CLASS):
        await made.submit(f"poster {number}", steps=90)
    for number in range(LOADED_PER_CLASS):
        await made.submit(f"middle {number}", caller=f"{number}", steps=40)
    assert len(made.jobs) == MOST_LOADED_PER_CLASS
    short = await made.submit("short", caller="another", steps=2)
    assert len(made.jobs) == MOST_LOADED_PER_CLASS and standing_of(made, short) == (1, 41.0 + 3.0)
    (accepted,) = [event for _, event in short.log if isinstance(event, JobAccepted)]
    assert (accepted.queue_position, accepted.wait_s) == (1, 41.0)
    with pytest.raises(DeadlineExceeded):
        await made.submit("late", caller="others", steps=2, budget_s=5.0)
    urgent = await made.submit("urgent", priority=Priority.INTERACTIVE)
    assert made.jobs[-1].id == urgent.record.job_id, "each class has places of its own"
    loaded_before = len(made.jobs)
    for number in range(2):
        made.publish(JobSucceeded(1, StageTimings()), job=number)
    await eventually(lambda: len(made.jobs) > loaded_before, "the next job is loaded")
    assert made.jobs[-1].id == short.record.job_id


def standing_of(made: ManagedJobs, entry: LiveJob) -> tuple[int, float]:
    """Returns queue position and ETA of a job; its heartbeat must report the same."""
    standing = made.manager.scheduler.standing(entry.record)
    (beat,) = [other for one, other in made.manager.scheduler.standings() if one is entry.record]
    assert beat.queue_position == standing.queue_position and beat.eta_s == pytest.approx(standing.eta_s)
    return standing.queue_position, standing.eta_s


async def test_what_runs_is_ahead_whatever_was_thought_of_it_before(manager: MakeManager) -> None:
    made = manager()
    made.measured()
    await made.submit("a", steps=30)
    for _ in range(20):
        made.estimator.cost.observe_forward(Size(96, 0), 0.01)
    (accepted,) = [event for _, event in (await made.submit("b", steps=30)).log if isinstance(event, JobAccepted)]
    assert accepted.queue_position == 1 and accepted.wait_s > 0.0


@pytest.mark.deep
async def test_many_jobs_wait_at_a_small_price(manager: MakeManager) -> None:
    made = manager(max_wait_s=1e9, max_waiting=20_000)
    made.measured()
    await made.submit("first", detached=True)
    spec = made.specs["first"]
    tracemalloc.start()

    async def submit(number: int) -> None:
        await made.manager.submit(Submission(f"request-{number}", "0" * 64, spec, b"spec", {}, {}, detached=True))

    sizes = []
    for part in range(2):
        await asyncio.gather(*(submit(part * 750 + number) for number in range(750)))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert made.manager.scheduler.waiting == 1_501
    assert (sizes[1] - sizes[0]) / 750 < 4096, "bytes for each"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("dtype", "int4"),
        ("max_waiting", 0),
        ("threads", 0),
        ("min_side", 9999),
        ("lease_s", -1.0),
        ("max_caller_waiting", 0),
    ],
)
def test_a_configuration_that_cannot_be(name: str, value: Any, demo: Path) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected"):
        GeneratorConfig(model=demo, **{name: value})
