"""GeneratorService: parse, call, wrap."""

import secrets
from collections.abc import AsyncGenerator
from itertools import islice
from typing import Any, NoReturn

from google.protobuf.descriptor import ServiceDescriptor

from zrelay.v1 import generation_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.config import GeneratorConfig
from zrelay_generator.features import missing
from zrelay_generator.info import loading_info, ready_info
from zrelay_generator.messages import STATE_OF, event_message, job_message
from zrelay_generator.parsing import parse_request_id, parse_spec
from zrelay_generator.parsing_sampling import parse_sampling
from zrelay_generator.runtime import Runtime, start
from zrelay_shared.checkpoints import model_id
from zrelay_shared.errors import CheckpointError, InvalidArgument, ModelLoading
from zrelay_shared.rpc import Context
from zrelay_shared.wire import Parcel

_PAGE, _MAX_PAGE = 50, 200


class GeneratorService:
    """The servicer and its life (`zrelay_shared.serving.Service`)."""

    def __init__(self, config: GeneratorConfig) -> None:
        self._config = config
        self._model_id = model_id(config.model)
        self._runtime: Runtime | None = None

    @property
    def descriptor(self) -> ServiceDescriptor:
        return pb.DESCRIPTOR.services_by_name["GeneratorService"]

    async def load(self) -> None:
        runtime = await start(self._config)
        try:  # what a request that says nothing would ask for must be something that is served
            parse_sampling(generation_pb2.SamplingOptions(), runtime.accepts.sampling)
        except InvalidArgument as error:
            await runtime.close()
            raise CheckpointError(
                f"zrelay.json: its defaults are refused here: {error.message}; change it, or start with wider limits "
                "(`zrelay serve generator -- --help`)",
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
            return loading_info(self._model_id)
        return ready_info(self._config, runtime.accepts, runtime.painter, runtime.device_report, runtime.board)

    async def Generate(
        self, parcel: Parcel[pb.GenerateRequest], context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        runtime = self._ready()
        request_id = parse_request_id(parcel.message.request_id)
        spec = parse_spec(parcel, parcel.message.spec, runtime.accepts)
        entry = runtime.board.submit(secrets.token_hex(8), request_id, spec)
        events = runtime.board.watch(entry)
        try:
            async for sequence, event in events:
                yield pb.GenerateResponse(event=event_message(entry, sequence, event))
        finally:
            await events.aclose()

    async def GetJob(self, parcel: Parcel[pb.GetJobRequest], context: Context) -> pb.GetJobResponse:
        entry = self._ready().board.find(job_id=_required("job_id", parcel.message.job_id))
        return pb.GetJobResponse(job=job_message(entry))

    async def ListJobs(self, parcel: Parcel[pb.ListJobsRequest], context: Context) -> pb.ListJobsResponse:
        request, board = parcel.message, self._ready().board
        before, states = _page_token(request.page_token), {STATE_OF.get(state) for state in request.states}
        found = (
            entry
            for entry in board.newest_first()
            if (before is None or entry.arrival < before) and (not states or entry.state in states)
        )
        size = min(request.page_size or _PAGE, _MAX_PAGE)
        page = list(islice(found, size + 1))
        token = str(page[size - 1].arrival) if len(page) > size else ""
        return pb.ListJobsResponse(jobs=[job_message(entry) for entry in page[:size]], next_page_token=token)

    async def CancelJob(self, parcel: Parcel[pb.CancelJobRequest], context: Context) -> pb.CancelJobResponse:
        request, board = parcel.message, self._ready().board
        if request.WhichOneof("target") == "request_id":
            entry = board.find(request_id=_required("request_id", request.request_id))
        else:
            entry = board.find(job_id=_required("job_id", request.job_id))
        board.cancel(entry)
        return pb.CancelJobResponse(job=job_message(entry))

    async def SubmitJob(self, parcel: Parcel[pb.SubmitJobRequest], context: Context) -> NoReturn:
        raise missing("jobs.submit")

    async def WatchJob(
        self, parcel: Parcel[pb.WatchJobRequest], context: Context
    ) -> AsyncGenerator[pb.WatchJobResponse, None]:
        raise missing("jobs.watch")
        yield pb.WatchJobResponse()  # makes it a stream, as the contract has it

    async def UploadBlob(self, parcels: Any, context: Context) -> NoReturn:
        raise missing("content.upload")

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


def _required(name: str, value: str) -> str:
    if not value:
        raise InvalidArgument(f"{name}: expected the id of a job, got none", field=name, reason="JOB_ID_MISSING")
    return value


def _page_token(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise InvalidArgument(
            f"page_token: expected next_page_token of the reply before, got {text[:40]!r}",
            field="page_token",
            reason="PAGE_TOKEN_INVALID",
        )
    return int(text)
