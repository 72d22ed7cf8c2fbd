"""Decodes finished latents to pixels: on the device thread, or on a thread of its own beside the next step.

On a CPU the device thread already uses every core that serving leaves, and a second one would take the event loop's:
decoding beside steps was measured to gain nothing there (docs/explanation/engine.md). A GPU has streams.
"""

import itertools
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from zrelay_generator.engine.job import ImageState
from zrelay_generator.engine.refusals import without_frames
from zrelay_generator.engine.watchdog import Watchdog
from zrelay_generator.model.vae import Vae
from zrelay_shared.errors import Cancelled


@dataclass(frozen=True, slots=True, eq=False)
class DecodeResult:
    """The outcome of one decode.

    Attributes:
        image: The image.
        pixels: [H, W, 3] uint8 on the CPU; None where it failed.
        error: Why it failed, else None.
        seconds: How long it took.
    """

    image: ImageState
    pixels: Tensor | None
    error: Exception | None
    seconds: float


def decode_now(vae: Vae, image: ImageState, latents: Tensor) -> DecodeResult:
    """Decodes on the calling thread. An exception becomes part of the result."""
    started = time.perf_counter()
    try:
        pixels = vae.decode(latents)
    except Exception as error:  # of any kind: it ends this image's job and nothing else
        return DecodeResult(image, None, without_frames(error), time.perf_counter() - started)
    return DecodeResult(image, pixels, None, time.perf_counter() - started)


class DecodeThread:
    """Decodes one image after another on a thread and, on CUDA, on a stream of its own. Owned by the device thread.

    The image of the most urgent class goes first, within a class the one that came first.
    """

    def __init__(
        self,
        vae: Vae,
        device: torch.device,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the thread.

        Args:
            vae: The decoder.
            device: The device of the latents.
            changed: Called from the decode thread whenever a result is ready.
            clock: Seconds that only grow, for the watchdog.
        """
        self._vae = vae
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._changed = changed
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")
        self._waiting: queue.PriorityQueue[tuple[int, int, Callable[[], None]]] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._results: queue.SimpleQueue[DecodeResult] = queue.SimpleQueue()
        self._pending = 0
        self.watchdog = Watchdog(clock)

    @property
    def busy(self) -> bool:
        """Whether a result is still to be taken."""
        return self._pending > 0

    @property
    def ready(self) -> bool:
        """Whether a result can be taken without waiting."""
        return not self._results.empty()

    def put(self, image: ImageState, latents: Tensor, expected_s: float = 0.0) -> None:
        """Queues an image and returns at once.

        Args:
            image: The image.
            latents: Its latents after the last step.
            expected_s: Seconds that the decode should take; 0 where that is not known.
        """
        self._pending += 1
        event = None
        if self._stream is not None:
            event = torch.cuda.current_stream(latents.device).record_event()
        work = partial(self._run, image, latents, event, expected_s)
        self._waiting.put((image.job.spec.priority, next(self._numbers), work))
        self._thread.submit(self._run_next)

    def take(self) -> DecodeResult:
        """Waits for the next result."""
        result = self._results.get()
        self._pending -= 1
        return result

    def close(self) -> None:
        """Ends the thread after the decode under way."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run_next(self) -> None:
        _, _, work = self._waiting.get_nowait()
        work()

    def _run(self, image: ImageState, latents: Tensor, after: torch.cuda.Event | None, expected_s: float) -> None:
        if image.job.cancelled:  # meanwhile: the device is free for the others
            self._results.put(DecodeResult(image, None, Cancelled("the job was cancelled"), 0.0))
            self._changed()
            return
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if self._stream is not None and after is not None:
                self._stream.wait_event(after)
                latents.record_stream(self._stream)
            with self.watchdog.unit(expected_s):
                result = decode_now(self._vae, image, latents)
            self._results.put(result)
        self._changed()
