"""rpc: every kind of call over a real channel, and what happens when a handler, a caller or the bytes are wrong."""

import asyncio
import gc
import logging
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc
import grpc.aio
import pytest

from zrelay.v1 import generator_pb2 as pb
from zrelay_shared import errors, rpc
from zrelay_shared.wire import Parcel

from .conftest import StartFake

pytestmark = pytest.mark.hostile

GENERATOR = pb.DESCRIPTOR.services_by_name["GeneratorService"]


async def test_one_request_one_response(fake: StartFake) -> None:
    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.GetJobResponse:
        return pb.GetJobResponse(job={"job_id": parcel.message.job_id})

    server = await fake(GetJob=GetJob)
    answer = await server.stub.call("GetJob", pb.GetJobRequest(job_id="j1"), pb.GetJobResponse)
    assert answer.message.job.job_id == "j1"


async def test_tensors_pass_through_as_parcels(fake: StartFake) -> None:
    got: list[bytes] = []

    async def Generate(parcel: Parcel[pb.GenerateRequest], context: rpc.Context) -> AsyncIterator[rpc.Response]:
        got.append(bytes(parcel.bytes_of(parcel.message.spec.prompt.prompt_embeds.segments[0].prompt_embeds)))
        yield Parcel(pb.GenerateResponse(event={"sequence": 1}))
        yield pb.GenerateResponse(event={"sequence": 2})

    server = await fake(Generate=Generate)
    request = Parcel(pb.GenerateRequest())
    request.attach(request.message.spec.prompt.prompt_embeds.segments.add().prompt_embeds, b"bytes" * 1000)
    events = [e.message.event.sequence async for e in server.stub.stream("Generate", request, pb.GenerateResponse)]
    assert events == [1, 2] and got == [b"bytes" * 1000]


async def test_many_requests_one_response(fake: StartFake) -> None:
    async def UploadBlob(
        parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]], context: rpc.Context
    ) -> pb.UploadBlobResponse:
        size = sum([len(parcel.message.data) async for parcel in parcels])
        return pb.UploadBlobResponse(content={"size_bytes": size})

    server = await fake(UploadBlob=UploadBlob)
    upload: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = server.channel.stream_unary(
        "/zrelay.v1.GeneratorService/UploadBlob"
    )
    chunks = [pb.UploadBlobRequest(data=b"x" * 1000).SerializeToString() for _ in range(5)]
    assert pb.UploadBlobResponse.FromString(await upload(iter(chunks))).content.size_bytes == 5000
    with pytest.raises(grpc.RpcError) as refusal:
        await upload(iter([chunks[0], b"\xff"]))
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("timeout", [1e9, 7.5e9, 1e10, 1e300])
async def test_a_far_deadline_is_far(fake: StartFake, timeout: float) -> None:
    """gRPC adds the timeout to a clock of 64 bits."""

    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.GetJobResponse:
        return pb.GetJobResponse()

    async def Generate(parcel: Parcel[pb.GenerateRequest], context: rpc.Context) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse()

    async def UploadBlob(
        parcels: AsyncIterator[Parcel[pb.UploadBlobRequest]], context: rpc.Context
    ) -> pb.UploadBlobResponse:
        return pb.UploadBlobResponse(content={"size_bytes": len([parcel async for parcel in parcels])})

    async def chunks() -> AsyncIterator[pb.UploadBlobRequest]:
        yield pb.UploadBlobRequest(data=b"x")

    stub = (await fake(GetJob=GetJob, Generate=Generate, UploadBlob=UploadBlob)).stub
    await stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse, timeout=timeout)
    events = stub.stream("Generate", pb.GenerateRequest(), pb.GenerateResponse, timeout=timeout)
    assert len([event async for event in events]) == 1
    sent = await stub.send("UploadBlob", chunks(), pb.UploadBlobResponse, timeout=timeout)
    assert sent.message.content.size_bytes == 1


@pytest.mark.parametrize("method", ["GetJob", "Generate", "WatchJob"])
async def test_bytes_that_are_no_request(fake: StartFake, method: str) -> None:
    server = await fake()
    path, raw = f"/zrelay.v1.GeneratorService/{method}", b"\x0a\xff\xff\xff"
    unary: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(path)
    stream: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = server.channel.unary_stream(path)
    with pytest.raises(grpc.RpcError) as refusal:
        if method == "GetJob":
            await unary(raw)
        else:
            async for _ in stream(raw):
                pass
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "expected a serialized zrelay.v1." in (refusal.value.details() or "")


