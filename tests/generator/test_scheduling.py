"""The order of jobs, shares of device time, the queue, the choice of ticks: decisions on a known cost model."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrelay_generator.cost.model import Size
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.engine.ticks import DecodeTick, DenoiseTick, Tick
from zrelay_generator.features.protocol import JobSpec, Prompt
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.order import WORK_WEIGHT, Candidate, ranked
from zrelay_generator.scheduling.queue import JobQueue
from zrelay_generator.scheduling.scheduler import LOADED_PER_CLASS, MOST_LOADED_PER_CLASS, Scheduler
from zrelay_generator.scheduling.shares import ClassTurns, ServiceLedger
from zrelay_generator.scheduling.ticks import TickSelector, ranked_jobs
from zrelay_generator.store.records import JobRecord

from .helpers import make_embeds, make_sampling

NOW = 1000.0
ANY = 1 << 30
INTERACTIVE, NORMAL, BATCH = Priority
MakeJob = Callable[..., DeviceJob]


def measured(base_s: float = 0.01, per_token_s: float = 1e-4) -> JobEstimator:
    """A device whose forwards take base + tokens * per_token."""
    estimator = JobEstimator()
    for tokens in (64, 256, 1024, 4096):
        estimator.cost.observe_forward(Size(tokens, 0.0), base_s + tokens * per_token_s)
        estimator.cost.observe_decode(tokens * 256, 0.001 + tokens * 1e-5)
    return estimator


@pytest.fixture
def jobs() -> MakeJob:
    """Makes jobs, one after the other."""
    made: list[DeviceJob] = []

    def make(
        side: int = 64,
        priority: Priority = NORMAL,
        caller: str = "",
        accepted_at: float = NOW,
        deterministic: bool = False,
        **changed: Any,
    ) -> DeviceJob:
        sampling = make_sampling(width=side, height=side, **changed)
        spec = JobSpec(Prompt(make_embeds(8, 8)), sampling, priority=priority, deterministic=deterministic)
        made.append(DeviceJob(f"job-{len(made)}", spec, len(made), accepted_at, caller=caller))
        return made[-1]

    return make


def record(arrival: int, **changed: Any) -> JobRecord:
    plain = {"priority": NORMAL, "caller": "", "work_s": 1.0, "input_bytes": 0, "accepted_at": 0.0, "accepted_s": NOW}
    fields = {"job_id": str(arrival), "request_id": str(arrival), "identity": "", "model": "", "accepted": b""}
    return JobRecord(arrival=arrival, **{**fields, **plain, **changed})


def order(*jobs: DeviceJob, ledger: ServiceLedger | None = None) -> list[str]:
    return [job.id for job in ranked_jobs(jobs, measured(), ledger or ServiceLedger())]


def select(jobs: list[DeviceJob], tokens: int = ANY, estimator: JobEstimator | None = None) -> Tick | None:
    return TickSelector(estimator or measured(), ServiceLedger()).select(jobs, tokens)


def members(tick: Tick | None) -> list[tuple[str, int]]:
    assert isinstance(tick, DenoiseTick)
    return [(image.job.id, image.index) for image in tick.images]


# Order within a class.


def test_the_least_work_goes_first_and_then_the_first_arrival(jobs: MakeJob) -> None:
    every = [jobs(steps=8), jobs(steps=2), jobs(steps=8), jobs(side=512, steps=2)]
    assert order(*every) == ["job-1", "job-0", "job-2", "job-3"]


def test_waiting_outweighs_work_of_the_same_caller(jobs: MakeJob) -> None:
    long = jobs(steps=50)
    work_s = measured().remaining_s(long)
    soon = jobs(steps=1, accepted_at=NOW + WORK_WEIGHT * work_s * 0.9)
    late = jobs(steps=1, accepted_at=NOW + WORK_WEIGHT * work_s * 1.1)
    assert order(late, soon, long) == [soon.id, long.id, late.id]


def test_a_hundred_jobs_of_one_caller_do_not_keep_another_waiting(jobs: MakeJob) -> None:
    many = [jobs(steps=4, caller="many") for _ in range(5)]
    one = jobs(steps=4, caller="one")
    assert order(*many, one).index(one.id) == 1
    long = jobs(steps=10, caller="one")
    assert order(*many, one, long).index(long.id) == 4, "after as much work of the other: 3 x 4 steps before 4 + 10"


def test_a_caller_that_received_less_goes_first(jobs: MakeJob) -> None:
    ledger = ServiceLedger()
    for caller in ("a", "b"):
        ledger.enter(NORMAL, caller)
    ledger.charge(NORMAL, "a", 5.0)
    assert order(jobs(steps=4, caller="a"), jobs(steps=20, caller="b"), ledger=ledger) == ["job-1", "job-0"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0), st.floats(0.0, 50.0)), min_size=1, max_size=20),
    st.data(),
)
def test_running_a_job_does_not_change_its_tag(drawn: list[tuple[str, float, float]], data: st.DataObject) -> None:
    """What a caller receives is what its first job no longer needs: so a job is not interrupted by equal ones."""
    candidates = [Candidate(n, caller, at, n, work) for n, (caller, at, work) in enumerate(drawn)]
    received = dict.fromkeys("abc", 0.0)
    first = ranked(candidates, received.__getitem__)[0]
    served = data.draw(st.floats(0.0, first.candidate.remaining_s))
    done = first.candidate
    received[done.caller] += served
    left = Candidate(done.item, done.caller, done.accepted_at, done.arrival, done.remaining_s - served)
    again = ranked([left, *(one for one in candidates if one is not done)], received.__getitem__)
    tags = {one.candidate.item: one.tag for one in again}
    assert tags[done.item] == pytest.approx(first.tag, abs=1e-6)
    assert again[0].tag == pytest.approx(first.tag, abs=1e-6)


# Shares.


def test_turns_of_the_classes() -> None:
    turns, led = ClassTurns(), []
    everyone = {INTERACTIVE, NORMAL, BATCH}
    for _ in range(400):
        led.append(turns.next_class(everyone))
        turns.completed(led[-1], everyone)
    assert led[:20] == [INTERACTIVE] * 19 + [NORMAL]
    assert (led.count(INTERACTIVE), led.count(NORMAL), led.count(BATCH)) == (380, 18, 2)
    alone = {BATCH}
    assert turns.next_class(alone) is BATCH


def test_units_without_a_waiting_lower_class_do_not_count() -> None:
    turns = ClassTurns()
    for _ in range(100):
        turns.completed(INTERACTIVE, {INTERACTIVE})
    assert turns.next_class({INTERACTIVE, BATCH}) is INTERACTIVE


def test_nobody_saves_up_device_time() -> None:
    ledger = ServiceLedger()
    ledger.enter(NORMAL, "busy")
    ledger.charge(NORMAL, "busy", 100.0)
    assert ledger.received_s(NORMAL, "new") == 100.0
    ledger.enter(NORMAL, "new")
    ledger.charge(NORMAL, "new", 10.0)
    ledger.leave(NORMAL, "new")
    ledger.enter(NORMAL, "new")
    assert ledger.received_s(NORMAL, "new") == 110.0, "and nobody loses a debt by leaving"
    assert ledger.received_s(BATCH, "busy") == 0.0
    for caller in ("busy", "new"):
        ledger.leave(NORMAL, caller)
    assert ledger.received_s(NORMAL, "new") == 0.0, "when nobody waits, the past is forgotten"


# Ticks.


def test_no_work() -> None:
    assert select([]) is None


def test_an_urgent_class_leads(jobs: MakeJob) -> None:
    every = [jobs(steps=1, priority=BATCH), jobs(steps=4), jobs(steps=9, priority=INTERACTIVE)]
    assert members(select(every))[0] == ("job-2", 0)


def test_small_images_share_a_tick_and_a_poster_stays_out(jobs: MakeJob) -> None:
    small = [jobs(steps=4, seed=i) for i in range(3)]
    poster = jobs(side=1024, steps=4)
    assert members(select([poster, *small])) == [("job-0", 0), ("job-1", 0), ("job-2", 0)]
    assert members(select([poster])) == [(poster.id, 0)]


def test_where_packing_saves_nothing_nobody_joins(jobs: MakeJob) -> None:
    assert members(select([jobs(), jobs()], estimator=measured(base_s=0.0))) == [("job-0", 0)]


def test_lower_classes_join_an_interactive_tick_where_it_costs_a_twentieth_at_most(jobs: MakeJob) -> None:
    estimator = measured(base_s=0.1, per_token_s=2e-5)
    mine = jobs(side=256, priority=INTERACTIVE)
    others = [jobs(side=64, seed=i) for i in range(8)]
    tick = select([mine, *others], estimator=estimator)
    assert isinstance(tick, DenoiseTick)
    sizes = [estimator.step_size(image) for image in tick.images]
    alone_s, together_s = estimator.cost.forward_s(sizes[0]), estimator.cost.forward_s(sum(sizes, Size()))
    assert 1 < len(sizes) < 9 and together_s <= 1.05 * alone_s
    equals = [jobs(side=256, priority=INTERACTIVE, seed=i) for i in range(8)]
    assert len(members(select([mine, *equals], estimator=estimator))) == 9, "equals join where it saves"


def test_a_short_job_does_not_pay_for_longer_steps(jobs: MakeJob) -> None:
    estimator = measured(base_s=0.02)  # packing saves so much that it would pay
    short, alike, poster = jobs(steps=4), jobs(steps=4), jobs(side=256, steps=30)
    assert members(select([short, alike, poster], estimator=estimator)) == [("job-0", 0), ("job-1", 0)]


def test_the_budget_of_tokens(jobs: MakeJob) -> None:
    job = jobs(num_images=5)
    tokens = int(measured().step_size(job.images[0]).tokens)
    assert tokens == 32 + 16 + 16
    assert members(select([job], 2 * tokens + 1)) == [("job-0", 0), ("job-0", 1)]
    assert len(members(select([job], 1))) == 1, "one image may exceed it"


def test_images_that_have_begun_go_first_and_finished_ones_are_decoded(jobs: MakeJob) -> None:
    job = jobs(num_images=3, steps=2)
    job.images[1].done = 1
    assert members(select([job], 1)) == [("job-0", 1)]
    job.images[1].done = 2
    assert select([job], 1) == DecodeTick(job.images[1])
    job.images[1].decoding = True
    assert members(select([job], 1)) == [("job-0", 0)]


def test_images_that_must_be_alone_are(jobs: MakeJob) -> None:
    first, second = jobs(deterministic=True), jobs(steps=5)
    assert members(select([first, second])) == [(first.id, 0)]
    third = jobs(steps=2)
    assert members(select([first, second, third])) == [(third.id, 0), (second.id, 0)]
    third.images[0].alone = True
    assert members(select([first, second, third])) == [(third.id, 0)]


def test_before_anything_was_measured_work_is_done(jobs: MakeJob) -> None:
    assert members(select([jobs(), jobs()], estimator=JobEstimator())) == [("job-0", 0), ("job-1", 0)]


def test_a_tick_is_charged_to_its_callers_by_their_own_sizes(jobs: MakeJob) -> None:
    ledger, estimator = ServiceLedger(), measured(base_s=0.0)
    selector = TickSelector(estimator, ledger)
    small, large = jobs(side=128, caller="a"), jobs(side=256, caller="b")
    for caller in ("a", "b"):
        ledger.enter(NORMAL, caller)
    images: tuple[ImageState, ...] = (small.images[0], large.images[0])
    selector.completed([small, large], DenoiseTick(images), 1.0)
    sizes = [estimator.step_size(image).tokens for image in images]
    assert ledger.received_s(NORMAL, "a") == pytest.approx(sizes[0] / sum(sizes))
    assert ledger.received_s(NORMAL, "b") == pytest.approx(sizes[1] / sum(sizes))


# The queue.


@given(
    st.lists(
        st.tuples(st.sampled_from(list(Priority)), st.sampled_from("abc"), st.floats(0.0, 60.0), st.floats(0.1, 30.0)),
        max_size=40,
    ),
    st.data(),
)
def test_standings_agree_with_the_order_in_which_jobs_are_loaded(
    drawn: list[tuple[Priority, str, float, float]], data: st.DataObject
) -> None:
    scheduler = Scheduler(JobEstimator())
    records = [
        record(n, priority=priority, caller=caller, accepted_s=at, work_s=work)
        for n, (priority, caller, at, work) in enumerate(drawn)
    ]
    for one in records:
        scheduler.enter(one)
    for _ in range(data.draw(st.integers(0, 10))):
        if (first := scheduler.next_to_load()) is not None:
            scheduler.load(first)
    standings = dict(scheduler.standings())
    assert standings.keys() == set(records)
    for one in records:
        assert scheduler.standing(one).queue_position == standings[one].queue_position
        assert scheduler.standing(one).eta_s == pytest.approx(standings[one].eta_s)
    assert sorted(standing.queue_position for standing in standings.values()) == list(range(len(records)))
    by_position = sorted(records, key=lambda one: standings[one].queue_position)
    assert [one.priority for one in by_position] == sorted(one.priority for one in records)
    assert scheduler.waiting == len(records)
    for one in records:
        scheduler.leave(one)
    assert (scheduler.waiting, scheduler.total_s) == (0, 0.0)


def test_a_class_has_places_of_its_own_and_a_shorter_job_finds_one() -> None:
    scheduler = Scheduler(JobEstimator())

    def load() -> list[JobRecord]:
        loaded = []
        while (one := scheduler.next_to_load()) is not None:
            scheduler.load(one)
            loaded.append(one)
        return loaded

    for n in range(LOADED_PER_CLASS + 4):
        scheduler.enter(record(n, work_s=100.0))
    assert len(load()) == LOADED_PER_CLASS
    short, urgent = record(100, work_s=1.0), record(101, priority=INTERACTIVE, work_s=500.0)
    scheduler.enter(short)
    scheduler.enter(urgent)
    assert load() == [urgent, short]
    for n in range(200, 240):
        scheduler.enter(record(n, work_s=10.0))
    assert len(load()) == MOST_LOADED_PER_CLASS - LOADED_PER_CLASS - 1
    assert scheduler.load_before(record(300, work_s=0.1)).ahead == 2, (
        "the urgent one, and one loaded job must end first"
    )


def test_the_queue_counts_what_it_holds() -> None:
    queue = JobQueue()
    one, other = record(1, work_s=2.0, input_bytes=10), record(2, priority=BATCH, caller="b", input_bytes=5)
    queue.add(one)
    queue.add(other)
    assert (len(queue), queue.work_s, queue.input_bytes, len(queue.queues_of("b"))) == (2, 3.0, 15, 1)
    assert list(queue) == [one, other]
    assert queue.remove(one) and not queue.remove(one)
    assert (len(queue), queue.jobs_of(NORMAL)) == (1, (0, 0.0))
