"""A fake GeneratorService: jobs with a queue, progress, previews and cancellation, and images of one colour."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from zrelay.v1 import generation_pb2, jobs_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef
from zrelay.v1.info_pb2 import QueueInfo
from zrelay.v1.jobs_pb2 import JobState
from zrelay_client.testing.results import finished_image, preview_jpeg
from zrelay_client.testing.service import (
    DEVICE,
    FakeService,
    fake_fingerprint,
    features,
    sha256_hex,
)
from zrelay_client.testing.specs import UNAVAILABLE, FakeSpec, SpecReader, missing
from zrelay_shared import fingerprint
from zrelay_shared.errors import (
    Cancelled,
    IdempotencyConflict,
    InternalError,
    NotFound,
    PayloadCorrupt,
    QueueFull,
    ZrelayError,
    invalid,
)
from zrelay_shared.limits import MAX_REQUEST_ID_CHARS
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import connection_info, server_version
from zrelay_shared.wire import Parcel

_PAGE_SIZE, _MAX_PAGE_SIZE = 50, 200
_REQUEST_ID = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_AVAILABLE = (
    *("generate.cfg", "generate.cfg_normalization", "generate.cfg_truncation", "generate.img2img", "generate.omni"),
    "generate.skip_layer_guidance",
    *("generate.sigmas", "generate.preview", "generate.priority", "generate.deterministic"),
    *("jobs.submit", "jobs.watch", "jobs.get", "jobs.list", "jobs.cancel", "content.upload"),
)
_ENDED = (JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)


@dataclass(eq=False)
class _FakeJob:
    """One job. Used from the event loop of the server.

    Attributes:
        spec: The checked spec of the request.
        failure: The error and the number of steps after which the job fails, None if it succeeds.
        events: Its events so far.
        changed: Set and replaced with every event.
    """

    job_id: str
    request_id: str
    spec: FakeSpec
    detached: bool
    failure: tuple[ZrelayError, int] | None
    state: JobState = JobState.JOB_STATE_QUEUED
    error: ZrelayError | None = None
    accepted_at: float = field(default_factory=time.time)
    ended_at: float = 0.0
    events: list[jobs_pb2.JobEvent] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    watchers: int = 0
    lease: asyncio.TimerHandle | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.state in _ENDED

    def add(self, **event: Message) -> None:
        """Adds an event and wakes the watchers."""
        self.events.append(jobs_pb2.JobEvent(sequence=len(self.events) + 1, **event))  # type: ignore[arg-type]
        self.notify()

    def notify(self) -> None:
        """Wakes the watchers."""
        self.changed.set()
        self.changed = asyncio.Event()


@dataclass(eq=False)
class FakeGenerator(FakeService):
    """The fake generator. Jobs run one at a time.

    Attributes:
        width: Width of an embedding.
        text_limit: Tokens of a prompt, at most.
        side: Default width and height of an image in pixels.
        steps: Default number of steps.
        max_waiting: Jobs that may wait; one more is refused with QueueFull.
        step_s: Seconds that one step takes.
        lease_s: Seconds after which a job that nobody watches is cancelled, unless it is detached.
    """

    width: int = 64
    text_limit: int = 512
    side: int = 64
    steps: int = 4
    max_waiting: int = 16
    step_s: float = 0.0
    lease_s: float = 30.0
    _jobs: dict[str, _FakeJob] = field(default_factory=dict, init=False, repr=False)
    _contents: dict[str, bytes] = field(default_factory=dict, init=False, repr=False)
    _waiting: list[_FakeJob] = field(default_factory=list, init=False, repr=False)
    _running: _FakeJob | None = field(default=None, init=False, repr=False)
    _task: asyncio.Task[None] | None = field(default=None, init=False, repr=False)
    _held: bool = field(default=False, init=False, repr=False)
    _released: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False)
    _job_failures: list[tuple[ZrelayError, int]] = field(default_factory=list, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)

    @property
    def descriptor(self) -> ServiceDescriptor:
        """zrelay.v1.GeneratorService."""
        return pb.DESCRIPTOR.services_by_name["GeneratorService"]

    @property
    def specs(self) -> list[generation_pb2.GenerationSpec]:
        """What Generate and SubmitJob were called with so far, oldest first."""
        requests = [call.request for call in self.calls]
        return [request.spec for request in requests if isinstance(request, pb.GenerateRequest | pb.SubmitJobRequest)]

    @property
    def _reader(self) -> SpecReader:
        return SpecReader(self.width, self.text_limit, self.side, self.steps, self._contents)

    def fail_next_job(self, error: ZrelayError, *, after_steps: int = 1) -> None:
        """Makes the next accepted job fail while it runs.

        Args:
            error: The job's error.
            after_steps: Steps that run before.
        """
        self._job_failures.append((error, after_steps))

    def hold(self) -> None:
        """Stops jobs before their next step until `release` is called. They can be cancelled in the meantime."""
        self._held = True

    def release(self) -> None:
        """Lets jobs run again."""
        self._held = False
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._released.set)

    async def GetInfo(
        self, parcel: Parcel[pb.GeneratorServiceGetInfoRequest], context: Context
    ) -> pb.GeneratorServiceGetInfoResponse:
        """Describes the generator."""
        return pb.GeneratorServiceGetInfoResponse(
            version=server_version("generator", ("grpcio", "protobuf")),
            ready=True,
            model_id="fake",
            transformer_digest=sha256_hex(b"transformer"),
            vae_digest=sha256_hex(b"vae"),
            configuration_digest=sha256_hex(b"configuration"),
            expected_encoder=fingerprint.to_message(fake_fingerprint(self.width)),
            defaults=self._reader.defaults,
            limits=self._reader.limits,
            device=DEVICE,
            features=features(_AVAILABLE, (*UNAVAILABLE.values(), "lora.manage")),
            queue=QueueInfo(
                waiting=len(self._waiting), running=int(self._running is not None), max_waiting=self.max_waiting
            ),
            cost=pb.CostModel(),
            connection=connection_info(),
        )

    async def Generate(
        self, parcel: Parcel[pb.GenerateRequest], context: Context
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Generates images while the caller waits."""
        request = parcel.message
        self._receive("Generate", request)
        job = self._accept(parcel, request.spec, request.request_id or secrets.token_hex(16), detached=False)
        async for event in self._watch(job, 0):
            yield pb.GenerateResponse(event=event)

    async def SubmitJob(self, parcel: Parcel[pb.SubmitJobRequest], context: Context) -> pb.SubmitJobResponse:
        """Accepts a job and returns at once."""
        request = parcel.message
        self._receive("SubmitJob", request)
        if not request.request_id:
            raise invalid("request_id", "one", "none", reason="REQUEST_ID_MISSING")
        job = self._accept(parcel, request.spec, request.request_id, detached=request.detached)
        self._update_lease(job)
        return pb.SubmitJobResponse(job=self._summary(job))

    async def WatchJob(
        self, parcel: Parcel[pb.WatchJobRequest], context: Context
    ) -> AsyncGenerator[pb.WatchJobResponse, None]:
        """Yields the events of a job after a sequence number."""
        request = parcel.message
        self._receive("WatchJob", request)
        async for event in self._watch(self._by_id(request.job_id), request.after_sequence):
            yield pb.WatchJobResponse(event=event)

    async def GetJob(self, parcel: Parcel[pb.GetJobRequest], context: Context) -> pb.GetJobResponse:
        """Returns one job."""
        self._receive("GetJob", parcel.message)
        return pb.GetJobResponse(job=self._summary(self._by_id(parcel.message.job_id)))

    async def ListJobs(self, parcel: Parcel[pb.ListJobsRequest], context: Context) -> pb.ListJobsResponse:
        """Lists jobs, newest first."""
        request = parcel.message
        self._receive("ListJobs", request)
        if request.page_token and not (request.page_token.isascii() and request.page_token.isdigit()):
            raise invalid("page_token", "next_page_token of the previous reply", repr(request.page_token[:40]))
        wanted = set(request.states)
        every = [job for job in reversed(self._jobs.values()) if not wanted or job.state in wanted]
        start = int(request.page_token or 0)
        end = start + min(request.page_size or _PAGE_SIZE, _MAX_PAGE_SIZE)
        token = str(end) if end < len(every) else ""
        return pb.ListJobsResponse(jobs=map(self._summary, every[start:end]), next_page_token=token)

    async def CancelJob(self, parcel: Parcel[pb.CancelJobRequest], context: Context) -> pb.CancelJobResponse:
        """Cancels a job. Does nothing if the job has ended."""
        request = parcel.message
        self._receive("CancelJob", request)
        if request.WhichOneof("target") == "request_id":
            matches = [job for job in self._jobs.values() if job.request_id == request.request_id]
            job = matches[-1] if matches else self._unknown(request.request_id, "request_id")
        else:
            job = self._by_id(request.job_id)
        self._cancel(job, Cancelled("the job was cancelled on request"))
        return pb.CancelJobResponse(job=self._summary(job))

    async def UploadBlob(
        self, parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]], context: Context
    ) -> pb.UploadBlobResponse:
        """Stores a content under its digest."""
        content, data = ContentRef(), bytearray()
        async for parcel in parcels:
            if not content.sha256:
                content.CopyFrom(parcel.message.content)
                self._receive("UploadBlob", pb.UploadBlobRequest(content=content))
                if content.sha256 in self._contents:
                    return pb.UploadBlobResponse(content=content, existed=True)
            data += parcel.message.data
        if sha256_hex(data) != content.sha256:
            raise PayloadCorrupt(
                f"content: expected bytes with the digest {content.sha256}, got bytes with {sha256_hex(data)}: send it "
                "again",
                field="content.sha256",
            )
        self._contents[content.sha256] = bytes(data)
        content.size_bytes = len(data)
        return pb.UploadBlobResponse(content=content, existed=False)

    async def ListLoras(self, parcel: Parcel[pb.ListLorasRequest], context: Context) -> NoReturn:
        """Refuses: a fake generator has no LoRAs."""
        raise missing("lora.manage")

    async def UploadLora(self, parcels: AsyncIterator[Parcel[pb.UploadLoraRequest]], context: Context) -> NoReturn:
        """Refuses: a fake generator has no LoRAs."""
        raise missing("lora.manage")

    async def RemoveLora(self, parcel: Parcel[pb.RemoveLoraRequest], context: Context) -> NoReturn:
        """Refuses: a fake generator has no LoRAs."""
        raise missing("lora.manage")

    # From a request to a job.

    def _accept(
        self, parcel: Parcel[Any], spec: generation_pb2.GenerationSpec, request_id: str, *, detached: bool
    ) -> _FakeJob:
        """Returns the new job of a request, or the one that has its request_id."""
        if len(request_id) > MAX_REQUEST_ID_CHARS or not _REQUEST_ID.issuperset(request_id):
            expected = f"at most {MAX_REQUEST_ID_CHARS} characters of A-Z a-z 0-9 . _ -"
            raise invalid("request_id", expected, repr(request_id[:80]))
        checked = self._reader.read(parcel, spec)
        known = next((job for job in reversed(self._jobs.values()) if job.request_id == request_id), None)
        if known is not None and known.spec.identity != checked.identity:
            raise IdempotencyConflict(
                f"request_id {request_id!r} was used for another request; use a new one for each request",
                field="request_id",
                metadata={"request_id": request_id, "job_id": known.job_id},
            )
        if known is not None and known.state not in _ENDED[1:]:
            known.detached = known.detached or detached
            self._update_lease(known)
            return known
        waiting = len(self._waiting) - int(self._running is None)  # the first one starts at once
        if waiting >= self.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests wait here (at most {self.max_waiting}); try again in 1 s",
                metadata={"waiting": len(self._waiting), "max_waiting": self.max_waiting},
                retry_after_s=1.0,
            )
        failure = self._job_failures.pop(0) if self._job_failures else None
        job = _FakeJob(secrets.token_hex(8), request_id, checked, detached, failure)
        self._jobs[job.job_id] = job
        self._waiting.append(job)
        self._waiting.sort(key=lambda each: each.spec.place)  # stable: first come, first served
        job.add(accepted=self._accepted(job))
        if self._task is None or self._task.done():
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run_jobs())
        return job

    # Jobs.

    async def _run_jobs(self) -> None:
        while self._waiting:
            job = self._running = self._waiting.pop(0)
            job.state = JobState.JOB_STATE_RUNNING
            try:
                await self._run(job)
            except ZrelayError as error:
                self._end(job, JobState.JOB_STATE_FAILED, error)
            except Exception as error:
                bug = InternalError(f"a bug in the fake generator: {type(error).__name__}: {error}")
                self._end(job, JobState.JOB_STATE_FAILED, bug)
            finally:
                self._running = None

    async def _run(self, job: _FakeJob) -> None:
        started = time.monotonic()
        images, total = job.spec.sampling.num_images, job.spec.sampling.num_images * job.spec.steps
        self._progress(job, jobs_pb2.STAGE_KIND_PREPARE, 1, 1)
        for done in range(total):
            if job.failure is not None and done == job.failure[1]:
                raise job.failure[0]
            await self._step(job)
            if job.ended:
                return
            self._progress(job, jobs_pb2.STAGE_KIND_DENOISE, done + 1, total)
            index, step = divmod(done, job.spec.steps)
            every = job.spec.message.preview.every_steps
            if every and (step + 1) % every == 0:
                jpeg = preview_jpeg(job.spec, index)
                job.add(preview=jobs_pb2.JobPreview(image_index=index, step=step + 1, jpeg=jpeg))
        if job.failure is not None:
            raise job.failure[0]
        for stage in (jobs_pb2.STAGE_KIND_DECODE, jobs_pb2.STAGE_KIND_ENCODE_IMAGE):
            for index in range(images):
                self._progress(job, stage, index + 1, images)
        for index in range(images):
            job.add(image=finished_image(job.spec, index))
        seconds = time.monotonic() - started
        job.state, job.ended_at = JobState.JOB_STATE_SUCCEEDED, time.time()
        job.add(done=jobs_pb2.JobDone(images=images, timings=jobs_pb2.JobTimings(denoise_s=seconds, total_s=seconds)))

    async def _step(self, job: _FakeJob) -> None:
        """Waits while the generator is held, then for the time of a step. Returns at once when the job is cancelled."""
        await asyncio.sleep(0)
        while self._held and not job.ended:
            self._released = asyncio.Event()
            changed = job.changed
            waits = [asyncio.ensure_future(event.wait()) for event in (self._released, changed)]
            if self._held:  # not released in between
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self.step_s and not job.ended:
            with suppress(TimeoutError):
                await asyncio.wait_for(job.changed.wait(), self.step_s)

    async def _watch(self, job: _FakeJob, after: int) -> AsyncGenerator[jobs_pb2.JobEvent, None]:
        """Yields the events of a job after a sequence number, until it ends. Raises its error if it failed."""
        job.watchers += 1
        self._update_lease(job)
        try:
            while True:
                changed = job.changed
                for event in job.events[after:]:
                    after = event.sequence
                    yield event
                if job.ended and after >= len(job.events):
                    if job.error is not None:
                        raise job.error
                    return
                if after >= len(job.events):
                    await changed.wait()
        finally:
            job.watchers -= 1
            self._update_lease(job)

    def _update_lease(self, job: _FakeJob) -> None:
        if job.lease is not None:
            job.lease.cancel()
            job.lease = None
        if not (job.watchers or job.detached or job.ended):
            expired = Cancelled("the job was cancelled: nobody watches it any more", reason="LEASE_EXPIRED")
            job.lease = asyncio.get_running_loop().call_later(self.lease_s, self._cancel, job, expired)

    def _cancel(self, job: _FakeJob, error: Cancelled) -> None:
        if not job.ended:
            with suppress(ValueError):
                self._waiting.remove(job)
            self._end(job, JobState.JOB_STATE_CANCELLED, error)

    def _end(self, job: _FakeJob, state: JobState, error: ZrelayError) -> None:
        job.state, job.error, job.ended_at = state, error, time.time()
        job.notify()

    def _by_id(self, job_id: str) -> _FakeJob:
        if not job_id:
            raise invalid("job_id", "one", "none", reason="JOB_ID_MISSING")
        return self._jobs.get(job_id) or self._unknown(job_id, "job_id")

    def _unknown(self, name: str, path: str) -> NoReturn:
        raise NotFound(f"there is no job {name!r}: it never existed here", reason="JOB_UNKNOWN", field=path)

    # Replies.

    def _accepted(self, job: _FakeJob) -> jobs_pb2.JobAccepted:
        images = job.spec.sampling.num_images
        plan = (
            (jobs_pb2.STAGE_KIND_PREPARE, 1),
            (jobs_pb2.STAGE_KIND_DENOISE, images * job.spec.steps),
            (jobs_pb2.STAGE_KIND_DECODE, images),
            (jobs_pb2.STAGE_KIND_ENCODE_IMAGE, images),
        )
        return jobs_pb2.JobAccepted(
            job_id=job.job_id,
            request_id=job.request_id,
            queue_position=self._waiting.index(job) + int(self._running is not None),
            seed=job.spec.sampling.seed,
            sampling=job.spec.sampling,
            sigmas=job.spec.sigmas,
            plan=[jobs_pb2.Stage(kind=stage, total=total) for stage, total in plan],
            encoder_relation=fingerprint.RELATIONS[job.spec.comparison.relation],
            encoder_differences=job.spec.comparison.differences,
        )

    def _progress(self, job: _FakeJob, stage: jobs_pb2.StageKind, completed: int, total: int) -> None:
        job.add(
            progress=jobs_pb2.JobProgress(
                state=JobState.JOB_STATE_RUNNING,
                stage=stage,
                completed=completed,
                total=total,
                unit_ms=self.step_s * 1e3,
                eta_s=self.step_s * (total - completed),
            )
        )

    def _summary(self, job: _FakeJob) -> jobs_pb2.Job:
        progress = next((each.progress for each in reversed(job.events) if each.HasField("progress")), None)
        if job in self._waiting:
            position = self._waiting.index(job) + int(self._running is not None)
            progress = jobs_pb2.JobProgress(state=JobState.JOB_STATE_QUEUED, queue_position=position)
        error = None
        if job.error is not None:
            code: int = getattr(grpc.StatusCode, job.error.code).value[0]
            error = jobs_pb2.JobError(code=code, reason=job.error.reason, message=job.error.message)
        return jobs_pb2.Job(
            job_id=job.job_id,
            request_id=job.request_id,
            state=job.state,
            sequence=len(job.events),
            progress=progress,
            error=error,
            accepted_at=job.accepted_at,
            ended_at=job.ended_at,
            sampling=job.spec.sampling,
        )