async def test_bytes_that_are_no_response(fake: StartFake) -> None:
    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.GetJobRequest:
        return pb.GetJobRequest(job_id="\x7f\x7f")  # no Job begins with wire type 7

    server = await fake(GetJob=GetJob)
    with pytest.raises(errors.InternalError, match=r"not a zrelay\.v1\.SubmitJobResponse") as refusal:
        await server.stub.call("GetJob", pb.GetJobRequest(), pb.SubmitJobResponse)
    assert refusal.value.reason == "MESSAGE_MALFORMED" and server.endpoint in refusal.value.message


@pytest.mark.parametrize("method", ["GetJob", "Generate"])
async def test_a_bug_is_reported_by_an_id_alone(fake: StartFake, caplog: pytest.LogCaptureFixture, method: str) -> None:
    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> NoReturn:
        raise KeyError("/home/somebody/secret")

    async def Generate(parcel: Parcel[pb.GenerateRequest], context: rpc.Context) -> AsyncIterator[pb.GenerateResponse]:
        yield pb.GenerateResponse()
        raise KeyError("/home/somebody/secret")

    server = await fake(GetJob=GetJob, Generate=Generate)
    with caplog.at_level(logging.ERROR), pytest.raises(errors.InternalError) as refusal:
        if method == "GetJob":
            await server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse)
        else:
            async for _ in server.stub.stream("Generate", pb.GenerateRequest(), pb.GenerateResponse):
                pass
    incident = refusal.value.metadata["incident"]
    assert incident in refusal.value.message and incident in caplog.text and "KeyError" in caplog.text
    assert not any(word in refusal.value.message for word in ("secret", "/", "Traceback", "KeyError", ".py"))


async def test_a_refusal_after_some_events(fake: StartFake) -> None:
    async def WatchJob(parcel: Parcel[pb.WatchJobRequest], context: rpc.Context) -> AsyncIterator[pb.WatchJobResponse]:
        yield pb.WatchJobResponse(event={"sequence": 1})
        raise errors.Draining("going away")

    server = await fake(WatchJob=WatchJob)
    seen = []
    with pytest.raises(errors.Draining, match="going away"):
        async for event in server.stub.stream("WatchJob", pb.WatchJobRequest(), pb.WatchJobResponse):
            seen.append(event.message.event.sequence)
    assert seen == [1]


@pytest.mark.parametrize("where", ["waiting", "writing"])
async def test_ending_a_stream_closes_the_handler_at_once(fake: StartFake, where: str) -> None:
    """Where the handler waits for something else, and where flow control holds it in a message too large to pass."""
    closed, begun, size = asyncio.Event(), asyncio.Event(), 1 << (24 if where == "writing" else 1)

    async def Generate(parcel: Parcel[pb.GenerateRequest], context: rpc.Context) -> AsyncIterator[pb.GenerateResponse]:
        try:
            yield pb.GenerateResponse()
            begun.set()
            while where == "writing":
                yield pb.GenerateResponse(event={"image": {"data": bytes(size)}})
            await asyncio.Event().wait()
        finally:
            closed.set()

    server = await fake(Generate=Generate)
    gc.disable()
    try:
        stream = server.stub.stream("Generate", pb.GenerateRequest(), pb.GenerateResponse)
        await anext(stream)
        await begun.wait()
        await stream.aclose()
        await asyncio.wait_for(closed.wait(), 60)
    finally:
        gc.enable()


async def test_cancelling_a_call_cancels_its_handler(fake: StartFake) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = await fake(GetJob=GetJob)
    call = asyncio.create_task(server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse))
    await begun.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.wait_for(ended.wait(), 60)


async def test_a_deadline_ends_the_handler(fake: StartFake) -> None:
    ended = asyncio.Event()

    async def Generate(parcel: Parcel[pb.GenerateRequest], context: rpc.Context) -> AsyncIterator[pb.GenerateResponse]:
        try:
            yield pb.GenerateResponse()
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = await fake(Generate=Generate)
    with pytest.raises(errors.DeadlineExceeded) as refusal:
        async for _ in server.stub.stream("Generate", pb.GenerateRequest(), pb.GenerateResponse, timeout=0.2):
            pass
    assert refusal.value.metadata["stage"] == "generator"
    await asyncio.wait_for(ended.wait(), 60)


async def test_a_servicer_that_lacks_a_method_is_a_type_error() -> None:
    class Half:
        async def GetInfo(self, parcel: object, context: rpc.Context) -> None: ...

    with pytest.raises(TypeError, match=r"Half lacks Generate, SubmitJob, .* of zrelay\.v1\.Gen"):
        rpc.add_service(grpc.aio.server(), GENERATOR, Half())
