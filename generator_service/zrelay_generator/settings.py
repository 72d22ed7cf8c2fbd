"""The generator's one configuration object, built and checked once."""

import os
from dataclasses import dataclass
from pathlib import Path

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class GeneratorConfig:
    """How one generator process runs.

    Attributes:
        model: a Z-Image pipeline folder.
        device, dtype: "auto" takes cuda, mps, cpu in this order, and bfloat16 where the device has it.
        threads: torch threads on a CPU; None leaves one core to the event loop.
        state: folder where jobs and contents are kept; None keeps them in memory until the process ends.
        max_waiting: requests that may wait.
        max_wait_s: estimated seconds of work before a request, above which it is refused.
        max_waiting_bytes: bytes on disk of what the requests that wait need.
        max_caller_waiting: requests of one caller (by address) that may wait; None sets no bound of its own.
        lease_s: seconds that a job lives which nobody watches, unless it was submitted detached.
        max_side, max_pixels: greatest side and area of an image, in pixels; the model may allow less.
        min_side: least side in pixels.
        max_steps, max_images: per request.
        tick_tokens: tokens packed into one forward; a single image may exceed it.
        deterministic: every job as if it had asked for it: the same picture bit for bit whatever shares the device.
        keep_results_s, keep_results, keep_results_bytes: how long ended jobs are kept for callers who come back, how
            many, and bytes of their images; the longest ended go first.
        keep_contents_bytes: bytes of embeddings and images that were sent and that no waiting job needs; the longest
            unused go first.
    """

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    state: Path | None = None
    max_waiting: int = 10_000
    max_wait_s: float = 600.0
    max_waiting_bytes: int = 4 << 30
    max_caller_waiting: int | None = None
    lease_s: float = 30.0
    max_side: int = 4096
    max_pixels: int = 4096 * 4096
    min_side: int = 64
    max_steps: int = 100
    max_images: int = 16
    tick_tokens: int = 16384
    deterministic: bool = False
    keep_results_s: float = 24 * 3600.0
    keep_results: int = 10_000
    keep_results_bytes: int = 2 << 30
    keep_contents_bytes: int = 2 << 30

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        for name in ("max_waiting", "max_side", "max_pixels", "min_side", "max_steps", "max_images", "tick_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if self.min_side > self.max_side:
            raise ValueError(f"min_side: expected at most max_side ({self.max_side}), got {self.min_side}")
        for name in (
            "max_wait_s",
            "max_waiting_bytes",
            "lease_s",
            "keep_results_s",
            "keep_results",
            "keep_results_bytes",
            "keep_contents_bytes",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.max_caller_waiting is not None and self.max_caller_waiting < 1:
            raise ValueError(f"max_caller_waiting: expected at least 1, got {self.max_caller_waiting}")


def serving_threads(threads: int | None) -> int:
    """Torch threads while serving on a CPU: as asked, else every usable core but the event loop's."""
    if threads is not None:
        return threads
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable - 1)
