"""Finished latents to pixels: on the device thread, or beside the next step where the device has room for both.

On a CPU the device thread's own threads already fill every core that serving leaves, and a second one would take the
event loop's: decoding beside steps was measured to gain nothing there (docs/engine.md). A GPU has streams.
"""

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from zrelay_generator.engine.job import ImageState
from zrelay_generator.engine.refusals import without_frames
from zrelay_generator.engine.watchdog import Watchdog
from zrelay_generator.model.vae import Vae
from zrelay_shared.errors import Cancelled


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What became of an image: `pixels` [H, W, 3] uint8 on the CPU, or the exception; seconds it took."""

    image: ImageState
    pixels: Tensor | None
    error: Exception | None
    seconds: float


def decode_now(vae: Vae, image: ImageState, latents: Tensor) -> Decoded:
    """Decodes on the calling thread; an exception is in the result."""
    started = time.perf_counter()
    try:
        pixels = vae.decode(latents)
    except Exception as error:  # whatever it is, it ends this image's job and nothing else
        return Decoded(image, None, without_frames(error), time.perf_counter() - started)
    return Decoded(image, pixels, None, time.perf_counter() - started)


class DecodeThread:
    """Decodes one image after another on a thread and, on CUDA, a stream of its own. The device thread owns it."""

    def __init__(self, vae: Vae, device: torch.device, changed: Callable[[], None]) -> None:
        """`changed` is called, from the decoding thread, whenever a result is there."""
        self._vae = vae
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._changed = changed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._done: queue.SimpleQueue[Decoded] = queue.SimpleQueue()
        self._under_way = 0
        self.watchdog = Watchdog()

    @property
    def busy(self) -> bool:
        """Whether a result is still to be taken."""
        return self._under_way > 0

    @property
    def ready(self) -> bool:
        """Whether a result can be taken without waiting."""
        return not self._done.empty()

    def put(self, image: ImageState, latents: Tensor, expected_s: float = 0.0) -> None:
        """Hands an image over that should take so long (0: not known); returns at once."""
        self._under_way += 1
        event = None
        if self._stream is not None:
            event = torch.cuda.current_stream(latents.device).record_event()
        self._thread.submit(self._run, image, latents, event, expected_s)

    def take(self) -> Decoded:
        """The next result; waits for it."""
        result = self._done.get()
        self._under_way -= 1
        return result

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, image: ImageState, latents: Tensor, after: torch.cuda.Event | None, expected_s: float) -> None:
        if image.job.cancelled:  # since it was handed over: the device is free for the others
            self._done.put(Decoded(image, None, Cancelled("the job was cancelled"), 0.0))
            self._changed()
            return
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._stream is not None and after is not None:
                self._stream.wait_event(after)
                latents.record_stream(self._stream)
            with self.watchdog.beat(expected_s):
                result = decode_now(self._vae, image, latents)
            self._done.put(result)
        self._changed()
