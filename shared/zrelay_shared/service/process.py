"""Process-wide set-up of a service: logging, the memory allocator and the garbage collector."""

import ctypes
import gc
import logging
import os
import sys
import textwrap
from typing import Any

from zrelay_shared import private, texts

LOG_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"
_NOISY_LOGGERS = ("asyncio", "urllib3", "filelock", "httpx")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_MMAP_BYTES = 32 << 20
_TRIM_BYTES = 256 << 20


class LineFormatter(logging.Formatter):
    """Formats an event as one line, so that texts of callers cannot add lines of their own.

    A traceback follows on indented lines, as no event begins.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Returns the line of the event."""
        return texts.one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """Returns the traceback, indented."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:
        """Returns the stack, indented."""
        return _indented(super().formatStack(stack_info))


def _indented(text: str) -> str:
    return textwrap.indent(texts.printable(text), "  ")


def configure_logging(level: str) -> None:
    """Logs events of `level` (debug, info, warning, error) and above to stderr, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(LOG_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for noisy in _NOISY_LOGGERS:
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def keep_files_private() -> None:
    """Makes every file that this process creates its owner's alone, those of libraries too."""
    os.umask(private.UMASK)


def keep_large_buffers() -> bool:
    """Makes glibc keep buffers of up to 32 MiB (one message) on the heap, and up to 256 MiB of freed heap.

    Page faults of fresh large buffers are the main cost of moving tensors: without this a transfer of 7.7 MB takes two
    to five times as long (performance.md, section 2). Call it once, at the start of the process.

    Returns:
        Whether the allocator is glibc and accepted the values.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))


def freeze_objects() -> None:
    """Excludes all current objects from garbage collection. Call it once, when the model is loaded.

    CPython examines old objects only after a quarter as many new objects have become old. With the 400,000 objects of
    torch and transformers that is 100,000: until then unreachable cycles accumulate (each grpc.aio call leaves a small
    one), and the examination itself stops every thread for a good part of a second.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # updates the collector's count of old objects
