"""A service accepts connections whatever its callers send, and ends where it can accept none."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import psutil
import pytest
from grpc._cython import cygrpc

from tests.helpers import http2
from tests.helpers.descriptors import few_free
from tests.helpers.http2_frames import PREFACE, FrameKind, frame
from tests.helpers.polling import eventually, until_async
from zrelay_shared import exits
from zrelay_shared.service import grpc_server, lifecycle
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.service.self_probe import ProbeOptions, ProbeResult, probe, until_deaf

from .services import NAME, ControlledService

pytestmark = pytest.mark.hostile

ROOT = Path(__file__).parents[2]
GET_INFO = f"/{NAME}/GetInfo".encode()
QUICK = ProbeOptions(interval_s=0.02, deadline_s=2.0, retry_s=0.02, failures=3)
UNANSWERED = ProbeOptions(deadline_s=0.3)
UNKNOWN, UNIMPLEMENTED = 2, 12
OURS = ("asyncio", grpc_server.__name__)
"""Loggers that stay silent. Some versions of grpcio log an error where a caller leaves early."""


@asynccontextmanager
async def served(**options: object) -> AsyncIterator[lifecycle.RunningServer]:
    service = ControlledService()
    service.load_now.set()
    service.drain_now.set()
    listen = ListenAddress("127.0.0.1", 0)
    async with lifecycle.running(service, lifecycle.ServeOptions(listen, **options)) as server:  # type: ignore[arg-type]
        await server.loaded
        yield server


async def status_of(address: ListenAddress, path: bytes = GET_INFO) -> int | None:
    """The status of a call over a new connection."""
    async with http2.connected(address.host, address.port) as connection:
        return http2.grpc_status(await connection.call(path))


@pytest.mark.parametrize(
    "path", [b"/\xff", GET_INFO + b"\xff", b"/\xc3\x28/x", b"/\xed\xa0\x80/\x80", b"*", b"/" * 200]
)
async def test_a_path_of_any_bytes_does_not_end_the_accept_loop(path: bytes) -> None:
    async with served() as server:
        assert await status_of(server.address) == 0
        assert await status_of(server.address, path) in (UNIMPLEMENTED, UNKNOWN)  # UNKNOWN: grpcio before 1.84
        assert await status_of(server.address) == 0
        assert not server.restart_needed.is_set()


async def test_an_unknown_method_is_unimplemented() -> None:
    async with served() as server:
        for path in (f"/{NAME}/Nothing".encode(), b"/no.such.Service/GetInfo", b"/"):
            assert await status_of(server.address, path) == UNIMPLEMENTED


async def test_unknown_methods_called_many_times_leave_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        before = len(asyncio.all_tasks())
        async with http2.connected(server.address.host, server.address.port) as connection:
            streams = [await connection.start_call(b"/\xff", end=bool(number % 2)) for number in range(90)]
            for stream in streams[::3]:  # these callers leave at once
                await connection.send(frame(FrameKind.RST_STREAM, 0, stream, bytes((0, 0, 0, 8))))
            await connection.send(frame(FrameKind.PING, 0, 0, bytes(8)))
        async with http2.connected(server.address.host, server.address.port) as connection:
            assert http2.grpc_status(await connection.call(GET_INFO)) == 0
            await eventually(lambda: len(asyncio.all_tasks()) <= before, "the refused calls have ended", 60)
        assert not server.restart_needed.is_set()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR and record.name in OURS]


@pytest.mark.skipif(
    not hasattr(cygrpc.AioServer, "_request_registered_call"), reason="no path ends the accept loop of this grpcio"
)
async def test_the_end_of_an_accept_loop_is_seen() -> None:
    """Without `make_server` a path ends the loop: the fault that docs/explanation/accept-loop.md reports."""
    server = grpc.aio.server()
    address = ListenAddress("127.0.0.1", server.add_insecure_port("127.0.0.1:0"))
    await server.start()
    watch = asyncio.create_task(grpc_server.ended(server, 0.02))
    await status_of(address, b"/\xff")
    assert "UnicodeDecodeError" in await asyncio.wait_for(watch, 60)
    assert await probe(address, QUICK) is ProbeResult.REFUSED
    await server.stop(None)


def stop_listening(port: int) -> None:
    """Ends the listening of this process on a port, as a failure of the system does."""
    for one in psutil.Process().net_connections("tcp"):
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port:
            with socket.socket(fileno=os.dup(one.fd)) as listener:
                listener.shutdown(socket.SHUT_RDWR)
            return
    raise AssertionError(f"nothing listens on {port}")


async def test_a_service_that_hears_nobody_must_restart(caplog: pytest.LogCaptureFixture) -> None:
    async with served(probe=QUICK) as server:
        assert await probe(server.address, QUICK) is ProbeResult.ANSWERED
        await asyncio.sleep(QUICK.interval_s * 3)  # the service's own probe is answered, too
        assert not server.restart_needed.is_set()
        stop_listening(server.address.port)
        await asyncio.wait_for(server.restart_needed.wait(), 60)
    assert "no longer accepts connections and ends: 3 probes" in caplog.text


DEAF = """
import asyncio, logging, sys
from pathlib import Path
from tests.shared.services import ControlledService
from tests.shared.test_accept_loop import QUICK, stop_listening
from zrelay_shared.service import lifecycle
from zrelay_shared.service.listening import ListenAddress

