"""The guarantees of docs/explanation/scheduling.md, over random arrivals in simulated time."""

from collections import defaultdict
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_time import SimulatedArrival, Simulation

from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.shares import UNITS_PER_LOWER_UNIT

SIDES = (64, 128, 256, 512)


def arrivals(
    priorities: tuple[Priority, ...] = tuple(Priority), callers: str = "abc", most: int = 40, last: float = 20.0
) -> st.SearchStrategy[list[SimulatedArrival]]:
    return st.lists(
        st.builds(
            SimulatedArrival,
            at=st.floats(0.0, last),
            priority=st.sampled_from(priorities),
            caller=st.sampled_from(list(callers)),
            side=st.sampled_from(SIDES),
            steps=st.integers(1, 20),
            deterministic=st.booleans(),
            from_image=st.booleans(),
        ),
        min_size=1,
        max_size=most,
    )


def ran(drawn: list[SimulatedArrival]) -> Simulation:
    simulation = Simulation()
    simulation.run(drawn)
    return simulation


@given(arrivals())
def test_1_lower_classes_get_one_unit_in_20_while_an_interactive_job_waits(drawn: list[SimulatedArrival]) -> None:
    since_lower = UNITS_PER_LOWER_UNIT[Priority.INTERACTIVE]
    for unit in ran(drawn).units:
        if Priority.INTERACTIVE not in unit.waiting:
            since_lower = UNITS_PER_LOWER_UNIT[Priority.INTERACTIVE]  # the device was free for them
        elif unit.lead.priority is Priority.INTERACTIVE:
            since_lower += 1
        else:
            assert since_lower >= UNITS_PER_LOWER_UNIT[Priority.INTERACTIVE]
            since_lower = 0


@given(arrivals())
def test_1_images_of_lower_classes_make_a_step_at_most_a_twentieth_longer(drawn: list[SimulatedArrival]) -> None:
    for unit in ran(drawn).units:
        assert unit.seconds <= unit.urgent_s * 1.05 * (1 + 1e-9)


@given(arrivals())
def test_a_unit_encodes_the_pictures_of_one_job_at_most(drawn: list[SimulatedArrival]) -> None:
    assert all(unit.encoding_jobs <= 1 for unit in ran(drawn).units)


def test_pictures_of_many_jobs_are_encoded_one_after_another() -> None:
    """An interactive job that arrives while sixteen batch jobs begin waits for the picture of one of them."""
    batch = [SimulatedArrival(0.0, Priority.BATCH, "batch", 128, 20, from_image=True) for _ in range(16)]
    alone = ran(batch[:1]).units[0].seconds
    assert max(unit.seconds for unit in ran(batch).units[:2]) < 2 * alone


@given(arrivals((Priority.NORMAL, Priority.BATCH)), st.floats(0.0, 20.0))
def test_2_a_lone_interactive_job_waits_for_the_running_unit_and_one_more(
    drawn: list[SimulatedArrival], at: float
) -> None:
    lone = SimulatedArrival(at, Priority.INTERACTIVE, "someone", 64, 4)
    simulation = ran([*drawn, lone])
    number = len(drawn)
    before = [
        unit for unit in simulation.units if at < unit.began + unit.seconds and unit.began < simulation.began[number]
    ]
    assert len(before) <= 2
    if not drawn:
        assert simulation.began[number] == at


@given(arrivals())
def test_3_nothing_starves(drawn: list[SimulatedArrival]) -> None:
    """While a class waits, at most 199 units pass until it gets one: 20 times 10 units, for the lowest."""
    simulation = ran(drawn)
    assert simulation.ended.keys() == set(range(len(drawn)))
    passed: dict[Priority, int] = defaultdict(int)
    for unit in simulation.units:
        for priority in unit.waiting:
            passed[priority] = 0 if priority is unit.lead.priority else passed[priority] + 1
            assert passed[priority] < 200


@pytest.mark.parametrize(
    ("urgent", "lower", "most"),
    [
        (Priority.INTERACTIVE, Priority.NORMAL, 19),
        (Priority.INTERACTIVE, Priority.BATCH, 19),
        (Priority.NORMAL, Priority.BATCH, 9),
    ],
)
def test_3_a_lower_class_gets_its_unit_while_an_urgent_one_fills_the_device(
    urgent: Priority, lower: Priority, most: int
) -> None:
    """Jobs that run alone, so that no image of the lower class joins a step of the urgent one."""
    drawn = [SimulatedArrival(0.0, urgent, "urgent", 64, 20, deterministic=True) for _ in range(30)]
    drawn += [SimulatedArrival(0.0, lower, "lower", 64, 20, deterministic=True) for _ in range(2)]
    in_a_row = longest = turns = 0
    for unit in ran(drawn).units:
        if urgent not in unit.waiting or lower not in unit.waiting:
            break
        in_a_row = in_a_row + 1 if unit.lead.priority is urgent else 0
        turns += unit.lead.priority is lower
        longest = max(longest, in_a_row)
    assert longest == most and turns >= 10


