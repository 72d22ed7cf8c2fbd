"""`zrelay doctor` where a service cannot be reached: the reason in plain words, and the fix."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.helpers.command_line import run_zrelay
from zrelay_client import Settings, doctor
from zrelay_client.doctor import FAIL, Check, check_services
from zrelay_client.testing import FakeServices
from zrelay_shared import exits

INTERNALS = (
    "Errno",
    "errno",
    "Connect call",
    "last error",
    "UNAVAILABLE",
    "UNKNOWN",
    "ipv4:",
    "HTTP/2",
    "os_error",
    "(",
)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServices]:
    with FakeServices() as services:
        yield services


async def failure_at(endpoint: str, *, connect_s: float = 10.0) -> Check:
    """Returns the one failed check of an encoder at an endpoint, whose message has no words of libraries."""
    settings = Settings(running={"encoder": endpoint})
    (failed,) = [check async for check in check_services(settings, connect_s=connect_s) if check.state == FAIL]
    assert not [word for word in INTERNALS if word in failed.message], failed.message
    return failed


@contextlib.asynccontextmanager
async def program(greeting: bytes | None) -> AsyncIterator[str]:
    """Serves another program than zrelay, which sends a text, or closes each connection. Yields its endpoint."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if greeting is not None:
            writer.write(greeting)
            await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nothing listens, and which nothing else takes meanwhile."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_closed_port(closed_port: int, host: str) -> None:
    failed = await failure_at(f"{host}:{closed_port}")
    assert failed.message == f"cannot connect to {host}:{closed_port}: connection refused"
    assert (failed.name, failed.exit_code) == ("encoder port", exits.UNREACHABLE)
    assert "start it there (`zrelay serve encoder --model FOLDER`, or `zrelay up --detach`" in failed.fix


@pytest.mark.parametrize("host", ["no-such-host.invalid", "n" * 64 + ".invalid"])
async def test_a_name_that_does_not_resolve(host: str) -> None:
    failed = await failure_at(host)
    assert failed.message.startswith(f"{host} does not resolve: ")
    assert (failed.name, failed.exit_code) == ("encoder name", exits.UNREACHABLE)
    assert "check the spelling" in failed.fix


async def test_a_machine_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    async def connect(*_: object) -> object:
        return await asyncio.Future()

    monkeypatch.setattr(asyncio, "open_connection", connect)
    monkeypatch.setattr(doctor, "CONNECT_S", 0.01)
    failed = await failure_at(f"127.0.0.1:{closed_port}")
    assert failed.message == f"cannot connect to 127.0.0.1:{closed_port}: no answer in 0.01 s"


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.0\r\n"])
async def test_a_port_of_another_program(greeting: bytes) -> None:
    async with program(greeting) as endpoint:
        failed = await failure_at(endpoint)
    assert failed.message == ("the port answers, no service does: another program answers, which does not speak gRPC")
    assert (failed.name, failed.exit_code) == ("encoder health", exits.UNREACHABLE)
    assert failed.fix == "another program has this port: name the encoder's port, 7501 unless it was changed"


async def test_a_tunnel_without_a_far_end() -> None:
    async with program(None) as endpoint:
        failed = await failure_at(endpoint)
    assert failed.message == "the port answers, no service does: it closes the connection"
    assert "where this is an SSH tunnel, nothing listens at its other end" in failed.fix


async def test_a_program_that_is_silent() -> None:
    async with program(b"") as endpoint:
        failed = await failure_at(endpoint, connect_s=0.2)
    assert failed.message == "the port answers, no service does: no answer in time"


async def test_a_socket_that_does_not_exist(tmp_path: Path) -> None:
    failed = await failure_at(f"unix:{tmp_path}/none")
    assert failed.message == f"cannot connect to unix:{tmp_path}/none: no such file or directory"
    assert "start it there" in failed.fix


async def test_a_name_that_grpc_resolves() -> None:
    failed = await failure_at("dns:///no-such-host.invalid:1")
    assert failed.message == "cannot connect to dns:///no-such-host.invalid:1: the name does not resolve"


async def test_the_endpoint_of_another_service(fake: FakeServices) -> None:
    failed = await failure_at(fake.endpoints["generator"])
    assert failed.message == "another service or an older zrelay answers there"
    assert (failed.name, failed.exit_code) == ("encoder info", exits.REFUSED)
    assert failed.fix == "is that the encoder's endpoint, not another service's?"


def test_the_command_prints_reasons_and_fixes(empty_home: Path, closed_port: int) -> None:
    ran = run_zrelay("doctor", "--encoder", f"127.0.0.1:{closed_port}", "--generator", f"127.0.0.1:{closed_port}")
    assert ran.returncode == exits.UNREACHABLE
    assert (
        f"fail  encoder port: cannot connect to 127.0.0.1:{closed_port}: connection refused\n      fix: " in ran.stdout
    )
    checks = json.loads(run_zrelay("doctor", "--json", "--encoder", f"127.0.0.1:{closed_port}").stdout)["checks"]
    assert not [word for check in checks for word in ("Errno", "Connect call") if word in check["message"]]
