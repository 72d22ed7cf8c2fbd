"""`zrelay pair` and `zrelay join`: machines with state folders of their own, and a service with TLS between them."""

import asyncio
import contextlib
import json
import os
import signal
import stat
import threading
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from tests.helpers.processes import Machine
from tests.shared.services import VISION, ControlledService
from zrelay_client import profiles
from zrelay_client.cli import _machine
from zrelay_shared import exits, rpc
from zrelay_shared.security import certificates
from zrelay_shared.security.installation import Installation
from zrelay_shared.service.grpc_server import make_server
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.service.pairing import PairingOptions, PairingSession

T = TypeVar("T")
LOCAL = "127.0.0.1"


class Box:
    """A machine that serves, in a thread of this process."""

    def __init__(self, folder: Path, **installation: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._closing = contextlib.AsyncExitStack()
        self.installation = Installation(folder, **installation)
        self.installation.prepare("gpu", [LOCAL])

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def pair(self, **options: Any) -> PairingSession:
        """Opens a pairing port."""

        async def start() -> PairingSession:
            values = {"box": "gpu", "host": LOCAL, "services": {}, "listen": ListenAddress(LOCAL, 0), **options}
            session = PairingSession(self.installation, PairingOptions(**values))
            await session.start()
            self._closing.push_async_callback(session.stop)
            return session

        return self.run(start())

    def serve(self) -> str:
        """Serves a vision service that admits members alone, and returns its endpoint."""

        async def start() -> str:
            service = ControlledService()
            service.load_now.set()
            server = make_server(max_connections=16, max_streams=16, max_request_bytes=1 << 20)
            rpc.add_service(server, VISION, service)
            authority = self.installation.authority_certificate
            credentials = grpc.ssl_server_credentials([self.installation.server_pair], authority, True)
            port = server.add_secure_port(f"{LOCAL}:0", credentials)
            await server.start()
            self._closing.push_async_callback(server.stop, None)
            return f"{LOCAL}:{port}"

        return self.run(start())

    def close(self) -> None:
        self.run(self._closing.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    made = Box(tmp_path / "security")
    yield made
    made.close()


@pytest.fixture
def mac(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "mac")


@pytest.fixture
def gpu(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "gpu")


def boxes_of(machine: Machine) -> dict[str, profiles.Box]:
    return {each.name: each for each in profiles.load(folder=machine.state / "profiles").boxes}


def test_a_machine_joins_and_calls_the_services(box: Box, mac: Machine) -> None:
    session = box.pair(services={"vision": box.serve(), "generator": f"{LOCAL}:1"})
    ran = mac.zrelay("join", "-", "--name", "mac", stdin=f"{session.code}\n")
    assert ran.returncode == exits.OK, ran.stderr
    assert ran.stdout == "gpu\n"
    assert "vision at 127.0.0.1:" in ran.stderr and ": admits this machine\n" in ran.stderr
    start = f"generator at {LOCAL}:1: does not run yet; start it there: zrelay serve generator --model FOLDER --listen"
    assert start in ran.stderr
    file = mac.state / "profiles/default.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    saved = boxes_of(mac)["gpu"]
    authority, key, certificate = saved.tls.read()
    assert authority == box.installation.authority_certificate and saved.hosts == (LOCAL,)
    assert key is not None and certificate is not None and certificates.belong_together(certificate, key)
    assert key.decode().splitlines()[1] not in ran.stdout + ran.stderr
    assert [each.name for each in box.installation.members()] == ["mac"]


def test_join_prints_json(box: Box, mac: Machine) -> None:
    session = box.pair(services={"vision": box.serve()})
    printed = mac.json("join", session.code, "--name", "mac", "--profile", "home")
    assert (printed["box"], printed["name"], printed["profile"]) == ("gpu", "mac", "home")
    assert printed["services"]["vision"]["ok"] is True
    assert "PRIVATE KEY" not in json.dumps(printed)


@pytest.mark.parametrize("flags", [(), ("--short",)])
def test_the_digits_of_a_short_code_are_read_from_standard_input(
    box: Box, mac: Machine, flags: tuple[str, ...]
) -> None:
    session = box.pair(short=True)
    place = f"{LOCAL}:{session.port}"
    ran = mac.zrelay("join", place, *flags, "--name", "mac", stdin=f"{session.code}\n")
    assert (ran.returncode, ran.stdout) == (exits.OK, "gpu\n"), ran.stderr


def test_what_is_wrong_here_uses_up_no_code(box: Box, mac: Machine) -> None:
    session = box.pair()
    for arguments in (
        ("--profile", "../x"),
        ("--name", "Mac Book"),
        ("--profile", "damaged"),
    ):
        if "damaged" in arguments:
            (mac.state / "profiles/damaged.json").write_text("{")
        ran = mac.zrelay("join", session.code, *arguments)
        assert ran.returncode == exits.REFUSED and ran.stdout == "", ran.stderr
    assert mac.zrelay("join", session.code, "--name", "mac").returncode == exits.OK


@pytest.mark.parametrize("code", ["zr1aaaa", "zr1" + "a" * 53, "a b c", "host:0", "host:99999"])
def test_a_text_that_is_no_code_is_refused(mac: Machine, code: str) -> None:
    ran = mac.zrelay("join", code)
    assert ran.returncode == exits.REFUSED, ran.stderr
    assert "code" in ran.stderr and ran.stderr.count("\n") == 1 and code not in ran.stderr


def test_without_a_code_and_a_terminal_join_names_what_it_wants(mac: Machine) -> None:
    ran = mac.zrelay("join")
    assert ran.returncode == exits.USAGE and "zrelay pair" in ran.stderr


def test_a_machine_does_not_take_the_place_of_another(box: Box, mac: Machine, tmp_path: Path) -> None:
    """A box with the name of one of the profile, but another authority, gets a name of its own."""
    assert mac.zrelay("join", box.pair().code, "--name", "mac").returncode == exits.OK
    first = boxes_of(mac)["gpu"]
    other = Box(tmp_path / "other")
    try:
        ran = mac.zrelay("join", other.pair().code, "--name", "mac")
        assert ran.stdout == "gpu-2\n" and "another authority" in ran.stderr
        assert boxes_of(mac)["gpu"] == first and set(boxes_of(mac)) == {"gpu", "gpu-2"}
        assert mac.zrelay("join", other.pair(member="mac").code, "--name", "mac", "--replace").stdout == "gpu\n"
        assert boxes_of(mac)["gpu"].tls.read()[0] == other.installation.authority_certificate
        assert mac.zrelay("join", "--forget", "gpu-2").returncode == exits.OK
        assert set(boxes_of(mac)) == {"gpu"}
    finally:
        other.close()


def test_a_renewed_membership_replaces_the_old_one(box: Box, mac: Machine) -> None:
    assert mac.zrelay("join", box.pair().code, "--name", "mac").returncode == exits.OK
    before = boxes_of(mac)["gpu"]
    assert mac.zrelay("join", box.pair(member="mac").code, "--name", "mac").stdout == "gpu\n"
    assert set(boxes_of(mac)) == {"gpu"} and boxes_of(mac)["gpu"].tls.read()[2] != before.tls.read()[2]


def test_clocks_that_differ_are_reported(mac: Machine, tmp_path: Path) -> None:
    behind = Box(tmp_path / "security", clock=lambda: datetime.now(UTC) - timedelta(hours=3))
    try:
        ran = mac.zrelay("join", behind.pair().code, "--name", "mac")
        assert ran.returncode == exits.OK and "is 3 hours ahead of that of gpu: set it" in ran.stderr
    finally:
        behind.close()


def paired_by_command(gpu: Machine, *arguments: str, **options: Any) -> Any:
    return gpu.start("pair", "--address", LOCAL, "--port", "0", "--name", "gpu", *arguments, **options)


def test_pair_prints_the_code_and_who_joined(gpu: Machine, mac: Machine) -> None:
    process = paired_by_command(gpu, "--permissions", "encode", "--serves", "encoder")
    try:
        code = process.stdout.readline()
        assert mac.zrelay("join", "-", "--name", "mac", stdin=code).returncode == exits.OK
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (exits.OK, "")
    assert f"mac has joined from {LOCAL}: encode; its certificate ends" in err
    assert f"  zrelay serve encoder --model FOLDER --listen {LOCAL}:7501" in err.splitlines()
    assert code.strip() not in err
    printed = gpu.json("pair", "--list")["admitted"]
    assert [(row["name"], row["kind"], row["state"]) for row in printed] == [
        ("gpu", "server", "valid"),
        ("mac", "machine", "valid"),
    ]
    assert stat.S_IMODE((gpu.state / "security").stat().st_mode) == 0o700


@pytest.mark.deep
def test_ctrl_c_ends_a_pairing(gpu: Machine, mac: Machine) -> None:
    process = paired_by_command(gpu, "--short", "--json")
    try:
        printed = json.loads(process.stdout.readline())
        assert printed["valid_s"] == 600 and printed["services"]["encoder"] == f"{LOCAL}:7501"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out) == (exits.INTERRUPTED, "")
    assert "no longer valid" in err and "Traceback" not in err
    ran = mac.zrelay("join", printed["address"], stdin=printed["code"])
    assert ran.returncode == exits.UNREACHABLE and "no pairing is open" in ran.stderr


def test_a_pairing_that_nobody_uses_expires(gpu: Machine) -> None:
    ran = gpu.zrelay("pair", "--address", LOCAL, "--port", "0", "--name", "gpu", "--minutes", "0.01")
    assert ran.returncode == exits.TIMEOUT and "has expired" in ran.stderr


@pytest.mark.deep
@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_a_terminal_shows_a_qr_code(gpu: Machine) -> None:
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 120, 0, 0))
    process = paired_by_command(gpu, stdout=theirs)
    os.close(theirs)
    shown = b""
    try:
        with contextlib.suppress(OSError):
            while shown.count("█".encode()) < 40:
                shown += os.read(ours, 65536)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
    assert b"zr1" in shown and "▀".encode() in shown


