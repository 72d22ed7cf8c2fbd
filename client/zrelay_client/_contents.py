"""Inputs that are sent to a generator once and then named by their digest."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from zrelay_shared.errors import FeatureMissing, ZrelayError
from zrelay_shared.wire import Parcel

LEAST_BYTES = 2048
"""What is smaller travels with every request: naming it would save nothing."""


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes by their name; `make` makes them again when they have to be sent (they are not kept twice)."""

    sha256: str
    size_bytes: int
    make: Callable[[], bytes]


def content_of(parcel: Parcel[Any], part: Any) -> Content:
    """A sub-message of a parcel, serialized, as content."""

    def make() -> bytes:
        whole = Parcel(type(part)(), parcel)
        whole.message.CopyFrom(part)
        return whole.to_bytes()

    data = make()
    return Content(hashlib.sha256(data).hexdigest(), len(data), make)


def content_of_file(data: bytes) -> Content:
    """A file as content."""
    return Content(hashlib.sha256(data).hexdigest(), len(data), lambda: data)


class Contents:
    """What one generator holds, as far as this client knows. Callers that want the same content share one upload."""

    def __init__(self, send: Callable[[Content], Awaitable[None]]) -> None:
        self._send = send
        self._held: dict[str, asyncio.Task[None]] = {}
        self.possible = True
        """Whether the generator takes content at all; known after the first try."""

    async def hold(self, content: Content) -> bool:
        """Sees to it that the generator holds it; False where it takes none, so that inputs must travel whole."""
        while self.possible:
            task = self._held.get(content.sha256)
            if task is None:
                task = self._held[content.sha256] = asyncio.create_task(self._upload(content))
            try:
                await asyncio.shield(task)  # who gives up waiting does not end it for the others
            except FeatureMissing:
                self.possible = False
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
            else:
                return True
        return False

    def forget(self, sha256: str) -> None:
        """The generator has it no more."""
        task = self._held.get(sha256)
        if task is not None and task.done():
            del self._held[sha256]

    async def _upload(self, content: Content) -> None:
        try:
            await self._send(content)
        except (ZrelayError, asyncio.CancelledError):
            self._held.pop(content.sha256, None)
            raise

    def close(self) -> None:
        """Ends the uploads that are under way."""
        for task in self._held.values():
            task.cancel()
