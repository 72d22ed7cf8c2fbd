"""The generators of one client: connections, load, uploads, and the placement of jobs."""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import asdict

from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef
from zrelay.v1.jobs_pb2 import JobEvent
from zrelay_client._pool.policy import FailureKind, Fleet, Member, failure_kind
from zrelay_client._transport.deadline import CONNECT_S, Budget
from zrelay_client._transport.endpoint import Endpoint
from zrelay_client._transport.stub import ServiceStub
from zrelay_client._wire.contents import Content
from zrelay_client._wire.option_names import GENERATE, option_names
from zrelay_client._wire.replies import generator_info, job_of
from zrelay_client._wire.requests import list_request
from zrelay_client.events import Job, JobPage, Sampling
from zrelay_client.info import GeneratorInfo
from zrelay_shared.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    FeatureMissing,
    ModelLoading,
    Unavailable,
    ZrelayError,
)
from zrelay_shared.wire import Parcel

_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 512 * 1024
_UPLOAD_S = 600.0
_STRAGGLERS_S = 0.5
"""Once one of several generators has answered, the client waits this long for the others."""
_FRESH_S = 1.0
"""The reported load of one of several generators is read again after this long."""
_MAX_ABANDONED = 1000
"""Number of jobs to cancel when a generator is back. Further jobs end with their lease."""


class GeneratorService(ServiceStub):
    """The rpcs of a generator."""

    role = "generator"
    descriptor = pb.DESCRIPTOR.services_by_name["GeneratorService"]

    async def info(self, timeout: float = CONNECT_S) -> GeneratorInfo:
        """Returns what the service reports of itself."""
        request = pb.GeneratorServiceGetInfoRequest()
        reply = await self.quick_call("GetInfo", request, pb.GeneratorServiceGetInfoResponse, timeout)
        return generator_info(self.endpoint, reply.message)

    async def generate(self, request: Parcel[pb.GenerateRequest], timeout: float) -> AsyncGenerator[JobEvent, None]:
        """Generates images, and yields the events of the job. Closing the iterator ends the call."""
        stream = self.stub.stream("Generate", request, pb.GenerateResponse, timeout=timeout)
        with option_names(GENERATE):
            async with contextlib.aclosing(stream) as replies:
                async for reply in replies:
                    yield reply.message.event

    async def submit(self, request: Parcel[pb.SubmitJobRequest], timeout: float) -> Job:
        """Submits a job that runs without a watcher, and returns its state."""
        with option_names(GENERATE):
            reply = await self.stub.call("SubmitJob", request, pb.SubmitJobResponse, timeout=timeout)
        return job_of(self.endpoint, reply.message.job)

    async def watch(self, job_id: str, after: int, timeout: float) -> AsyncGenerator[JobEvent, None]:
        """Yields the events of a job after a sequence number. Closing the iterator ends the call."""
        request = pb.WatchJobRequest(job_id=job_id, after_sequence=after)
        stream = self.stub.stream("WatchJob", request, pb.WatchJobResponse, timeout=timeout)
        async with contextlib.aclosing(stream) as replies:
            async for reply in replies:
                yield reply.message.event

    async def job(self, job_id: str, timeout: float = CONNECT_S) -> Job:
        """Returns a job."""
        reply = await self.stub.call("GetJob", pb.GetJobRequest(job_id=job_id), pb.GetJobResponse, timeout=timeout)
        return job_of(self.endpoint, reply.message.job)

    async def jobs(self, states: tuple[str, ...], page_size: int, token: str, timeout: float = CONNECT_S) -> JobPage:
        """Returns a page of jobs, newest first."""
        request = list_request(states, page_size, token)
        reply = await self.quick_call("ListJobs", request, pb.ListJobsResponse, timeout)
        jobs = tuple(job_of(self.endpoint, job) for job in reply.message.jobs)
        return JobPage(jobs, reply.message.next_page_token)

    async def cancel(self, request_id: str, timeout: float = CONNECT_S) -> Job:
        """CancelJob by the id of the request."""
        return await self._cancel(pb.CancelJobRequest(request_id=request_id), timeout)

    async def cancel_job(self, job_id: str, timeout: float = CONNECT_S) -> Job:
        """CancelJob by the id of the job."""
        return await self._cancel(pb.CancelJobRequest(job_id=job_id), timeout)

    async def upload(self, content: Content, timeout: float = _UPLOAD_S) -> None:
        """Uploads a content in chunks."""
        await self.stub.send("UploadBlob", _chunks(content), pb.UploadBlobResponse, timeout=timeout)

    async def _cancel(self, request: pb.CancelJobRequest, timeout: float) -> Job:
        reply = await self.stub.call("CancelJob", request, pb.CancelJobResponse, timeout=timeout)
        return job_of(self.endpoint, reply.message.job)