class Service(ControlledService):
    async def load(self):
        self.deafening = asyncio.create_task(self.deafen())
        if {loading}:
            await asyncio.sleep(3600)

    async def deafen(self):
        await asyncio.sleep(0.5)
        stop_listening(int(Path(sys.argv[1]).read_text().rpartition(":")[2]))

    async def drain(self, grace_s):
        logging.warning("drained")

logging.basicConfig()
options = lifecycle.ServeOptions(ListenAddress("127.0.0.1", 0), address_file=Path(sys.argv[1]), probe=QUICK)
sys.exit(lifecycle.serve(Service(), options))
"""


@pytest.mark.deep
@pytest.mark.parametrize("loading", [False, True])
def test_the_process_of_a_deaf_service_ends_with_an_error(loading: bool, tmp_path: Path) -> None:
    script = DEAF.format(loading=loading)
    command = [sys.executable, "-c", script, str(tmp_path / "address")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == exits.UNREACHABLE, ran.stderr
    assert "no longer accepts connections" in ran.stderr and ("drained" in ran.stderr) != loading


async def test_what_a_probe_shows() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = ListenAddress(*silent.getsockname())
        assert await probe(address, UNANSWERED) is ProbeResult.REFUSED
        silent.listen()
        assert await probe(address, UNANSWERED) is ProbeResult.SILENT
        with few_free():
            assert await probe(address, UNANSWERED) is ProbeResult.UNKNOWN
        with few_free(1):  # one for the probe, none for the server
            assert await probe(address, UNANSWERED) is ProbeResult.UNKNOWN


async def test_a_busy_event_loop_is_not_taken_for_deafness() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        options = ProbeOptions(deadline_s=0.3, max_lag_s=0.1)
        probing = asyncio.create_task(probe(ListenAddress(*silent.getsockname()), options))
        await asyncio.sleep(0.05)
        time.sleep(0.4)  # a handler that holds the loop
        assert await probing is ProbeResult.UNKNOWN


async def test_a_server_that_never_answered_is_not_judged(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        watch = asyncio.create_task(until_deaf(ListenAddress(*closed.getsockname()), QUICK))
        await eventually(lambda: "cannot supervise itself" in caplog.text, "the warning is logged", 60)
        await asyncio.sleep(QUICK.retry_s * 5)
        assert not watch.done()
        watch.cancel()


async def test_connections_beyond_the_most_are_closed_and_those_before_go_on() -> None:
    async with served(max_connections=8, probe=QUICK) as server:
        host, port = server.address.host, server.address.port
        held = [http2.RawConnection(*await asyncio.open_connection(host, port)) for _ in range(12)]
        for connection in held:
            with suppress(ConnectionError):
                await connection.handshake()
        answers = await asyncio.gather(*(status(connection) for connection in held))
        assert 6 <= answers.count(0) <= 8  # less than 8 where the service probes itself at this moment
        assert answers.count(None) == 12 - answers.count(0)
        await asyncio.sleep(QUICK.retry_s * QUICK.failures * 2)
        assert not server.restart_needed.is_set()  # the service's own probe was closed as well
        assert await status(held[answers.index(0)]) == 0
        for connection in held:
            await connection.close()
        await until_async(lambda: accepted(server.address), "connections are accepted again", 60)


async def accepted(address: ListenAddress) -> bool:
    return await probe(address, QUICK) is ProbeResult.ANSWERED


async def status(connection: http2.RawConnection) -> int | None:
    try:
        return http2.grpc_status(await connection.call(GET_INFO))
    except ConnectionError:
        return None


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE])
async def test_a_connection_without_a_handshake_is_closed(sent: bytes) -> None:
    async with served(handshake_s=0.2) as server:
        async with http2.connected(server.address.host, server.address.port, handshake=False) as connection:
            await connection.send(sent)
            await asyncio.wait_for(connection.closed(), 60)
        assert await status_of(server.address) == 0
