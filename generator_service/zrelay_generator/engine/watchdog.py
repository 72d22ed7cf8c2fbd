"""Watches the unit of work on the device, from another thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LEAST_S = 60.0
"""A unit is never overdue before this: a first forward may compile kernels and read weights from a disk."""
_TIMES_EXPECTED = 20.0
"""A unit is overdue after this multiple of its expected seconds."""


class Watchdog:
    """Measures how long the current unit of work runs. One thread works; any thread may read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Creates a watchdog without a unit under way.

        Args:
            clock: Seconds that only grow.
        """
        self._clock = clock
        self._due: float | None = None

    @contextmanager
    def unit(self, expected_s: float) -> Iterator[None]:
        """Marks the `with` block as one unit of work.

        Args:
            expected_s: Seconds that it should take; 0 if that is not known.
        """
        self._due = self._clock() + max(_LEAST_S, _TIMES_EXPECTED * expected_s)
        try:
            yield
        finally:
            self._due = None

    @property
    def overdue_s(self) -> float:
        """Seconds by which the current unit exceeds its longest plausible time; 0 if nothing is wrong."""
        due = self._due
        return 0.0 if due is None else max(0.0, self._clock() - due)
