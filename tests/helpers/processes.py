"""The relay as real processes: machines with a command line of their own, and generators that a test may kill."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zrelay_client import Client
from zrelay_client.stack.bundle import demo_checkpoint
from zrelay_shared.errors import ZrelayError

from .command_line import Completed, run_zrelay
from .polling import DEADLINE_S, until


def gone(pids: Iterable[int]) -> bool:
    """Whether none of the processes runs. A zombie does not run."""
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


@dataclass(frozen=True)
class Machine:
    """State, configuration and working folder of one machine; nothing of it is shared with another machine."""

    root: Path

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def here(self) -> Path:
        """The working folder of its commands."""
        return self.root / "here"

    @property
    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZRELAY_")}
        config = str(self.root / "config.toml")
        return {**clean, "ZRELAY_STATE": str(self.state), "ZRELAY_CONFIG": config, "OMP_NUM_THREADS": "2"}

    def zrelay(self, *args: str, stdin: str = "") -> Completed:
        """Runs a command to its end, in the test's process. `start` and `process` make a process, which the commands
        that start services need."""
        assert args[:1] not in (("serve",), ("up",), ("demo",)), "it replaces its process, or handles its signals"
        self.here.mkdir(parents=True, exist_ok=True)
        return run_zrelay(*args, stdin=stdin.encode(), cwd=self.here, env=self.environ)

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Starts a command as a process. `options` go to Popen; both outputs are pipes unless they say otherwise."""
        self.here.mkdir(parents=True, exist_ok=True)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "zrelay_client", *args]
        return subprocess.Popen(command, cwd=self.here, env=self.environ, text=True, **(pipes | options))

    def process(self, *args: str, timeout: float = DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, as a process. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        process = self.start(*args, stdin=subprocess.DEVNULL)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.terminate()  # which ends what it started, too
            raise
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    def json(self, *args: str) -> dict[str, Any]:
        """Returns what a command, which must succeed, prints with `--json`."""
        ran = self.zrelay(*args, "--json")
        assert ran.returncode == 0, ran.stderr
        printed: dict[str, Any] = json.loads(ran.stdout)
        return printed

    def record(self) -> dict[str, Any]:
        """Returns the record of the stack that runs here."""
        record: dict[str, Any] = json.loads((self.state / "stack.json").read_text())
        return record

    def endpoints(self) -> dict[str, str]:
        """Returns the endpoints of the stack by role."""
        return {service["role"]: service["endpoint"] for service in self.record()["services"]}

    def pids(self) -> list[int]:
        """Returns the process ids of the stack."""
        return [service["process"]["pid"] for service in self.record()["services"]]


@dataclass
class GeneratorProcess:
    """A generator of the demo checkpoint as a process. Killed and started again, it keeps its port and state.

    Attributes:
        root: The folder of its state, log and address file.
        flags: More flags of its command.
        endpoint: Where it listens, and once it has started its endpoint.
        prefix: A command that runs its command, e.g. in a network namespace.
        popen: The process, once it was started.
    """

    root: Path
    flags: tuple[str, ...] = ("--lease-s", "6")
    endpoint: str = "127.0.0.1:0"
    prefix: tuple[str, ...] = ()
    popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process; `ready` waits until it serves."""
        self.root.mkdir(parents=True, exist_ok=True)
        address = self.root / "address"
        address.unlink(missing_ok=True)
        command = [*self.prefix, sys.executable, "-m", "zrelay_generator", "--model", str(demo_checkpoint())]
        command += ["--listen", self.endpoint, "--address-file", str(address), "--threads", "1", *self.flags]
        environ = {**os.environ, "ZRELAY_STATE": str(self.root / "state"), "OMP_NUM_THREADS": "1"}
        with (self.root / "log").open("ab") as log:
            self.popen = subprocess.Popen(command, env=environ, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def ready(self) -> str:
        """Waits until it serves, and returns its endpoint."""
        return until(self._serving, f"the generator in {self.root} serves")

    def kill(self) -> None:
        """Ends it as a power cut does, with SIGKILL."""
        assert self.popen is not None
        self.popen.kill()
        self.popen.wait()

    def _serving(self) -> str | None:
        assert self.popen is not None
        assert self.popen.poll() is None, (self.root / "log").read_text()
        if not (self.root / "address").exists():
            return None
        self.endpoint = (self.root / "address").read_text()
        with contextlib.suppress(ZrelayError), Client(generator=self.endpoint) as client:
            if client.serving()["generator"]:
                return self.endpoint
        return None