class UploadCache:
    """The contents that one generator holds, as far as this client knows. Callers share uploads of equal contents.

    Attributes:
        supported: Whether the generator accepts contents; known after the first upload.
    """

    def __init__(self, upload: Callable[[Content], Awaitable[None]]) -> None:
        self._upload_content = upload
        self._held: dict[str, asyncio.Task[None]] = {}
        self.supported = True

    async def hold(self, content: Content) -> bool:
        """Uploads the content if the generator does not hold it. Returns False if the generator accepts no contents."""
        while self.supported:
            task = self._held.get(content.sha256)
            if task is None:
                task = self._held[content.sha256] = asyncio.create_task(self._upload(content))
            try:
                await asyncio.shield(task)  # a caller that is cancelled does not end the upload for others
            except FeatureMissing:
                self.supported = False
            except asyncio.CancelledError:
                if not task.cancelled():
                    raise
            else:
                return True
        return False

    def forget(self, sha256: str) -> None:
        """Records that the generator does not hold the content any more."""
        task = self._held.get(sha256)
        if task is not None and task.done():
            del self._held[sha256]

    def close(self) -> None:
        """Cancels the uploads in progress."""
        for task in self._held.values():
            task.cancel()

    async def _upload(self, content: Content) -> None:
        try:
            await self._upload_content(content)
        except (ZrelayError, asyncio.CancelledError):
            self._held.pop(content.sha256, None)
            raise


class Generator:
    """One generator: its connection, uploads, latest GetInfo, and its member of the selection policy."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.service = GeneratorService(endpoint)
        self.endpoint = self.service.endpoint
        self.member = Member(self.endpoint)
        self.uploads = UploadCache(self.service.upload)
        self.info: GeneratorInfo | None = None
        self._called_at = 0.0
        self._call: asyncio.Task[GeneratorInfo] | None = None
        self._abandoned: deque[str] = deque(maxlen=_MAX_ABANDONED)

    @property
    def info_age_s(self) -> float:
        """Seconds since the last call of GetInfo."""
        return time.monotonic() - self._called_at

    def refresh(self, timeout: float = CONNECT_S) -> "asyncio.Task[GeneratorInfo]":
        """Starts a call of GetInfo, or returns the one in progress. Its task raises ZrelayError."""
        if self._call is None or self._call.done():
            self._called_at = time.monotonic()
            self._call = asyncio.create_task(self._refresh(timeout))
            self._call.add_done_callback(_retrieve_exception)
        return self._call

    async def reach(self, timeout: float) -> None:
        """Returns once the generator answers.

        Raises:
            Unavailable: There was no answer within the timeout.
            ZrelayError: The generator refused.
        """
        try:
            await asyncio.shield(self.refresh(timeout))
        except DeadlineExceeded as error:
            raise Unavailable(f"no answer from {self.endpoint} in {timeout:g} s", metadata=error.metadata) from error

    def abandon(self, request_id: str) -> None:
        """Records that this request's job moved to another generator: it is cancelled here as soon as possible."""
        self._abandoned.append(request_id)

    def adopt(self, request_id: str) -> None:
        """Records that the request runs here (again): it is not cancelled."""
        with contextlib.suppress(ValueError):
            self._abandoned.remove(request_id)

    async def close(self) -> None:
        """Closes the connection."""
        self.uploads.close()
        if self._call is not None:
            self._call.cancel()
        await self.service.close()

    async def _refresh(self, timeout: float) -> GeneratorInfo:
        try:
            info = await self.service.info(timeout)
            if info.ready:
                await self._cancel_abandoned()
        except ZrelayError as error:
            kind = failure_kind(error)
            if kind is FailureKind.LOST or error.code == "DEADLINE_EXCEEDED":
                self.member.lost(time.monotonic())
            else:
                self.member.rest(time.monotonic(), error.retry_after_s)
            raise
        self.info = info
        if info.ready:
            self.member.report(info.queue.estimated_wait_s)
        else:
            self.member.rest(time.monotonic(), 1.0)
        return info

    async def _cancel_abandoned(self) -> None:
        """Cancels jobs that moved away, before the generator gets new ones. Raises ZrelayError if it is lost again."""
        for request_id in tuple(self._abandoned):
            if request_id not in self._abandoned:
                continue  # adopted meanwhile
            try:
                await self.service.cancel(request_id)
            except ZrelayError as error:  # it may never have had the job; any other refusal is left to the lease
                away = failure_kind(error) in (FailureKind.BUSY, FailureKind.GOING, FailureKind.LOST)
                if away or error.code == "DEADLINE_EXCEEDED":
                    raise
            self.adopt(request_id)


