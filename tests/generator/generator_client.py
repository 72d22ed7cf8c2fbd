"""Serves generators in the test's process, and calls them over a real channel."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.helpers.polling import until_async
from zrelay.v1 import content_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.runtime import GeneratorRuntime
from zrelay_generator.service import GeneratorServicer
from zrelay_generator.store.sqlite import SqliteJobStore
from zrelay_shared.channels import dial
from zrelay_shared.rpc import Stub
from zrelay_shared.service.lifecycle import RunningServer, ServeOptions, running
from zrelay_shared.service.listening import parse_listen
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.wire import Parcel

Request = Parcel[pb.GenerateRequest]
SERVICE = pb.DESCRIPTOR.services_by_name["GeneratorService"]
SOON_S = 60.0
"""Within which anything short happens, however busy the machine is."""


class GeneratorClient:
    """A client with one channel."""

    def __init__(self, address: str, server: RunningServer | None = None) -> None:
        self.channel = dial(address)
        self._server = server
        self.stub = Stub(self.channel, SERVICE)

    @property
    def server(self) -> RunningServer:
        """The server, where it runs in this process."""
        assert self._server is not None
        return self._server

    @property
    def service(self) -> GeneratorServicer:
        """The servicer of the server."""
        service = self.server.service
        assert isinstance(service, GeneratorServicer)
        return service

    @property
    def runtime(self) -> GeneratorRuntime:
        """The running parts of the servicer, which must be loaded."""
        runtime = self.service.runtime
        assert runtime is not None
        return runtime

    @property
    def store(self) -> SqliteJobStore:
        """The job store of the servicer."""
        store = self.runtime.store
        assert isinstance(store, SqliteJobStore)
        return store

    async def info(self) -> pb.GeneratorServiceGetInfoResponse:
        """Calls GetInfo."""
        request, kind = pb.GeneratorServiceGetInfoRequest(), pb.GeneratorServiceGetInfoResponse
        return (await self.stub.call("GetInfo", request, kind, timeout=SOON_S)).message

    async def stream(self, request: Request | pb.GenerateRequest, timeout: float = 280) -> AsyncIterator[jpb.JobEvent]:
        """Calls Generate and yields its events."""
        async for parcel in self.stub.stream("Generate", request, pb.GenerateResponse, timeout=timeout):
            yield parcel.message.event

    async def generate(self, request: Request | pb.GenerateRequest, timeout: float = 280) -> list[jpb.JobEvent]:
        """Calls Generate and returns all events."""
        return [event async for event in self.stream(request, timeout)]

    async def image(self, request: Request) -> jpb.JobImage:
        """Returns the one image of a request."""
        (image,) = images(await self.generate(request))
        return image

    async def begun(self, request: Request) -> asyncio.Task[None]:
        """Starts Generate, and returns its task once the first step is done."""
        first_step = asyncio.Event()

        async def watch() -> None:
            async for event in self.stream(request):
                if event.progress.stage == jpb.STAGE_KIND_DENOISE:
                    first_step.set()

        task = asyncio.create_task(watch())
        await asyncio.wait_for(first_step.wait(), SOON_S)
        return task

    async def idle(self) -> None:
        """Returns once nothing runs or waits."""

        async def is_idle() -> bool:
            queue = (await self.info()).queue
            return not (queue.running or queue.waiting)

        await until_async(is_idle, "the generator is idle", SOON_S)

    async def submit(self, request: Request, detached: bool = False) -> jpb.Job:
        """Calls SubmitJob."""
        message = pb.SubmitJobRequest(request_id=request.message.request_id, spec=request.message.spec)
        message.detached = detached
        reply = await self.stub.call("SubmitJob", Parcel(message, request), pb.SubmitJobResponse, timeout=60)
        return reply.message.job

    def watching(self, job_id: str, after: int = 0) -> AsyncGenerator[Parcel[pb.WatchJobResponse], None]:
        """Calls WatchJob and returns the stream of its responses."""
        request = pb.WatchJobRequest(job_id=job_id, after_sequence=after)
        events = self.stub.stream("WatchJob", request, pb.WatchJobResponse)
        assert isinstance(events, AsyncGenerator)
        return events

    async def watch(self, job_id: str, after: int = 0) -> list[jpb.JobEvent]:
        """Calls WatchJob and returns all events."""
        return [parcel.message.event async for parcel in self.watching(job_id, after)]

    async def job(self, job_id: str) -> jpb.Job:
        """Calls GetJob."""
        return (await self.stub.call("GetJob", pb.GetJobRequest(job_id=job_id), pb.GetJobResponse)).message.job

    async def jobs(self, *states: jpb.JobState) -> list[jpb.Job]:
        """Calls ListJobs; without states it returns the jobs in every state."""
        request = pb.ListJobsRequest(page_size=200, states=states)
        return list((await self.stub.call("ListJobs", request, pb.ListJobsResponse)).message.jobs)

    async def cancel(self, job_id: str) -> jpb.Job:
        """Calls CancelJob."""
        request = pb.CancelJobRequest(job_id=job_id)
        return (await self.stub.call("CancelJob", request, pb.CancelJobResponse)).message.job

    async def upload(
        self, data: bytes, sha256: str = "", size: int | None = None, piece: int = 1 << 18
    ) -> pb.UploadBlobResponse:
        """Calls UploadBlob, in pieces of `piece` bytes; digest and size are those of `data` unless they are given."""
        call = self.channel.stream_unary(
            f"/{SERVICE.full_name}/UploadBlob",
            request_serializer=pb.UploadBlobRequest.SerializeToString,
            response_deserializer=pb.UploadBlobResponse.FromString,
        )
        content = content_pb2.ContentRef(sha256=sha256 or digest(data), size_bytes=len(data) if size is None else size)

        async def pieces() -> AsyncIterator[pb.UploadBlobRequest]:
            yield pb.UploadBlobRequest(content=content, data=data[:piece])
            for at in range(piece, len(data), piece):
                yield pb.UploadBlobRequest(data=data[at : at + piece])

        return await call(pieces())


def digest(data: bytes) -> str:
    """Returns the SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def images(events: Sequence[jpb.JobEvent]) -> list[jpb.JobImage]:
    """Returns the images among the events of a job."""
    return [event.image for event in events if event.WhichOneof("event") == "image"]


