"""P11: many generators behind one client, with devices that sleep: how jobs a second grow, what a queued job costs.

    python benchmarks/fleet.py [--json] [--generators 1,2,4,8,16,32] [--window 60] [--queued 10000] [--job-s 2]

Everything but the device is real: generator processes over loopback, their stores on disk, streams, the client library
in this process. A device sleeps as long as the published model's operations would take at the pace at which a picture
takes `--job-s` seconds. Jobs a second come from the steps that were done in a window, so that a window need not hold a
whole number of jobs. All processes share this machine: `CPU` in the report says how much of it they took, and at how
many jobs a second it would be full; beyond that the machine is measured and not the relay.
"""

import argparse
import asyncio
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import queueing
from hosted import GeneratorHost, HostedGenerator, HostedSettings
from loads import PROMPT
from measuring import Goal, Say, sayer, tell
from servers import started
from simulated import DeviceSpeed
from vitals import vitals

from zrelay_client import AsyncClient, Done, Embeds, Event, GenerateKeywords, Progress
from zrelay_demo import CHECKPOINT

SIDE, STEPS = 128, 8
_OPTIONS: GenerateKeywords = {"width": SIDE, "height": SIDE, "num_inference_steps": STEPS}
_SLOW: GenerateKeywords = {**_OPTIONS, "num_inference_steps": 100}
"""What waits, while few of it are painted."""
_QUEUE_PACE = 4.0
"""Times `--job-s` that a picture takes on the device behind a queue."""
_QUIET_S = 6.0
"""Most seconds of a look at what a queue costs that nobody touches; `--window` may be shorter."""
_ENDLESS = range(1 << 31)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one object of goal id to measured value")
    parser.add_argument("--generators", default="1,2,4,8,16,32", help="how many, separated by commas; from 1 on")
    parser.add_argument("--window", type=float, default=60.0, help="seconds that are measured")
    parser.add_argument("--job-s", type=float, default=2.0, help="seconds of a picture on a simulated device")
    parser.add_argument("--queued", type=int, default=10_000, help="jobs that wait, 0 for no such measurement")
    parser.add_argument("--watched", type=int, default=2_000, help="jobs that wait and are watched, 0 for none")
    args = parser.parse_args()
    say = sayer(args.json)
    numbers = sorted({int(number) for number in args.generators.split(",")})
    embeds = _embeds()
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="zrelay-") as folder, GeneratorHost() as host:
        goals += growth(host, Path(folder), embeds, numbers, args.window, args.job_s, say)
    for name, jobs, measure in (("q", args.queued, queueing.submitted), ("w", args.watched, queueing.watched)):
        if jobs:
            with tempfile.TemporaryDirectory(prefix="zrelay-") as folder, GeneratorHost() as host:
                generator = host.start(_settings(Path(folder) / name, _QUEUE_PACE * args.job_s, jobs))
                goals += asyncio.run(measure(generator, embeds, jobs, _SLOW, min(_QUIET_S, args.window), say))
    tell(goals, args.json)


def _embeds() -> Embeds:
    async def encoded(endpoint: str) -> Embeds:
        async with AsyncClient(encoder=endpoint) as client:
            return await client.encode(PROMPT)

    with started("encoder", CHECKPOINT) as encoder:
        return asyncio.run(encoded(encoder.endpoint))


def _settings(state: Path, job_s: float, most: int) -> HostedSettings:
    rate = DeviceSpeed.of_job(job_s, SIDE, STEPS).rate
    options = (("threads", 1), ("max_waiting", most + 100), ("max_wait_s", 1e12), ("caller_share", 100))
    return HostedSettings(CHECKPOINT, state, options, rate)


def growth(
    host: GeneratorHost, folder: Path, embeds: Embeds, numbers: list[int], window_s: float, job_s: float, say: Say
) -> list[Goal]:
    """Jobs a second of each number of generators, by generator, over that of the first number."""
    running: list[HostedGenerator] = []
    goals, alone = [], 0.0
    for number in numbers:
        running += [host.start(_settings(folder / str(n), job_s, 1000)) for n in range(len(running), number)]
        measured = asyncio.run(_measure(running, embeds, window_s, job_s))
        alone = alone or measured.each
        say(
            f"P11: {number} generators: {measured.report(number, job_s)}; each {measured.each / alone:.3f} of the first"
        )
        if number > numbers[0]:
            what = f"{number} generators behind one client: jobs a second of each / of {numbers[0]}"
            goals.append(Goal(f"P11.{number}", what, measured.each / alone, 0.95, at_least=True))
    if goals:
        least = min(goal.value for goal in goals)
        goals.append(Goal("P11", "the least of these", least, 0.95, at_least=True))
    return goals


@dataclass(frozen=True, slots=True)
class MeasuredWindow:
    """Of a window: jobs a second of one generator, done jobs, processor seconds of all generators and of the client."""

    each: float
    jobs: float
    seconds: float
    generators_cpu_s: float
    client_cpu_s: float

    def report(self, number: int, job_s: float) -> str:
        cores = len(os.sched_getaffinity(0))
        cpu_s = self.generators_cpu_s + self.client_cpu_s
        theirs, mine = (seconds / max(self.jobs, 1e-9) for seconds in (self.generators_cpu_s, self.client_cpu_s))
        return (
            f"{self.jobs / self.seconds:.2f} jobs/s, devices busy {self.each * job_s:.1%}; "
            f"CPU {cpu_s / self.seconds / cores:.0%} of {cores} cores, {theirs * 1e3:.1f} ms a job in generators and "
            f"{mine * 1e3:.1f} ms in the client: full at {cores / max(theirs + mine, 1e-9):.0f} jobs/s "
            f"(the client alone at {1.0 / max(mine, 1e-9):.0f})"
        )


class _Meter:
    """Jobs done, begun ones by their share of steps."""

    def __init__(self) -> None:
        self._done = 0
        self._shares: dict[int, float] = {}

    def __call__(self, index: int, event: Event) -> None:
        if isinstance(event, Done):
            self._shares.pop(index, None)
            self._done += 1
        elif isinstance(event, Progress) and event.stage == "denoise":
            self._shares[index] = event.completed / event.total

    @property
    def jobs(self) -> float:
        return self._done + sum(self._shares.values())


async def _measure(generators: list[HostedGenerator], embeds: Embeds, window_s: float, job_s: float) -> MeasuredWindow:
    meter = _Meter()
    endpoints = await asyncio.to_thread(lambda: [generator.endpoint for generator in generators])
    async with AsyncClient(generator=endpoints, timeout_s=3600.0) as client:
        painting = asyncio.create_task(_paint(client, embeds, meter))
        await asyncio.sleep(2.0 * job_s + 1.0)
        before, cpu_s, mine_s = meter.jobs, _cpu_s(generators), time.process_time()
        started = time.monotonic()
        await asyncio.wait({painting}, timeout=window_s)
        seconds = time.monotonic() - started
        jobs, cpu_s, mine_s = meter.jobs - before, _cpu_s(generators) - cpu_s, time.process_time() - mine_s
        if painting.done():
            painting.result()
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)
    return MeasuredWindow(jobs / seconds / len(generators), jobs, seconds, cpu_s, mine_s)


async def _paint(client: AsyncClient, embeds: Embeds, meter: _Meter) -> None:
    async for outcome in client.generate_many(embeds, seeds=_ENDLESS, on_event=meter, **_OPTIONS):
        if outcome.error is not None:
            raise outcome.error


def _cpu_s(generators: list[HostedGenerator]) -> float:
    return sum(vitals(generator.pid).cpu_s for generator in generators)


if __name__ == "__main__":
    main()
