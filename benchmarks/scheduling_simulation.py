"""Waiting times under the scheduler, under first come first served, and under the previous order, in simulated time.

No device and no model: a unit of work takes what the cost model of a fast GPU says. Three traces:

- poster: one user generates a 4096 x 4096 image and tries prompts at 512 x 512 meanwhile.
- burst: bursts of batch jobs at 1024 x 1024 beside five interactive users.
- callers: forty callers with jobs of several sizes, one of whom sends a hundred at once.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from measuring import Goal, sayer, tell
from other_orders import FirstComeFirstServed, PreviousOrder
from simulated_time import MakeOrder, SimulatedArrival, Simulation, make_scheduler

from zrelay_generator.priority import Priority

_BASE_S, _PER_TOKEN_S = 0.004, 1.85e-5
"""80 ms for a forward at 1024 x 1024, 24 ms at 512 x 512."""
ORDERS: dict[str, MakeOrder] = {
    "first come": FirstComeFirstServed,
    "previous": PreviousOrder,
    "scheduler": make_scheduler,
}


@dataclass(frozen=True)
class Trace:
    """A load, and which of its jobs people wait for."""

    name: str
    arrivals: Sequence[SimulatedArrival]
    watched: str

    def is_watched(self, arrival: SimulatedArrival) -> bool:
        return {
            "interactive": arrival.priority is Priority.INTERACTIVE,
            "others": arrival.caller != "many",
        }[self.watched]


def traces(seed: int) -> list[Trace]:
    draw = random.Random(seed)
    poster = [SimulatedArrival(0.0, Priority.NORMAL, "one", 4096, 50)]
    poster += [SimulatedArrival(2.0 + 5.0 * n, Priority.INTERACTIVE, "one", 512, 8) for n in range(40)]
    burst = [
        SimulatedArrival(start + 0.01 * n, Priority.BATCH, "batch", 1024, 8)
        for start in (0.0, 120.0, 240.0)
        for n in range(150)
    ]
    for user in range(5):
        at = 0.0
        while (at := at + draw.expovariate(1 / 15.0)) < 360.0:
            burst.append(SimulatedArrival(at, Priority.INTERACTIVE, f"user-{user}", 1024, 8))
    callers = [SimulatedArrival(10.0, Priority.NORMAL, "many", 1024, 8) for _ in range(100)]
    for caller in range(39):
        at = 0.0
        while (at := at + draw.expovariate(1 / 60.0)) < 300.0:
            side = draw.choice((512, 512, 768, 1024))
            callers.append(SimulatedArrival(at, Priority.NORMAL, f"caller-{caller}", side, 8))
    return [
        Trace("poster", poster, "interactive"),
        Trace("burst", burst, "interactive"),
        Trace("callers", callers, "others"),
    ]


@dataclass(frozen=True)
class Waits:
    """Seconds from the arrival of the watched jobs to their end, and until all jobs are done."""

    mean: float
    p95: float
    worst: float
    all_done: float


def waits(trace: Trace, make_order: MakeOrder) -> Waits:
    simulation = Simulation(_BASE_S, _PER_TOKEN_S, make_order)
    simulation.run(trace.arrivals)
    latencies = sorted(
        simulation.ended[n] - arrival.at for n, arrival in enumerate(trace.arrivals) if trace.is_watched(arrival)
    )
    p95 = latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))]
    return Waits(statistics.mean(latencies), p95, latencies[-1], simulation.now)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random arrivals")
    parser.add_argument("--json", action="store_true", help="print one object of goal id to value")
    options = parser.parse_args()
    say = sayer(options.json)
    goals = []
    for trace in traces(options.seed):
        say(f"{trace.name}: {len(trace.arrivals)} jobs; seconds from arrival to image of the jobs people wait for")
        found = {name: waits(trace, make_order) for name, make_order in ORDERS.items()}
        for name, one in found.items():
            say(
                f"  {name:10}  mean {one.mean:7.2f}  95 % {one.p95:7.2f}  worst {one.worst:7.2f}"
                f"  all jobs done after {one.all_done:6.1f} s"
            )
        ours = found["scheduler"]
        for other, bound in (("first come", 0.5), ("previous", 1.05)):
            key, mean = other.replace(" ", "-"), found[other].mean
            goals.append(Goal(f"S.{trace.name}.{key}", f"{trace.name}: mean wait / {other}", ours.mean / mean, bound))
        worst = ours.worst / found["previous"].worst
        goals.append(Goal(f"S.{trace.name}.worst", f"{trace.name}: worst wait / previous", worst, 1.05))
        done = ours.all_done / found["first come"].all_done
        goals.append(Goal(f"S.{trace.name}.done", f"{trace.name}: all jobs done / first come", done, 1.02))
    tell(goals, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
