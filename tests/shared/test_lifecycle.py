"""The lifecycle of a service: health, reflection, loading, watching and draining of a server in this process."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.helpers.large_messages import with_unknown_bytes
from tests.helpers.polling import eventually
from zrelay.v1 import vision_pb2
from zrelay_shared import channels, rpc
from zrelay_shared.errors import Draining, ModelLoading, Unavailable
from zrelay_shared.service import lifecycle
from zrelay_shared.service.listening import parse_listen
from zrelay_shared.wire import Parcel

from .services import NAME, VISION, ControlledService

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
ANYWHERE = lifecycle.ServeOptions(parse_listen("127.0.0.1:0"), grace_s=5.0)


def health(channel: grpc.aio.Channel) -> Any:
    """The stub of the health service, which the stubs' types do not describe for an asynchronous channel."""
    return health_pb2_grpc.HealthStub(channel)


async def states(channel: grpc.aio.Channel) -> dict[str, int]:
    stub = health(channel)
    names = ("", NAME, lifecycle.LIVENESS)
    return {name: (await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in names}


async def test_health_follows_the_life_of_the_service() -> None:
    service = ControlledService()
    async with lifecycle.running(service, ANYWHERE) as server, channels.dial(str(server.address)) as channel:
        assert await states(channel) == {"": NOT_SERVING, NAME: NOT_SERVING, lifecycle.LIVENESS: SERVING}
        with pytest.raises(ModelLoading):
            await info(channel)
        service.load_now.set()
        await server.loaded
        assert await states(channel) == {"": SERVING, NAME: SERVING, lifecycle.LIVENESS: SERVING}
        assert (await info(channel)).ready
        drain = asyncio.create_task(server.drain())
        await eventually(lambda: service.draining, "the service drains")
        assert await states(channel) == {"": NOT_SERVING, NAME: NOT_SERVING, lifecycle.LIVENESS: SERVING}
        service.drain_now.set()
        await drain
        with pytest.raises(Unavailable):
            await info(channel)
    assert service.closed


async def test_the_callback_runs_before_the_service_is_reported_as_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = ControlledService()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.getsockname())

        def on_loaded() -> None:
            with pytest.raises(BlockingIOError):
                systemd.recv(100)

        async with lifecycle.running(service, ANYWHERE, on_loaded) as server:
            service.load_now.set()
            await server.loaded
            assert systemd.recv(100) == b"READY=1"


async def test_health_follows_the_state_of_the_service() -> None:
    service = ControlledService()
    service.load_now.set()
    service.drain_now.set()
    options = lifecycle.ServeOptions(ANYWHERE.listen, grace_s=5.0, watch_interval_s=0.01)
    async with lifecycle.running(service, options) as server, channels.dial(str(server.address)) as channel:
        await server.loaded
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        while (await watch.read()).status != SERVING:
            pass
        service.unhealthy = "the disk is full"
        assert (await watch.read()).status == NOT_SERVING
        service.unhealthy = ""
        assert (await watch.read()).status == SERVING
        assert not server.restart_needed.is_set()
        service.restart = "the device is lost"
        await asyncio.wait_for(server.restart_needed.wait(), 60)


def test_readiness_refuses_calls_while_loading_and_draining() -> None:
    readiness = lifecycle.Readiness("encoder")
    with pytest.raises(ModelLoading, match="this encoder is still loading its model"):
        readiness.check()
    readiness.set_loaded()
    assert readiness.ready
    readiness.check()
    readiness.set_draining()
    assert readiness.draining and not readiness.ready
    with pytest.raises(Draining, match="this encoder is shutting down"):
        readiness.check()


async def info(channel: grpc.aio.Channel) -> vision_pb2.VisionServiceGetInfoResponse:
    stub = rpc.Stub(channel, VISION)
    request, kind = vision_pb2.VisionServiceGetInfoRequest(), vision_pb2.VisionServiceGetInfoResponse
    return (await stub.call("GetInfo", request, kind, timeout=20)).message


