"""How many tokens a tick may have after one that did not fit."""

from hypothesis import given
from hypothesis import strategies as st

from zrelay_generator.engine.token_budget import TokenBudget


def good_ticks_until(budget: TokenBudget, tokens: int) -> int:
    """How many ticks go well until there is so much budget."""
    ticks = 0
    while budget.tokens < tokens:
        budget.succeeded()
        ticks += 1
        assert ticks < 100_000
    return ticks


def test_it_is_all_there_at_first_and_after_good_ticks() -> None:
    budget = TokenBudget(1000)
    for _ in range(1000):
        budget.succeeded()
    assert budget.tokens == 1000


def test_room_comes_back_step_by_step() -> None:
    budget = TokenBudget(1000)
    budget.exhausted(800)
    assert budget.tokens == 600
    seen = [budget.tokens]
    for _ in range(64 * 5):
        budget.succeeded()
        if budget.tokens != seen[-1]:
            seen.append(budget.tokens)
    assert seen == [600, 675, 759, 853, 959, 1000]


def test_a_smaller_tick_that_did_not_fit_counts_and_a_larger_one_gives_nothing_back() -> None:
    budget = TokenBudget(1000)
    budget.exhausted(400)
    budget.exhausted(900)
    assert budget.tokens == 300
    budget.exhausted(1.0)
    assert budget.tokens == 1
    good_ticks_until(budget, 1000)


def test_what_never_fits_is_tried_ever_more_rarely() -> None:
    """A device with budget for 900 of 1000: how many good ticks lie between two that fail."""
    budget, between, good = TokenBudget(1000), [], 0
    for _ in range(200_000):
        if budget.tokens > 900:
            budget.exhausted(budget.tokens)
            between.append(good)
            good = 0
        else:
            budget.succeeded()
            good += 1
    assert min(between[1:]) >= 64 and min(between[-5:]) >= 8192
    assert len(between) < 20


def test_after_a_good_while_with_all_of_it_trials_are_quick_again() -> None:
    budget = TokenBudget(1000)
    for _ in range(3):
        budget.exhausted(1000)
        slow = good_ticks_until(budget, 1000)
    for _ in range(10_000):
        budget.succeeded()
    budget.exhausted(1000)
    assert good_ticks_until(budget, 1000) < slow


@given(st.integers(1, 1 << 20), st.lists(st.one_of(st.none(), st.floats(1, 1 << 21)), max_size=300))
def test_it_stays_within_its_bounds(most: int, told: list[float | None]) -> None:
    budget = TokenBudget(most)
    for tokens in told:
        if tokens is None:
            budget.succeeded()
        else:
            budget.exhausted(tokens)
        assert 1 <= budget.tokens <= most
    for _ in range(10_000):
        budget.succeeded()
        assert 1 <= budget.tokens <= most
