"""Bounds the images that are in memory because streams send them, so that many streams of few images cost little."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from zrelay_shared.calls import DEFAULT_CALL_LIMITS
from zrelay_shared.limits import MIB
from zrelay_shared.shares import Shares

IMAGE_ROOM_BYTES = 512 * MIB
_CALLER_PERCENT = 25


class ImageRoom:
    """Room for images that are being sent, in bytes of their pixels, in total and for one caller.

    A stream waits for room before it reads an image. It gives the room back once the image has left, or after some
    seconds: from then on the limit of slowly read bytes holds (`zrelay_shared.calls`), so that callers that do not read
    delay others for these seconds at most.
    """

    def __init__(
        self,
        total: int = IMAGE_ROOM_BYTES,
        caller_percent: float = _CALLER_PERCENT,
        held_s: float = DEFAULT_CALL_LIMITS.prompt_send_s,
    ) -> None:
        """Creates empty room.

        Args:
            total: Bytes of all callers.
            caller_percent: What one of them may have of what the others leave.
            held_s: Longest time in seconds that an image has room.
        """
        self._shares, self._held_s = Shares(total, caller_percent), held_s
        self._waiting: dict[asyncio.Future[None], tuple[str, int]] = {}

    @asynccontextmanager
    async def taken(self, caller: str, size: int) -> AsyncIterator[None]:
        """Has room for an image of `size` bytes while the block runs. Those who wait pass the waiting of others."""
        size = min(size, self._shares.limit_alone)
        place = _TakenRoom(self, caller, size)
        try:
            if any(other == caller for other, _ in self._waiting.values()) or not self._shares.take(caller, size):
                turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting[turn] = caller, size
                try:
                    await turn
                finally:
                    self._waiting.pop(turn, None)
                    place.held = turn.done() and not turn.cancelled()
            else:
                place.held = True
            timer = asyncio.get_running_loop().call_later(self._held_s, place.give_back)
            try:
                yield
            finally:
                timer.cancel()
        finally:
            place.give_back()

    def give(self, caller: str, size: int) -> None:
        """Takes room back, and lets those continue for whom there is room now."""
        self._shares.give(caller, size)
        stopped = set()
        for turn, (waiting, wanted) in list(self._waiting.items()):
            if waiting in stopped or turn.done():
                continue
            if self._shares.take(waiting, wanted):
                del self._waiting[turn]
                turn.set_result(None)
            else:
                stopped.add(waiting)


class _TakenRoom:
    """Room that one image has, or had."""

    def __init__(self, room: ImageRoom, caller: str, size: int) -> None:
        self._room, self._caller, self._size = room, caller, size
        self.held = False

    def give_back(self) -> None:
        if self.held:
            self.held = False
            self._room.give(self._caller, self._size)
