"""Taking a request: the same one once, refused before it costs anything, on disk before it is acknowledged."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from zrelay_generator.cost.model import Speed
from zrelay_generator.engine.events import Accepted
from zrelay_generator.engine.job import JobSpec
from zrelay_generator.jobs.archive import row_of
from zrelay_generator.jobs.entry import Entry, State
from zrelay_generator.jobs.registry import Registry
from zrelay_generator.jobs.request import Request
from zrelay_generator.scheduling.admission import Load, admit
from zrelay_generator.scheduling.line import Line, order_key
from zrelay_generator.scheduling.workload import Workload
from zrelay_generator.settings import GeneratorConfig
from zrelay_generator.store.blobs import ContentMissing
from zrelay_generator.store.store import JobStore
from zrelay_shared.errors import Draining, IdempotencyConflict, NotFound, PayloadCorrupt, Unavailable, ZrelayError

_RESTART_S = 30.0
"""Within which a supervisor has started the process again, perhaps."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A job for a request; `accepted` is its first event where it is new."""

    entry: Entry
    accepted: Accepted | None = None


class Acceptor:
    """One request at a time for each request_id, any number beside each other."""

    def __init__(
        self,
        config: GeneratorConfig,
        store: JobStore,
        registry: Registry,
        line: Line,
        workload: Workload,
        speed: Speed,
        describe: Callable[[str, str, JobSpec, Accepted], bytes],
        model: str,
    ) -> None:
        self._config, self._store, self._registry = config, store, registry
        self._line, self._workload, self._speed = line, workload, speed
        self._describe, self._model = describe, model
        self._promised = Promised()
        self._arrivals = count(store.last_arrival + 1)
        self.closed: Callable[[], ZrelayError] | None = None
        """Makes what new work is refused with, None while it is taken."""

    async def take(self, request: Request) -> Taken:
        """The job that the same request made before, or a new one that is on disk when this returns.

        Raises IdempotencyConflict; what `closed` makes; QueueFull, QuotaExceeded, DeadlineExceeded; NotFound
        (CONTENT_UNKNOWN) where a content was let go meanwhile; Unavailable (STATE_UNWRITABLE).
        """
        try:
            known = await self._registry.by_request(request.request_id)
        except PayloadCorrupt:
            known = None
        if known is not None and known.identity != request.identity:
            raise IdempotencyConflict(
                f"request_id {request.request_id!r} was used for another request; make a new one for each",
                field="request_id",
                metadata={"request_id": request.request_id, "job_id": known.id},
            )
        # One that failed, was cancelled or cannot be read may be made again.
        if known is not None and known.state not in (State.FAILED, State.CANCELLED):
            if request.detached and not (known.detached or known.ended):
                await self._store.detach(known.arrival)
                known.detached = True
            return Taken(known)
        if self.closed is not None:
            raise self.closed()
        taken = self._admitted(request)
        await self._write(taken.entry, request)
        return taken

    def _admitted(self, request: Request) -> Taken:
        """A new entry and its first event. Raises what `admit` does."""
        now, arrival, job_id = time.time(), next(self._arrivals), secrets.token_hex(8)
        priority, promised = request.job.priority, self._promised
        run_s = self._speed.estimate(request.job).seconds
        key = order_key(now, priority, run_s, self._line.backlog_s(request.caller, run_s))
        ahead, wait_s, next_s = self._workload.ahead(key, arrival, priority)
        load = Load(
            waiting=self._workload.waiting + promised.jobs,
            ahead=ahead + promised.jobs,
            wait_s=wait_s + promised.work_s,
            next_s=next_s,
            input_bytes=self._line.input_bytes + promised.input_bytes,
            caller_waiting=self._workload.waiting_of(request.caller) + promised.callers[request.caller],
        )
        admit(request, run_s, load, self._config)
        accepted = Accepted(load.ahead, load.wait_s, run_s)
        entry = Entry(
            id=job_id,
            request_id=request.request_id,
            identity=request.identity,
            arrival=arrival,
            priority=priority,
            caller=request.caller,
            key=key,
            work_s=run_s,
            input_bytes=request.new_bytes,
            accepted_at=now,
            accepted=self._describe(job_id, request.request_id, request.job, accepted),
            detached=request.detached,
        )
        return Taken(entry, accepted)

    async def _write(self, entry: Entry, request: Request) -> None:
        self._promised.count(entry, 1)
        try:
            await self._store.accept(row_of(entry, self._model), request.spec, request.inputs, request.sizes)
        except ContentMissing as error:
            raise content_unknown(str(error.args[0])) from error
        finally:
            self._promised.count(entry, -1)


def draining() -> Draining:
    """This generator ends because it was told to."""
    return Draining("this generator is going away and takes no new work; use another or try again shortly")


def device_lost() -> Unavailable:
    """This generator's device does nothing more until the process is started again."""
    return Unavailable(
        "this generator has lost its device and takes no new work: use another, or try again when it was started again",
        reason="DEVICE_LOST",
        retry_after_s=_RESTART_S,
    )


@dataclass(slots=True)
class Promised:
    """Jobs that are admitted and being written."""

    jobs: int = 0
    work_s: float = 0.0
    input_bytes: int = 0
    callers: Counter[str] = field(default_factory=Counter)

    def count(self, entry: Entry, sign: int) -> None:
        self.jobs += sign
        self.work_s = self.work_s + sign * entry.work_s if self.jobs else 0.0
        self.input_bytes += sign * entry.input_bytes
        self.callers[entry.caller] += sign
        if not self.callers[entry.caller]:
            del self.callers[entry.caller]


class OneAtATime:
    """Lets calls of the same name wait for each other, and finishes what a caller that went away has begun."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Entry]] = {}

    async def run(self, name: str, call: Callable[[], "asyncio.Task[Entry]"]) -> Entry:
        """`call` begins the work; nothing of the same name is begun before it has ended."""
        while (other := self._running.get(name)) is not None:
            await asyncio.wait({other})
        task = self._running[name] = call()
        task.add_done_callback(lambda task: self._ended(name, task))
        return await asyncio.shield(task)

    def _ended(self, name: str, task: "asyncio.Task[Entry]") -> None:
        del self._running[name]
        if not task.cancelled():
            task.exception()  # looked at: the caller may be gone


def content_unknown(sha256: str, field: str = "") -> NotFound:
    """The caller is to send a content again: it was never here, or was let go."""
    return NotFound(
        f"{field or 'spec'}: the content {sha256} is not here: upload it (UploadBlob) or send it in the request, and "
        "send the request again",
        reason="CONTENT_UNKNOWN",
        field=field,
        metadata={"sha256": sha256},
    )
