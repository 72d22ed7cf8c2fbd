"""The generator's far end: its rpcs with the caller's values on one side and messages on the other."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef
from zrelay.v1.jobs_pb2 import JobEvent
from zrelay_client._budget import CONNECT_S
from zrelay_client._contents import Content
from zrelay_client._info import GeneratorInfo
from zrelay_client._info_replies import generator_info
from zrelay_client._jobs import Job, JobPage
from zrelay_client._replies import job_of
from zrelay_client._requests import list_request
from zrelay_client._services import ServiceStub
from zrelay_shared.wire import Parcel

_CHUNK_BYTES = 512 * 1024
_UPLOAD_S = 600.0


class GeneratorService(ServiceStub):
    """The generator."""

    role = "generator"
    descriptor = pb.DESCRIPTOR.services_by_name["GeneratorService"]

    async def info(self, timeout: float = CONNECT_S) -> GeneratorInfo:
        """GetInfo."""
        request = pb.GeneratorServiceGetInfoRequest()
        reply = await self.first("GetInfo", request, pb.GeneratorServiceGetInfoResponse, timeout)
        return generator_info(self.endpoint, reply.message)

    async def generate(self, request: Parcel[pb.GenerateRequest], timeout: float) -> AsyncGenerator[JobEvent, None]:
        """Generate. Closing the generator ends the call."""
        stream = self.stub.stream("Generate", request, pb.GenerateResponse, timeout=timeout)
        async with contextlib.aclosing(stream) as replies:
            async for reply in replies:
                yield reply.message.event

    async def submit(self, request: Parcel[pb.SubmitJobRequest], timeout: float) -> Job:
        """SubmitJob."""
        reply = await self.stub.call("SubmitJob", request, pb.SubmitJobResponse, timeout=timeout)
        return job_of(self.endpoint, reply.message.job)

    async def watch(self, job_id: str, after: int, timeout: float) -> AsyncGenerator[JobEvent, None]:
        """WatchJob, from behind a sequence number. Closing the generator ends the call."""
        request = pb.WatchJobRequest(job_id=job_id, after_sequence=after)
        stream = self.stub.stream("WatchJob", request, pb.WatchJobResponse, timeout=timeout)
        async with contextlib.aclosing(stream) as replies:
            async for reply in replies:
                yield reply.message.event

    async def job(self, job_id: str, timeout: float = CONNECT_S) -> Job:
        """GetJob."""
        reply = await self.stub.call("GetJob", pb.GetJobRequest(job_id=job_id), pb.GetJobResponse, timeout=timeout)
        return job_of(self.endpoint, reply.message.job)

    async def jobs(self, states: tuple[str, ...], page_size: int, token: str, timeout: float = CONNECT_S) -> JobPage:
        """ListJobs: a page, newest first, and the token of the next ("" after the last)."""
        request = list_request(states, page_size, token)
        reply = await self.first("ListJobs", request, pb.ListJobsResponse, timeout)
        jobs = tuple(job_of(self.endpoint, job) for job in reply.message.jobs)
        return JobPage(jobs, reply.message.next_page_token)

    async def cancel(self, request_id: str, timeout: float = CONNECT_S) -> Job:
        """CancelJob, by the request's id."""
        return await self._cancel(pb.CancelJobRequest(request_id=request_id), timeout)

    async def cancel_job(self, job_id: str, timeout: float = CONNECT_S) -> Job:
        """CancelJob, by the job's id here."""
        return await self._cancel(pb.CancelJobRequest(job_id=job_id), timeout)

    async def send(self, content: Content, timeout: float = _UPLOAD_S) -> None:
        """UploadBlob."""
        await self.stub.send("UploadBlob", _chunks(content), pb.UploadBlobResponse, timeout=timeout)

    async def _cancel(self, request: pb.CancelJobRequest, timeout: float) -> Job:
        reply = await self.stub.call("CancelJob", request, pb.CancelJobResponse, timeout=timeout)
        return job_of(self.endpoint, reply.message.job)


async def _chunks(content: Content) -> AsyncIterator[pb.UploadBlobRequest]:
    data = memoryview(content.make())
    name = ContentRef(sha256=content.sha256, size_bytes=content.size_bytes)
    for start in range(0, len(data), _CHUNK_BYTES):
        chunk = bytes(data[start : start + _CHUNK_BYTES])
        yield pb.UploadBlobRequest(content=name if start == 0 else None, data=chunk)
