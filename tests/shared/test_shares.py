"""Shares of something limited among callers."""

import math

from hypothesis import given
from hypothesis import strategies as st

from zrelay_shared.shares import Shares, equal_share


def test_each_caller_leaves_a_part_of_what_others_left() -> None:
    shares = Shares(16)
    taken = {caller: sum(shares.take(caller) for _ in range(20)) for caller in "abcd"}
    assert taken == {"a": 12, "b": 3, "c": 1, "d": 0} and shares.used == 16
    shares.give("a", 12)
    assert (shares.used_by("a"), shares.limit_of("b"), shares.limit_alone) == (0, 12, 12)


def test_a_caller_that_uses_nothing_is_only_bound_by_the_total() -> None:
    shares = Shares(100, 25)
    assert shares.take("a", 60) and not shares.take("a"), "more than a quarter, once"
    assert not shares.take("b", 41) and shares.take("b", 40)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9), st.booleans()), max_size=40),
    st.integers(1, 30),
    st.integers(1, 100),
)
def test_what_is_given_back_can_be_taken_again(steps: list[tuple[str, int, bool]], total: int, percent: int) -> None:
    shares, held = Shares(total, percent), list[tuple[str, int]]()
    for caller, amount, takes in steps:
        if takes and shares.take(caller, amount):
            held.append((caller, amount))
        elif not takes and held:
            shares.give(*held.pop())
        assert shares.used == sum(amount for _, amount in held) <= total
    for one in held:
        shares.give(*one)
    assert shares.used == 0 and shares.take("a", total)


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 200))
def test_equal_shares_fit_and_leave_nothing(used: list[int], limit: int) -> None:
    share = equal_share(used, limit)
    kept = sum(min(amount, share) for amount in used)
    assert math.isclose(kept, min(limit, sum(used)), abs_tol=1e-9)
    assert all(min(amount, share) == amount for amount in used if amount * len(used) <= limit)
