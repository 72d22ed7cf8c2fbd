"""Who leads a tick and who joins it: pure decisions, on a cost model that was told what things take."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.job import Job
from zrelay_generator.features.protocol import JobSpec, Priority, Prompt
from zrelay_generator.scheduling.policy import AGE_S, Decode, Steps, level, next_work, ranked

NOW = 1000.0
ANY = 1 << 30


def measured(base_s: float = 0.01, per_token_s: float = 1e-4) -> Speed:
    """A device whose forwards take base + tokens * per_token."""
    speed = Speed()
    for tokens in (64, 256, 1024, 4096):
        speed.saw_forward(tokens, base_s + tokens * per_token_s)
        speed.saw_decode(tokens * 256, 0.001 + tokens * 1e-5)
    return speed


@pytest.fixture
def jobs(sampling, embeds):
    """Makes jobs, one after the other."""
    made = []

    def make(side=64, priority=Priority.NORMAL, caller="", accepted_at=NOW, deterministic=False, **asked):
        asked = sampling(width=side, height=side, **asked)
        spec = JobSpec(Prompt(embeds(8, 8)), asked, priority=priority, deterministic=deterministic)
        made.append(Job(f"job-{len(made)}", spec, len(made), accepted_at, caller=caller))
        return made[-1]

    return make


def names(found):
    return [job.id for job in found]


def members(work):
    assert isinstance(work, Steps)
    return [(image.job.id, image.index) for image in work.images]


def test_nothing_to_do():
    assert next_work([], ANY, measured(), NOW) is None


def test_the_least_work_goes_first_and_then_who_came_first(jobs):
    every = [jobs(steps=8), jobs(steps=2), jobs(steps=8), jobs(side=512, steps=2)]
    assert names(ranked(every, measured(), NOW)) == ["job-1", "job-0", "job-2", "job-3"]


def test_priority_comes_before_work(jobs):
    every = [jobs(steps=1, priority=Priority.BATCH), jobs(steps=4), jobs(steps=9, priority=Priority.INTERACTIVE)]
    assert names(ranked(every, measured(), NOW)) == ["job-2", "job-1", "job-0"]


def test_a_minute_of_waiting_is_worth_a_priority_and_running_is_not_waiting(jobs):
    old = jobs(steps=50, accepted_at=NOW - AGE_S)
    assert names(ranked([old, jobs(steps=1)], measured(), NOW)) == ["job-0", "job-1"]
    old.timings.denoise_s = 1.0
    assert names(ranked([old, jobs(steps=1)], measured(), NOW)) == ["job-2", "job-0"]
    assert level(jobs(priority=Priority.BATCH, accepted_at=NOW - 2 * AGE_S), NOW) == Priority.INTERACTIVE


def test_a_hundred_pictures_of_one_caller_do_not_keep_another_waiting(jobs):
    many = [jobs(steps=4, caller="many") for _ in range(5)]
    one = jobs(steps=4, caller="one")
    order = names(ranked([*many, one], measured(), NOW))
    assert order.index(one.id) == 1
    long = jobs(steps=10, caller="one")
    order = names(ranked([*many, one, long], measured(), NOW))
    assert order.index(long.id) == 4, "his next stands behind as much of the other's work: 4 + 10 steps, after 3 x 4"


def test_small_pictures_share_a_tick_and_a_poster_stays_out(jobs):
    small = [jobs(steps=4, seed=i) for i in range(3)]
    poster = jobs(side=1024, steps=4)
    work = next_work([poster, *small], ANY, measured(), NOW)
    assert members(work) == [("job-0", 0), ("job-1", 0), ("job-2", 0)]
    assert members(next_work([poster], ANY, measured(), NOW)) == [(poster.id, 0)]


def test_where_packing_saves_nothing_nobody_joins(jobs):
    work = next_work([jobs(), jobs()], ANY, measured(base_s=0.0), NOW)
    assert members(work) == [("job-0", 0)]


def test_an_interactive_job_is_slowed_by_a_quarter_at_most(jobs):
    speed = measured(base_s=0.1, per_token_s=1e-4)
    mine = jobs(side=256, priority=Priority.INTERACTIVE)
    others = [jobs(side=256, seed=i) for i in range(8)]
    work = next_work([mine, *others], ANY, speed, NOW)
    alone, together = (speed.forward_s(speed.step_size(work.images[0]) * n) for n in (1, len(work.images)))
    assert 1 < len(work.images) < 9 and together <= 1.25 * alone
    # One that joins a tick of others is not slowed by more either.
    small = [jobs(side=256, seed=i, accepted_at=NOW - 3 * AGE_S) for i in range(8)]
    assert (mine.id, 0) not in members(next_work([mine, *small], ANY, speed, NOW))


def test_a_short_job_does_not_pay_a_longer_ones_steps(jobs):
    speed = measured(base_s=0.02)  # so much is saved by packing that it would pay
    short, alike, poster = jobs(steps=4), jobs(steps=4), jobs(side=256, steps=30)
    assert members(next_work([short, alike, poster], ANY, speed, NOW)) == [("job-0", 0), ("job-1", 0)]


def test_the_budget_of_tokens(jobs):
    job = jobs(num_images=5)
    tokens = int(measured().step_size(job.images[0]).tokens)
    assert tokens == 32 + 16 + 16
    assert members(next_work([job], 2 * tokens + 1, measured(), NOW)) == [("job-0", 0), ("job-0", 1)]
    assert len(next_work([job], 1, measured(), NOW).images) == 1, "one image may exceed it"


def test_images_that_have_begun_go_first_and_finished_ones_are_decoded(jobs):
    job = jobs(num_images=3, steps=2)
    job.images[1].done = 1
    assert members(next_work([job], 1, measured(), NOW)) == [("job-0", 1)]
    job.images[1].done = 2
    assert next_work([job], 1, measured(), NOW) == Decode(job.images[1])
    job.images[1].decoding = True
    assert members(next_work([job], 1, measured(), NOW)) == [("job-0", 0)]


def test_who_must_be_alone_is(jobs):
    first, second = jobs(deterministic=True), jobs(steps=5)
    assert members(next_work([first, second], ANY, measured(), NOW)) == [(first.id, 0)]
    third = jobs(steps=2)
    assert members(next_work([first, second, third], ANY, measured(), NOW)) == [(third.id, 0), (second.id, 0)]
    third.images[0].alone = True
    assert members(next_work([first, second, third], ANY, measured(), NOW)) == [(third.id, 0)]


def test_before_anything_was_measured_work_is_done(jobs):
    assert members(next_work([jobs(), jobs()], ANY, Speed(), NOW)) == [("job-0", 0), ("job-1", 0)]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from(Priority), st.integers(1, 60), st.sampled_from("abc"), st.integers(0, 500)),
        min_size=1,
        max_size=12,
    )
)
def test_nobody_is_overtaken_for_ever(drawn, sampling, embeds):
    """A job that waited longer than the ages between it and the most urgent newcomer leads."""
    speed, every = measured(), []
    for number, (priority, steps, caller, ago) in enumerate(drawn):
        spec = JobSpec(Prompt(embeds(8, 8)), sampling(width=64, height=64, steps=steps), priority=priority)
        every.append(Job(str(number), spec, number, NOW - ago, caller=caller))
    order = ranked(every, speed, NOW)
    assert sorted(map(id, order)) == sorted(map(id, every))
    levels = [level(job, NOW) for job in order]
    assert levels == sorted(levels)
    newcomer = Job("new", replace(every[0].spec, priority=Priority.INTERACTIVE), 99, NOW)
    oldest = min(every, key=lambda job: level(job, NOW))
    if level(oldest, NOW) < Priority.INTERACTIVE:
        assert ranked([*every, newcomer], speed, NOW)[0] is not newcomer