def pixels(events: Sequence[jpb.JobEvent]) -> list[str]:
    """Returns the digest of the pixels of each image among the events of a job."""
    return [image.pixels_sha256 for image in images(events)]


def serialized(request: Request) -> bytes:
    """Returns the PromptEmbeds of a request as a client uploads them."""
    return Parcel(request.message.spec.prompt.prompt_embeds, request).to_bytes()


def by_name(request: Request, data: bytes) -> Request:
    """Returns the same request with its embeddings named by their digest."""
    message = pb.GenerateRequest()
    message.CopyFrom(request.message)
    message.spec.prompt.content.CopyFrom(content_pb2.ContentRef(sha256=digest(data), size_bytes=len(data)))
    return Parcel(message)


async def stopped(task: asyncio.Task[None]) -> None:
    """Cancels a task and returns when it has ended."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def started(
    stack: AsyncExitStack,
    model: Path,
    make: Callable[[GeneratorConfig], GeneratorServicer],
    **changed: Any,
) -> GeneratorClient:
    """Starts a generator that runs as long as the stack is open; it may still be loading.

    Args:
        stack: Ends the generator and the client's connection.
        model: The pipeline folder.
        make: Makes the service.
        changed: Settings of the generator.
    """
    config = GeneratorConfig(model=model, device="cpu", dtype="float32", threads=1, **changed)
    service = make(config)
    server = await stack.enter_async_context(
        running(service, ServeOptions(parse_listen("127.0.0.1:0"), config.grace_s))
    )
    caller = GeneratorClient(str(server.address), server)
    stack.push_async_callback(caller.channel.close)
    return caller


@pytest_asyncio.fixture(loop_scope="module")
async def serve(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[GeneratorClient]]]:
    """Starts a generator with some configuration and gives a client of it."""
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    async with AsyncExitStack() as stack:

        async def start(
            kind: type[GeneratorServicer] = GeneratorServicer, loaded: bool = True, **changed: Any
        ) -> GeneratorClient:
            caller = await started(stack, demo, kind, **{"lease_s": 0.0, **changed})
            if loaded:
                await caller.server.loaded
            return caller

        yield start


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GeneratorClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(tmp_path_factory.mktemp("state")))
        async with AsyncExitStack() as stack:
            made = await started(stack, demo, GeneratorServicer, lease_s=0.0)
            await made.server.loaded
            yield made


@pytest_asyncio.fixture(loop_scope="module")
async def caller(shared: GeneratorClient) -> AsyncIterator[GeneratorClient]:
    """A client of a generator that others used before, and left idle."""
    yield shared
    await shared.idle()


@pytest.fixture
async def serve_kept(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Awaitable[GeneratorClient]]]:
    """Starts a generator on a state folder; starting it again ends the one before, as a crash would end its memory.

    Keywords are settings of the generator. `parts` are keywords of its servicer: intervals, and what it is made of;
    `folder` is its checkpoint.
    """
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    async with AsyncExitStack() as stack:

        async def start(parts: Mapping[str, Any] | None = None, folder: Path = demo, **changed: Any) -> GeneratorClient:
            await stack.aclose()
            make = partial(GeneratorServicer, **(parts or {}))
            caller = await started(stack, folder, make, **{"state": tmp_path / "state", **changed})
            await caller.server.loaded
            return caller

        yield start
