"""Taking, watching, leases and keeping, with a real store in memory and without a device."""

import asyncio
import time
import tracemalloc
from dataclasses import replace

import pytest

from zrelay_generator.config import GeneratorConfig, serving_threads
from zrelay_generator.engine.events import Accepted, Done, Failed, Image, Preview, Progress, Stage, Waiting
from zrelay_generator.engine.job import JobSpec, Priority, Timings
from zrelay_generator.engine.work import Speed
from zrelay_generator.jobs import board as board_module
from zrelay_generator.jobs.board import JobBoard, Surroundings
from zrelay_generator.jobs.entry import State
from zrelay_generator.jobs.feeding import NEAR_DEVICE
from zrelay_generator.jobs.request import Request
from zrelay_generator.pictures.images import ImageFormat
from zrelay_generator.runtime import retention
from zrelay_generator.store.store import open_store
from zrelay_shared.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    IdempotencyConflict,
    InternalError,
    NotFound,
    QueueFull,
    QuotaExceeded,
)


@pytest.fixture
async def board(demo, sampling, embeds):
    made = []

    class Made:
        def __init__(self, **changed):
            self.jobs = []
            self.speed = Speed()
            self.config = GeneratorConfig(model=demo, **changed)
            self.store = open_store(self.config.state, retention(self.config))
            around = Surroundings(self.store, self.speed, self.jobs.append, self.load, lambda *_: b"")
            self.specs = {}
            self.board = JobBoard(self.config, around)
            made.append(self)

        async def load(self, entry):
            return self.specs[entry.request_id]

        def measured(self):
            """A step of the smallest picture takes a second, a decode another."""
            self.speed.saw_forward(96, 1.0)
            self.speed.saw_decode(128 * 128, 1.0)

        async def submit(self, name, identity="", priority=Priority.NORMAL, **changed):
            asked = {key: changed.pop(key) for key in ("detached", "caller", "budget_s", "new_bytes") if key in changed}
            spec = JobSpec(embeds(4, 8), None, sampling(**changed), priority=priority)
            self.specs[name] = spec
            return await self.board.submit(Request(name, identity, spec, b"spec", {}, {}, **asked))

        def publish(self, *events, job=-1):
            for event in events:
                self.board.publish(self.jobs[job], event)

        async def ended(self, entry):
            await self.board.settled(entry)

    yield Made
    for one in made:
        await one.board.close()
        one.store.close()


def picture(size=10):
    sha256 = f"{time.perf_counter_ns():064x}"
    return Image(0, 1, 1, 1, ImageFormat.PNG, b"x" * size, sha256, "")


async def collected(board, entry, after=0):
    return [event async for _, event in board.watch(entry, after)]


async def test_a_job_from_beginning_to_end(board):
    made = board()
    entry = await made.submit("a")
    watching = asyncio.create_task(collected(made.board, entry))
    await asyncio.sleep(0)
    image = picture()
    made.publish(Progress(Stage.DENOISE, 1, 1, 0.1, 0.0), image, Done(1, Timings()))
    assert [type(event) for event in await watching] == [Accepted, Progress, Image, Done]
    assert entry.state is State.SUCCEEDED and entry.job is None
    made.publish(Failed(InternalError("late")))
    assert entry.state is State.SUCCEEDED, "nothing follows the last event"
    await made.ended(entry)
    assert not list(made.board.jobs), "it lives in the store alone"
    kept = await made.board.jobs.by_id(entry.id)
    assert await collected(made.board, kept, after=1) == [image, Done(1, Timings())]


async def test_slow_readers_get_the_latest(board):
    made = board()
    entry = await made.submit("a")
    for step in range(100):
        made.publish(Preview(0, step, b""), Progress(Stage.DENOISE, step + 1, 100, 0.1, 0.0))
    made.publish(Done(1, Timings()))
    events = await collected(made.board, entry)
    assert [event.step for event in events if isinstance(event, Preview)] == [99]
    assert [event.completed for event in events if isinstance(event, Progress)] == list(range(69, 101))


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


async def test_overload_is_refused_by_count_by_work_and_by_disk(board):
    made = board(max_waiting=2)
    await made.submit("a"), await made.submit("b")
    with pytest.raises(QueueFull):
        await made.submit("c")
    made = board(max_wait_s=5.0)
    made.measured()
    first = await made.submit("a", steps=9)
    assert first.events[0][1].wait_s == 0.0 and first.events[0][1].run_s > 5.0
    with pytest.raises(QueueFull) as refused:
        await made.submit("b", steps=9)
    assert refused.value.retry_after_s >= 5.0 and refused.value.metadata["max_wait_s"] == "5"
    made.board.cancel(first)
    await made.submit("b", steps=50), "a job longer than the limit is taken when nothing is before it"
    made = board(max_waiting_bytes=100)
    for number in range(NEAR_DEVICE + 1):
        await made.submit(f"{number}", new_bytes=60)
    with pytest.raises(QueueFull):
        await made.submit("too much", new_bytes=60)


async def test_one_caller_may_not_fill_the_queue(board):
    made = board(max_caller_waiting=2)
    for name in "ab":
        await made.submit(name, caller="somebody")
    with pytest.raises(QuotaExceeded) as refused:
        await made.submit("c", caller="somebody")
    assert refused.value.retry_after_s >= 1.0
    await made.submit("c", caller="another")


async def test_what_cannot_be_done_in_time_is_refused_before_it_costs_anything(board):
    made = board()
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


