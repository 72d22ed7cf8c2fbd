"""The handlers of GeneratorService: each one parses its request, calls the job manager and wraps the result."""

import functools
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2
from zrelay.v1.jobs_pb2 import Job, JobEvent
from zrelay_generator.api.contents import Uploads
from zrelay_generator.api.page_tokens import PageTokens
from zrelay_generator.api.replies import STATE_OF, event_message, job_message, loading_info, ready_info
from zrelay_generator.api.requests import RequestReader, check_id, parse_request_id
from zrelay_generator.cost.model import CostModel
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.provenance import LoadedIdentity
from zrelay_generator.features.request import missing
from zrelay_generator.jobs.image_room import ImageRoom
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.jobs.manager import JobManager
from zrelay_generator.store.records import JobState
from zrelay_shared.callers import current_caller
from zrelay_shared.checkpoints import model_id
from zrelay_shared.errors import ModelLoading, invalid
from zrelay_shared.rpc import Context
from zrelay_shared.service.parsing import enum_choice
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.torch_devices import DeviceReport
from zrelay_shared.wire import Parcel

_PAGE_SIZE, _MAX_PAGE_SIZE = 50, 200
_NEWEST = 1 << 62
"""Above the arrival number of every job."""


@dataclass(eq=False)
class ServedModel:
    """What the handlers use, once the model is loaded.

    Attributes:
        accepts: Limits and defaults of requests.
        loaded: What identifies the model in results.
        requests: Makes jobs from requests.
        uploads: Receives contents.
        jobs: All jobs.
        cost: The device's cost model.
        device_report: The device and its free memory, refreshed by heartbeats.
    """

    accepts: Acceptance
    loaded: LoadedIdentity
    requests: RequestReader
    uploads: Uploads
    jobs: JobManager
    cost: CostModel
    device_report: DeviceReport


class GeneratorHandlers:
    """The methods of GeneratorService in the contract."""

    def __init__(self, config: GeneratorConfig) -> None:
        """Creates handlers that refuse everything but GetInfo until `served` is set.

        Args:
            config: The settings.
        """
        self._config = config
        self._model_id = model_id(config.model)
        self._images = ImageRoom()
        self._pages = PageTokens()
        self.served: ServedModel | None = None

    async def GetInfo(
        self, parcel: Parcel[pb.GeneratorServiceGetInfoRequest], context: Context
    ) -> pb.GeneratorServiceGetInfoResponse:
        served = self.served
        if served is None:
            return loading_info(self._model_id, self._config.state)
        device, cost = served.device_report, served.cost.snapshot()
        return ready_info(self._config, served.accepts, served.loaded, device, served.jobs.scheduler, cost)

    async def Generate(
        self, parcel: Parcel[pb.GenerateRequest], context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        served = self._ready()
        submission = await served.requests.read(
            parcel,
            parcel.message.spec,
            parse_request_id(parcel.message.request_id),
            caller=current_caller(),
            budget_s=context.time_remaining(),
        )
        events = _events(context, self._images, served.jobs, await served.jobs.submit(submission))
        async with aclosing(events):
            async for event in events:
                yield pb.GenerateResponse(event=event)

    async def SubmitJob(self, parcel: Parcel[pb.SubmitJobRequest], context: Context) -> pb.SubmitJobResponse:
        served, message = self._ready(), parcel.message
        submission = await served.requests.read(
            parcel,
            message.spec,
            check_id("request_id", message.request_id),
            detached=message.detached,
            caller=current_caller(),
        )
        return pb.SubmitJobResponse(job=_summary(served.jobs, await served.jobs.submit(submission)))

    async def WatchJob(
        self, parcel: Parcel[pb.WatchJobRequest], context: Context
    ) -> AsyncGenerator[pb.WatchJobResponse, None]:
        jobs = self._ready().jobs
        job = await jobs.directory.by_id(check_id("job_id", parcel.message.job_id), current_caller())
        events = _events(context, self._images, jobs, job, parcel.message.after_sequence)
        async with aclosing(events):
            async for event in events:
                yield pb.WatchJobResponse(event=event)

    async def GetJob(self, parcel: Parcel[pb.GetJobRequest], context: Context) -> pb.GetJobResponse:
        jobs = self._ready().jobs
        job = await jobs.directory.by_id(check_id("job_id", parcel.message.job_id), current_caller())
        return pb.GetJobResponse(job=_summary(jobs, job))

    async def ListJobs(self, parcel: Parcel[pb.ListJobsRequest], context: Context) -> pb.ListJobsResponse:
        request, directory, caller = parcel.message, self._ready().jobs.directory, current_caller()
        states = frozenset(map(_state, request.states)) or frozenset(JobState)
        size = min(request.page_size or _PAGE_SIZE, _MAX_PAGE_SIZE)
        before = self._pages.read(request.page_token, caller.owner) if request.page_token else _NEWEST
        page = await directory.page(before, states, size + 1, caller)
        token = self._pages.token(page[size - 1].record.arrival, caller.owner) if len(page) > size else ""
        return pb.ListJobsResponse(jobs=[job_message(job) for job in page[:size]], next_page_token=token)

    async def CancelJob(self, parcel: Parcel[pb.CancelJobRequest], context: Context) -> pb.CancelJobResponse:
        request, jobs, caller = parcel.message, self._ready().jobs, current_caller()
        if request.WhichOneof("target") == "request_id":
            job = await jobs.directory.by_request(check_id("request_id", request.request_id), caller)
        else:
            job = await jobs.directory.by_id(check_id("job_id", request.job_id), caller)
        jobs.cancel(job)
        await jobs.settled(job)
        return pb.CancelJobResponse(job=job_message(job))

    async def UploadBlob(
        self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]], context: Context
    ) -> pb.UploadBlobResponse:
        return await self._ready().uploads.receive(parcels, current_caller())

    async def ListLoras(self, parcel: Parcel[pb.ListLorasRequest], context: Context) -> NoReturn:
        raise missing("lora.manage")

    async def UploadLora(self, parcels: Any, context: Context) -> NoReturn:
        raise missing("lora.manage")

    async def RemoveLora(self, parcel: Parcel[pb.RemoveLoraRequest], context: Context) -> NoReturn:
        raise missing("lora.manage")

    def _ready(self) -> ServedModel:
        if self.served is None:
            raise ModelLoading("the model is still loading; try again in a few seconds")
        return self.served


async def _events(
    context: Context, images: ImageRoom, jobs: JobManager, job: LiveJob, after: int = 0
) -> AsyncGenerator[JobEvent, None]:
    """Yields the events of a job as messages. Raises the job's error if it failed."""
    # The first event may come late. Without metadata a client's channel would hide an error by repeating the call.
    await context.send_initial_metadata(())
    events = jobs.watch(job, after, functools.partial(images.taken, current_caller().name))
    async with aclosing(events):
        async for sequence, event in events:
            yield event_message(job, sequence, event)


def _summary(jobs: JobManager, job: LiveJob) -> Job:
    return job_message(job, jobs.standing(job))


def _state(number: int) -> JobState:
    state = enum_choice(number, jobs_pb2.JobState, STATE_OF, "states", reason="ENUM_UNKNOWN")
    if state is None:
        raise invalid("states", "states of a job", number, reason="ENUM_UNKNOWN")
    return state
