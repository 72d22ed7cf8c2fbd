"""The service over a real channel on loopback, with the demo checkpoint: what it says, and what it refuses."""

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.service import GeneratorServicer
from zrelay_shared.errors import FeatureMissing, IdempotencyConflict, ZrelayError
from zrelay_shared.fingerprint import from_message, to_message

from .fixture_types import MakeEmbeds, RequestOf, Serve
from .generator_client import SERVICE, GeneratorClient

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_events_in_their_order(caller: GeneratorClient, request_of: RequestOf) -> None:
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


async def test_info(serve: Serve) -> None:
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


class NeverLoaded(GeneratorServicer):
    """A generator whose model takes its time."""

    async def load(self) -> None:
        await asyncio.Event().wait()


async def test_while_loading(serve: Serve, request_of: RequestOf) -> None:
    caller = await serve(NeverLoaded, loaded=False)
    assert not (await caller.info()).ready
    with pytest.raises(ZrelayError) as refused:
        await caller.generate(request_of())
    assert (refused.value.reason, refused.value.retry_after_s) == ("MODEL_LOADING", 2.0)


async def test_a_repeated_request_gets_the_same_job(caller: GeneratorClient, request_of: RequestOf) -> None:
    first = await caller.generate(request_of(request_id="once", num_inference_steps=2))
    again = await caller.generate(request_of(request_id="once", num_inference_steps=2))
    results = [event for event in first if event.WhichOneof("event") not in ("progress", "preview")]
    assert [event.SerializeToString() for event in again[-2:]] == [event.SerializeToString() for event in results[-2:]]
    assert again[0].accepted == first[0].accepted
    with pytest.raises(IdempotencyConflict):
        await caller.generate(request_of(request_id="once", num_inference_steps=3))


async def test_jobs_are_listed_and_looked_at(serve: Serve, request_of: RequestOf) -> None:
    caller = await serve()
    ids = [(await caller.generate(request_of(num_inference_steps=1)))[0].accepted.job_id for _ in range(3)]
    page = await caller.stub.call("ListJobs", pb.ListJobsRequest(page_size=2), pb.ListJobsResponse)
    assert [job.job_id for job in page.message.jobs] == [ids[2], ids[1]]
    rest = pb.ListJobsRequest(page_size=2, page_token=page.message.next_page_token)
    page = await caller.stub.call("ListJobs", rest, pb.ListJobsResponse)
    assert [job.job_id for job in page.message.jobs] == [ids[0]] and not page.message.next_page_token
    job = (await caller.stub.call("GetJob", pb.GetJobRequest(job_id=ids[0]), pb.GetJobResponse)).message.job
    assert job.state == jpb.JOB_STATE_SUCCEEDED and job.ended_at >= job.accepted_at > 0


async def test_what_is_not_built_is_refused_by_name(caller: GeneratorClient) -> None:
    for method, request, response in (
        ("ListLoras", pb.ListLorasRequest(), pb.ListLorasResponse),
        ("RemoveLora", pb.RemoveLoraRequest(), pb.RemoveLoraResponse),
    ):
        with pytest.raises(FeatureMissing):
            await caller.stub.call(method, request, response)


async def test_hostile_requests_are_refused_and_nothing_is_lost(
    caller: GeneratorClient, request_of: RequestOf, embeds: MakeEmbeds
) -> None:
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


async def test_bytes_that_are_no_request(caller: GeneratorClient, request_of: RequestOf) -> None:
    whole = request_of().to_bytes()
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = caller.channel.unary_stream(
        f"/{SERVICE.full_name}/Generate"
    )
    for raw in (whole[: len(whole) // 2], b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await anext(aiter(call(raw)))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await caller.image(request_of(num_inference_steps=1))).data