async def test_jobs_come_near_the_device_in_their_order(board):
    made = board()
    for number in range(NEAR_DEVICE):
        await made.submit(f"filler {number}")
    made.measured()
    names = {"long": {"steps": 90}, "short": {"steps": 2}, "batch": {"steps": 2, "priority": Priority.BATCH}}
    waiting = {name: await made.submit(name, **options) for name, options in names.items()}
    urgent = await made.submit("urgent", priority=Priority.INTERACTIVE)
    assert made.jobs[-1].id == urgent.id, "each class has places of its own"
    for number in range(3):
        made.publish(Done(1, Timings()), job=number)
    await asyncio.sleep(0.1)
    order = made.jobs[NEAR_DEVICE + 1 :]
    assert [job.id for job in order] == [waiting[name].id for name in ("short", "long")], "batch waits its turn"


async def test_what_runs_is_ahead_whatever_was_thought_of_it_before(board):
    made = board()
    made.measured()
    await made.submit("a", steps=30)
    for _ in range(20):
        made.speed.saw_forward(96, 0.01)
    (accepted,) = [event for _, event in (await made.submit("b", steps=30)).events if isinstance(event, Accepted)]
    assert accepted.queue_position == 1 and accepted.wait_s > 0.0


async def test_heartbeats_go_to_those_who_wait_and_are_watched(board):
    made = board()
    await made.submit("a")
    entry, unwatched = await made.submit("b"), await made.submit("c")
    watching = made.board.watch(entry)
    await anext(watching)
    for _ in range(3):
        await made.board.heartbeat()
    waits = [event for _, event in entry.events if isinstance(event, Waiting)]
    assert [wait.queue_position for wait in waits] == [1]
    assert len(unwatched.events) == 1, "nothing accumulates where nobody watches"
    assert (made.board.workload.waiting, made.board.workload.running) == (3, 0)
    await watching.aclose()


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


async def test_a_page_of_many(board):
    made = board()
    entries = [await made.submit(f"{number}", detached=True) for number in range(6)]
    for number in (0, 1, 3):
        made.publish(Done(1, Timings()), job=number)
        await made.ended(entries[number])
    made.store.before, asked = _counted(made.store.before)
    everything = frozenset(State)
    pages, before = [], 1 << 62
    while page := await made.board.jobs.listed(before, everything, 2):
        pages.append([entry.request_id for entry in page])
        before = page[-1].arrival
    assert pages == [["5", "4"], ["3", "2"], ["1", "0"]]
    ended = await made.board.jobs.listed(1 << 62, frozenset({State.SUCCEEDED}), 2)
    assert [entry.request_id for entry in ended] == ["3", "1"]
    assert max(asked) <= 4, "not as many as there are jobs that wait"


def _counted(call):
    asked = []

    async def counted(before, states, limit):
        asked.append(limit)
        return await call(before, states, limit)

    return counted, asked


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


async def test_the_same_request_is_the_same_job(board):
    made = board()
    several = await asyncio.gather(*(made.submit("a", identity="1") for _ in range(5)))
    assert len({id(entry) for entry in several}) == 1 and len(made.jobs) == 1
    with pytest.raises(IdempotencyConflict):
        await made.submit("a", identity="2")
    made.publish(Failed(InternalError("a bug")))
    await made.ended(several[0])
    assert await made.submit("a", identity="2") is not several[0], "a failed request may be made again"


async def test_draining_finishes_what_it_can(board):
    made = board()
    made.measured()
    short, long = await made.submit("short", steps=1), await made.submit("long", steps=90)
    draining = asyncio.create_task(made.board.drain(20.0))
    await asyncio.sleep(0.01)
    assert long.parked and made.jobs[1].cancelled, "it cannot be done in time: its watchers may look elsewhere at once"
    with pytest.raises(Draining):
        await made.submit("b")
    made.publish(Done(1, Timings()), job=0)
    await asyncio.wait_for(draining, 5)
    assert short.state is State.SUCCEEDED and long.state is State.QUEUED
    (failed,) = [event for event in await collected(made.board, long) if isinstance(event, Failed)]
    assert failed.error.metadata == {"job_id": long.id, "parked": "false"}


async def test_a_parked_job_can_be_cancelled(board):
    made = board()
    entry = await made.submit("a", detached=True)
    await made.board.drain(0.0)
    assert entry.parked and len((await made.store.unfinished())[0]) == 1
    made.board.cancel(entry)
    await made.ended(entry)
    assert entry.state is State.CANCELLED and (await made.store.unfinished())[0] == [], "nobody goes on with it"


async def test_many_jobs_wait_at_a_small_price(board):
    made = board(max_wait_s=1e9, max_waiting=20_000)
    made.measured()
    await made.submit("first", detached=True)
    spec = made.specs["first"]
    tracemalloc.start()

    async def submit(number):
        await made.board.submit(Request(f"request-{number}", "0" * 64, spec, b"spec", {}, {}, detached=True))

    sizes = []
    for part in range(2):
        await asyncio.gather(*(submit(part * 750 + number) for number in range(750)))
        sizes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert made.board.workload.waiting == 1_501
    assert (sizes[1] - sizes[0]) / 750 < 4096, "bytes for each"
    began = time.perf_counter()
    await made.board.heartbeat()
    assert time.perf_counter() - began < 1.0


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
def test_a_configuration_that_cannot_be(name, value, demo):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        GeneratorConfig(model=demo, **{name: value})


def test_one_core_is_left_to_the_event_loop():
    assert serving_threads(3) == 3 and serving_threads(None) >= 1
