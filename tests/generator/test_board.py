"""Admission, watching and keeping, without a device."""

import asyncio

import pytest

from zrelay_generator.board import JobBoard, State
from zrelay_generator.config import GeneratorConfig, serving_threads
from zrelay_generator.events import Accepted, Done, Failed, Image, Preview, Progress, Stage, Waiting
from zrelay_generator.images import ImageFormat
from zrelay_generator.job import JobSpec, Timings
from zrelay_generator.work import Speed
from zrelay_shared.errors import Draining, InternalError, NotFound, QueueFull


@pytest.fixture
def board(demo, sampling, embeds):
    class Made:
        def __init__(self, **changed):
            self.jobs = []
            self.speed = Speed()
            config = GeneratorConfig(model=demo, **changed)
            self.board = JobBoard(config, self.speed, self.jobs.append)

        def submit(self, name, identity="", **changed):
            spec = JobSpec(embeds(4, 8), None, sampling(**changed), identity=identity)
            return self.board.submit(f"job-{name}", name, spec)

    return Made


def picture(size=10):
    return Image(0, 1, 1, 1, ImageFormat.PNG, b"x" * size, "", "")


async def collected(board, entry, after=0):
    return [event async for _, event in board.watch(entry, after)]


async def test_a_job_from_beginning_to_end(board):
    made = board()
    entry = made.submit("a")
    watching = asyncio.create_task(collected(made.board, entry))
    await asyncio.sleep(0)
    for event in (Progress(Stage.DENOISE, 1, 1, 0.1, 0.0), picture(), Done(1, Timings())):
        made.board.publish(made.jobs[0], event)
    assert [type(event) for event in await watching] == [Accepted, Progress, Image, Done]
    assert entry.state is State.SUCCEEDED and entry.job is None
    made.board.publish(made.jobs[0], Failed(InternalError("late")))
    assert entry.state is State.SUCCEEDED, "nothing follows the last event"
    assert [type(event) for event in await collected(made.board, entry, after=2)] == [Image, Done]


async def test_slow_readers_get_the_latest_preview(board):
    made = board()
    entry = made.submit("a")
    for step in range(5):
        made.board.publish(made.jobs[0], Preview(0, step, b""))
    made.board.publish(made.jobs[0], Done(1, Timings()))
    assert [event.step for event in await collected(made.board, entry) if isinstance(event, Preview)] == [4]


async def test_the_last_watcher_takes_the_job_along(board):
    made = board()
    entry = made.submit("a")
    first, second = made.board.watch(entry), made.board.watch(entry)
    await anext(first)
    await anext(second)
    await first.aclose()
    assert not made.jobs[0].cancelled
    await second.aclose()
    assert made.jobs[0].cancelled and entry.state is State.CANCELLED


async def test_overload_is_refused_by_count_and_by_work(board):
    made = board(max_waiting=2)
    made.submit("a"), made.submit("b")
    with pytest.raises(QueueFull):
        made.submit("c")
    made = board(max_wait_s=5.0)
    made.speed.saw_forward(96, 1.0)
    made.speed.saw_decode(128 * 128, 1.0)
    first = made.submit("a", steps=9)
    assert first.events[0][1] == Accepted(0, 0.0, pytest.approx(10.0))
    with pytest.raises(QueueFull) as refused:
        made.submit("b")
    assert refused.value.retry_after_s == pytest.approx(10.0)
    made.board.cancel(first)
    made.submit("b", steps=50), "a job longer than the limit is taken when nothing is before it"


async def test_heartbeats_while_waiting(board):
    made = board()
    made.submit("a")
    entry = made.submit("b")
    for _ in range(3):
        made.board.heartbeat()
    waits = [event for _, event in entry.events if isinstance(event, Waiting)]
    assert [wait.queue_position for wait in waits] == [1]
    assert (made.board.waiting, made.board.running) == (2, 0)


async def test_results_are_kept_within_bounds(board):
    made = board(kept_results_bytes=25)
    for name in "abc":
        made.submit(name)
        made.board.publish(made.jobs[-1], picture())
        made.board.publish(made.jobs[-1], Done(1, Timings()))
    with pytest.raises(NotFound):
        made.board.find(request_id="a")
    assert [entry.request_id for entry in made.board.newest_first()] == ["c", "b"]


async def test_a_failed_request_may_be_made_again(board):
    made = board()
    first = made.submit("a", identity="1")
    assert made.submit("a", identity="1") is first
    made.board.publish(made.jobs[0], Failed(InternalError("a bug")))
    assert made.submit("a", identity="2") is not first


async def test_draining(board):
    made = board()
    entry = made.submit("a")
    await made.board.drain(0.1)
    assert entry.state is State.FAILED and isinstance(entry.error, Draining) and made.jobs[0].cancelled
    with pytest.raises(Draining):
        made.submit("b")


@pytest.mark.parametrize(
    ("name", "value"), [("device", "tpu"), ("dtype", "int4"), ("max_waiting", 0), ("threads", 0), ("min_side", 9999)]
)
def test_a_configuration_that_cannot_be(name, value, demo):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        GeneratorConfig(model=demo, **{name: value})


def test_one_core_is_left_to_the_event_loop():
    assert serving_threads(3) == 3 and serving_threads(None) >= 1
