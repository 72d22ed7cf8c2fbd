"""Shares of a limited number of places, so that one caller does not take them all."""

import math

CALLER_SHARE_PERCENT = 75
"""What one caller may take of the places that the others leave."""


def caller_share(left: float, percent: float = CALLER_SHARE_PERCENT) -> float:
    """Returns how much of what other callers leave one caller may take."""
    return max(0.0, left) * percent / 100.0


def caller_places(total: int, others: int, percent: float = CALLER_SHARE_PERCENT) -> int:
    """Returns how many of `total` places one caller may hold.

    The first caller leaves a quarter for the others, the second a quarter of what the first left, and so on: a new
    caller finds a place until there is none left to divide.

    Args:
        total: All places.
        others: Places that other callers hold.
        percent: The share.

    Returns:
        The number of places, rounded up: of one place a caller may have it.
    """
    return math.ceil(caller_share(total - others, percent))
