"""How many tokens a tick may have after one that did not fit."""

from hypothesis import given
from hypothesis import strategies as st

from zrelay_generator.engine.token_budget import TokenBudget


def good_ticks_until(room, tokens):
    """How many ticks go well until there is so much room."""
    ticks = 0
    while room.tokens < tokens:
        room.went_well()
        ticks += 1
        assert ticks < 100_000
    return ticks


def test_it_is_all_there_at_first_and_after_good_ticks():
    room = TokenBudget(1000)
    for _ in range(1000):
        room.went_well()
    assert room.tokens == 1000


def test_room_comes_back_step_by_step():
    room = TokenBudget(1000)
    room.ran_out(800)
    assert room.tokens == 600
    seen = [room.tokens]
    for _ in range(64 * 5):
        room.went_well()
        if room.tokens != seen[-1]:
            seen.append(room.tokens)
    assert seen == [600, 675, 759, 853, 959, 1000]


def test_a_smaller_tick_that_did_not_fit_counts_and_a_larger_one_gives_nothing_back():
    room = TokenBudget(1000)
    room.ran_out(400)
    room.ran_out(900)
    assert room.tokens == 300
    room.ran_out(1.0)
    assert room.tokens == 1
    good_ticks_until(room, 1000)


def test_what_never_fits_is_tried_ever_more_rarely():
    """A device with room for 900 of 1000: how many good ticks lie between two that fail."""
    room, between, good = TokenBudget(1000), [], 0
    for _ in range(200_000):
        if room.tokens > 900:
            room.ran_out(room.tokens)
            between.append(good)
            good = 0
        else:
            room.went_well()
            good += 1
    assert min(between[1:]) >= 64 and min(between[-5:]) >= 8192
    assert len(between) < 20


def test_after_a_good_while_with_all_of_it_trials_are_quick_again():
    room = TokenBudget(1000)
    for _ in range(3):
        room.ran_out(1000)
        slow = good_ticks_until(room, 1000)
    for _ in range(10_000):
        room.went_well()
    room.ran_out(1000)
    assert good_ticks_until(room, 1000) < slow


@given(st.integers(1, 1 << 20), st.lists(st.one_of(st.none(), st.floats(1, 1 << 21)), max_size=300))
def test_it_stays_within_its_bounds(most, told):
    room = TokenBudget(most)
    for tokens in told:
        if tokens is None:
            room.went_well()
        else:
            room.ran_out(tokens)
        assert 1 <= room.tokens <= most
