"""Shares of something limited, so that one caller does not take it all.

A caller may use a percentage of what the others leave: the first one leaves a part for the others, the second a part of
what the first left, and so on. A new caller finds something until nothing is left to divide.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Generic, TypeVar

T = TypeVar("T")

CALLER_SHARE_PERCENT = 75
"""What one caller may take of the places that the others leave."""


def caller_share(left: float, percent: float = CALLER_SHARE_PERCENT) -> float:
    """Returns how much of what other callers leave one caller may take."""
    return max(0.0, left) * percent / 100.0


def equal_share(used: Iterable[float], limit: float) -> float:
    """Returns the largest share such that everybody's use, cut to this share, fits a limit (max-min fairness).

    Who uses less than `limit` divided by their number keeps everything, whatever the others use.

    Args:
        used: What each of them uses.
        limit: What they may use together.

    Returns:
        The share; infinity if all of it fits.
    """
    left, amounts = limit, sorted(used)
    for place, amount in enumerate(amounts):
        share = left / (len(amounts) - place)
        if amount > share:
            return share
        left -= amount
    return math.inf


class Shares:
    """What callers use of something limited. Amounts are whole numbers: places, calls, bytes.

    Attributes:
        total: Limit of what all callers use.
    """

    def __init__(self, total: int, percent: float = CALLER_SHARE_PERCENT) -> None:
        """Starts with nothing in use.

        Args:
            total: Limit of what all callers use.
            percent: What one caller may use of what the others leave.
        """
        self.total, self._percent = total, percent
        self._used: Counter[str] = Counter()

    @property
    def used(self) -> int:
        """What all callers use."""
        return self._used.total()

    def used_by(self, caller: str) -> int:
        """Returns what a caller uses."""
        return self._used.get(caller, 0)

    def limit_of(self, caller: str) -> int:
        """Returns what a caller may use at the moment, rounded up: of one place a caller may have it."""
        return math.ceil(caller_share(self.total - self.used + self.used_by(caller), self._percent))

    def at_limit(self, caller: str, amount: int = 1) -> bool:
        """Whether a caller would exceed its own limit with more."""
        own = self.used_by(caller)
        return bool(own) and own + amount > self.limit_of(caller)

    @property
    def limit_alone(self) -> int:
        """What a caller may use while there is no other."""
        return math.ceil(caller_share(self.total, self._percent))

    def take(self, caller: str, amount: int = 1) -> bool:
        """Takes an amount. Returns False, and takes nothing, if a limit would be exceeded.

        A caller that uses nothing is only bound by the total.
        """
        if self.used + amount > self.total or self.at_limit(caller, amount):
            return False
        self._used[caller] += amount
        return True

    def give(self, caller: str, amount: int = 1) -> None:
        """Returns an amount."""
        self._used[caller] -= amount
        if not self._used[caller]:
            del self._used[caller]


class CallerTurns(Generic[T]):
    """What callers wait with: one item of each caller in turn, and those of one caller in their order."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[T]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, caller: str, item: T) -> None:
        """Adds an item behind those of its caller."""
        self._waiting.setdefault(caller, deque()).append(item)

    def pop(self) -> T:
        """Removes and returns the next item. Raises StopIteration if there is none."""
        caller, own = next(iter(self._waiting.items()))
        item = own.popleft()
        self._waiting.move_to_end(caller)
        if not own:
            del self._waiting[caller]
        return item
