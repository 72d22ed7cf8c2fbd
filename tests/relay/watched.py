"""A job that takes some seconds, under way in a client."""

import asyncio

from zrelay_client import AsyncClient, Embeds, Event, GenerateOptions, Progress

LONG: GenerateOptions = {"width": 256, "height": 256, "num_inference_steps": 30, "deterministic": True, "seed": 5}


class Watched:
    """A job under way, and what was told of it."""

    def __init__(self, client: AsyncClient, embeds: Embeds, request_id: str) -> None:
        self.events: list[Event] = []
        self._reached = asyncio.Event()
        self.work = asyncio.create_task(
            client.generate(embeds, request_id=request_id, on_event=self._note, timeout_s=240, **LONG)
        )

    def _note(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Progress) and event.stage == "denoise" and event.completed >= 3:
            self._reached.set()

    async def midway(self) -> None:
        reached = asyncio.create_task(self._reached.wait())
        await asyncio.wait({reached, self.work}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert not self.work.done()
        assert reached.done()

    def count(self, kind: type) -> int:
        return sum(isinstance(event, kind) for event in self.events)
