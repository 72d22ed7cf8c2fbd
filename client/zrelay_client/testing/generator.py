"""A fake GeneratorService: jobs with a queue, progress, previews and cancellation, and images of one colour."""

import asyncio
import hashlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from zrelay.v1 import generation_pb2, jobs_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef, ImageInput
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.info_pb2 import QueueInfo
from zrelay.v1.jobs_pb2 import JobState
from zrelay.v1.tensor_pb2 import Tensor
from zrelay.v1.vision_pb2 import SiglipEmbeds
from zrelay_client.testing import pictures
from zrelay_client.testing.service import (
    BACKEND,
    DEVICE,
    DTYPE,
    IMAGE_SIGNATURES,
    FakeService,
    fake_fingerprint,
    features,
    sha256_hex,
)
from zrelay_shared import __version__, fingerprint, tensors
from zrelay_shared.errors import (
    Cancelled,
    FeatureMissing,
    IdempotencyConflict,
    InternalError,
    InvalidArgument,
    NotFound,
    PayloadCorrupt,
    QueueFull,
    ZrelayError,
)
from zrelay_shared.fingerprint import EncoderComparison
from zrelay_shared.limits import MAX_MESSAGE_BYTES, MAX_REQUEST_ID_CHARS, MIB
from zrelay_shared.omni import image_count
from zrelay_shared.rpc import Context
from zrelay_shared.service.info import server_version
from zrelay_shared.service.parsing import invalid
from zrelay_shared.wire import Parcel

_MULTIPLE, _MIN_SIDE, _MAX_SIDE, _MAX_PIXELS = 16, 16, 2048, 2048 * 2048
_MAX_STEPS, _MAX_IMAGES, _MAX_IMAGE_BYTES = 100, 16, 32 * MIB
_SHIFT, _QUALITY, _STRENGTH, _PREVIEW_SIDE = 3.0, 95, 0.6, 256
_PAGE_SIZE, _MAX_PAGE_SIZE = 50, 200
_REQUEST_ID = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_AVAILABLE = (
    *("generate.cfg", "generate.cfg_normalization", "generate.cfg_truncation", "generate.img2img", "generate.omni"),
    "generate.skip_layer_guidance",
    *("generate.sigmas", "generate.preview", "generate.priority", "generate.deterministic"),
    *("jobs.submit", "jobs.watch", "jobs.get", "jobs.list", "jobs.cancel", "content.upload"),
)
_UNAVAILABLE = {
    # field of GenerationSpec -> the capability that it needs
    "inpaint": "generate.inpaint",
    "controls": "generate.control",
    "loras": "generate.lora",
    "dype": "generate.dype",
    "passes": "generate.passes",
    "tiled_vae": "generate.tiled_vae",
}
_ENDED = (JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED, JobState.JOB_STATE_CANCELLED)
_PRIORITIES = {
    generation_pb2.JOB_PRIORITY_INTERACTIVE: 0,
    generation_pb2.JOB_PRIORITY_UNSPECIFIED: 1,
    generation_pb2.JOB_PRIORITY_NORMAL: 1,
    generation_pb2.JOB_PRIORITY_BATCH: 2,
}
"""Priority -> its place in the queue."""