async def test_an_unknown_health_name_is_not_found() -> None:
    async with (
        lifecycle.running(ControlledService(), ANYWHERE) as server,
        channels.dial(str(server.address)) as channel,
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            await health(channel).Check(health_pb2.HealthCheckRequest(service="x"))
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_model_that_is_loaded_while_draining_is_not_ready() -> None:
    service = ControlledService()
    service.drain_now.set()
    async with lifecycle.running(service, ANYWHERE) as server, channels.dial(str(server.address)) as channel:
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == NOT_SERVING
        drain = asyncio.create_task(server.drain())
        await eventually(lambda: service.draining, "the service drains")
        service.load_now.set()
        await server.loaded
        assert await watch.read() == grpc.aio.EOF
        await drain


async def test_a_watcher_of_health_does_not_hold_up_the_end() -> None:
    service = ControlledService()
    service.load_now.set()
    service.drain_now.set()
    options = lifecycle.ServeOptions(ANYWHERE.listen, grace_s=3600.0)
    async with lifecycle.running(service, options) as server, channels.dial(str(server.address)) as channel:
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status in (SERVING, NOT_SERVING)
        await asyncio.wait_for(server.drain(), 60)


async def test_a_service_that_does_not_end_its_drain_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    service = ControlledService()
    service.load_now.set()
    options = lifecycle.ServeOptions(ANYWHERE.listen, grace_s=0.05, drain_margin_s=0.05)
    async with lifecycle.running(service, options) as server:
        await server.loaded
        await asyncio.wait_for(server.drain(), 60)
    assert "until the service drains" in caplog.text and service.closed


async def test_a_service_that_does_not_close_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    class Service(ControlledService):
        async def close(self) -> None:
            await asyncio.Event().wait()

    options = lifecycle.ServeOptions(ANYWHERE.listen, close_s=0.1)
    async with asyncio.timeout(60), lifecycle.running(Service(), options) as server:
        pass
    assert "until the service ends its threads" in caplog.text and not server.closed


async def test_an_answer_on_its_way_over_a_slow_link_arrives() -> None:
    service, asked = ControlledService(), asyncio.Event()
    service.drain_now.set()

    async def get_info(parcel: Parcel[Any], context: rpc.Context) -> vision_pb2.VisionServiceGetInfoResponse:
        asked.set()
        return with_unknown_bytes(vision_pb2.VisionServiceGetInfoResponse(), 3_000_000)

    service.GetInfo = get_info  # type: ignore[method-assign]
    async with (
        lifecycle.running(service, ANYWHERE) as server,
        slow_link(server.address.port, 1_500_000) as port,
        channels.dial(f"127.0.0.1:{port}") as channel,
    ):
        answer = asyncio.create_task(info(channel))
        await asked.wait()
        await server.drain()
        assert (await answer).ByteSize() > 3_000_000


@asynccontextmanager
async def slow_link(port: int, bytes_per_s: int) -> AsyncIterator[int]:
    """A port that leads to `port`; what comes back passes at `bytes_per_s`."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pause_s: float) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(8192):
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) * pause_s)  # the rate of the link
        writer.close()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with socket.socket() as there:
            there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            there.setblocking(False)
            await asyncio.get_running_loop().sock_connect(there, ("127.0.0.1", port))
            far_reader, far_writer = await asyncio.open_connection(sock=there, limit=8192)
            await asyncio.gather(pump(reader, far_writer, 0.0), pump(far_reader, writer, 1.0 / bytes_per_s))

    server = await asyncio.start_server(join, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_reflection_tells_the_contract_on_loopback() -> None:
    async with lifecycle.running(ControlledService(), ANYWHERE) as server:

        def look() -> tuple[set[str], list[str]]:
            with grpc.insecure_channel(str(server.address)) as channel:
                database = ProtoReflectionDescriptorDatabase(channel)
                file = database.FindFileContainingSymbol(NAME)
                methods = [method.name for method in file.service[0].method]
                return set(database.get_services()), methods

        services, methods = await asyncio.to_thread(look)
    assert services == {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert methods == ["GetInfo", "EncodeImages", "ConditionPrompt", "ScoreImages"]


async def test_no_reflection_beyond_loopback() -> None:
    options = lifecycle.ServeOptions(parse_listen("0.0.0.0:0", insecure=True))
    async with lifecycle.running(ControlledService(), options) as server:
        with grpc.insecure_channel(f"127.0.0.1:{server.address.port}") as channel:
            look = ProtoReflectionDescriptorDatabase(channel)
            with pytest.raises(grpc.RpcError) as refusal:
                await asyncio.to_thread(look.get_services)
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_taken_port_is_refused_and_the_service_closed() -> None:
    async with lifecycle.running(ControlledService(), ANYWHERE) as first:
        second = ControlledService()
        with pytest.raises(Unavailable) as refusal:
            async with lifecycle.running(second, lifecycle.ServeOptions(first.address)):
                pytest.fail("two servers share a port")
    assert refusal.value.reason == "LISTEN_FAILED" and str(first.address) in refusal.value.message
    assert second.closed


async def test_the_address_file_names_the_port(tmp_path: Path) -> None:
    path = tmp_path / "address"
    options = lifecycle.ServeOptions(ANYWHERE.listen, address_file=path)
    async with lifecycle.running(ControlledService(), options) as server:
        assert path.read_text() == str(server.address) and server.address.port > 0
    service = ControlledService()
    with pytest.raises(FileNotFoundError):
        async with lifecycle.running(
            service, lifecycle.ServeOptions(ANYWHERE.listen, address_file=tmp_path / "a" / "b")
        ):
            pytest.fail("the address could not be told")
    assert service.closed


async def test_closing_does_not_wait_for_a_load_in_a_thread() -> None:
    service, loading, in_thread = ControlledService(), threading.Event(), asyncio.Event()

    async def load() -> None:
        in_thread.set()
        await asyncio.to_thread(loading.wait, 60)

    service.load = load  # type: ignore[method-assign]
    try:
        async with lifecycle.running(service, ANYWHERE) as server:
            await in_thread.wait()
        assert server.loaded.cancelled() and service.closed
    finally:
        loading.set()
