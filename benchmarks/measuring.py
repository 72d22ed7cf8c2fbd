"""Side by side in one run: alternate the contestants, take medians, report ratios."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """A goal of docs/performance: its measured value (a ratio unless `unit` says otherwise) and what it should be."""

    id: str
    what: str
    value: float
    goal: float
    unit: str = "x"

    @property
    def met(self) -> bool:
        """Whether the value is at most the goal."""
        return self.value <= self.goal


def seconds(work: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def side_by_side(contestants: dict[str, Callable[[], object]], rounds: int, warm: int = 1) -> dict[str, float]:
    """Median seconds of each contestant, run in turns `rounds` times after `warm` rounds that do not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(warm + rounds):
        for name, work in contestants.items():
            took = seconds(work)
            if turn >= warm:
                times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def table(goals: list[Goal]) -> str:
    """The goals as a markdown table."""
    rows = [
        f"| {g.id} | {g.what} | {g.value:.3g} {g.unit} | <= {g.goal:g} | {'yes' if g.met else 'no'} |" for g in goals
    ]
    return "\n".join(["| id | what | measured | goal | met |", "|---|---|---|---|---|", *rows])
