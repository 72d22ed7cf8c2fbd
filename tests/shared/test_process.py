"""Service processes: systemd's messages, signals, failing loads, wrong flags; each a real process."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.processes import ended, log_until
from zrelay.v1 import vision_pb2
from zrelay_shared import exits
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.permissions import CALLER

NAME = "zrelay.v1.VisionService"
SERVING = health_pb2.HealthCheckResponse.SERVING

PRELUDE = textwrap.dedent("""
    import asyncio, sys, time
    from zrelay.v1 import vision_pb2
    from zrelay_shared.errors import CheckpointError
    from zrelay_shared.service import command
    from zrelay_shared.service.roles import VisionConfig
    from pathlib import PosixPath, WindowsPath
    from zrelay_vision.api.servicer import VisionServicer
    class Service(VisionServicer):
        async def load(self): {load}
        async def drain(self, grace_s): {drain}
        async def close(self): {close}
    sys.exit(command.start(lambda: VisionConfig(listen="{listen}", grace_s=5.0, **{settings!r}), {build}))
""")


def start(
    load: str = "pass",
    drain: str = "pass",
    close: str = "pass",
    build: str = "Service",
    listen: str = "127.0.0.1:0",
    settings: Mapping[str, Any] = MappingProxyType({}),
    **environment: str,
) -> subprocess.Popen[str]:
    script = PRELUDE.format(load=load, drain=drain, close=close, build=build, listen=listen, settings=dict(settings))
    return launch([sys.executable, "-c", script], **environment)


def launch(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        yield listener


def test_a_process_under_systemd_from_start_to_sigterm(systemd: socket.socket, tmp_path: Path) -> None:
    address = tmp_path / "address"
    command = [sys.executable, "-m", "zrelay_vision", "--listen", "127.0.0.1:0", "--address-file", str(address)]
    process = launch(command, NOTIFY_SOCKET=systemd.getsockname(), WATCHDOG_USEC="200000")
    told = {systemd.recv(100)}
    while told != {b"READY=1", b"WATCHDOG=1"}:
        told.add(systemd.recv(100))
    with grpc.insecure_channel(address.read_text()) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        state = stub.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=20)
        assert state.status == SERVING
    assert systemd.recv(100) == b"WATCHDOG=1"
    process.send_signal(signal.SIGTERM)
    while (message := systemd.recv(100)) != b"STOPPING=1":
        assert message == b"WATCHDOG=1"
    code, log = ended(process)
    assert code == exits.OK and "draining" in log and "Traceback" not in log


@pytest.mark.parametrize(
    ("load", "code", "said"),
    [
        ("raise CheckpointError('box: vae/ is missing')", exits.LOCAL_FILE, "box: vae/ is missing"),
        ("raise KeyError('bug')", exits.BUG, "loading failed"),
    ],
)
def test_a_load_that_fails_ends_the_process(load: str, code: int, said: str) -> None:
    got, log = ended(start(load=load))
    assert got == code and said in log
    assert ("Traceback" in log) == (code == exits.BUG)


def test_a_process_with_tls(tmp_path: Path) -> None:
    box, address = Installation(tmp_path / "security"), tmp_path / "address"
    box.prepare("box", ["localhost"])
    ports = {"token_listen": "127.0.0.1:0", "health_listen": "127.0.0.1:0", "security": box.folder}
    process = start(listen="0.0.0.0:0", settings={**ports, "address_file": address})
    log = log_until(process, "ready on")
    assert "listening on 0.0.0.0:" in log and " with TLS, loading" in log
    tokens = re.search(r"accepted on (127\.0\.0\.1:\d+)$", log, re.MULTILINE)
    health = re.search(r"plaintext on (127\.0\.0\.1:\d+)$", log, re.MULTILINE)
    assert tokens is not None and health is not None
    key, certificate = box.server_pair
    token = ("authorization", f"Bearer {box.new_token('ci', CALLER)}")
    mutual = grpc.ssl_channel_credentials(box.authority_certificate, key, certificate)
    server_only = grpc.ssl_channel_credentials(box.authority_certificate)
    for credentials, port, metadata, caller in (
        (mutual, address.read_text().rpartition(":")[2], (), "owner"),
        (server_only, tokens[1].rpartition(":")[2], (token,), "token ci"),
    ):
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            call: Any = channel.unary_unary(f"/{NAME}/GetInfo")
            answer = vision_pb2.VisionServiceGetInfoResponse.FromString(call(b"", timeout=20, metadata=metadata))
        assert answer.connection.caller == caller
    with grpc.insecure_channel(health[1]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=20).status == SERVING
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert code == exits.OK and "Traceback" not in log and "zrt_" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_loading_ends_the_process_at_once(number: signal.Signals) -> None:
    process = start(load="await asyncio.to_thread(time.sleep, 3600)")
    log_until(process, "listening on")
    process.send_signal(number)
    code, log = ended(process)
    assert code == exits.OK
    assert "stopped while loading" in log and "Traceback" not in log


def test_sigterm_waits_for_what_runs() -> None:
    process = start(drain="await asyncio.sleep(0.3); print('drained', file=sys.stderr)")
    log_until(process, "ready on")
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert code == exits.OK and "drained" in log


def test_what_loading_made_is_out_of_the_collectors_sight() -> None:
    load = "import gc; self.weights = [[] for _ in range(300_000)]"
    process = start(load=load, drain="import gc; print('frozen', gc.get_freeze_count() > 300_000, file=sys.stderr)")
    log_until(process, "ready on")
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert code == exits.OK and "frozen True" in log


def test_a_second_signal_ends_the_drain() -> None:
    process = start(drain="await asyncio.sleep(60)")
    log_until(process, "ready on")
    process.send_signal(signal.SIGINT)
    log_until(process, "draining")
    process.send_signal(signal.SIGINT)
    code, log = ended(process)
    assert code == exits.OK and "Traceback" not in log


@pytest.mark.deep  # waits for the limit of a process
def test_a_thread_that_does_not_end_does_not_keep_the_process() -> None:
    process = start(close="await asyncio.to_thread(time.sleep, 3600)")
    log_until(process, "ready on")
    process.send_signal(signal.SIGTERM)
    code, log = ended(process)
    assert code == exits.OK and "until the service ends its threads" in log


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--listen", "0.0.0.0:0"], exits.REFUSED, "run `zrelay pair` on this machine"),
        (["--listen", "127.0.0.1:0", "--tls"], exits.REFUSED, "run `zrelay pair` on this machine"),
        (["--tls-key", "x"], exits.REFUSED, "--tls-certificate, --tls-key and --tls-ca together"),
        (["--listen", "nowhere"], exits.REFUSED, "expected HOST:PORT"),
        (["--log-level", "loud"], exits.USAGE, "'--log-level': expected one of debug, info"),
        (
            ["--listen", "127.0.0.1:0", "--address-file", "/nonexistent/x"],
            exits.LOCAL_FILE,
            "/nonexistent/x: No such file",
        ),
    ],
)
def test_wrong_flags_are_reported_in_one_line(arguments: list[str], code: int, said: str) -> None:
    got, log = ended(launch([sys.executable, "-m", "zrelay_vision", *arguments]))
    told = [line for line in log.splitlines() if line.lower().startswith("error: ")]
    assert got == code and len(told) == 1 and said in told[0] and "Traceback" not in log


def test_a_taken_port_and_a_missing_library_are_reported_in_one_line() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        code, log = ended(start(listen=f"127.0.0.1:{listener.getsockname()[1]}"))
    assert code == exits.UNREACHABLE and "error: cannot listen on" in log and "Traceback" not in log
    code, log = ended(start(build="lambda _: __import__('no_such_library')"))
    assert code == exits.LOCAL_FILE and "error: no_such_library is not installed: pip install" in log


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        ({"ZRELAY_VISION_LISTEN": "0.0.0.0:0"}, exits.REFUSED, "--insecure-listen"),
        ({"ZRELAY_VISION_MAX_WAITING": "0"}, exits.REFUSED, "ZRELAY_VISION_MAX_WAITING: expected at least 1, got 0"),
        ({"ZRELAY_PROFILE": "home"}, exits.REFUSED, "no profile 'home'"),
        ({"ZRELAY_VISION_SIGLIP": "/nonexistent"}, exits.LOCAL_FILE, "/nonexistent"),
    ],
)
def test_variables_are_read_as_flags_are(tmp_path: Path, environment: dict[str, str], code: int, message: str) -> None:
    nothing = {"ZRELAY_CONFIG": str(tmp_path / "config.toml"), "ZRELAY_STATE": str(tmp_path)}
    got, log = ended(launch([sys.executable, "-m", "zrelay_vision"], **nothing | environment))
    assert got == code and message in log and "Traceback" not in log


def test_the_configuration_file_is_read_and_unknown_variables_are_reported(tmp_path: Path) -> None:
    file, address = tmp_path / "config.toml", tmp_path / "address"
    file.write_text(f'[profile.default.vision]\nlisten = "127.0.0.1:0"\naddress_file = "{address}"\n')
    environment = {"ZRELAY_CONFIG": str(file), "ZRELAY_STATE": str(tmp_path), "ZRELAY_VISION_DEVISE": "cpu"}
    process = launch([sys.executable, "-m", "zrelay_vision"], **environment)
    log = log_until(process, "listening on")
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == exits.OK
    assert address.read_text().startswith("127.0.0.1:")
    assert "ZRELAY_VISION_DEVISE is not a variable of zrelay; did you mean 'ZRELAY_VISION_DEVICE'?" in log