@dataclass(eq=False)
class _FakeJob:
    """One job. Used from the event loop of the server.

    Attributes:
        identity: Digest of everything that was asked for.
        parcel, spec: The request and the spec inside, every content by value.
        comparison: How the encoder of the embeddings relates to the generator's.
        failure: The error and the number of steps after which the job fails, None if it succeeds.
        events: Its events so far.
        changed: Set and replaced with every event.
    """

    job_id: str
    request_id: str
    identity: str
    parcel: Parcel[Any]
    spec: generation_pb2.GenerationSpec
    sampling: generation_pb2.SamplingOptions
    sigmas: tuple[float, ...]
    comparison: EncoderComparison
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

    @property
    def steps(self) -> int:
        """Steps that run for one image."""
        count = len(self.sigmas) - 1
        if self.spec.WhichOneof("start") != "image_to_image":
            return count
        return count - int(max(count - min(count * _strength(self.spec), count), 0))

    def add(self, **event: Message) -> None:
        """Adds an event, and wakes those who watch."""
        self.events.append(jobs_pb2.JobEvent(sequence=len(self.events) + 1, **event))  # type: ignore[arg-type]
        self.notify()

    def notify(self) -> None:
        """Wakes those who watch."""
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
            expected_encoder=fingerprint.to_message(fake_fingerprint(self.width)),
            defaults=generation_pb2.SamplingOptions(
                width=self.side,
                height=self.side,
                num_inference_steps=self.steps,
                guidance_scale=0.0,
                cfg_normalization=0.0,
                cfg_truncation=1.0,
                shift=_SHIFT,
                num_images=1,
            ),
            limits=pb.GeneratorLimits(
                size_multiple=_MULTIPLE,
                min_side=_MIN_SIDE,
                max_side=_MAX_SIDE,
                max_pixels=_MAX_PIXELS,
                max_steps=_MAX_STEPS,
                max_images=_MAX_IMAGES,
                text_limit=self.text_limit,
                embeds_width=self.width,
                max_message_bytes=MAX_MESSAGE_BYTES,
                max_image_bytes=_MAX_IMAGE_BYTES,
            ),
            device=DEVICE,
            features=features(_AVAILABLE, (*_UNAVAILABLE.values(), "lora.manage")),
            queue=QueueInfo(
                waiting=len(self._waiting), running=int(self._running is not None), max_waiting=self.max_waiting
            ),
            cost=pb.CostModel(),
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
        if request.page_token and not request.page_token.isdigit():
            raise invalid("page_token", "next_page_token of the previous reply", repr(request.page_token[:40]))
        wanted = set(request.states)
        every = [job for job in reversed(self._jobs.values()) if not wanted or job.state in wanted]
        start = int(request.page_token or 0)
        end = start + min(request.page_size or _PAGE_SIZE, _MAX_PAGE_SIZE)
        token = str(end) if end < len(every) else ""
        return pb.ListJobsResponse(jobs=map(self._summary, every[start:end]), next_page_token=token)

    async def CancelJob(self, parcel: Parcel[pb.CancelJobRequest], context: Context) -> pb.CancelJobResponse:
        """Cancels a job. Nothing changes where it has ended."""
        request = parcel.message
        self._receive("CancelJob", request)
        if request.WhichOneof("target") == "request_id":
            found = [job for job in self._jobs.values() if job.request_id == request.request_id]
            job = found[-1] if found else self._unknown(request.request_id, "request_id")
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
        raise _missing("lora.manage")

    async def UploadLora(self, parcels: AsyncIterator[Parcel[pb.UploadLoraRequest]], context: Context) -> NoReturn:
        """Refuses: a fake generator has no LoRAs."""
        raise _missing("lora.manage")

    async def RemoveLora(self, parcel: Parcel[pb.RemoveLoraRequest], context: Context) -> NoReturn:
        """Refuses: a fake generator has no LoRAs."""
        raise _missing("lora.manage")

    # From a request to a job.

    def _accept(
        self, parcel: Parcel[Any], spec: generation_pb2.GenerationSpec, request_id: str, *, detached: bool
    ) -> _FakeJob:
        """Returns the new job of a request, or the one that has its request_id."""
        if len(request_id) > MAX_REQUEST_ID_CHARS or not _REQUEST_ID.issuperset(request_id):
            expected = f"at most {MAX_REQUEST_ID_CHARS} characters of A-Z a-z 0-9 . _ -"
            raise invalid("request_id", expected, repr(request_id[:80]))
        whole = self._by_value(parcel, spec)
        identity = _identity(whole)
        known = next((job for job in reversed(self._jobs.values()) if job.request_id == request_id), None)
        if known is not None and known.identity != identity:
            raise IdempotencyConflict(
                f"request_id {request_id!r} was used for another request; use a new one for each request",
                field="request_id",
                metadata={"request_id": request_id, "job_id": known.job_id},
            )
        if known is not None and known.state not in _ENDED[1:]:
            known.detached = known.detached or detached
            self._update_lease(known)
            return known
        job = self._new_job(whole, request_id, identity, detached=detached)
        waiting = len(self._waiting) - int(self._running is None)  # the first one starts at once
        if waiting >= self.max_waiting:
            raise QueueFull(
                f"{len(self._waiting)} requests wait here (at most {self.max_waiting}); try again in 1 s",
                metadata={"waiting": len(self._waiting), "max_waiting": self.max_waiting},
                retry_after_s=1.0,
            )
        self._jobs[job.job_id] = job
        self._waiting.append(job)
        self._waiting.sort(key=lambda each: _PRIORITIES[each.spec.priority])  # stable: first come, first served
        job.add(accepted=self._accepted(job))
        if self._task is None or self._task.done():
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self._run_jobs())
        return job

    def _new_job(
        self, whole: Parcel[generation_pb2.GenerationSpec], request_id: str, identity: str, *, detached: bool
    ) -> _FakeJob:
        spec = whole.message
        for descriptor, _ in spec.ListFields():
            if (name := _UNAVAILABLE.get(descriptor.name)) is not None:
                raise _missing(name, f"spec.{descriptor.name}")
        sampling, sigmas = self._sampling(spec.sampling)
        if sampling.guidance_scale > 0 and not spec.HasField("negative_prompt"):
            raise InvalidArgument(
                f"spec.negative_prompt: guidance_scale {sampling.guidance_scale:g} needs it, got none; encode a "
                "negative prompt (it may be empty), or set guidance_scale to 0",
                field="spec.negative_prompt",
                reason="NEGATIVE_PROMPT_MISSING",
            )
        comparison = self._check_prompt(whole, "prompt")
        if sampling.guidance_scale > 0:
            self._check_prompt(whole, "negative_prompt")
        _check_output(spec)
        if spec.WhichOneof("start") == "image_to_image":
            _check_image(spec.image_to_image.image, "spec.image_to_image.image")
            if not 0.0 < _strength(spec) <= 1.0:
                expected = "more than 0 and at most 1"
                raise invalid("spec.image_to_image.strength", expected, f"{_strength(spec):g}")
        _check_omni(spec)
        return _FakeJob(
            job_id=secrets.token_hex(8),
            request_id=request_id,
            identity=identity,
            parcel=whole,
            spec=spec,
            sampling=sampling,
            sigmas=sigmas,
            comparison=comparison,
            detached=detached,
            failure=self._job_failures.pop(0) if self._job_failures else None,
        )

    def _by_value(self, source: Parcel[Any], spec: generation_pb2.GenerationSpec) -> Parcel[Any]:
        """Returns a spec with every content by value. Stores the contents that it has by value under their digests."""
        message = generation_pb2.GenerationSpec()
        message.CopyFrom(spec)
        sources = [source]
        for name in ("prompt", "negative_prompt"):
            holder = getattr(message, name)
            if holder.WhichOneof("source") == "content":
                embeds = Parcel.parse(PromptEmbeds, self._content(holder.content, f"spec.{name}.content"))
                sources.append(embeds)
                holder.prompt_embeds.CopyFrom(embeds.message)
            elif holder.WhichOneof("source") == "prompt_embeds":
                self._store(Parcel(holder.prompt_embeds, source).to_bytes())
        images = [(each, f"spec.omni.images[{index}]") for index, each in enumerate(message.omni.images)]
        if message.WhichOneof("start") == "image_to_image":
            images.append((message.image_to_image.image, "spec.image_to_image.image"))
        for image, path in images:
            if image.WhichOneof("source") == "content":
                image.data = self._content(image.content, f"{path}.content")
            else:
                self._store(image.data)
        for index, reference in enumerate(message.omni.siglip_contents):
            grid = Parcel.parse(SiglipEmbeds, self._content(reference, f"spec.omni.siglip_contents[{index}]"))
            sources.append(grid)
            message.omni.siglip_embeds.add().CopyFrom(grid.message)
        for value in message.omni.siglip_embeds if not message.omni.siglip_contents else ():
            self._store(Parcel(value, source).to_bytes())
        del message.omni.siglip_contents[:]
        if not message.omni.ListFields():
            message.ClearField("omni")
        return Parcel(message, *sources)

    def _store(self, data: bytes) -> None:
        self._contents[sha256_hex(data)] = data

    def _content(self, reference: ContentRef, path: str) -> bytes:
        if (data := self._contents.get(reference.sha256)) is None:
            raise NotFound(
                f"{path}: the content {reference.sha256} is not stored here: upload it (UploadBlob) or include it in "
                "the request, and send the request again",
                reason="CONTENT_UNKNOWN",
                field=path,
                metadata={"sha256": reference.sha256},
            )
        return data

    def _sampling(
        self, given: generation_pb2.SamplingOptions
    ) -> tuple[generation_pb2.SamplingOptions, tuple[float, ...]]:
        """Returns every setting as it is used, and the schedule with the final 0."""
        used = generation_pb2.SamplingOptions(
            width=self.side, height=self.side, guidance_scale=0.0, cfg_truncation=1.0, num_images=1
        )
        used.cfg_normalization = 0.0
        used.MergeFrom(given)
        path = "spec.sampling"
        for name in ("width", "height"):
            pixels = getattr(used, name)
            if pixels % _MULTIPLE or not _MIN_SIDE <= pixels <= _MAX_SIDE:
                near = min(max(round(pixels / _MULTIPLE) * _MULTIPLE, _MIN_SIDE), _MAX_SIDE)
                expected = f"{_MIN_SIDE} to {_MAX_SIDE} pixels, divisible by {_MULTIPLE}"
                raise invalid(f"{path}.{name}", expected, pixels, remedy=f"{near} would do")
        for name, most in (("num_images", _MAX_IMAGES), ("num_inference_steps", _MAX_STEPS)):
            if used.HasField(name) and not 1 <= getattr(used, name) <= most:
                raise invalid(f"{path}.{name}", f"1 to {most}", getattr(used, name))
        for name in ("guidance_scale", "cfg_normalization", "cfg_truncation"):
            if not getattr(used, name) >= 0:
                raise invalid(f"{path}.{name}", "a number of at least 0", f"{getattr(used, name):g}")
        if not used.HasField("seed"):
            used.seed = secrets.randbelow(1 << 32)
        if given.sigmas:
            steps = len(given.sigmas)
            sigmas = tuple(given.sigmas)
            if list(sigmas) != sorted(set(sigmas), reverse=True) or not 0 < sigmas[-1] <= sigmas[0] <= 1:
                raise InvalidArgument(
                    f"{path}.sigmas: expected falling values in (0, 1], got others",
                    field=f"{path}.sigmas",
                    reason="SIGMAS_INVALID",
                )
        else:
            steps = used.num_inference_steps if used.HasField("num_inference_steps") else self.steps
            shift = used.shift if used.HasField("shift") else _SHIFT
            if not 0.001 <= shift <= 1000:
                raise invalid(f"{path}.shift", "0.001 to 1000", f"{shift:g}")
            linear = [1 - index / steps for index in range(steps)]
            sigmas = tuple(shift * sigma / (1 + (shift - 1) * sigma) for sigma in linear)
            used.shift = shift
        used.num_inference_steps = steps
        return used, (*sigmas, 0.0)

    def _check_prompt(self, whole: Parcel[generation_pb2.GenerationSpec], name: str) -> EncoderComparison:
        """Checks the embeddings of a prompt field, and returns how their encoder relates to this generator."""
        path, embeds = f"spec.{name}.prompt_embeds", getattr(whole.message, name).prompt_embeds
        if not embeds.segments:
            expected = "the embeddings of one prompt as the encoder sent them"
            raise invalid(path, expected, "none", reason="PROMPT_MISSING", remedy="encode a prompt first")
        made_by = fingerprint.from_message(embeds.fingerprint, path=f"{path}.fingerprint")
        comparison = fingerprint.compare(fake_fingerprint(self.width), made_by)
        for index, segment in enumerate(embeds.segments):
            tensor, at = segment.prompt_embeds, f"{path}.segments[{index}].prompt_embeds"
            tokens, width = tensors.check(tensor, whole.bytes_of(tensor), field=at, rank=2).shape
            if width != self.width:
                raise invalid(at, f"rows of {self.width} values", f"rows of {width}", reason="TENSOR_SHAPE")
            if tokens > self.text_limit:
                raise invalid(at, f"at most {self.text_limit} tokens", tokens, reason="PROMPT_TOO_LONG")
        return comparison

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
        images, total = job.sampling.num_images, job.sampling.num_images * job.steps
        self._progress(job, jobs_pb2.STAGE_KIND_PREPARE, 1, 1)
        for done in range(total):
            if job.failure is not None and done == job.failure[1]:
                raise job.failure[0]
            await self._step(job)
            if job.ended:
                return
            self._progress(job, jobs_pb2.STAGE_KIND_DENOISE, done + 1, total)
            index, step = divmod(done, job.steps)
            if job.spec.preview.every_steps and (step + 1) % job.spec.preview.every_steps == 0:
                job.add(preview=jobs_pb2.JobPreview(image_index=index, step=step + 1, jpeg=_preview(job, index)))
        if job.failure is not None:
            raise job.failure[0]
        for stage in (jobs_pb2.STAGE_KIND_DECODE, jobs_pb2.STAGE_KIND_ENCODE_IMAGE):
            for index in range(images):
                self._progress(job, stage, index + 1, images)
        for index in range(images):
            job.add(image=_image(job, index))
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
        images = job.sampling.num_images
        plan = (
            (jobs_pb2.STAGE_KIND_PREPARE, 1),
            (jobs_pb2.STAGE_KIND_DENOISE, images * job.steps),
            (jobs_pb2.STAGE_KIND_DECODE, images),
            (jobs_pb2.STAGE_KIND_ENCODE_IMAGE, images),
        )
        return jobs_pb2.JobAccepted(
            job_id=job.job_id,
            request_id=job.request_id,
            queue_position=self._waiting.index(job) + int(self._running is not None),
            seed=job.sampling.seed,
            sampling=job.sampling,
            sigmas=job.sigmas,
            plan=[jobs_pb2.Stage(kind=stage, total=total) for stage, total in plan],
            encoder_relation=fingerprint.RELATIONS[job.comparison.relation],
            encoder_differences=job.comparison.differences,
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
            sampling=job.sampling,
        )


