"""How long a job lives that nobody watches."""

import asyncio
from collections.abc import Callable

from zrelay_generator.jobs.entry import Entry


class Leases:
    """One timer for each job that is not watched, not detached and not over."""

    def __init__(self, seconds: float, expired: Callable[[Entry], None]) -> None:
        self._seconds, self._expired = seconds, expired

    def look(self, entry: Entry, least_s: float = 0.0) -> None:
        """To be called when any of that has changed: starts a lease (of `least_s` at least) or lets it go."""
        if entry.lease is not None:
            entry.lease.cancel()
            entry.lease = None
        if not (entry.detached or entry.watchers or entry.over):
            entry.lease = asyncio.get_running_loop().call_later(max(self._seconds, least_s), self._expire, entry)

    def _expire(self, entry: Entry) -> None:
        entry.lease = None
        self._expired(entry)
