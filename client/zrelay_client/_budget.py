"""A deadline as a budget: every hop gets what the ones before it left."""

import math
import time

from zrelay_shared.errors import DeadlineExceeded, InvalidArgument

DEFAULT_S = 1800.0
"""For a whole picture, its time in a queue included."""
CONNECT_S = 10.0
"""For the first answer of a service; what takes longer is not there."""

RECONNECT_S = 120.0
"""A generator that holds a job and does not answer is tried for so long: time for it to be started again."""


class Budget:
    """Counts down from `seconds`, which are above 0. Raises InvalidArgument (TIMEOUT_INVALID) where they are not."""

    def __init__(self, seconds: float) -> None:
        if not 0 < seconds < math.inf:
            raise InvalidArgument(
                f"timeout_s: expected a number of seconds above 0, got {seconds:g}",
                field="timeout_s",
                reason="TIMEOUT_INVALID",
            )
        self._seconds = seconds
        self._started = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def left(self, stage: str) -> float:
        """Seconds for `stage`. Raises DeadlineExceeded naming it where none are left."""
        left = self._seconds - self.spent
        if left <= 0:
            raise DeadlineExceeded(
                f"the time of {self._seconds:g} s was up before {stage} could begin: allow more with a longer timeout",
                metadata={"stage": stage, "budget_s": self._seconds},
            )
        return left