def test_tokens_and_revocation(gpu: Machine) -> None:
    installation = Installation(gpu.state / "security")
    first = gpu.zrelay("pair", "--token", "ci", "--permissions", "generate")
    assert first.returncode == exits.OK and first.stdout.startswith("zrt_") and "zrt_" not in first.stderr
    second = gpu.json("pair", "--token", "ci", "--overlap", "1")
    assert [bool(each.expires) for each in installation.tokens()] == [True, False]
    assert installation.token_of(second["token"]) is not None
    files = "".join(path.read_text() for path in (gpu.state / "security").iterdir())
    assert first.stdout.strip() not in files and second["token"] not in files
    listed = gpu.zrelay("pair", "--list")
    assert "ci" in listed.stdout and "zrt_" not in listed.stdout
    assert gpu.zrelay("pair", "--revoke", "ci").returncode == exits.OK
    assert not installation.tokens()
    again = gpu.zrelay("pair", "--revoke", "ci")
    assert again.returncode == exits.REFUSED and "'ci'" in again.stderr


def test_the_server_certificate_is_renewed(gpu: Machine) -> None:
    ran = gpu.zrelay("pair", "--renew")
    assert ran.returncode == exits.REFUSED and "zrelay pair" in ran.stderr
    installation = Installation(gpu.state / "security")
    installation.prepare("gpu", _machine.server_names("gpu.local"))
    before = installation.server_pair
    assert gpu.json("pair", "--renew")["hosts"][0] == "gpu.local"
    assert installation.server_pair != before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--list", "--revoke", "a"),
        ("--renew", "--token", "a"),
        ("--overlap", "1"),
        ("--permissions", "paint"),
        ("--serves", "gateway"),
        ("--minutes", "61"),
    ],
)
def test_options_that_contradict_are_refused(gpu: Machine, arguments: tuple[str, ...]) -> None:
    ran = gpu.zrelay("pair", *arguments)
    assert ran.returncode == exits.USAGE and not (gpu.state / "security/authority.key").exists()


@pytest.mark.parametrize("address", ["a b", "gpu_1", "ä"])
def test_an_address_that_is_none_is_refused(gpu: Machine, address: str) -> None:
    ran = gpu.zrelay("pair", "--address", address, "--name", "gpu")
    assert ran.returncode == exits.REFUSED and "--address" in ran.stderr


def test_a_member_that_does_not_exist_is_not_renewed(gpu: Machine) -> None:
    ran = gpu.zrelay("pair", "--renew", "mac", "--address", LOCAL, "--name", "gpu")
    assert ran.returncode == exits.REFUSED and "no member has the name 'mac'" in ran.stderr


def test_names_and_addresses_of_this_machine() -> None:
    name = _machine.default_name()
    assert profiles.checked_name(name, "name", "NAME_INVALID") == name
    names = _machine.server_names("gpu.local")
    assert names[0] == "gpu.local" and names[-3:] == ["localhost", LOCAL, "::1"]
    assert [certificates.checked_server_name(each) for each in names] == names
    assert _machine.bind_host(LOCAL) == LOCAL
    assert _machine.bind_host("gpu.local") in ("::", "0.0.0.0")
    assert _machine.bind_host("198.51.100.1") in ("::", "0.0.0.0")
