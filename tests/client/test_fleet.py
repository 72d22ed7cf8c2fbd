"""The policy that gives jobs to generators, without any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrelay_client._pool.policy import FailureKind, Fleet, Member, failure_kind
from zrelay_shared import errors


def fleet(*members: Member) -> Fleet:
    for member in members:
        member.fresh = True
    return Fleet(members)


def take(fleet: Fleet, work: float, now: float = 0.0) -> Member:
    member = fleet.choose(work, now)
    assert member is not None
    member.jobs += 1
    member.work += work
    return member


@given(st.integers(1, 32), st.integers(0, 300))
def test_equal_generators_get_equal_shares(count: int, jobs: int) -> None:
    equal = fleet(*(Member(str(index)) for index in range(count)))
    for _ in range(jobs):
        take(equal, 1.0)
    shares = [member.jobs for member in equal.members]
    assert max(shares) - min(shares) <= 1


def test_a_faster_one_gets_more_and_an_untried_one_is_tried() -> None:
    fast, slow, new = Member("fast"), Member("slow"), Member("new")
    both = fleet(fast, slow, new)
    fast.accepted(10.0, 1.0)
    slow.accepted(10.0, 4.0)
    shares = [take(both, 10.0).endpoint for _ in range(27)]
    assert {name: shares.count(name) for name in ("fast", "slow", "new")} == {"fast": 12, "slow": 3, "new": 12}


def test_work_counts_and_not_jobs() -> None:
    a, b = Member("a"), Member("b")
    pair = fleet(a, b)
    poster = take(pair, 100.0)
    assert {take(pair, 1.0).endpoint for _ in range(50)} == {"a", "b"} - {poster.endpoint}


def test_the_load_of_others_counts_and_ours_is_not_counted_twice() -> None:
    a, b = Member("a", pace=1.0), Member("b", pace=1.0)
    pair = fleet(a, b)
    take(pair, 5.0)
    take(pair, 5.0)
    a.report(5.0)  # ours alone
    b.report(9.0)  # somebody else's 4 s too
    assert (a.others_s, b.others_s) == (0.0, 4.0)
    assert [take(pair, 1.0).endpoint for _ in range(3)] == ["a", "a", "a"]


def test_a_busy_one_rests_and_a_lost_one_has_to_answer_first() -> None:
    a, b = Member("a"), Member("b")
    pair = fleet(a, b)
    a.rest(0.0, 10.0)
    assert {take(pair, 1.0).endpoint for _ in range(5)} == {"b"}
    b.lost(0.0)
    assert pair.choose(1.0, 0.0) is None
    assert pair.wakes_in(0.0) == pytest.approx(0.2)
    assert pair.due(0.1) == []
    assert pair.due(0.3) == [b]
    b.report(0.0)
    assert pair.choose(1.0, 0.3) is b
    assert pair.choose(1.0, 0.3, without={"b"}) is None
    assert pair.choose(1.0, 11.0, without={"b"}) is a
    assert pair.wakes_in(0.0, without={"a", "b"}) is None


def test_an_extreme_hint_or_estimate_takes_no_generator_away() -> None:
    a = Member("a")
    a.rest(0.0, 3600.0)
    assert fleet(a).wakes_in(0.0) == 60.0
    a.report(float("nan"))
    for run_s in (float("inf"), float("nan")):
        a.accepted(1.0, run_s)
    assert (a.pace, a.others_s) == (0.0, 0.0)


def test_an_unreachable_generator_is_tried_less_and_less_often() -> None:
    member = Member("a")
    waits = []
    for _ in range(12):
        member.lost(0.0)
        waits.append(member.rests_until)
    assert waits == sorted(waits)
    assert waits[-1] == 5.0


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (errors.QueueFull("full"), FailureKind.BUSY),
        (errors.QuotaExceeded("much"), FailureKind.BUSY),
        (errors.OutOfMemory("big"), FailureKind.UNFIT),
        (errors.FeatureMissing("no"), FailureKind.UNFIT),
        (errors.ModelLoading("wait"), FailureKind.GOING),
        (errors.Draining("bye"), FailureKind.GOING),
        (errors.Unavailable("gone"), FailureKind.LOST),
        (errors.Unavailable("no disk", reason="STATE_UNWRITABLE", retry_after_s=5.0), FailureKind.BUSY),
        (errors.Cancelled("server went away", metadata={"grpc": "x"}), FailureKind.LOST),
        (errors.Cancelled("somebody asked"), FailureKind.FINAL),
        (errors.Cancelled("nobody watched", reason="LEASE_EXPIRED"), FailureKind.FORGOTTEN),
        (errors.InternalError("reset", metadata={"grpc": "RST_STREAM"}), FailureKind.LOST),
        (errors.InternalError("bug"), FailureKind.FINAL),
        (errors.NotFound("what?", reason="CONTENT_UNKNOWN"), FailureKind.CONTENT),
        (errors.NotFound("what?", reason="JOB_UNKNOWN"), FailureKind.FORGOTTEN),
        (errors.InvalidArgument("width"), FailureKind.FINAL),
        (errors.DeadlineExceeded("late"), FailureKind.FINAL),
    ],
)
def test_what_a_failure_says_of_the_next_try(error: errors.ZrelayError, found: FailureKind) -> None:
    assert failure_kind(error) is found