class Generators:
    """All generators of one client. Create it inside the event loop that uses it."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._all = [Generator(endpoint) for endpoint in endpoints]
        self._by_member = {id(generator.member): generator for generator in self._all}
        self._reference: GeneratorInfo | None = None
        self._different: set[str] = set()
        self._fleet = Fleet([generator.member for generator in self._all])

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Generator]:
        return iter(self._all)

    @property
    def first(self) -> GeneratorService:
        """The generator that was named first."""
        return self._all[0].service

    async def connect(self, budget: Budget) -> GeneratorInfo:
        """Calls GetInfo of all generators. Does not wait for those that hang while others answer.

        Returns:
            The info of the first generator that answered, in the order of the endpoints.

        Raises:
            FailedPrecondition: As `require_alike`.
            ZrelayError: No generator answers; the error is that of the first.
        """
        timeout = budget.left("generator")
        calls = [generator.refresh(timeout) for generator in self._all]
        waiting: set[asyncio.Task[GeneratorInfo]] = set(calls)
        while waiting and not any(_answered(task) for task in calls):
            _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        late = [each for each, task in zip(self._all, calls, strict=True) if task in waiting]
        if any(each.member.failures == 0 for each in late):
            await asyncio.wait(waiting, timeout=_STRAGGLERS_S)
        infos = [task.result() for task in calls if _answered(task)]
        if not infos:
            await calls[0]
        if self._reference is None or len(infos) == len(self._all):  # all of them may have got a new model
            self._reference = infos[0]
            self._different.clear()
        require_alike([self._reference, *infos])
        return infos[0]

    async def place(
        self, work: float, without: Collection[str], budget: Budget, *, refusal: ZrelayError | None, patient: bool
    ) -> Generator:
        """Returns a generator for a job, once one is free.

        Args:
            work: The work of the job.
            without: Addresses of generators that must not be used.
            budget: The deadline.
            refusal: Why the last generator did not take the job.
            patient: Whether to wait while all generators are busy.

        Raises:
            ZrelayError: `refusal`, if no generator is left or, unless `patient`, none is free now.
            DeadlineExceeded: No generator became free in time.
        """
        while True:
            now, without = time.monotonic(), {*without, *self._different}
            self._refresh_stale()
            member = self._fleet.choose(work, now, without)
            if member is not None:
                chosen = self._by_member[id(member)]
                if (refusal := self.difference(chosen)) is None:
                    return chosen
                continue
            due = [self._by_member[id(due)] for due in self._fleet.due(now, without)]
            calls = {generator.refresh(): generator for generator in due}
            wait_s = self._fleet.wakes_in(now, without)
            if wait_s is None or (not calls and not patient and refusal is not None):
                raise refusal or Unavailable("no generator is left that could take this job")
            left = budget.left("generator")
            if calls:
                await asyncio.wait(calls, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                failures = {calls[task]: e for task in calls if task.done() and (e := _failure(task))}
                refusal = next(iter(failures.values()), refusal)
                unfit = [each for each, error in failures.items() if failure_kind(error) is FailureKind.UNFIT]
                without |= {each.endpoint for each in unfit}  # it does not let this client in
            else:
                await asyncio.sleep(min(left, max(wait_s, 0.01)))

    def another_is_free(self, here: Generator, without: Collection[str]) -> bool:
        """Returns whether another generator could take a job now. Calls GetInfo of those that may be back."""
        for due in self._fleet.due(time.monotonic(), {*without, here.endpoint}):
            self._by_member[id(due)].refresh()
        return self._fleet.choose(0.0, time.monotonic(), {*without, here.endpoint}) is not None

    def difference(self, chosen: Generator) -> ZrelayError | None:
        """Returns why a generator makes other images than the rest, None if it does not."""
        if self._reference is not None and chosen.info is not None:
            try:
                require_alike([self._reference, chosen.info])
            except FailedPrecondition as error:
                self._different.add(chosen.endpoint)
                return error
        return None

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(generator.close() for generator in self._all))

    def _refresh_stale(self) -> None:
        """Starts to read the load of generators whose report is old, and of lost ones that may be called again.

        A single generator gets every job, so its load does not matter.
        """
        if len(self._all) == 1:
            return
        for generator in self._all:
            if generator.member.fresh and generator.info_age_s > _FRESH_S:
                generator.refresh()
        for due in self._fleet.due(time.monotonic()):
            self._by_member[id(due)].refresh()


def require_alike(infos: Sequence[GeneratorInfo]) -> None:
    """Checks that all generators make the same image, so that a job can move between them.

    Raises:
        FailedPrecondition: GENERATORS_DIFFER; the message names the difference and the generators.
    """
    compared: tuple[tuple[str, Callable[[GeneratorInfo], str]], ...] = (
        ("transformer_digest", lambda info: info.transformer_digest),
        ("vae_digest", lambda info: info.vae_digest),
        ("configuration_digest", lambda info: info.configuration_digest),
        ("defaults", lambda info: _settings_of(info.defaults) if info.ready else ""),
    )
    for name, value_of in compared:
        known = [(info, value) for info in infos if (value := value_of(info))]
        for info, value in known[1:]:
            if value != known[0][1]:
                raise FailedPrecondition(
                    f"expected generators that make the same image, got different values of {name} at "
                    f"{_described(*known[0])} and {_described(info, value)}: name only those that serve the same "
                    "folder",
                    reason="GENERATORS_DIFFER",
                    field="generator",
                    metadata={"field": name, "expected": known[0][1], "got": value},
                )


async def _chunks(content: Content) -> AsyncIterator[pb.UploadBlobRequest]:
    data = memoryview(content.make())
    name = ContentRef(sha256=content.sha256, size_bytes=content.size_bytes)
    for start in range(0, len(data), _CHUNK_BYTES):
        chunk = bytes(data[start : start + _CHUNK_BYTES])
        yield pb.UploadBlobRequest(content=name if start == 0 else None, data=chunk)


def _settings_of(defaults: Sampling) -> str:
    """Returns the default settings as text, for a comparison that a person reads."""
    return ", ".join(f"{name} {value}" for name, value in asdict(defaults).items() if value is not None)


def _described(info: GeneratorInfo, value: str) -> str:
    shown = value[:12] if _DIGEST.fullmatch(value) else value
    return f"{info.endpoint} ({info.model_id}: {shown})"


def _answered(task: "asyncio.Task[GeneratorInfo]") -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def _failure(task: "asyncio.Task[GeneratorInfo]") -> ZrelayError | None:
    """Returns why a generator takes no job after a call of GetInfo, None if it does."""
    if _answered(task):
        return None if task.result().ready else ModelLoading("the model is still being loaded; try again in a while")
    error = None if task.cancelled() else task.exception()
    return error if isinstance(error, ZrelayError) else None


def _retrieve_exception(task: "asyncio.Task[GeneratorInfo]") -> None:
    """Marks the exception as retrieved: nobody may be waiting for the task."""
    if not task.cancelled():
        task.exception()
