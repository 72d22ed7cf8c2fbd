"""A job that takes some seconds, running in a client."""

import asyncio
from typing import Any

from zrelay_client import AsyncClient, Embeds, Event, Progress

LONG: dict[str, Any] = {"width": 256, "height": 256, "num_inference_steps": 16, "deterministic": True, "seed": 5}


class Watched:
    """A running job of LONG, and the events that its client received."""

    def __init__(self, client: AsyncClient, embeds: Embeds, request_id: str) -> None:
        self.events: list[Event] = []
        self._reached = asyncio.Event()
        self._seen: dict[type, asyncio.Event] = {}
        self.work = asyncio.create_task(
            client.generate(embeds, request_id=request_id, on_event=self._note, timeout_s=240, **LONG)
        )

    def _note(self, event: Event) -> None:
        self.events.append(event)
        self._seen.setdefault(type(event), asyncio.Event()).set()
        if isinstance(event, Progress) and event.stage == "denoise" and event.completed >= 3:
            self._reached.set()

    async def midway(self) -> None:
        """Returns once three steps are done, and the job is not."""
        await self._before_the_end(self._reached)

    async def saw(self, kind: type[Event]) -> None:
        """Returns once the client received an event of this kind, and the job is not done."""
        await self._before_the_end(self._seen.setdefault(kind, asyncio.Event()))

    def count(self, kind: type[Event]) -> int:
        """Returns how many events of this kind the client received."""
        return sum(isinstance(event, kind) for event in self.events)

    async def _before_the_end(self, reached: asyncio.Event) -> None:
        waiting = asyncio.create_task(reached.wait())
        await asyncio.wait({waiting, self.work}, timeout=240, return_when=asyncio.FIRST_COMPLETED)
        assert not self.work.done()
        assert waiting.done()
