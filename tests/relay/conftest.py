"""The relay as real processes: the command line drives services that it started itself."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

for needed in ("torch", "transformers", "diffusers"):
    pytest.importorskip(needed)

PROMPT = "a small red circle on a blue background"
READY_S = 120.0


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

    def zrelay(self, *args: str, stdin: str = "", timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Runs a `zrelay` command to its end."""
        process = self.start(*args, stdin=subprocess.PIPE)
        out, err = process.communicate(stdin, timeout=timeout)
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
