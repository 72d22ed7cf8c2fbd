"""What the soak's callers do, each turn something else: paint, give up, lose the network, come back, disappear."""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cutting import cuttable

from zrelay_client import AsyncClient, Cancelled, Embeds, Event, GenerateKeywords, Image, ZrelayError

_SIDES = (64, 64, 96, 128)
_FIXED: GenerateKeywords = {"width": 64, "height": 64, "num_inference_steps": 3, "deterministic": True}
_FIXED_SEEDS = 8


@dataclass
class Tally:
    """What was done and what came of it; `wrong` are sentences about what must not be."""

    done: Counter[str] = field(default_factory=Counter)
    images: int = 0
    wrong: list[str] = field(default_factory=list)
    fixed: dict[int, str] = field(default_factory=dict)
    """Seed -> digest of the pixels that a deterministic job has to give each time."""


class Caller:
    """One of several, with a random generator of its own. `direct` and `lossy` reach the same generator, the latter
    over a link that is cut now and then."""

    def __init__(
        self, endpoint: str, embeds: list[Embeds], picture: bytes, chance: random.Random, tally: Tally
    ) -> None:
        self._endpoint, self._embeds, self._picture = endpoint, embeds, picture
        self._chance, self._tally = chance, tally

    async def run(self, direct: AsyncClient, lossy: AsyncClient, ends: float) -> None:
        """Turn after turn until the event loop's clock shows `ends`."""
        loop = asyncio.get_running_loop()
        turns: list[tuple[int, str, Callable[[], Awaitable[None]]]] = [
            (6, "painted", lambda: self._paint(direct)),
            (4, "painted over a bad link", lambda: self._paint(lossy)),
            (4, "given up", lambda: self._give_up(direct)),
            (2, "cancelled by name", lambda: self._cancel(direct)),
            (2, "left and fetched", lambda: self._leave_and_fetch(direct)),
            (1, "disappeared", self._disappear),
            (2, "painted the same again", lambda: self._paint_fixed(direct)),
        ]
        weights = [weight for weight, _, _ in turns]
        while loop.time() < ends:
            _, name, turn = self._chance.choices(turns, weights)[0]
            try:
                await turn()
                self._tally.done[name] += 1
            except ZrelayError as error:
                self._tally.done[f"{name}: {error.reason or error.code}"] += 1
                if error.code != "RESOURCE_EXHAUSTED":
                    self._tally.wrong.append(f"{name}: {error.code} {error.reason} {error.message[:160]}")

    def _options(self) -> GenerateKeywords:
        """Some picture: sizes, steps, guidance, previews, a start image, priorities, formats."""
        chance = self._chance
        asked: GenerateKeywords = {
            "width": chance.choice(_SIDES),
            "height": chance.choice(_SIDES),
            "num_inference_steps": chance.randint(2, 8),
            "seed": chance.randrange(1 << 30),
            "num_images": chance.choice((1, 1, 1, 2, 3)),
            "priority": chance.choice(("interactive", "normal", "normal", "batch")),
            "format": chance.choice(("png", "jpeg", "webp")),
        }
        if chance.random() < 0.3:
            asked["guidance_scale"] = 3.0
        if chance.random() < 0.3:
            asked["preview_every"] = 2
        if chance.random() < 0.2:
            asked["image"], asked["strength"] = self._picture, 0.6
        if chance.random() < 0.15:
            asked["skip_layer_guidance_scale"], asked["skip_guidance_layers"] = 2.0, (2,)
        return asked

    async def _paint(self, client: AsyncClient) -> None:
        asked = self._options()
        result = await client.generate(self._chance.choice(self._embeds), **asked)
        self._tally.images += len(result.images)
        if len(result.images) != asked["num_images"]:
            self._tally.wrong.append(f"expected {asked['num_images']} images, got {len(result.images)}")

    async def _give_up(self, client: AsyncClient) -> None:
        painting = asyncio.create_task(self._paint(client))
        await asyncio.wait({painting}, timeout=self._chance.uniform(0.0, 1.5))
        painting.cancel()
        with contextlib.suppress(Cancelled, asyncio.CancelledError):
            await painting

    async def _cancel(self, client: AsyncClient) -> None:
        job = await client.submit(self._chance.choice(self._embeds), **self._options())
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        after = await client.jobs.cancel(job.job_id)
        if after.state not in ("cancelled", "succeeded"):
            self._tally.wrong.append(f"expected a cancelled job to have ended, got {after.state}")

    async def _leave_and_fetch(self, client: AsyncClient) -> None:
        job = await client.submit(self._chance.choice(self._embeds), **self._options())
        for _ in range(2):  # watchers that go away in the middle, each with a connection of its own
            async with AsyncClient(generator=self._endpoint) as watcher:
                await self._watch_a_little(watcher, job.job_id)
        async with AsyncClient(generator=self._endpoint) as watcher:
            self._tally.images += len(await watcher.jobs.fetch(job.job_id))

    async def _watch_a_little(self, watcher: AsyncClient, job_id: str) -> None:
        left = self._chance.randint(1, 4)
        async with contextlib.aclosing(watcher.jobs.watch(job_id)) as events:
            async for event in events:
                left -= 1
                if isinstance(event, Image) or left == 0:
                    return

    async def _disappear(self) -> None:
        """A caller whose connection ends for good in mid-job: the lease has to end what it asked for."""
        heard = asyncio.Event()

        def note(event: Event) -> None:
            heard.set()

        async with cuttable(self._endpoint) as link, AsyncClient(generator=link.endpoint, timeout_s=20.0) as client:
            asked = self._options()
            painting = asyncio.create_task(client.generate(self._embeds[0], on_event=note, **asked))
            await asyncio.wait({asyncio.create_task(heard.wait()), painting}, timeout=10.0)
            await link.close()
            painting.cancel()
            with contextlib.suppress(ZrelayError, asyncio.CancelledError):
                await painting

    async def _paint_fixed(self, client: AsyncClient) -> None:
        asked: GenerateKeywords = {**_FIXED, "seed": self._chance.randrange(_FIXED_SEEDS)}
        seed = asked["seed"] or 0
        found = (await client.generate(self._embeds[0], **asked)).images[0].pixels_sha256
        self._tally.images += 1
        if self._tally.fixed.setdefault(seed, found) != found:
            self._tally.wrong.append(f"seed {seed}: expected the same pixels as before, got others")
