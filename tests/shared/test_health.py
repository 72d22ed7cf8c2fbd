"""Health: Check, List and Watch over real channels, with watchers that do not read and callers that send nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.http2_streams import raw_connection
from tests.helpers.polling import eventually
from zrelay_shared import channels
from zrelay_shared.calls import CallLimits
from zrelay_shared.service import lifecycle
from zrelay_shared.service.health import NOT_SERVING, SERVING, HealthServicer
from zrelay_shared.service.listening import parse_listen

from .services import NAME, ControlledService

pytestmark = pytest.mark.hostile

WATCH, CHECK = "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/Check"


def request(name: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=name)


@asynccontextmanager
async def serving(servicer: HealthServicer) -> AsyncIterator[tuple[int, Any]]:
    """A server of health alone: its port and a stub."""
    server = grpc.aio.server()
    servicer.set("", SERVING)
    servicer.add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with channels.dial(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            await stub.Check(request(""))  # grpcio keeps the first call of a server until the server ends
            yield port, stub
    finally:
        await server.stop(None)


async def test_a_watcher_that_reads_nothing_delays_neither_readiness_nor_drain() -> None:
    service = ControlledService()
    service.drain_now.set()
    options = lifecycle.ServeOptions(parse_listen("127.0.0.1:0"), grace_s=3600.0)
    async with (
        lifecycle.running(service, options) as server,
        raw_connection(server.address.port, window=0) as deaf,
        channels.dial(str(server.address)) as channel,
    ):
        streams = [deaf.call(WATCH, request(name)) for name in ("", NAME)]
        await eventually(lambda: all(map(deaf.frames, streams)), "the watches have begun")
        service.load_now.set()
        await asyncio.wait_for(server.loaded, 30)
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(request(NAME))).status == SERVING
        await asyncio.wait_for(server.drain(), 30)


async def test_a_watch_yields_each_new_state_once() -> None:
    servicer = HealthServicer()
    async with serving(servicer) as (_, stub):
        watch = stub.Watch(request("a"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        for state in (NOT_SERVING, SERVING):
            servicer.set("a", state)
            servicer.set("a", state)
            assert (await watch.read()).status == state
        servicer.end_watches()
        assert await watch.read() == grpc.aio.EOF
        assert await stub.Watch(request("a")).read() == grpc.aio.EOF


async def test_check_and_list_give_the_states() -> None:
    servicer = HealthServicer()
    servicer.set("a", SERVING)
    servicer.set("b", NOT_SERVING)
    async with serving(servicer) as (_, stub):
        assert (await stub.Check(request("b"))).status == NOT_SERVING
        with pytest.raises(grpc.RpcError) as refusal:
            await stub.Check(request("c"))
        assert refusal.value.code() == grpc.StatusCode.NOT_FOUND
        if hasattr(stub, "List"):  # the oldest supported grpcio-health-checking has no such method
            listed = (await stub.List(health_pb2.HealthListRequest())).statuses  # type: ignore[attr-defined]
            assert {name: one.status for name, one in listed.items()} == {"": SERVING, "a": SERVING, "b": NOT_SERVING}


async def test_a_watcher_that_stops_reading_is_given_up() -> None:
    servicer = HealthServicer(watches=CallLimits(prompt_send_s=0.05, send_s=0.1))
    async with serving(servicer) as (port, stub), raw_connection(port, window=0) as deaf:
        await stub.Watch(request("a")).read()  # grpcio keeps the first call of a method until the server ends
        stream = deaf.call(WATCH, request("a"))
        await eventually(lambda: deaf.frames(stream), "the watch has begun")
        watch = stub.Watch(request("a"))  # and the latest one until the next
        await watch.read()
        await deaf.end_of(stream)
        servicer.set("a", SERVING)
        assert (await watch.read()).status == SERVING


async def test_checks_that_send_nothing_make_room_for_those_that_do() -> None:
    servicer = HealthServicer(checks=CallLimits(calls=8))
    async with serving(servicer) as (port, stub), raw_connection(port) as idle:
        streams = [idle.begin(CHECK) for _ in range(20)]
        await idle.drain()
        await idle.end_of(streams[0])
        assert (await stub.Check(request(""))).status == SERVING
        assert not idle.ended(streams[-1])


async def test_health_is_answered_where_the_limits_of_calls_and_watches_are_reached() -> None:
    options = lifecycle.ServeOptions(parse_listen("127.0.0.1:0"), max_calls=8)
    async with (
        lifecycle.running(ControlledService(), options) as server,
        raw_connection(server.address.port) as idle,
        channels.dial(str(server.address)) as channel,
    ):
        for path in (f"/{NAME}/GetInfo", WATCH, CHECK):
            for _ in range(20):
                idle.begin(path)
        await idle.drain()
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(request(""))).status == NOT_SERVING
        assert (await stub.Watch(request("")).read()).status == NOT_SERVING