@pytest.mark.parametrize(("steps", "short_steps"), [(10, 4), (20, 8), (20, 20)])
def test_3_ever_new_callers_do_not_keep_a_long_job_waiting(steps: int, short_steps: int) -> None:
    """Short jobs of callers that were never here before fill the device; a long job is done among them."""
    short = SimulatedArrival(0.0, Priority.NORMAL, "", 64, short_steps, deterministic=True)
    long = SimulatedArrival(0.0, Priority.NORMAL, "long", 512, steps, deterministic=True)
    alone_s, work_s = ran([short]).now, ran([long]).now
    count = int(10 * work_s / alone_s)
    simulation = ran([long, *(replace(short, at=0.001 + n * alone_s, caller=f"new {n}") for n in range(count))])
    assert simulation.ended[0] < 5 * work_s


@given(st.integers(2, 20), st.sampled_from(SIDES), st.sampled_from(list(Priority)))
def test_4_waiting_raises_the_place_of_a_job_within_its_class(steps: int, side: int, priority: Priority) -> None:
    """A long job is passed by shorter jobs of its caller that arrive within twice its own work, and by no later one.

    The first short job is there before the long one begins, and the others arrive faster than they are done, so that
    the device is never without a short job.
    """
    short = SimulatedArrival(0.0, priority, "one", 64, 1, deterministic=True)
    long = SimulatedArrival(0.0, priority, "one", side, steps, deterministic=True)
    short_s, long_s = ran([short]).now, ran([long]).now
    count = int(4 * long_s / (0.9 * short_s))
    simulation = ran([long, *(replace(short, at=n * 0.9 * short_s) for n in range(count))])
    later = [n for n in range(1, count + 1) if (n - 1) * 0.9 * short_s > 2.0 * simulation.records[0].work_s]
    assert later and all(simulation.began[0] <= simulation.began[n] for n in later)


def test_5_a_caller_with_many_small_jobs_does_not_get_ahead() -> None:
    """One caller's thirty small jobs could fill every step; the other has two."""
    drawn = [SimulatedArrival(0.0, Priority.NORMAL, "a", 64, 20) for _ in range(30)]
    drawn += [SimulatedArrival(0.0, Priority.NORMAL, "b", 64, 20) for _ in range(2)]
    simulation = ran(drawn)
    largest_s, ahead = max(record.work_s for record in simulation.records.values()), 0.0
    both_until = min(max(simulation.ended[n] for n, one in enumerate(drawn) if one.caller == name) for name in "ab")
    for unit in simulation.units:
        if unit.began + unit.seconds <= both_until:
            ahead += unit.received_s.get("a", 0.0) - unit.received_s.get("b", 0.0)
            assert abs(ahead) <= largest_s


@given(st.sampled_from(list(Priority)), st.data())
def test_5_device_seconds_of_equal_callers_differ_by_at_most_one_job(priority: Priority, data: st.DataObject) -> None:
    """Over every period in which two callers both have work all the time, from whenever the later of them came."""
    drawn = data.draw(arrivals((priority,), last=data.draw(st.sampled_from([0.0, 1.0, 20.0]))))
    simulation = ran(drawn)
    largest_s = max(record.work_s for record in simulation.records.values())
    unit_s = max(unit.seconds for unit in simulation.units)
    periods = {caller: busy_periods(simulation, drawn, caller) for caller in {one.caller for one in drawn}}
    for one, other in combinations(sorted(periods), 2):
        for began, ended in ((max(a, c), min(b, d)) for a, b in periods[one] for c, d in periods[other]):
            ahead = 0.0
            for unit in simulation.units:
                if began <= unit.began and unit.began + unit.seconds <= ended:
                    ahead += unit.received_s.get(one, 0.0) - unit.received_s.get(other, 0.0)
                    assert abs(ahead) <= largest_s + unit_s


def busy_periods(simulation: Simulation, drawn: list[SimulatedArrival], caller: str) -> list[tuple[float, float]]:
    """The periods in which a caller has work, each from the arrival of a job to the end of the last."""
    periods: list[tuple[float, float]] = []
    for at, ended in sorted((one.at, simulation.ended[n]) for n, one in enumerate(drawn) if one.caller == caller):
        if periods and at < periods[-1][1]:
            periods[-1] = (periods[-1][0], max(ended, periods[-1][1]))
        else:
            periods.append((at, ended))
    return periods


def test_6_a_fresh_interactive_job_is_first_however_long_others_have_waited() -> None:
    """The fault of the order before: ten batch jobs that had waited 200 s went before it."""
    simulation = Simulation(base_s=1.0)
    batch = [SimulatedArrival(0.0, Priority.BATCH, "batch", 1024, 60) for _ in range(14)]
    simulation.run([*batch, SimulatedArrival(230.0, Priority.INTERACTIVE, "someone", 64, 4)])
    unit_s = max(unit.seconds for unit in simulation.units)
    assert simulation.began[14] - 230.0 <= 2 * unit_s
    assert sum(simulation.ended[n] < simulation.ended[14] for n in range(14)) < 14


@pytest.mark.parametrize("deterministic", [False, True])
def test_7_a_short_job_passes_a_poster_and_the_poster_goes_on(deterministic: bool) -> None:
    simulation = Simulation()
    poster = SimulatedArrival(0.0, Priority.NORMAL, "one", 1024, 30, deterministic)
    simulation.run([poster, SimulatedArrival(1.0, Priority.NORMAL, "one", 64, 4, deterministic)])
    short = [unit for unit in simulation.units if unit.lead.arrival == 1]
    assert all(b.began == pytest.approx(a.began + a.seconds) for a, b in pairwise(short)), "without a pause"
    assert simulation.ended[1] < simulation.ended[0]
