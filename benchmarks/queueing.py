"""What a job costs that waits: memory of the generator and of the client, and time to be taken, as the queue grows."""

import asyncio
import itertools
import os
import time
from dataclasses import dataclass

from hosted import Hosted
from measuring import Goal, Say
from vitals import slope, vitals

from zrelay_client import AsyncClient, Embeds, GenerateKeywords

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Point:
    """After so many jobs: resident bytes and processor seconds of the generator, wall seconds since the first."""

    jobs: int
    rss_bytes: int
    cpu_s: float
    wall_s: float


async def submitted(
    generator: Hosted, embeds: Embeds, jobs: int, options: GenerateKeywords, quiet_s: float, say: Say
) -> list[Goal]:
    """Detached jobs, nobody watches: P11.memory is KiB of the generator a job over the second half of them, P11.flat
    that over the same of the first half, P11.cost the processor time to take one of the last tenth over the first.
    `quiet_s` of looking at what they cost once all wait."""
    await asyncio.to_thread(generator.vitals)  # it has started
    every, points, started = max(1, jobs // 10), [], time.monotonic()
    async with AsyncClient(generator=generator.endpoint, timeout_s=3600.0) as client:
        for begun in range(0, jobs + 1, every):
            now = await asyncio.to_thread(generator.vitals)
            points.append(Point(begun, now.rss_bytes, now.cpu_s, time.monotonic() - started))
            if begun < jobs:
                await _submit(client, embeds, range(begun, begun + every), options)
        quiet = await asyncio.to_thread(_share, generator, quiet_s)
    first, second = points[1 : len(points) // 2 + 1], points[len(points) // 2 :]
    by_job = [slope([(p.jobs, p.rss_bytes / 1024) for p in half]) for half in (first, second)]
    costs = [(b.cpu_s - a.cpu_s) / every for a, b in itertools.pairwise(points)]
    for point, cost in zip(points[1:], costs, strict=True):
        say(
            f"P11.memory: {point.jobs} queued: {point.rss_bytes / 2**20:.0f} MiB, {cost * 1e3:.1f} ms of processor "
            f"time to take one, {point.wall_s:.0f} s since the first"
        )
    say(f"P11.memory: with {jobs} queued and nobody watching the generator takes {quiet:.1%} of a core")
    return [
        Goal("P11.memory", f"generator, resident memory of a queued job up to {jobs}", by_job[1], 8.0, "KiB"),
        Goal("P11.flat", "the same, second half of the queue / first half", by_job[1] / max(by_job[0], 0.1), 1.2),
        Goal("P11.cost", "processor time to take a job, last tenth / first", costs[-1] / max(costs[0], 1e-4), 1.5),
    ]


async def watched(
    generator: Hosted, embeds: Embeds, jobs: int, options: GenerateKeywords, quiet_s: float, say: Say
) -> list[Goal]:
    """One client that watches all of them: KiB a job on its side, and what the heart-beats cost both."""
    async with AsyncClient(generator=generator.endpoint, timeout_s=3600.0) as client:
        await client.generator_info()
        before = vitals(os.getpid()).rss_bytes
        painting = asyncio.create_task(_paint(client, embeds, jobs, options))
        while (await client.generator_info()).queue.waiting < jobs - 16 and not painting.done():
            await asyncio.sleep(1.0)
        grown = vitals(os.getpid()).rss_bytes - before
        mine, theirs = await asyncio.gather(
            asyncio.to_thread(_share_of, os.getpid(), quiet_s), asyncio.to_thread(_share, generator, quiet_s)
        )
        painting.cancel()
        await asyncio.gather(painting, return_exceptions=True)
    say(f"P11.client: {jobs} jobs watched: {theirs:.0%} of a core in the generator, {mine:.0%} in the client")
    return [
        Goal("P11.client", f"client, resident memory of each of {jobs} watched jobs", grown / 1024 / jobs, 64, "KiB")
    ]


async def _submit(client: AsyncClient, embeds: Embeds, seeds: range, options: GenerateKeywords) -> None:
    left = iter(seeds)

    async def some() -> None:
        for seed in left:
            asked: GenerateKeywords = {**options, "seed": seed}
            await client.submit(embeds, **asked)

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


async def _paint(client: AsyncClient, embeds: Embeds, jobs: int, options: GenerateKeywords) -> None:
    async for outcome in client.generate_many(embeds, seeds=range(jobs), in_flight=jobs, **options):
        if outcome.error is not None:
            raise outcome.error


def _share(generator: Hosted, seconds: float) -> float:
    """Of a core that the generator takes."""
    return _share_of(generator.pid, seconds)


def _share_of(pid: int, seconds: float) -> float:
    before = vitals(pid).cpu_s
    time.sleep(seconds)
    return (vitals(pid).cpu_s - before) / seconds
