"""A generator of the contract whose handlers a test gives, on a real loopback port."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, NoReturn, TypeAlias

import grpc.aio
import pytest

from zrelay.v1 import generator_pb2
from zrelay_shared import channels, rpc
from zrelay_shared.errors import FeatureMissing

GENERATOR = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]


class Fake:
    """A server with some handlers; what a test does not give is refused."""

    def __init__(self, endpoint: str, channel: grpc.aio.Channel) -> None:
        self.endpoint, self.channel = endpoint, channel
        self.stub = rpc.Stub(channel, GENERATOR, endpoint)


StartFake: TypeAlias = Callable[..., Awaitable[Fake]]


async def _refuse(parcel: object, context: rpc.Context) -> NoReturn:
    raise FeatureMissing("not here")


@pytest.fixture
async def fake() -> AsyncIterator[StartFake]:
    """`await fake(GetInfo=handler, ...)` serves those handlers and gives a Stub to call them by."""
    async with AsyncExitStack() as stack:

        async def start(**handlers: Callable[..., Any]) -> Fake:
            server = grpc.aio.server(options=channels.server_options())
            all_handlers = {method.name: _refuse for method in GENERATOR.methods} | handlers
            rpc.add_service(server, GENERATOR, SimpleNamespace(**all_handlers))
            endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            await server.start()
            stack.push_async_callback(server.stop, None)
            return Fake(endpoint, await stack.enter_async_context(channels.dial(endpoint)))

        yield start
