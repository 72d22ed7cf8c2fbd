"""GeneratorService: parse, call, wrap."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, NoReturn

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import generation_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.jobs_pb2 import Job, JobEvent
from zrelay_generator.api.info import loading_info, ready_info
from zrelay_generator.api.messages import STATE_OF, event_message, job_message
from zrelay_generator.api.parsing import parse_request_id
from zrelay_generator.api.parsing_sampling import parse_sampling
from zrelay_generator.features.offered import missing
from zrelay_generator.jobs.board import JobBoard
from zrelay_generator.jobs.entry import Entry, State
from zrelay_generator.model.loading import load_model
from zrelay_generator.runtime import LoadModel, Runtime, start
from zrelay_generator.settings import GeneratorConfig
from zrelay_shared.checkpoints import model_id
from zrelay_shared.errors import CheckpointError, InvalidArgument, ModelLoading
from zrelay_shared.rpc import Context
from zrelay_shared.service.lifecycle import Service
from zrelay_shared.wire import Parcel

_PAGE, _MAX_PAGE = 50, 200
_NEWEST = 1 << 62


class GeneratorService(Service):
    """The servicer and its lifecycle."""

    def __init__(self, config: GeneratorConfig, load: LoadModel = load_model) -> None:
        """`load` makes the model of the folder: another one where what is served is to be measured without a device."""
        self._config = config
        self._load_model = load
        self._model_id = model_id(config.model)
        self._runtime: Runtime | None = None

    @property
    def descriptor(self) -> ServiceDescriptor:
        return pb.DESCRIPTOR.services_by_name["GeneratorService"]

    @property
    def unhealthy_reason(self) -> str:
        """Why it cannot serve now (the device is stuck or lost, the disk refuses), "" where it can."""
        return "" if self._runtime is None else self._runtime.device.stuck or self._runtime.store.disk.trouble

    @property
    def restart_reason(self) -> str:
        """Why the process must be started again (the device is lost), "" while it need not."""
        return "" if self._runtime is None else self._runtime.device.broken

    async def load(self) -> None:
        runtime = await start(self._config, self._load_model)
        try:  # what a request that says nothing would ask for must be something that is served
            parse_sampling(generation_pb2.SamplingOptions(), runtime.accepts.sampling)
        except InvalidArgument as error:
            await runtime.close()
            raise CheckpointError(
                f"zrelay.json: its defaults are refused here: {error.message}; change it, or start with wider limits "
                "(`zrelay serve generator --help`)",
                metadata={"file": "zrelay.json"},
            ) from error
        self._runtime = runtime

    async def drain(self, grace_s: float) -> None:
        if self._runtime is not None:
            await self._runtime.board.drain(grace_s)

    async def close(self) -> None:
        if self._runtime is not None:
            await self._runtime.close()

    async def GetInfo(
        self, parcel: Parcel[pb.GeneratorServiceGetInfoRequest], context: Context
    ) -> pb.GeneratorServiceGetInfoResponse:
        runtime = self._runtime
        if runtime is None:
            return loading_info(self._model_id, self._config.state)
        device, cost = runtime.device_report, runtime.speed.snapshot()
        return ready_info(self._config, runtime.accepts, runtime.painter, device, runtime.board, cost)

    async def Generate(
        self, parcel: Parcel[pb.GenerateRequest], context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        runtime = self._ready()
        request = await runtime.requests.read(
            parcel,
            parcel.message.spec,
            parse_request_id(parcel.message.request_id),
            caller=_caller(context),
            budget_s=context.time_remaining(),
        )
        events = _events(runtime.board, await runtime.board.submit(request))
        async with aclosing(events):
            async for event in events:
                yield pb.GenerateResponse(event=event)

    async def SubmitJob(self, parcel: Parcel[pb.SubmitJobRequest], context: Context) -> pb.SubmitJobResponse:
        runtime, message = self._ready(), parcel.message
        request = await runtime.requests.read(
            parcel,
            message.spec,
            parse_request_id(_required("request_id", message.request_id)),
            detached=message.detached,
            caller=_caller(context),
        )
        return pb.SubmitJobResponse(job=_at_a_glance(runtime.board, await runtime.board.submit(request)))

    async def WatchJob(
        self, parcel: Parcel[pb.WatchJobRequest], context: Context
    ) -> AsyncGenerator[pb.WatchJobResponse, None]:
        board = self._ready().board
        entry = await board.jobs.by_id(_required("job_id", parcel.message.job_id))
        events = _events(board, entry, parcel.message.after_sequence)
        async with aclosing(events):
            async for event in events:
                yield pb.WatchJobResponse(event=event)

    async def GetJob(self, parcel: Parcel[pb.GetJobRequest], context: Context) -> pb.GetJobResponse:
        board = self._ready().board
        entry = await board.jobs.by_id(_required("job_id", parcel.message.job_id))
        return pb.GetJobResponse(job=_at_a_glance(board, entry))

    async def ListJobs(self, parcel: Parcel[pb.ListJobsRequest], context: Context) -> pb.ListJobsResponse:
        request, jobs = parcel.message, self._ready().board.jobs
        states = frozenset(_state(number) for number in request.states) or frozenset(State)
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        page = await jobs.listed(_page_token(request.page_token), states, size + 1)
        token = str(page[size - 1].arrival) if len(page) > size else ""
        return pb.ListJobsResponse(jobs=[job_message(entry) for entry in page[:size]], next_page_token=token)

    async def CancelJob(self, parcel: Parcel[pb.CancelJobRequest], context: Context) -> pb.CancelJobResponse:
        request, board = parcel.message, self._ready().board
        if request.WhichOneof("target") == "request_id":
            entry = await board.jobs.of_request(_required("request_id", request.request_id))
        else:
            entry = await board.jobs.by_id(_required("job_id", request.job_id))
        board.cancel(entry)
        await board.settled(entry)
        return pb.CancelJobResponse(job=job_message(entry))

    async def UploadBlob(
        self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]], context: Context
    ) -> pb.UploadBlobResponse:
        return await self._ready().uploads.receive(parcels)

    async def ListLoras(self, parcel: Parcel[pb.ListLorasRequest], context: Context) -> NoReturn:
        raise missing("lora.manage")

    async def UploadLora(self, parcels: Any, context: Context) -> NoReturn:
        raise missing("lora.manage")

    async def RemoveLora(self, parcel: Parcel[pb.RemoveLoraRequest], context: Context) -> NoReturn:
        raise missing("lora.manage")

    def _ready(self) -> Runtime:
        if self._runtime is None:
            raise ModelLoading("the model is still being loaded; try again in a few seconds")
        return self._runtime


async def _events(board: JobBoard, entry: Entry, after: int = 0) -> AsyncGenerator[JobEvent, None]:
    """What happens to a job, as messages. Raises the job's error where it failed."""
    events = board.watch(entry, after)
    async with aclosing(events):
        async for sequence, event in events:
            yield event_message(entry, sequence, event)


def _at_a_glance(board: JobBoard, entry: Entry) -> Job:
    waits = entry.state is State.QUEUED and not entry.parked
    return job_message(entry, board.workload.standing(entry) if waits else None)


def _caller(context: Context) -> str:
    """Who asks, as far as the connection tells: the address without its port."""
    peer = str(context.peer())
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def _required(name: str, value: str) -> str:
    if not value:
        raise InvalidArgument(f"{name}: expected one, got none", field=name, reason=f"{name.upper()}_MISSING")
    return value


def _state(number: int) -> State:
    state: State | None = STATE_OF.get(number)  # type: ignore[call-overload]
    if state is None:
        raise InvalidArgument(f"states: expected states of a job, got {number}", field="states", reason="ENUM_UNKNOWN")
    return state


def _page_token(text: str) -> int:
    """The arrival before which a page begins."""
    if not text:
        return _NEWEST
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise InvalidArgument(
            f"page_token: expected next_page_token of the reply before, got {text[:40]!r}",
            field="page_token",
            reason="PAGE_TOKEN_INVALID",
        )
    return int(text)
