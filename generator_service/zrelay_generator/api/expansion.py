"""Bounds the memory of requests that name contents: all together, while their contents are in memory."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from zrelay_shared.callers import current_caller
from zrelay_shared.errors import MessageTooLarge
from zrelay_shared.service.decoding import StartedWork
from zrelay_shared.shares import CallerTurns

T = TypeVar("T")
MAX_EXPANDED_BYTES = 512 << 20
"""Bytes of the contents of all requests that are being read. Nine images of 32 MiB and eight SigLIP grids of the
largest published checkpoint take 370 MiB."""


class ExpansionBudget:
    """Starts work on contents as long as the contents fit into memory together.

    Callers take turns. Who has its turn waits until its contents fit, and the others behind it: large contents are not
    passed by small ones.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = self._free = most_bytes
        self._turn, self._released = _FairLock(), asyncio.Event()

    async def run(self, size: int, start: Callable[[], StartedWork[T]]) -> T:
        """Waits until `size` bytes are free, starts work, and returns its result.

        The bytes are free again when the work has ended, also if the caller is cancelled before.

        Raises:
            MessageTooLarge: The whole budget is smaller.
        """
        if size > self._most_bytes:
            raise MessageTooLarge(
                f"spec: expected names of contents of at most {self._most_bytes} bytes together, each counted as often "
                f"as it is named, got {size}: name fewer contents, or smaller ones",
                field="spec",
                metadata={"bytes": size, "max_bytes": self._most_bytes},
            )
        async with self._turn:
            while self._free < size:
                self._released.clear()
                await self._released.wait()
            self._free -= size

        def ended(future: "asyncio.Future[T]") -> None:
            self._free += size
            self._released.set()
            if not future.cancelled():
                future.exception()  # retrieved here: the caller may be gone

        work = start()
        work.future.add_done_callback(ended)
        return await work.result()


class _FairLock:
    """A lock that callers hold in turn."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: CallerTurns[asyncio.Future[None]] = CallerTurns()

    async def __aenter__(self) -> None:
        if not self._held:
            self._held = True
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.put(current_caller().name, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this one's turn already
                self._release()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._held = False
