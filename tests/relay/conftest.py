"""The relay as real processes: the command line drives services that it started itself."""

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

from zrelay_client import Client, Embeds, Result
from zrelay_client._stack.bundle import demo_checkpoint
from zrelay_shared.errors import ZrelayError

from .links import Link
from .watched import LONG

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
    """A generator on the demo checkpoint as a process of its own; killed and started again it keeps port and state.

    `prefix` is a command that runs another, e.g. in a network namespace."""

    root: Path
    flags: tuple[str, ...] = ("--lease-s", "6")
    endpoint: str = "127.0.0.1:0"
    prefix: tuple[str, ...] = ()
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begins it; `ready` waits."""
        self.root.mkdir(parents=True, exist_ok=True)
        address, log = self.root / "address", (self.root / "log").open("ab")
        address.unlink(missing_ok=True)
        command = [*self.prefix, sys.executable, "-m", "zrelay_generator", "--model", str(demo_checkpoint())]
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


@pytest.fixture(scope="session")
def steadfast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GeneratorProcess]:
    """A generator whose jobs live for minutes without a watcher: as long as a busy machine takes to start it again."""
    one = GeneratorProcess(tmp_path_factory.mktemp("steadfast"), flags=("--lease-s", "240"))
    try:
        one.start()
        one.ready()
        yield one
    finally:
        if one.popen is not None:
            one.kill()


@pytest.fixture(scope="session")
def embeds(home: Machine) -> Embeds:
    """Of PROMPT, by the stack's encoder."""
    with Client(encoder=home.endpoints()["encoder"]) as client:
        return client.encode(PROMPT)


@pytest.fixture(scope="session")
def undisturbed(generators: list[GeneratorProcess], embeds: Embeds) -> Result:
    """What LONG gives where nothing happens."""
    with Client(generator=generators[0].endpoint) as client:
        return client.generate(embeds, **LONG)


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
