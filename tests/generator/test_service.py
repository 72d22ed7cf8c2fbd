"""The service over a real channel on loopback, with the demo checkpoint."""

import asyncio
import hashlib
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.config import GeneratorConfig
from zrelay_generator.service import GeneratorService
from zrelay_shared.channels import dial
from zrelay_shared.errors import Cancelled, FeatureMissing, IdempotencyConflict, NotFound, QueueFull, ZrelayError
from zrelay_shared.fingerprint import from_message, to_message
from zrelay_shared.listening import parse_listen
from zrelay_shared.rpc import Stub
from zrelay_shared.serving import ServeOptions, running

pytestmark = pytest.mark.asyncio(loop_scope="module")
SERVICE = pb.DESCRIPTOR.services_by_name["GeneratorService"]
LONG = {"num_inference_steps": 100, "width": 512, "height": 512}
"""Tens of seconds on a CPU: never waited for."""
SOON_S = 60.0
"""Within which anything short happens, however busy the machine is."""


class Caller:
    """A client on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub = Stub(channel, SERVICE)

    async def info(self):
        parcel = await self.stub.call(
            "GetInfo", pb.GeneratorServiceGetInfoRequest(), pb.GeneratorServiceGetInfoResponse, timeout=SOON_S
        )
        return parcel.message

    async def stream(self, request) -> AsyncIterator[jpb.JobEvent]:
        async for parcel in self.stub.stream("Generate", request, pb.GenerateResponse, timeout=280):
            yield parcel.message.event

    async def generate(self, request) -> list[jpb.JobEvent]:
        return [event async for event in self.stream(request)]

    async def image(self, request) -> jpb.JobImage:
        (image,) = images(await self.generate(request))
        return image

    async def begun(self, request):
        """A task that paints, once its first step is done."""
        first_step = asyncio.Event()

        async def watch():
            async for event in self.stream(request):
                if event.progress.stage == jpb.STAGE_KIND_DENOISE:
                    first_step.set()

        task = asyncio.create_task(watch())
        await asyncio.wait_for(first_step.wait(), SOON_S)
        return task

    async def idle(self) -> None:
        """Returns once nothing runs or waits."""
        ends = time.monotonic() + SOON_S
        while (queue := (await self.info()).queue).running or queue.waiting:
            assert time.monotonic() < ends, f"still busy after {SOON_S} s"
            await asyncio.sleep(0.01)


def images(events: list[jpb.JobEvent]) -> list[jpb.JobImage]:
    return [event.image for event in events if event.WhichOneof("event") == "image"]


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def started(stack: AsyncExitStack, model: Path, kind: type[GeneratorService], **changed) -> Caller:
    """A client of a generator that runs as long as the stack is open; loaded, unless it is one that never is."""
    config = GeneratorConfig(model=model, device="cpu", dtype="float32", threads=1, **{"lease_s": 0.0, **changed})
    server = await stack.enter_async_context(running(kind(config), ServeOptions(parse_listen("127.0.0.1:0"))))
    if kind is not NeverLoaded:
        await server.loaded
    return Caller(await stack.enter_async_context(dial(str(server.address))))


@pytest_asyncio.fixture(loop_scope="module")
async def serve(demo, tmp_path, monkeypatch) -> AsyncIterator[Callable[..., Awaitable[Caller]]]:
    """Starts a generator with some configuration and gives a client of it."""
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    async with AsyncExitStack() as stack:
        yield lambda kind=GeneratorService, **changed: started(stack, demo, kind, **changed)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(demo, tmp_path_factory) -> AsyncIterator[Caller]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZRELAY_STATE", str(tmp_path_factory.mktemp("state")))
        async with AsyncExitStack() as stack:
            yield await started(stack, demo, GeneratorService)


@pytest_asyncio.fixture(loop_scope="module")
async def caller(shared) -> AsyncIterator[Caller]:
    """A client of a generator that others used before, and left idle."""
    yield shared
    await shared.idle()


async def test_events_in_their_order(caller, request_of):
    events = await caller.generate(request_of(num_inference_steps=3, seed=5))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "accepted" and kinds[-2:] == ["image", "done"]
    assert [event.sequence for event in events] == sorted({event.sequence for event in events})
    accepted = events[0].accepted
    assert (accepted.seed, accepted.sampling.width, accepted.sampling.shift) == (5, 128, 3.0)
    assert len(accepted.sigmas) == 4 and accepted.sigmas[-1] == 0.0
    assert [(stage.kind, stage.total) for stage in accepted.plan] == [(1, 1), (2, 3), (3, 1), (4, 1)]
    steps = [event.progress for event in events if event.progress.stage == jpb.STAGE_KIND_DENOISE]
    assert [(step.completed, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    timings = events[-1].done.timings
    assert timings.total_s >= timings.denoise_s > 0.0


async def test_same_seed_same_pixels(caller, request_of):
    first, again = [await caller.image(request_of(seed=11)) for _ in range(2)]
    other = await caller.image(request_of(seed=12))
    assert first.data == again.data
    assert other.pixels_sha256 != first.pixels_sha256
    pixels = Image.open(io.BytesIO(first.data)).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == first.pixels_sha256
    assert hashlib.sha256(first.data).hexdigest() == first.file_sha256


async def test_a_seed_is_picked_and_reported(caller, request_of):
    events = await caller.generate(request_of(num_inference_steps=1))
    seed = events[0].accepted.seed
    (image,) = images(events)
    assert image.seed == seed
    again = await caller.image(request_of(num_inference_steps=1, seed=seed))
    assert again.pixels_sha256 == image.pixels_sha256


async def test_two_images(caller, request_of, embeds):
    both = images(await caller.generate(request_of(seed=3, num_images=2)))
    assert [(image.image_index, image.seed) for image in both] == [(0, 3), (1, 4)]
    request = request_of(seed=3, num_images=2)
    request.message.spec.deterministic = True
    singly = images(await caller.generate(request))
    alone = [await caller.image(request_of(seed=seed)) for seed in (3, 4)]
    assert [image.pixels_sha256 for image in singly] == [image.pixels_sha256 for image in alone]


async def test_guidance(caller, request_of, embeds):
    plain = await caller.image(request_of(seed=3))
    guided = await caller.image(request_of(seed=3, guidance_scale=2.0, negative=embeds(4, 128, 9)))
    assert plain.pixels_sha256 != guided.pixels_sha256


@pytest.mark.parametrize(("format", "name"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WEBP")])
async def test_formats_carry_their_provenance(caller, request_of, provenance_in, format, name):
    request = request_of(seed=21, num_inference_steps=2)
    spec = request.message.spec
    spec.output.format = gpb.ImageFormat.Value(f"IMAGE_FORMAT_{format}")
    spec.provenance.prompt = "ein rötlicher Fuchs 🦊"
    spec.provenance.labels["album"] = "tests"
    image = await caller.image(request)
    assert Image.open(io.BytesIO(image.data)).format == name
    said = json.loads(provenance_in(image.data))
    assert said["prompt"] == "ein rötlicher Fuchs 🦊" and said["labels"] == {"album": "tests"}
    assert said["sampling"]["seed"] == 21 and said["pixels_sha256"] == image.pixels_sha256
    assert said["encoder_relation"] == "exact" and said["encoder"]["model_id"] == "demo"
    assert len(said["generator"]["transformer_digest"]) == 64


async def test_provenance_may_be_left_out(caller, request_of, provenance_in):
    request = request_of(seed=21, num_inference_steps=2)
    request.message.spec.output.omit_provenance = True
    assert provenance_in((await caller.image(request)).data) == ""


async def test_previews_are_small_jpegs(caller, request_of):
    request = request_of(num_inference_steps=6)
    request.message.spec.preview.every_steps = 2
    events = await caller.generate(request)
    previews = [event.preview for event in events if event.WhichOneof("event") == "preview"]
    assert previews and all(preview.step in (2, 4) and len(preview.jpeg) <= 32768 for preview in previews)
    assert Image.open(io.BytesIO(previews[0].jpeg)).size == (16, 16)


async def test_info(serve):
    caller = await serve(max_waiting=9)
    info = await caller.info()
    assert info.ready and info.version.service == "generator" and info.version.libraries["torch"]
    assert (info.limits.text_limit, info.limits.embeds_width, info.limits.size_multiple) == (992, 128, 16)
    assert (info.defaults.width, info.defaults.num_inference_steps, info.defaults.shift) == (128, 8, 3.0)
    assert info.device.kind == "cpu" and info.device.compute_dtype == "float32"
    assert info.queue.max_waiting == 9
    assert info.expected_encoder.family == "qwen3" and len(info.expected_encoder.tokenizer_digest) == 64
    available = {feature.name: feature.available for feature in info.features}
    assert available["generate.cfg"] and available["jobs.submit"] and not available["lora.manage"]
    notes = {feature.name: feature.note for feature in info.features}
    assert notes["jobs.submit"] == "in memory: lost when the process ends"
    assert info.limits.max_image_bytes > 0


class NeverLoaded(GeneratorService):
    """A generator whose model takes its time."""

    async def load(self) -> None:
        await asyncio.Event().wait()


async def test_while_loading(serve, request_of):
    caller = await serve(NeverLoaded)
    assert not (await caller.info()).ready
    with pytest.raises(ZrelayError) as refused:
        await caller.generate(request_of())
    assert (refused.value.reason, refused.value.retry_after_s) == ("MODEL_LOADING", 2.0)


async def test_ending_the_call_frees_the_device(caller, request_of):
    task = await caller.begun(request_of(**LONG))
    used = time.process_time()
    await stopped(task)
    after = request_of(num_inference_steps=1)
    after.message.spec.priority, after.message.spec.deterministic = gpb.JOB_PRIORITY_BATCH, True
    assert (await caller.image(after)).data
    assert time.process_time() - used < 5, "it goes on only where nothing else does, and did not wait for the long one"


async def test_cancel_by_request_id(caller, request_of):
    task = await caller.begun(request_of(request_id="poster.1", **LONG))
    reply = await caller.stub.call("CancelJob", pb.CancelJobRequest(request_id="poster.1"), pb.CancelJobResponse)
    assert reply.message.job.state == jpb.JOB_STATE_CANCELLED
    with pytest.raises(Cancelled):
        await task
    with pytest.raises(NotFound):
        await caller.stub.call("CancelJob", pb.CancelJobRequest(job_id="nobody"), pb.CancelJobResponse)


async def test_a_waiting_job_is_cancelled_at_once(caller, request_of):
    running_task = await caller.begun(request_of(**LONG))
    events = caller.stream(request_of(request_id="second", **LONG))
    accepted = (await anext(events)).accepted
    assert accepted.queue_position == 1 and accepted.estimated_wait_s > 0.0
    await caller.stub.call("CancelJob", pb.CancelJobRequest(request_id="second"), pb.CancelJobResponse)
    with pytest.raises(Cancelled):
        await anext(events)
    await stopped(running_task)


async def test_a_full_queue_says_when_to_come_back(serve, request_of):
    caller = await serve(max_waiting=1)
    tasks = [await caller.begun(request_of(**LONG))]
    waiting = caller.stream(request_of())
    await anext(waiting)
    with pytest.raises(QueueFull) as refused:
        await caller.generate(request_of())
    assert refused.value.retry_after_s >= 1.0 and refused.value.metadata["max_waiting"] == "1"
    await stopped(tasks[0])
    assert [event async for event in waiting][-1].WhichOneof("event") == "done"


async def test_health_answers_while_the_device_is_busy(caller, request_of):
    task = await caller.begun(request_of(**LONG))
    health = health_pb2_grpc.HealthStub(caller.channel)
    took = []
    for _ in range(50):
        started = time.perf_counter()
        reply = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
        took.append(time.perf_counter() - started)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert not task.done()
    await stopped(task)
    assert sorted(took)[len(took) // 2] < 0.1


class Stuck(GeneratorService):
    """A generator whose device may be stuck."""

    stuck = ""

    @property
    def trouble(self) -> str:
        return self.stuck


async def test_a_stuck_device_is_seen_in_health(serve, request_of, monkeypatch):
    caller = await serve(Stuck)
    health = health_pb2_grpc.HealthStub(caller.channel)

    async def becomes(status):
        async with asyncio.timeout(SOON_S):
            while (await health.Check(health_pb2.HealthCheckRequest(service=SERVICE.full_name))).status != status:
                await asyncio.sleep(0.05)

    await becomes(health_pb2.HealthCheckResponse.SERVING)
    monkeypatch.setattr(Stuck, "stuck", "a step has run for 99 s")
    await becomes(health_pb2.HealthCheckResponse.NOT_SERVING)
    monkeypatch.setattr(Stuck, "stuck", "")
    await becomes(health_pb2.HealthCheckResponse.SERVING)


async def test_a_repeated_request_gets_the_same_job(caller, request_of):
    first = await caller.generate(request_of(request_id="once", num_inference_steps=2))
    again = await caller.generate(request_of(request_id="once", num_inference_steps=2))
    results = [event for event in first if event.WhichOneof("event") not in ("progress", "preview")]
    assert [event.SerializeToString() for event in again[-2:]] == [event.SerializeToString() for event in results[-2:]]
    assert again[0].accepted == first[0].accepted
    with pytest.raises(IdempotencyConflict):
        await caller.generate(request_of(request_id="once", num_inference_steps=3))


async def test_jobs_are_listed_and_looked_at(serve, request_of):
    caller = await serve()
    ids = [(await caller.generate(request_of(num_inference_steps=1)))[0].accepted.job_id for _ in range(3)]
    page = await caller.stub.call("ListJobs", pb.ListJobsRequest(page_size=2), pb.ListJobsResponse)
    assert [job.job_id for job in page.message.jobs] == [ids[2], ids[1]]
    rest = pb.ListJobsRequest(page_size=2, page_token=page.message.next_page_token)
    page = await caller.stub.call("ListJobs", rest, pb.ListJobsResponse)
    assert [job.job_id for job in page.message.jobs] == [ids[0]] and not page.message.next_page_token
    job = (await caller.stub.call("GetJob", pb.GetJobRequest(job_id=ids[0]), pb.GetJobResponse)).message.job
    assert job.state == jpb.JOB_STATE_SUCCEEDED and job.ended_at >= job.accepted_at > 0


async def test_an_urgent_job_goes_first(caller, request_of):
    slow = await caller.begun(request_of(**LONG))
    urgent = request_of(num_inference_steps=2)
    urgent.message.spec.priority = gpb.JOB_PRIORITY_INTERACTIVE
    await asyncio.wait_for(caller.image(urgent), SOON_S)
    assert not slow.done()
    await stopped(slow)


async def test_what_is_not_built_is_said(caller):
    for method, request, response in (
        ("ListLoras", pb.ListLorasRequest(), pb.ListLorasResponse),
        ("RemoveLora", pb.RemoveLoraRequest(), pb.RemoveLoraResponse),
    ):
        with pytest.raises(FeatureMissing):
            await caller.stub.call(method, request, response)


async def test_hostile_requests_are_refused_and_nothing_is_lost(caller, request_of, embeds):
    poisoned = embeds(20, 128)
    poisoned[0, 0] = float("nan")
    damaged, foreign = request_of(), request_of()
    tensor = damaged.message.spec.prompt.prompt_embeds.segments[0].prompt_embeds
    tensor.crc32c ^= 1
    fingerprint = foreign.message.spec.prompt.prompt_embeds.fingerprint
    fingerprint.CopyFrom(to_message(replace(from_message(fingerprint), family="t5")))
    for request, code, reason in (
        (request_of(width=100), "INVALID_ARGUMENT", "WIDTH_INVALID"),
        (request_of(num_inference_steps=10_000), "INVALID_ARGUMENT", "NUM_INFERENCE_STEPS_INVALID"),
        (request_of(poisoned), "INVALID_ARGUMENT", "TENSOR_NOT_FINITE"),
        (request_of(embeds(20, 64)), "INVALID_ARGUMENT", "TENSOR_SHAPE"),
        (damaged, "DATA_LOSS", "CHECKSUM_MISMATCH"),
        (foreign, "FAILED_PRECONDITION", "ENCODER_MISMATCH"),
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "PROMPT_MISSING"),
    ):
        with pytest.raises(ZrelayError) as refused:
            await caller.generate(request)
        assert (refused.value.code, refused.value.reason) == (code, reason)
        assert "Traceback" not in refused.value.message and str(Path.cwd()) not in refused.value.message
    assert (await caller.image(request_of(num_inference_steps=1))).data


async def test_bytes_that_are_no_request(caller, request_of):
    whole = request_of().to_bytes()
    call = caller.channel.unary_stream(f"/{SERVICE.full_name}/Generate")
    for raw in (whole[: len(whole) // 2], b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(call(raw)))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await caller.image(request_of(num_inference_steps=1))).data