def _colour(job: _FakeJob, index: int) -> pictures.Colour:
    """Returns the colour of an image, the same for the same spec and seed."""
    embeds = Parcel(job.spec.prompt.prompt_embeds, job.parcel).to_bytes()
    digest = hashlib.sha256(embeds)
    digest.update(f"{job.sampling.seed + index} {job.sampling.guidance_scale} {job.sigmas}".encode())
    digest.update(job.spec.image_to_image.image.data)
    for image in job.spec.omni.images:
        digest.update(image.data)
    red, green, blue = digest.digest()[:3]
    return red, green, blue


def _image(job: _FakeJob, index: int) -> jobs_pb2.JobImage:
    width, height, colour = job.sampling.width, job.sampling.height, _colour(job, index)
    pixels_sha256 = sha256_hex(bytes(colour) * (width * height))
    provenance = "" if job.spec.output.omit_provenance else _provenance(job, index, pixels_sha256)
    format = job.spec.output.format or generation_pb2.IMAGE_FORMAT_PNG
    write = {
        generation_pb2.IMAGE_FORMAT_PNG: pictures.png,
        generation_pb2.IMAGE_FORMAT_JPEG: pictures.jpeg,
        generation_pb2.IMAGE_FORMAT_WEBP: pictures.webp,
    }[format]
    data = write(width, height, colour, provenance)
    return jobs_pb2.JobImage(
        image_index=index,
        seed=job.sampling.seed + index,
        width=width,
        height=height,
        format=format,
        data=data,
        file_sha256=sha256_hex(data),
        pixels_sha256=pixels_sha256,
    )


