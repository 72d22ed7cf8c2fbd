"""How many tokens a tick may have: fewer after one that did not fit, more again while all goes well."""

from dataclasses import dataclass, field

_AFTER_OUT_OF_MEMORY = 0.75
"""Share of the tokens of a tick that did not fit which later ticks may have."""
_STEP = 1.125
"""Factor by which they may have more again."""
_GOOD_TICKS = 64
"""Ticks that went well, at first, before they may have more."""
_MOST_GOOD_TICKS = 8192


@dataclass(slots=True)
class TokenBudget:
    """Tokens of a tick, at most `most`.

    What was in the way may be gone (another process, a large decode, fragments), or may be there for good. So it is
    tried again; each trial that fails doubles the wait for the next one, up to 8192 ticks, until `most` itself goes
    well as long.
    """

    most: int
    tokens: int = field(init=False)
    _wait: int = field(default=_GOOD_TICKS, init=False)
    _good: int = field(default=0, init=False)
    _raised: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.tokens = self.most

    def ran_out(self, tokens: float) -> None:
        """A tick of so many tokens did not fit."""
        if self._raised:
            self._wait = min(2 * self._wait, _MOST_GOOD_TICKS)
        self.tokens = max(1, min(self.tokens, int(tokens * _AFTER_OUT_OF_MEMORY)))
        self._good, self._raised = 0, False

    def went_well(self) -> None:
        """A tick went well."""
        if self.tokens == self.most and not self._raised:
            return
        self._good += 1
        if self._good < self._wait:
            return
        self._good = 0
        if self.tokens < self.most:
            self.tokens, self._raised = min(self.most, max(self.tokens + 1, int(self.tokens * _STEP))), True
        else:
            self._wait, self._raised = _GOOD_TICKS, False
