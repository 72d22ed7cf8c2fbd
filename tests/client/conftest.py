"""An encoder and a generator that compute nothing, behind real gRPC servers on real ports."""

import asyncio
import hashlib
import io
import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from zrelay.v1 import encoder_pb2, generator_pb2
from zrelay.v1.embeds_pb2 import EncoderRelation, PromptEmbeds, PromptReport, PromptSegment, TextLimitSource
from zrelay.v1.encoder_pb2 import EncodedPrompt, EncodePromptsResponse, EncoderServiceGetInfoResponse
from zrelay.v1.generation_pb2 import ImageFormat, SamplingOptions
from zrelay.v1.generator_pb2 import (
    CancelJobResponse,
    GenerateResponse,
    GeneratorLimits,
    GeneratorServiceGetInfoResponse,
)
from zrelay.v1.info_pb2 import DeviceInfo, Feature, QueueInfo, ServerVersion
from zrelay.v1.jobs_pb2 import (
    Job,
    JobAccepted,
    JobDone,
    JobEvent,
    JobImage,
    JobPreview,
    JobProgress,
    JobState,
    JobTimings,
    Stage,
    StageKind,
)
from zrelay_client.cli import main
from zrelay_shared import __version__, fingerprint, serving, tensors
from zrelay_shared.errors import FeatureMissing, InvalidArgument
from zrelay_shared.listening import ListenAddress
from zrelay_shared.wire import Parcel

WIDTH = 8
FINGERPRINT = fingerprint.EncoderFingerprint("qwen3", WIDTH, "fake", "a" * 64, "b" * 64, "c" * 64)
LIMIT = 77


class Fake:
    """What every fake service is."""

    descriptor: Any

    async def load(self) -> None:
        return None

    async def drain(self, grace_s: float) -> None:
        return None

    async def close(self) -> None:
        return None

    async def refuse(self, parcel: Any, context: Any) -> Any:
        raise FeatureMissing("not in this fake")


class FakeEncoder(Fake):
    """One row for each word of a prompt, its bytes made of the prompt's digest."""

    descriptor = encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"]
    FormatPrompt = Fake.refuse

    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def GetInfo(self, parcel: Any, context: Any) -> EncoderServiceGetInfoResponse:
        return EncoderServiceGetInfoResponse(
            version=ServerVersion(service="encoder", version=__version__, contract="v1"),
            ready=True,
            fingerprint=fingerprint.to_message(FINGERPRINT),
            device=DeviceInfo(kind="cpu", name="a fake", compute_dtype="bfloat16"),
            queue=QueueInfo(max_waiting=4),
            max_prompts=8,
            text_limit=1504,
            text_limit_source=TextLimitSource.TEXT_LIMIT_SOURCE_DEFAULT,
        )

    async def EncodePrompts(self, parcel: Any, context: Any) -> Parcel[EncodePromptsResponse]:
        request = parcel.message
        self.requests.append(request)
        reply = Parcel(EncodePromptsResponse())
        for index, prompt in enumerate(request.prompts):
            words = prompt.text.split()
            if not words:
                raise InvalidArgument("prompts[0].text: expected a prompt, got an empty one", field=f"prompts[{index}]")
            rows = min(len(words), request.options.text_limit or 1504)
            data = (hashlib.sha256(prompt.text.encode()).digest()[: WIDTH * 2]) * rows
            embeds = PromptEmbeds(
                segments=[PromptSegment(prompt_embeds=tensors.header("BF16", (rows, WIDTH), data))],
                fingerprint=fingerprint.to_message(FINGERPRINT),
                report=PromptReport(
                    formatted_tokens=len(words),
                    token_count=rows,
                    dropped_tokens=len(words) - rows,
                    text_limit=request.options.text_limit,
                    text_limit_source=TextLimitSource.TEXT_LIMIT_SOURCE_REQUEST,
                ),
            )
            reply.message.results.append(EncodedPrompt(prompt_embeds=embeds))
            reply.attach(reply.message.results[-1].prompt_embeds.segments[0].prompt_embeds, data)
        return reply


