"""The relay as real processes: the command line drives services that it started itself."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from zrelay_client import Client
from zrelay_client._stack.bundle import demo_checkpoint
from zrelay_shared.errors import ZrelayError

for needed in ("torch", "transformers", "diffusers"):
    pytest.importorskip(needed)

PROMPT = "a small red circle on a blue background"
READY_S = 240.0
"""Far more than a stack takes to start on two quiet cores (some 10 s), for machines that are busy."""


@dataclass(frozen=True)
class Machine:
    """One machine's state, configuration and working folder; nothing of it is shared with another."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def here(self) -> Path:
        return self.root / "here"

    @property
    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZRELAY_")}
        config = str(self.root / "config.toml")
        return {**clean, "ZRELAY_STATE": str(self.state), "ZRELAY_CONFIG": config, "OMP_NUM_THREADS": "2"}

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """A `zrelay` command as a process."""
        self.here.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "zrelay_client", *args],
            cwd=self.here,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def zrelay(self, *args: str, stdin: str = "", timeout: float = READY_S) -> subprocess.CompletedProcess[str]:
        """Runs a `zrelay` command to its end."""
        process = self.start(*args, stdin=subprocess.PIPE)
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # on which it ends what it started
            raise
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def json(self, *args: str) -> dict[str, Any]:
        """What a command that must succeed says with --json."""
        ran = self.zrelay(*args, "--json")
        assert ran.returncode == 0, ran.stderr
        said: dict[str, Any] = json.loads(ran.stdout)
        return said

    def record(self) -> dict[str, Any]:
        """The stack's record."""
        said: dict[str, Any] = json.loads((self.state / "stack.json").read_text())
        return said

    def endpoints(self) -> dict[str, str]:
        """Role -> HOST:PORT of the stack."""
        return {service["role"]: service["endpoint"] for service in self.record()["services"]}

    def pids(self) -> list[int]:
        """The processes of the stack."""
        return [service["process"]["pid"] for service in self.record()["services"]]


def gone(pids: list[int]) -> bool:
    """Whether none of the processes runs (a zombie does not)."""
    running = [pid for pid in pids if psutil.pid_exists(pid)]
    return all(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in running)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing runs; whatever a test leaves running is ended."""
    machine = Machine(tmp_path)
    machine.here.mkdir()
    yield machine
    if (machine.state / "stack.json").exists():
        machine.zrelay("down")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with the demo stack up, left running by `zrelay up --detach`."""
    machine = Machine(tmp_path_factory.mktemp("home"))
    ran = machine.zrelay("up", "--detach", timeout=READY_S)
    assert ran.returncode == 0, ran.stderr
    pids = machine.pids()
    yield machine
    down = machine.zrelay("down")
    assert down.returncode == 0, down.stderr
    assert gone(pids)
    assert not (machine.state / "stack.json").exists()


@pytest.fixture
def here(home: Machine, tmp_path: Path) -> Iterator[Machine]:
    """The running machine, in an empty working folder."""
    for left in home.here.iterdir():
        left.rename(tmp_path / left.name)
    yield home


@dataclass
class GeneratorProcess:
    """A generator on the demo checkpoint as a process of its own; killed and started again it keeps port and state."""

    root: Path
    flags: tuple[str, ...] = ("--lease-s", "6")
    endpoint: str = "127.0.0.1:0"
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begins it; `ready` waits."""
        self.root.mkdir(parents=True, exist_ok=True)
        address, log = self.root / "address", (self.root / "log").open("ab")
        address.unlink(missing_ok=True)
        command = [sys.executable, "-m", "zrelay_generator", "--model", str(demo_checkpoint())]
        command += ["--listen", self.endpoint, "--address-file", str(address), "--threads", "1", *self.flags]
        environ = {**os.environ, "ZRELAY_STATE": str(self.root / "state"), "OMP_NUM_THREADS": "1"}
        self.popen = subprocess.Popen(command, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        log.close()

    def ready(self) -> str:
        """Its endpoint, once it serves."""
        deadline = time.monotonic() + READY_S
        while True:
            assert self.popen is not None
            assert self.popen.poll() is None, (self.root / "log").read_text()
            assert time.monotonic() < deadline, (self.root / "log").read_text()
            if (self.root / "address").exists():
                self.endpoint = (self.root / "address").read_text()
                with contextlib.suppress(ZrelayError), Client(generator=self.endpoint) as client:
                    if client.serving()["generator"]:
                        return self.endpoint
            time.sleep(0.1)

    def kill(self) -> None:
        """As a power cut does, kill -9."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()


@pytest.fixture(scope="session")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[GeneratorProcess]]:
    """Two generators of one model."""
    both = [GeneratorProcess(tmp_path_factory.mktemp(f"generator-{index}")) for index in range(2)]
    try:
        for one in both:
            one.start()
        for one in both:
            one.ready()
        yield both
    finally:
        for one in both:
            if one.popen is not None:
                one.kill()


class Link:
    """A TCP link to an endpoint that can be cut, left hanging, and restored. Lives in the test's event loop."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._wires: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.endpoint = "127.0.0.9:0"

    async def restore(self) -> None:
        """Carries what is sent, and takes new connections."""
        self._open.set()
        host, port = self.endpoint.split(":")
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, host, int(port))
            self.endpoint = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    async def cut(self) -> None:
        """Resets what is connected and refuses what would be."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for wire in self._wires:
            wire.transport.abort()
        self._wires.clear()

    def hang(self) -> None:
        """Carries nothing any more, without a word."""
        self._open.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self._target.split(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._wires |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.fixture
async def link_to() -> AsyncIterator[Callable[[str], Awaitable[Link]]]:
    """Makes links to endpoints; cut when the test ends."""
    links: list[Link] = []

    async def make(target: str) -> Link:
        links.append(Link(target))
        await links[-1].restore()
        return links[-1]

    yield make
    for link in links:
        await link.cut()
