"""The limits of reflection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from zrelay_shared import channels, status
from zrelay_shared.calls import DEFAULT_CALL_LIMITS, CallLimits, OpenCalls
from zrelay_shared.errors import DeadlineExceeded, InvalidArgument, MessageTooLarge, QuotaExceeded, ZrelayError
from zrelay_shared.limits import SMALL_MESSAGE_BYTES
from zrelay_shared.service import reflection

pytestmark = pytest.mark.hostile
METHOD = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
LIST = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()


@asynccontextmanager
async def served(limits: CallLimits = DEFAULT_CALL_LIMITS, idle_s: float = 60.0) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server(options=channels.server_options())
    reflection.add_to(server, ("zrelay.v1.EncoderService",), OpenCalls(limits), idle_s=idle_s)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with channels.dial(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


def begun(channel: grpc.aio.Channel) -> Any:
    return channel.stream_stream(METHOD)()


async def refusal(call: Any) -> ZrelayError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call.read()
    return status.from_call(refused.value, service="encoder", endpoint="here")


async def test_questions_are_answered_one_after_another() -> None:
    async with served() as channel:
        call = begun(channel)
        for _ in range(3):
            await call.write(LIST)
            answer = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
            names = [service.name for service in answer.list_services_response.service]
            assert names == ["grpc.reflection.v1alpha.ServerReflection", "zrelay.v1.EncoderService"]
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF and await call.code() == grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("question", "error"), [(bytes(SMALL_MESSAGE_BYTES + 1), MessageTooLarge), (b"\xff\xff", InvalidArgument)]
)
async def test_questions_are_bounded(question: bytes, error: type[ZrelayError]) -> None:
    async with served() as channel:
        call = begun(channel)
        await call.write(question)
        assert isinstance(await refusal(call), error)


async def test_a_call_without_questions_ends() -> None:
    async with served(CallLimits(receive_s=0.05), idle_s=0.05) as channel:
        silent = begun(channel)
        assert isinstance(await refusal(silent), DeadlineExceeded)
        call = begun(channel)
        await call.write(LIST)
        await call.read()
        assert isinstance(await refusal(call), DeadlineExceeded)


async def test_open_calls_are_counted() -> None:
    async with served(CallLimits(calls=8)) as channel:
        calls = []
        for _ in range(6):
            calls.append(begun(channel))
            await calls[-1].write(LIST)
            await calls[-1].read()
        call = begun(channel)
        await call.write(LIST)
        assert isinstance(await refusal(call), QuotaExceeded)
        await calls[0].done_writing()
        await calls[0].read()
        async with asyncio.timeout(10):
            while True:
                again = begun(channel)
                try:
                    await again.write(LIST)
                    await again.read()
                    break
                except grpc.aio.AioRpcError:
                    continue