def _preview(job: _FakeJob, index: int) -> bytes:
    side = job.spec.preview.max_side if job.spec.preview.HasField("max_side") else _PREVIEW_SIDE
    width, height = job.sampling.width, job.sampling.height
    scale = min(1.0, side / max(width, height))
    return pictures.jpeg(max(1, round(width * scale)), max(1, round(height * scale)), _colour(job, index))


def _provenance(job: _FakeJob, index: int, pixels_sha256: str) -> str:
    """Returns the provenance of an image, of the same form as the generator's."""
    sampling, texts = job.sampling, job.spec.provenance
    made_by = fingerprint.from_message(job.spec.prompt.prompt_embeds.fingerprint)
    content: dict[str, object] = {
        "version": 1,
        "zrelay": __version__,
        "generator": {
            "model_id": "fake",
            "transformer_digest": sha256_hex(b"transformer"),
            "vae_digest": sha256_hex(b"vae"),
            "device": BACKEND,
            "compute_dtype": DTYPE,
        },
        "sampling": {
            "width": sampling.width,
            "height": sampling.height,
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
            "cfg_normalization": sampling.cfg_normalization,
            "cfg_truncation": sampling.cfg_truncation,
            "shift": sampling.shift if sampling.HasField("shift") else None,
            "sigmas": list(job.sigmas),
            "seed": sampling.seed + index,
        },
        "image_index": index,
        "encoder": asdict(made_by) | {"digest": made_by.digest},
        "encoder_relation": job.comparison.relation,
        "encoder_differences": list(job.comparison.differences),
        "prompt": texts.prompt if texts.HasField("prompt") else None,
        "negative_prompt": texts.negative_prompt if texts.HasField("negative_prompt") else None,
        "labels": dict(texts.labels),
        "pixels_sha256": pixels_sha256,
    }
    return json.dumps(content | _features_provenance(job.spec), sort_keys=True, ensure_ascii=True)


