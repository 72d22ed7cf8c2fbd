"""Whether the device still beats: what it works on since when, for a watchdog on another thread."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_LEAST_S = 60.0
"""A unit of work is never called stuck before: a first forward may compile kernels and read weights from a disk."""
_TIMES = 20.0
"""Times the expected seconds after which a unit is called stuck."""


class Watchdog:
    """The unit of work under way. One thread works, any may look."""

    def __init__(self) -> None:
        self._due: float | None = None

    @contextmanager
    def beat(self, expected_s: float) -> Iterator[None]:
        """Around a unit of work that should take so long (0: not known)."""
        self._due = time.monotonic() + max(_LEAST_S, _TIMES * expected_s)
        try:
            yield
        finally:
            self._due = None

    @property
    def stuck_s(self) -> float:
        """Seconds by which the unit under way is over any time it could take; 0 while all is well."""
        due = self._due
        return 0.0 if due is None else max(0.0, time.monotonic() - due)
