"""The number of tokens that one forward may have. It shrinks after a forward ran out of memory and grows later."""

from dataclasses import dataclass, field

_SHARE_AFTER_FAILURE = 0.75
"""Later ticks get this share of the tokens of a tick that ran out of memory."""
_GROWTH = 1.125
"""Factor by which the budget grows at a time."""
_TICKS_TO_GROW = 64
"""Successful ticks before the budget grows, at first."""
_MOST_TICKS_TO_GROW = 8192


@dataclass(slots=True)
class TokenBudget:
    """Tokens of a tick, at most `limit`.

    The cause of the shortage may disappear later (another process, a large decode, fragmentation) or may stay, so the
    budget grows again. Each failed attempt to grow doubles the number of ticks before the next attempt, up to 8192,
    until that many ticks at the full `limit` have succeeded.

    Attributes:
        limit: The configured number of tokens.
        tokens: The number of tokens that a tick may have now.
    """

    limit: int
    tokens: int = field(init=False)
    _wait: int = field(default=_TICKS_TO_GROW, init=False)
    _successes: int = field(default=0, init=False)
    _grown: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.tokens = self.limit

    def exhausted(self, tokens: float) -> None:
        """Records that a tick of `tokens` tokens ran out of memory."""
        if self._grown:
            self._wait = min(2 * self._wait, _MOST_TICKS_TO_GROW)
        self.tokens = max(1, min(self.tokens, int(tokens * _SHARE_AFTER_FAILURE)))
        self._successes, self._grown = 0, False

    def succeeded(self) -> None:
        """Records that a tick succeeded."""
        if self.tokens == self.limit and not self._grown:
            return
        self._successes += 1
        if self._successes < self._wait:
            return
        self._successes = 0
        if self.tokens < self.limit:
            self.tokens, self._grown = min(self.limit, max(self.tokens + 1, int(self.tokens * _GROWTH))), True
        else:
            self._wait, self._grown = _TICKS_TO_GROW, False
