"""A process without free file descriptors."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

_STANDARD_STREAMS = 3


@contextmanager
def few_free(count: int = 0) -> Iterator[None]:
    """Leaves this process `count` free descriptors, by default none, while the block runs."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = [os.open(os.devnull, os.O_RDONLY) for _ in range(count)]  # the lowest that are free
    for one in found:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(found) + 1 if found else _STANDARD_STREAMS, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
