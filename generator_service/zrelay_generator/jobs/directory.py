"""Finds jobs: those that live in this process, and those that only the store knows."""

from collections.abc import Iterator
from heapq import nlargest

from zrelay_generator.jobs.live import LiveJob, complete_stored_job, stored_job
from zrelay_generator.store.protocol import JobStore
from zrelay_generator.store.records import JobRecord, JobState
from zrelay_shared.callers import Caller
from zrelay_shared.errors import NotFound, PayloadCorrupt


class JobDirectory:
    """Jobs by their id and by the id of their request. A job is kept here until its end is in the store.

    A caller finds its own jobs, or all of them if it administers. For a job of another owner it receives the same
    answer as for one that does not exist, after the same look-ups.
    """

    def __init__(self, store: JobStore) -> None:
        """Creates an empty directory over a store."""
        self._store = store
        self._by_id: dict[str, LiveJob] = {}
        self._by_request: dict[tuple[str, str], LiveJob] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(list(self._by_id.values()))

    def add(self, job: LiveJob) -> None:
        """Adds a job."""
        record = job.record
        self._by_id[record.job_id] = job
        known = self._by_request.get(_request(record))
        if known is None or known.record.arrival <= record.arrival:
            self._by_request[_request(record)] = job

    def remove(self, job: LiveJob) -> None:
        """Removes an ended job from memory. Later lookups read it from the store."""
        self._by_id.pop(job.record.job_id, None)
        if self._by_request.get(_request(job.record)) is job:
            del self._by_request[_request(job.record)]

    def living(self, job_id: str) -> LiveJob | None:
        """Returns a job that lives in this process."""
        return self._by_id.get(job_id)

    async def by_id(self, job_id: str, caller: Caller) -> LiveJob:
        """Returns a job that a caller may see.

        Raises:
            NotFound: JOB_UNKNOWN.
            PayloadCorrupt: Its results are damaged.
        """
        job = self._by_id.get(job_id)
        if job is None or not caller.may_see(job.record.owner):
            job = await self._stored(await self._store.by_id(job_id, _seen_by(caller)))
        if job is None:
            raise _unknown(job_id, "job_id")
        return job

    async def find_request(self, request_id: str, owner: str) -> LiveJob | None:
        """Returns the latest job of an owner's request id."""
        living = self._by_request.get((owner, request_id))
        return living or await self._stored(await self._store.by_request(request_id, owner))

    async def by_request(self, request_id: str, caller: Caller) -> LiveJob:
        """Returns the caller's latest job of a request id. One that administers gets the job of another one otherwise.

        Raises as `by_id`.
        """
        job = await self.find_request(request_id, caller.owner)
        if job is None and caller.administers:
            living = (job for job in self._by_id.values() if job.record.request_id == request_id)
            job = max(living, key=_arrival, default=None)
            job = job or await self._stored(await self._store.by_request(request_id, None))
        if job is None:
            raise _unknown(request_id, "request_id")
        return job

    async def page(self, before: int, states: frozenset[JobState], limit: int, caller: Caller) -> list[LiveJob]:
        """Returns at most `limit` jobs of a caller in these states that arrived before another, newest first."""
        living = {
            job.record.job_id: job
            for job in self._by_id.values()
            if job.record.arrival < before and caller.may_see(job.record.owner)
        }
        ended = [state for state in states if state.ended]
        records: list[JobRecord] = []
        wanted, more = limit, bool(ended)
        while more and len(records) < limit:  # some of the store's jobs still live here: then read a few more
            found = await self._store.before(before, ended, wanted, _seen_by(caller))
            records = [record for record in found if record.job_id not in living]
            more, wanted = len(found) == wanted, 2 * wanted
        here = nlargest(limit, (job for job in living.values() if job.record.state in states), key=_arrival)
        stored = [job for record in records[:limit] if (job := _listed(record)) is not None]
        return nlargest(limit, [*here, *stored], key=_arrival)

    async def _stored(self, record: JobRecord | None) -> LiveJob | None:
        # An unfinished job that does not live here is being accepted: nobody knows its id yet.
        if record is None or not record.state.ended:
            return None
        return complete_stored_job(record, await self._store.results(record.arrival))


def _request(record: JobRecord) -> tuple[str, str]:
    return record.owner, record.request_id


def _seen_by(caller: Caller) -> str | None:
    """Returns the owner whose jobs a caller may see, None for all."""
    return None if caller.administers else caller.owner


def _arrival(job: LiveJob) -> int:
    return job.record.arrival


def _listed(record: JobRecord) -> LiveJob | None:
    try:
        return stored_job(record, [])
    except PayloadCorrupt:
        return None  # the list has the others


def _unknown(name: str, field: str) -> NotFound:
    return NotFound(
        f"there is no job {name!r}: it never existed here, another caller sent it, or it is no longer kept",
        reason="JOB_UNKNOWN",
        field=field,
    )