def _features_provenance(spec: generation_pb2.GenerationSpec) -> dict[str, object]:
    content: dict[str, object] = {}
    if spec.WhichOneof("start") == "image_to_image":
        file_sha256 = sha256_hex(spec.image_to_image.image.data)
        content["image_to_image"] = {"file_sha256": file_sha256, "strength": _strength(spec)}
    if spec.HasField("skip_layer_guidance"):
        guidance = generation_pb2.SkipLayerGuidance(scale=2.5, start=0.05, stop=0.5)
        guidance.MergeFrom(spec.skip_layer_guidance)
        content["skip_layer_guidance"] = {
            "scale": guidance.scale,
            "layers": sorted(guidance.layers) or list(range(7, 13)),
            "start": guidance.start,
            "stop": guidance.stop,
        }
    if spec.HasField("omni"):
        content["omni"] = {
            "file_sha256": [sha256_hex(image.data) for image in spec.omni.images],
            "siglip_encoders": [grid.fingerprint.digest for grid in spec.omni.siglip_embeds],
        }
    return content


def _strength(spec: generation_pb2.GenerationSpec) -> float:
    start = spec.image_to_image
    return start.strength if start.HasField("strength") else _STRENGTH


def _check_output(spec: generation_pb2.GenerationSpec) -> None:
    quality = spec.output.quality if spec.output.HasField("quality") else _QUALITY
    if not 1 <= quality <= 100:
        raise invalid("spec.output.quality", "1 to 100", quality)
    if spec.output.format not in generation_pb2.ImageFormat.values():
        raise invalid("spec.output.format", "a format of the contract", spec.output.format, reason="ENUM_UNKNOWN")
    if spec.priority not in _PRIORITIES:
        raise invalid("spec.priority", "a priority of the contract", spec.priority, reason="ENUM_UNKNOWN")


