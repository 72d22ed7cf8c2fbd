"""glibc's allocator, set for buffers of megabytes that come and go."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_BYTES = 32 << 20
_TRIM_BYTES = 256 << 20


def keep_large_buffers() -> bool:
    """Keeps buffers up to 32 MiB (one message) on the heap, and freed heap up to 256 MiB with the process.

    Page faults of fresh large buffers are the main cost of moving tensors: without this a hand-over of 7.7 MB takes two
    to five times as long (performance.md, section 2). Call it once, at start. False where there is no glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
