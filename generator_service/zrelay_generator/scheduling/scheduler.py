"""The scheduler as the event loop uses it: the next job to load, positions of jobs, and the amount of waiting work."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.priority import Priority
from zrelay_generator.scheduling.admission import CallerLoad, Load
from zrelay_generator.scheduling.order import Candidate, Ranked, ranked
from zrelay_generator.scheduling.queue import JobQueue, queued_candidate
from zrelay_generator.scheduling.shares import ServiceLedger
from zrelay_generator.scheduling.ticks import TickSelector
from zrelay_generator.store.records import JobRecord

LOADED_PER_CLASS = 16
"""The first so many jobs of a class are loaded, on the device or ready for it: enough to fill any tick."""
MOST_LOADED_PER_CLASS = 2 * LOADED_PER_CLASS
"""Jobs that were among the first and were passed by shorter ones since stay loaded: the device may have begun them."""


@dataclass(frozen=True, slots=True)
class QueueStanding:
    """Position and estimated end of a waiting job.

    Attributes:
        queue_position: Jobs that go before it.
        eta_s: Estimated seconds until it is done.
    """

    queue_position: int
    eta_s: float


@dataclass(slots=True)
class LoadedJob:
    """A job that is loaded or being loaded.

    Attributes:
        record: The job.
        device_job: The job on the device, None while it is being loaded.
        started: Whether the device has begun it.
    """

    record: JobRecord
    device_job: DeviceJob | None = None
    started: bool = False


class Scheduler:
    """Orders all jobs of one generator. Used from the event loop, except `selector`, which the device thread uses."""

    def __init__(self, estimator: JobEstimator) -> None:
        """Creates a scheduler without jobs.

        Args:
            estimator: Estimates the remaining work of loaded jobs.
        """
        self._estimator = estimator
        self._ledger = ServiceLedger()
        self._queue = JobQueue()
        self._loaded: dict[str, LoadedJob] = {}
        self._reserved: dict[int, JobRecord] = {}
        self.selector = TickSelector(estimator, self._ledger)

    # Jobs come and go.

    @contextmanager
    def reserved(self, record: JobRecord) -> Iterator[None]:
        """Includes a job in the load while it is being written to the store."""
        self._reserved[record.arrival] = record
        try:
            yield
        finally:
            del self._reserved[record.arrival]

    def enter(self, record: JobRecord) -> None:
        """Adds an accepted job to the queue."""
        self._ledger.enter(record.priority, record.caller)
        self._queue.add(record)

    def leave(self, record: JobRecord) -> None:
        """Removes a job that is over, queued or loaded; does nothing if the job is unknown."""
        if self._loaded.pop(record.job_id, None) is not None or self._queue.remove(record):
            self._ledger.leave(record.priority, record.caller)

    def next_to_load(self) -> JobRecord | None:
        """Returns the next job to load, None if no job may be loaded now.

        Each class has its own places, so that an urgent job never waits for a place. A job is loaded if it is among the
        first 16 of its class. Longer jobs that were loaded before may stay, up to 32 jobs in total.
        """
        for priority in Priority:
            if (record := self._next_of_class(priority)) is not None:
                return record
        return None

    def load(self, record: JobRecord) -> None:
        """Moves a queued job to the loaded ones."""
        self._queue.remove(record)
        self._loaded[record.job_id] = LoadedJob(record)

    def unload(self, record: JobRecord) -> None:
        """Moves a job that could not be loaded back into the queue."""
        if self._loaded.pop(record.job_id, None) is not None:
            self._queue.add(record)

    def on_device(self, device_job: DeviceJob) -> None:
        """Records that a loaded job was handed to the device."""
        self._loaded[device_job.id].device_job = device_job

    def started(self, job_id: str) -> None:
        """Records that the device has begun a job."""
        if (loaded := self._loaded.get(job_id)) is not None:
            loaded.started = True

    def is_loaded(self, job_id: str) -> bool:
        """Whether a job is loaded or being loaded."""
        return job_id in self._loaded

    # Queue positions and amount of waiting work.

    @property
    def waiting(self) -> int:
        """Jobs that the device has not begun."""
        return len(self._queue) + sum(not loaded.started for loaded in self._loaded.values())

    @property
    def running(self) -> int:
        """Jobs that the device has begun."""
        return sum(loaded.started for loaded in self._loaded.values())

    @property
    def loaded(self) -> list[JobRecord]:
        """The jobs that are loaded or being loaded."""
        return [loaded.record for loaded in self._loaded.values()]

    @property
    def total_s(self) -> float:
        """Estimated seconds until all accepted jobs are done."""
        return self._queue.work_s + sum(self._remaining_s(loaded) for loaded in self._loaded.values())

    def waiting_of(self, caller: str) -> int:
        """Returns the number of jobs of a caller that the device has not begun."""
        loaded = sum(one.record.caller == caller and not one.started for one in self._loaded.values())
        return sum(len(queue.records) for queue in self._queue.queues_of(caller).values()) + loaded

    def load_before(self, record: JobRecord) -> Load:
        """Returns the load that a new job would find, jobs that are being written included."""
        reserved = list(self._reserved.values())
        before = [one for one in reserved if one.priority <= record.priority]
        ahead, wait_s = self._before(record)
        wait_s += sum(one.work_s for one in before)
        nearest = [self._remaining_s(loaded) for loaded in self._loaded.values()]
        return Load(
            waiting=self._waiting_up_to(record.priority) + len(before),
            ahead=ahead + len(before),
            wait_s=wait_s,
            next_s=min(nearest, default=0.0),
            input_bytes=self._queue.input_bytes + sum(one.input_bytes for one in reserved),
            caller_waiting=self.waiting_of(record.caller) + sum(one.caller == record.caller for one in reserved),
            caller=self._load_of_caller(record, wait_s),
        )

    def _load_of_caller(self, record: JobRecord, wait_s: float) -> CallerLoad:
        """Returns what the caller of a new job has of its load. A short job passes its caller's long ones."""
        caller, priority = record.caller, record.priority
        queues = self._queue.queues_of(caller)
        before = [queue for one, queue in queues.items() if one <= priority]
        loaded = [
            one for one in self._loaded.values() if one.record.caller == caller and one.record.priority <= priority
        ]
        reserved = [one for one in self._reserved.values() if one.caller == caller]
        urgent = [one for one in reserved if one.priority <= priority]
        work_s = sum(queue.work_through[-1] for queue in before) + sum(one.work_s for one in urgent)
        waiting = sum(len(queue.records) for queue in before) + sum(not one.started for one in loaded) + len(urgent)
        return CallerLoad(
            waiting=waiting,
            wait_s=min(wait_s, work_s + sum(map(self._remaining_s, loaded))),
            input_bytes=sum(own.input_bytes for own in queues.values()) + sum(own.input_bytes for own in reserved),
        )

    def _waiting_up_to(self, priority: Priority) -> int:
        """The number of jobs of a class and of more urgent ones that the device has not begun."""
        queued = sum(self._queue.jobs_of(one)[0] for one in Priority if one <= priority)
        loaded = sum(not one.started for one in self._loaded.values() if one.record.priority <= priority)
        return queued + loaded

    def standing(self, record: JobRecord) -> QueueStanding:
        """Returns the queue position and estimated seconds of a job that waits, or that other jobs overtook."""
        count, work_s = self._before(record)
        loaded = self._loaded.get(record.job_id)
        return QueueStanding(count, work_s + (record.work_s if loaded is None else self._remaining_s(loaded)))

    def standings(self) -> Iterator[tuple[JobRecord, QueueStanding]]:
        """Yields every job that the device has not begun with its standing; one pass over all jobs."""
        for loaded in list(self._loaded.values()):
            if not loaded.started:
                yield loaded.record, self.standing(loaded.record)
        count, work_s = 0, 0.0
        for priority in Priority:
            before = self._ranked_loaded(priority)
            tags = [(one.tag, one.candidate.arrival) for one in before]
            sums = list(accumulate((one.candidate.remaining_s for one in before), initial=0.0))
            extra = self._place_s(priority)
            queued = sorted(
                (tag, record.arrival, record)
                for caller in self._queue.callers(priority)
                for record, tag in zip(
                    self._queue.callers(priority)[caller].records, self._tags(priority, caller), strict=True
                )
            )
            through_s = 0.0
            for index, (tag, arrival, record) in enumerate(queued):
                through_s += record.work_s
                loaded_before = bisect_left(tags, (tag, arrival))
                place_jobs, place_s = (0, 0.0) if loaded_before else extra
                yield (
                    record,
                    QueueStanding(
                        count + index + loaded_before + place_jobs, work_s + through_s + sums[loaded_before] + place_s
                    ),
                )
            count, work_s = count + len(queued) + len(before), work_s + through_s + sums[-1]

    def _before(self, record: JobRecord) -> tuple[int, float]:
        """The number of jobs that go before a job, and their seconds of work."""
        count, work_s = 0, 0.0
        for priority in (priority for priority in Priority if priority < record.priority):
            jobs, seconds = self._queue.jobs_of(priority)
            loaded = [self._remaining_s(one) for one in self._loaded.values() if one.record.priority is priority]
            count, work_s = count + jobs + len(loaded), work_s + seconds + sum(loaded)
        priority = record.priority
        order = self._ranked_loaded(priority)
        own = next((one for one in order if one.candidate.item.job_id == record.job_id), None)
        place = (self._tag(record) if own is None else own.tag, record.arrival)
        before = [one.candidate.remaining_s for one in order if (one.tag, one.candidate.arrival) < place]
        if own is None and not before:
            jobs, seconds = self._place_s(priority)
            count, work_s = count + jobs, work_s + seconds
        for caller, queue in self._queue.callers(priority).items():
            if caller == record.caller and own is None:
                at = queue.position(record)
            else:
                tags = self._tags(priority, caller)
                at = bisect_left(tags, place[0])
                while at < len(tags) and (tags[at], queue.records[at].arrival) < place:
                    at += 1
            count, work_s = count + at, work_s + queue.work_before(at)
        return count + len(before), work_s + sum(before)

    def _next_of_class(self, priority: Priority) -> JobRecord | None:
        loaded = [one for one in self._loaded.values() if one.record.priority is priority]
        if len(loaded) >= MOST_LOADED_PER_CLASS or not self._queue.callers(priority):
            return None
        near = [self._candidate(one) for one in loaded]
        by_caller: dict[str, list[Candidate[JobRecord]]] = defaultdict(list)
        for candidate in near:
            by_caller[candidate.caller].append(candidate)

        def tag(record: JobRecord) -> float:
            own = queued_candidate(record)
            before_s = sum(one.remaining_s for one in by_caller.get(own.caller, ()) if one.place < own.place)
            return self._received_s(priority, own.caller) + before_s + own.remaining_s

        candidates = [*near, *map(queued_candidate, self._queue.heads(priority, LOADED_PER_CLASS, tag))]
        order = ranked(candidates, lambda caller: self._received_s(priority, caller))
        for position, one in enumerate(order):
            if not self.is_loaded(one.candidate.item.job_id):
                return one.candidate.item if min(position, len(loaded)) < LOADED_PER_CLASS else None
        return None

    def _tag(self, record: JobRecord) -> float:
        """The finish tag of a job that is queued, or would be."""
        queue = self._queue.callers(record.priority).get(record.caller)
        before_s = 0.0 if queue is None else queue.work_before(queue.position(record))
        candidate = queued_candidate(record)
        loaded_s = sum(
            one.remaining_s for one in self._loaded_of(record.priority, record.caller) if one.place < candidate.place
        )
        return self._received_s(record.priority, record.caller) + loaded_s + before_s + record.work_s

    def _tags(self, priority: Priority, caller: str) -> list[float]:
        """The finish tags of the queued jobs of a caller, in their order."""
        queue = self._queue.callers(priority)[caller]
        base = self._received_s(priority, caller)
        loaded = sorted(self._loaded_of(priority, caller), key=lambda one: one.place)
        if not loaded or loaded[-1].place < queue.places[0]:
            base += sum(one.remaining_s for one in loaded)
            return [base + work_s for work_s in queue.work_through]
        places = [one.place for one in loaded]
        sums = list(accumulate((one.remaining_s for one in loaded), initial=0.0))
        return [
            base + sums[bisect_left(places, own)] + work_s
            for own, work_s in zip(queue.places, queue.work_through, strict=True)
        ]

    def _loaded_of(self, priority: Priority, caller: str) -> list[Candidate[JobRecord]]:
        return [
            self._candidate(one)
            for one in self._loaded.values()
            if one.record.priority is priority and one.record.caller == caller
        ]

    def _ranked_loaded(self, priority: Priority) -> list[Ranked[JobRecord]]:
        loaded = [self._candidate(one) for one in self._loaded.values() if one.record.priority is priority]
        return ranked(loaded, lambda caller: self._received_s(priority, caller))

    def _place_s(self, priority: Priority) -> tuple[int, float]:
        """Returns the jobs and seconds before a first job: one loaded job must end first if no place is free."""
        loaded = [self._remaining_s(one) for one in self._loaded.values() if one.record.priority is priority]
        return (0, 0.0) if len(loaded) < MOST_LOADED_PER_CLASS else (1, min(loaded))

    def _candidate(self, loaded: LoadedJob) -> Candidate[JobRecord]:
        record = loaded.record
        # The estimate of a loaded job follows the device, that of a queued one does not: never more than it was.
        remaining_s = min(self._remaining_s(loaded), record.work_s) if record.work_s else self._remaining_s(loaded)
        return Candidate(record, record.caller, record.accepted_s, record.arrival, remaining_s)

    def _remaining_s(self, loaded: LoadedJob) -> float:
        if loaded.device_job is None:
            return loaded.record.work_s
        return self._estimator.remaining_s(loaded.device_job)

    def _received_s(self, priority: Priority, caller: str) -> float:
        return self._ledger.received_s(priority, caller)
