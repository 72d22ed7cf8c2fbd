"""Side by side in one run: alternate the contestants, take medians, report ratios."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A goal of docs/performance: its measured value (a ratio unless `unit` says otherwise) and what it should be at
    most, or `at_least`."""

    id: str
    what: str
    value: float
    goal: float
    unit: str = "x"
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether the value is on the right side of the goal."""
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def processor_seconds(work: Callable[[], object]) -> float:
    """Seconds of processor time of one call, all threads together: what other load on the machine disturbs least."""
    started = time.process_time()
    work()
    return time.process_time() - started


def side_by_side(
    contestants: dict[str, Callable[[], object]],
    rounds: int,
    warm: int = 1,
    clock: Callable[[Callable[[], object]], float] = seconds,
) -> dict[str, float]:
    """Median seconds of each contestant, run in turns `rounds` times after `warm` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm + rounds):
        for name, work in contestants.items():
            took = clock(work)
            if turn >= warm:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def table(goals: list[Goal]) -> str:
    """The goals as a markdown table."""
    rows = [
        f"| {g.id} | {g.what} | {g.value:.3g} {g.unit} | {'>=' if g.at_least else '<='} {g.goal:g} "
        f"| {'yes' if g.met else 'no'} |"
        for g in goals
    ]
    return "\n".join(["| id | what | measured | goal | met |", "|---|---|---|---|---|", *rows])


Say = Callable[[str], None]
"""Tells how it goes."""


def sayer(as_json: bool) -> Say:
    """To stdout, or to stderr where stdout is for the one object of results."""
    return lambda text: print(text, file=sys.stderr if as_json else sys.stdout, flush=True)


def tell(goals: list[Goal], as_json: bool) -> None:
    """The results: one object of goal id to measured value, or a table."""
    print(json.dumps({goal.id: round(goal.value, 4) for goal in goals}) if as_json else table(goals), flush=True)
