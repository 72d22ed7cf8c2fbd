"""The deadline of a call as a budget that all of its hops share."""

import math
import time

from zrelay_shared.errors import DeadlineExceeded, InvalidArgument

DEFAULT_S = 1800.0
"""Default timeout of a call, including the time in queues."""
CONNECT_S = 10.0
"""Timeout of the first response of a service."""
RECONNECT_S = 120.0
"""How long the client retries a generator that holds a job and does not answer, so that it can be restarted."""


class Budget:
    """A timeout that counts down from its construction.

    Raises:
        InvalidArgument: TIMEOUT_INVALID, `seconds` is not above 0.
    """

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
        """Returns the seconds that are left for `stage`.

        Raises:
            DeadlineExceeded: No time is left; the error names the stage.
        """
        left = self._seconds - self.spent
        if left <= 0:
            raise DeadlineExceeded(
                f"the timeout of {self._seconds:g} s has passed before a call of the {stage} service: set a longer "
                "timeout",
                metadata={"stage": stage, "budget_s": self._seconds},
            )
        return left