def _check_omni(spec: generation_pb2.GenerationSpec) -> None:
    images, grids = len(spec.omni.images), len(spec.omni.siglip_embeds)
    if images != grids:
        raise invalid("spec.omni.siglip_embeds", f"{images}, one for each image", grids, reason="SIGLIP_COUNT")
    places = image_count(len(spec.prompt.prompt_embeds.segments))
    if places != images:
        path = "spec.prompt.prompt_embeds.segments"
        raise invalid(path, f"a prompt of {images} images", f"one of {places}", reason="SEGMENT_COUNT")
    for index, image in enumerate(spec.omni.images):
        _check_image(image, f"spec.omni.images[{index}]")


def _check_image(image: ImageInput, path: str) -> None:
    if not image.data:
        raise invalid(path, "a PNG, JPEG or WebP file", "none", reason="IMAGE_MISSING")
    if not image.data.startswith(IMAGE_SIGNATURES):
        raise invalid(path, "a PNG, JPEG or WebP file", "something else", reason="IMAGE_INVALID")


def _identity(whole: Parcel[generation_pb2.GenerationSpec]) -> str:
    """Returns a digest of everything that is asked for."""
    plain = generation_pb2.GenerationSpec()
    plain.CopyFrom(whole.message)
    _digest_tensors(plain, whole)
    return sha256_hex(plain.SerializeToString(deterministic=True))


def _digest_tensors(message: Message, whole: Parcel[Any]) -> None:
    """Replaces the bytes of every tensor by their digest."""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for inner in [value] if isinstance(value, Message) else value:
            if isinstance(inner, Tensor):
                inner.data = hashlib.sha256(whole.bytes_of(inner)).digest()
            else:
                _digest_tensors(inner, whole)


def _missing(name: str, path: str = "") -> FeatureMissing:
    subject = f"{path} needs {name}, which" if path else name
    return FeatureMissing(
        f"{subject} is not built into the fake generator; leave it out, or test with a real generator",
        field=path,
        metadata={"feature": name},
    )
