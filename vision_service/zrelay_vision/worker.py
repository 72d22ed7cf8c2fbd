"""The vision service's device worker, with a second thread that reads and decodes images."""

import contextlib
from collections.abc import Callable
from typing import TypeVar

from zrelay_shared.service.decoding import give_back_memory
from zrelay_shared.service.worker import DeviceWorker
from zrelay_shared.shares import CALLER_SHARE_PERCENT

T = TypeVar("T")
_SLOTS = 2
"""Calls that hold decoded pixels at the same time: one on the device, one whose image is being decoded."""


class VisionWorker(DeviceWorker):
    """Runs device work in one thread and image work in another. At most two calls are processed at the same time."""

    def __init__(
        self,
        max_waiting: int,
        on_start: Callable[[], None] = lambda: None,
        *,
        share_percent: float = CALLER_SHARE_PERCENT,
    ) -> None:
        """Makes the worker; see `DeviceWorker`."""
        super().__init__("vision-device", max_waiting, on_start, slots=_SLOTS, share_percent=share_percent)
        self._images = self.add_thread("vision-images")

    async def on_images(self, work: Callable[[], T]) -> T:
        """Runs `work` in the image thread, as a part of a call."""
        return await self.on_thread(self._images, work)

    def give_back_memory(self) -> None:
        """Gives free memory back to the system, in the image thread. Does not wait for it."""
        with contextlib.suppress(RuntimeError):  # the threads have ended
            self._images.submit(give_back_memory)