class FakeGenerator(Fake):
    """`steps` steps of `step_s` seconds; the picture's bytes are the embeddings' and the seed."""

    descriptor = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
    SubmitJob = WatchJob = GetJob = ListJobs = UploadBlob = ListLoras = UploadLora = RemoveLora = Fake.refuse

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.cancelled: list[str] = []
        self.ended = asyncio.Event()
        self.step_s = 0.0
        self.expected = FINGERPRINT

    async def GetInfo(self, parcel: Any, context: Any) -> GeneratorServiceGetInfoResponse:
        return GeneratorServiceGetInfoResponse(
            version=ServerVersion(service="generator", version=__version__, contract="v1", libraries={"torch": "9"}),
            ready=True,
            model_id="fake",
            expected_encoder=fingerprint.to_message(self.expected),
            defaults=SamplingOptions(width=64, height=64, num_inference_steps=3),
            limits=GeneratorLimits(text_limit=LIMIT, embeds_width=WIDTH),
            device=DeviceInfo(kind="cpu", memory_total_bytes=100, memory_free_bytes=1, compute_dtype="bfloat16"),
            features=[Feature(name="generate.cfg", available=True)],
        )

    async def CancelJob(self, parcel: Any, context: Any) -> CancelJobResponse:
        self.cancelled.append(parcel.message.request_id)
        return CancelJobResponse(job=Job(state=JobState.JOB_STATE_CANCELLED))

    async def Generate(self, parcel: Any, context: Any) -> AsyncGenerator[GenerateResponse, None]:
        request = parcel.message
        self.requests.append(request)
        asked = request.spec.sampling
        if asked.width % 16:
            raise InvalidArgument("width: expected a multiple of 16, got 100", field="spec.sampling.width")
        steps = asked.num_inference_steps or 3
        seed = asked.seed if asked.HasField("seed") else 42
        used = SamplingOptions(
            width=64, height=64, num_inference_steps=steps, seed=seed, num_images=asked.num_images or 1
        )
        try:
            yield event(
                accepted=JobAccepted(
                    job_id="job",
                    request_id=request.request_id,
                    seed=seed,
                    sampling=used,
                    sigmas=[1.0, 0.5, 0.0],
                    plan=[Stage(kind=StageKind.STAGE_KIND_DENOISE, total=steps)],
                    encoder_relation=EncoderRelation.ENCODER_RELATION_EXACT,
                )
            )
            for step in range(steps):
                await asyncio.sleep(self.step_s)
                running, denoise = JobState.JOB_STATE_RUNNING, StageKind.STAGE_KIND_DENOISE
                yield event(
                    progress=JobProgress(state=running, stage=denoise, completed=step + 1, total=steps, eta_s=1)
                )
                if request.spec.preview.every_steps:
                    yield event(preview=JobPreview(image_index=0, step=step + 1, jpeg=b"\xff\xd8preview"))
            embeds = bytes(parcel.bytes_of(request.spec.prompt.prompt_embeds.segments[0].prompt_embeds))
            for index in range(used.num_images):
                data = embeds + str(seed + index).encode()
                digest = hashlib.sha256(data).hexdigest()
                yield event(
                    image=JobImage(
                        image_index=index,
                        seed=seed + index,
                        width=64,
                        height=64,
                        format=request.spec.output.format or ImageFormat.IMAGE_FORMAT_PNG,
                        data=data,
                        file_sha256=digest,
                        pixels_sha256=digest,
                    )
                )
            yield event(done=JobDone(images=used.num_images, timings=JobTimings(denoise_s=0.5, total_s=0.001)))
        finally:
            self.ended.set()


def event(**kind: Any) -> GenerateResponse:
    return GenerateResponse(event=JobEvent(**kind))


@dataclass
class Fakes:
    """Both services, running."""

    encoder: FakeEncoder = field(default_factory=FakeEncoder)
    generator: FakeGenerator = field(default_factory=FakeGenerator)
    endpoints: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def running_fakes() -> AsyncIterator[Fakes]:
    fakes = Fakes()
    options = serving.ServeOptions(ListenAddress("127.0.0.1", 0))
    async with (
        serving.running(fakes.encoder, options) as encoder,
        serving.running(fakes.generator, options) as generator,
    ):
        await asyncio.gather(encoder.loaded, generator.loaded)
        fakes.endpoints = {"encoder": str(encoder.address), "generator": str(generator.address)}
        yield fakes


@pytest.fixture
async def fakes() -> AsyncIterator[Fakes]:
    async with running_fakes() as running:
        yield running


@dataclass(frozen=True)
class Ran:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


Zrelay = Callable[..., Awaitable[Ran]]


@pytest.fixture
def zrelay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Zrelay:
    """Runs the command line in this process, in an empty folder, with an empty home."""
    for name in [name for name in os.environ if name.startswith("ZRELAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ZRELAY_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path / "state"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    async def run(*args: str, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        code = await asyncio.to_thread(main, list(args))
        said = capfd.readouterr()
        return Ran(code, said.out, said.err)

    return run
