"""Jobs of the store as entries: those that have ended, and those to go on with after a restart."""

from dataclasses import replace

from zrelay_generator.engine.events import Accepted, Done, Event, Failed, Image
from zrelay_generator.engine.job import Priority
from zrelay_generator.jobs.entry import Entry, State
from zrelay_generator.jobs.records import damaged, error_of, event_of
from zrelay_generator.scheduling.line import order_key
from zrelay_generator.store.rows import UNFINISHED, EventRow, JobRow
from zrelay_shared.errors import Draining

_ACCEPTED = Accepted(0, 0.0, 0.0)
"""Its numbers are in `Entry.accepted`."""


def entry_of(row: JobRow, events: list[EventRow], backlog_s: float = 0.0) -> Entry:
    """A job as the store knows it. Raises PayloadCorrupt where it is not as it was written."""
    try:
        priority = Priority(row.priority)
        state = State.QUEUED if row.state == UNFINISHED else State(row.state)
    except ValueError as error:
        raise damaged("this job") from error
    entry = Entry(
        id=row.job_id,
        request_id=row.request_id,
        identity=row.identity,
        arrival=row.arrival,
        priority=priority,
        caller=row.caller,
        key=order_key(row.accepted_at, priority, row.work_s, backlog_s),
        work_s=row.work_s,
        input_bytes=row.input_bytes,
        accepted_at=row.accepted_at,
        accepted=row.accepted,
        detached=row.detached,
        state=state,
        ended_at=row.ended_at,
        sequence=row.sequence,
    )
    entry.events = [(1, _ACCEPTED), *((event.sequence, event_of(event)) for event in events)]
    if entry.state in (State.FAILED, State.CANCELLED):
        entry.error = error_of(row.error)
        entry.events.append((row.sequence, Failed(entry.error)))
    return entry


def whole_entry_of(row: JobRow, events: list[EventRow]) -> Entry:
    """A job with all its results. Raises PayloadCorrupt where one of those that its end speaks of is not there."""
    entry = entry_of(row, events)
    told = sum(event.images for _, event in entry.events if isinstance(event, Done))
    if entry.state is State.SUCCEEDED and told != sum(1 for _ in entry.images):
        raise damaged("a result of this job")
    return entry


def row_of(entry: Entry, model: str) -> JobRow:
    """A job that was just admitted, for the store. `model` tells what shall paint it."""
    return JobRow(
        arrival=entry.arrival,
        job_id=entry.id,
        request_id=entry.request_id,
        identity=entry.identity,
        state=UNFINISHED,
        detached=entry.detached,
        priority=int(entry.priority),
        caller=entry.caller,
        model=model,
        work_s=entry.work_s,
        input_bytes=entry.input_bytes,
        accepted_at=entry.accepted_at,
        accepted=entry.accepted,
    )


def stub_of(entry: Entry) -> Entry:
    """What stays of a job whose results were let go: parked, with those results alone that are in the store. So the
    same request finds it, and nobody makes it a second time."""
    error = Draining(
        "this generator's disk refused the job's results: it runs again after the generator's next start; watch it "
        "then",
        metadata={"job_id": entry.id, "parked": "true"},
    )
    kept: list[tuple[int, Event]] = [
        (n, event)
        for n, event in entry.events
        if isinstance(event, Accepted) or (isinstance(event, Image) and not event.data)
    ]
    stub = replace(
        entry,
        state=State.QUEUED,
        error=None,
        ended_at=0.0,
        job=None,
        watchers=0,
        parked=True,
        unkept=False,
        events=kept,
        unsaved=None,
        saving=None,
        lease=None,
        _changed=None,
    )
    stub.tell(Failed(error))
    return stub
