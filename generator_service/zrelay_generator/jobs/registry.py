"""Finding jobs: those that live in this process, and those that the store alone still knows."""

from collections.abc import Iterator
from heapq import nlargest

from zrelay_generator.jobs.archive import entry_of, whole_entry_of
from zrelay_generator.jobs.entry import ENDED, Entry, State
from zrelay_generator.store.rows import UNFINISHED, JobRow
from zrelay_generator.store.store import JobStore
from zrelay_shared.errors import NotFound, PayloadCorrupt


class Registry:
    """Jobs by their id and by their request's id. A job lives here until its end is in the store."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._by_id: dict[str, Entry] = {}
        self._by_request: dict[str, Entry] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._by_id.values()))

    def enter(self, entry: Entry) -> None:
        self._by_id[entry.id] = entry
        known = self._by_request.get(entry.request_id)
        if known is None or known.arrival <= entry.arrival:
            self._by_request[entry.request_id] = entry

    def leave(self, entry: Entry) -> None:
        self._by_id.pop(entry.id, None)
        if self._by_request.get(entry.request_id) is entry:
            del self._by_request[entry.request_id]

    def living(self, job_id: str) -> Entry | None:
        return self._by_id.get(job_id)

    async def by_id(self, job_id: str) -> Entry:
        """Raises NotFound."""
        entry = self._by_id.get(job_id) or await self._stored(await self._store.by_id(job_id))
        if entry is None:
            raise _unknown(job_id, "job_id")
        return entry

    async def by_request(self, request_id: str) -> Entry | None:
        """The latest job of a request's id."""
        return self._by_request.get(request_id) or await self._stored(await self._store.by_request(request_id))

    async def of_request(self, request_id: str) -> Entry:
        """As `by_request`. Raises NotFound."""
        entry = await self.by_request(request_id)
        if entry is None:
            raise _unknown(request_id, "request_id")
        return entry

    async def listed(self, before: int, states: frozenset[State], limit: int) -> list[Entry]:
        """Jobs in these states that arrived before another, newest first, at most `limit`."""
        living = {entry.id: entry for entry in self._by_id.values() if entry.arrival < before}
        ended = [state.value for state in states if state in ENDED]
        rows: list[JobRow] = []
        asked, more = limit, bool(ended)
        while more and len(rows) < limit:  # some of the store's live here still: then a few more of them
            found = await self._store.before(before, ended, asked)
            rows = [row for row in found if row.job_id not in living]
            more, asked = len(found) == asked, 2 * asked
        here = nlargest(limit, (entry for entry in living.values() if entry.state in states), key=_arrival)
        stored = [entry for row in rows[:limit] if (entry := _listed(row)) is not None]
        return nlargest(limit, [*here, *stored], key=_arrival)

    async def _stored(self, row: JobRow | None) -> Entry | None:
        # An unfinished job that does not live here is just being taken: nobody was told of it yet.
        if row is None or row.state == UNFINISHED:
            return None
        return whole_entry_of(row, await self._store.events(row.arrival))


def _arrival(entry: Entry) -> int:
    return entry.arrival


def _listed(row: JobRow) -> Entry | None:
    try:
        return entry_of(row, [])
    except PayloadCorrupt:
        return None  # a list tells of the others


def _unknown(name: str, field: str) -> NotFound:
    return NotFound(
        f"no job {name!r} here: it never was, or ended long ago and is no longer kept",
        reason="JOB_UNKNOWN",
        field=field,
    )
