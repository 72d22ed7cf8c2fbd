"""A soak: mixed load on a real generator for a while, and afterwards nothing may have piled up.

    python benchmarks/soak.py [--minutes 15] [--callers 6] [--seed 0] [--json]

Callers paint pictures of all sorts (sizes, guidance, previews, start images, skipped layers, priorities, formats),
cancel at random, lose their connections, come back with new ones, or disappear for good. Wrong is: an answer that
should not be, an image that differs from what the same deterministic job gave before, resident memory of generator or
client that grows by more than a mebibyte a minute over the last two thirds (of four minutes or more), and threads, open
files, tasks, rows or files that are left when all is quiet. Exit code 0 where nothing is wrong, else 1.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from cutting import CuttableLink, cuttable
from hosted import GeneratorHost, HostedGenerator, HostedSettings
from measuring import Say, sayer
from mixed import SoakCaller, Tally
from residue import residue
from servers import started
from vitals import Vitals, slope, vitals

from zrelay_client import AsyncClient, Embeds
from zrelay_demo import CHECKPOINT

GROWTH_MIB_MIN = 1.0
"""Of resident memory. Allocators never give all back; a leak of one small image a second would be three times that."""
_JUDGED_MIN = 4.0
"""Of a run whose memory is judged: before, pools and caches fill."""
KEEP_RESULTS, LEASE_S = 200, 3.0
_SAMPLE_S = 2.0
_POOLED_THREADS = min(32, (os.cpu_count() or 1) + 4) + 2
"""asyncio's own pool and the store's: a thread more each time that all are busy, up to so many, for good."""
_SPARE_THREADS, _SPARE_FILES, _SPARE_TASKS = _POOLED_THREADS, 4, 2
"""More than before the load that may be left: pools that grow to their size once, a connection that is being closed."""
_PROMPTS = ("a small red circle on a blue background", "two large striped green stars", "a dotted purple heart")


@dataclass
class Watch:
    """Vitals of both processes as time goes by: (minutes, generator, client)."""

    samples: list[tuple[float, Vitals, Vitals]] = field(default_factory=list)

    @property
    def growth(self) -> dict[str, float]:
        """MiB a minute of each over the last two thirds; nothing where nothing was seen."""
        if not self.samples:
            return {}
        late = self.samples[len(self.samples) // 3 :]
        return {
            "generator": slope([(minute, theirs.rss_bytes / 2**20) for minute, theirs, _ in late]),
            "client": slope([(minute, mine.rss_bytes / 2**20) for minute, _, mine in late]),
        }

    def wrong(self) -> list[str]:
        if not self.samples or self.samples[-1][0] < _JUDGED_MIN:
            return []
        return [
            f"memory of the {who} grows by {mib:.2f} MiB a minute, at most {GROWTH_MIB_MIN:g} is allowed"
            for who, mib in self.growth.items()
            if mib > GROWTH_MIB_MIN
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--callers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one object of what was measured and what is wrong")
    args = parser.parse_args()
    say = sayer(args.json)
    with tempfile.TemporaryDirectory(prefix="zrelay-") as folder, GeneratorHost() as host:
        state = Path(folder) / "state"
        options = (("keep_results", KEEP_RESULTS), ("lease_s", LEASE_S), ("keep_contents_bytes", 4 << 20))
        generator = host.start(HostedSettings(CHECKPOINT, state, options))
        report = asyncio.run(_soak(generator, state, args.minutes, args.callers, args.seed, say))
    if args.json:
        print(json.dumps(report))
    wrong = report["wrong"]
    say("nothing is wrong" if not wrong else "WRONG:\n" + "\n".join(f"- {line}" for line in wrong))
    return 1 if wrong else 0


async def _soak(
    generator: HostedGenerator, state: Path, minutes: float, callers: int, seed: int, say: Say
) -> dict[str, list[str]]:
    endpoint = await asyncio.to_thread(lambda: generator.endpoint)
    embeds, picture = await _inputs(endpoint)
    before, tasks_before = await asyncio.to_thread(generator.vitals), len(asyncio.all_tasks())
    say(f"soak: {minutes:g} minutes, {callers} callers, seed {seed}; {_told(before)} before")
    tally, watch = Tally(), Watch()
    ends = asyncio.get_running_loop().time() + minutes * 60.0
    async with (
        cuttable(endpoint) as link,
        AsyncClient(generator=endpoint) as direct,
        AsyncClient(generator=link.endpoint) as lossy,
    ):
        chances = [random.Random(seed * 1000 + number) for number in range(callers)]
        work = [SoakCaller(endpoint, embeds, picture, chance, tally).run(direct, lossy, ends) for chance in chances]
        beside = [
            asyncio.create_task(_cutting(link, random.Random(seed))),
            asyncio.create_task(_look(generator, watch, say)),
        ]
        await asyncio.gather(*work)
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
    await _idle(endpoint)
    after, rows, left = await _settled(generator, state, before)
    tasks_after = len(asyncio.all_tasks())
    wrong = [*dict.fromkeys(tally.wrong), *watch.wrong(), *left]
    if tasks_after > tasks_before:
        wrong.append(f"{tasks_after} tasks of the client, {tasks_before} before the load")
    told = [
        f"{sum(tally.done.values())} turns, {tally.images} images: "
        + ", ".join(f"{count} {name}" for name, count in sorted(tally.done.items())),
        f"memory: {', '.join(f'{who} {mib:+.2f} MiB a minute' for who, mib in watch.growth.items())}",
        f"before: {_told(before)}; after: {_told(after)}; tasks of the client {tasks_before}, then {tasks_after}",
        f"state folder: {rows}",
    ]
    for line in told:
        say(f"soak: {line}")
    return {"told": told, "wrong": wrong}


def _left(before: Vitals, after: Vitals) -> list[str]:
    """Sentences about what is left of the load in the generator."""
    return [
        f"{now} {what}, {then} before the load"
        for what, now, then, spare in (
            ("threads", after.threads, before.threads, _SPARE_THREADS),
            ("open files", after.files, before.files, _SPARE_FILES),
            ("tasks", after.tasks, before.tasks, _SPARE_TASKS),
        )
        if now > then + spare
    ]


async def _inputs(generator: str) -> tuple[list[Embeds], bytes]:
    """Embeddings of some prompts, with the negative one, and a picture to start from."""

    async def encoded(endpoint: str) -> list[Embeds]:
        async with AsyncClient(encoder=endpoint) as client:
            return await client.encode_batch(_PROMPTS, negative_prompt="a large black square")

    with started("encoder", CHECKPOINT) as encoder:
        embeds = await encoded(encoder.endpoint)
    async with AsyncClient(generator=generator) as client:
        return embeds, (await client.generate(embeds[0], width=64, height=64, seed=1)).images[0].data


async def _cutting(link: CuttableLink, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.uniform(2.0, 10.0))
        link.reset()


async def _look(generator: HostedGenerator, watch: Watch, say: Say) -> None:
    started_at = last = time.monotonic()
    while True:
        await asyncio.sleep(_SAMPLE_S)
        now = time.monotonic()
        theirs = await asyncio.to_thread(generator.vitals)
        watch.samples.append(((now - started_at) / 60.0, theirs, vitals(os.getpid())))
        if now - last > 30.0:
            last = now
            say(f"soak: {(now - started_at) / 60.0:.1f} min: {_told(theirs)}")


async def _idle(endpoint: str) -> None:
    """Waits until nothing is under way."""
    async with AsyncClient(generator=endpoint) as client:
        for _ in range(120):
            queue = (await client.generator_info()).queue
            if not queue.waiting and not queue.running:
                break
            await asyncio.sleep(1.0)


async def _settled(generator: HostedGenerator, state: Path, before: Vitals) -> tuple[Vitals, str, list[str]]:
    """Once nothing is left of the load, or when leases must have run out and retention must have had its turn: how the
    generator is, what its state folder holds, and sentences about what is left."""
    ends = time.monotonic() + LEASE_S + 15.0
    while True:
        after = await asyncio.to_thread(generator.vitals)
        rows, wrong = residue(state, KEEP_RESULTS)
        left = [*wrong, *_left(before, after)]
        if not left or time.monotonic() > ends:
            return after, rows, left
        await asyncio.sleep(1.0)


def _told(found: Vitals) -> str:
    return f"{found.rss_bytes / 2**20:.0f} MiB, {found.threads} threads, {found.files} files, {found.tasks} tasks"


if __name__ == "__main__":
    sys.exit(main())
