"""Services as the command line starts them, each a process of its own on a free port."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_START_S = 600.0


@dataclass(frozen=True)
class ServiceProcess:
    """A service that is ready: `endpoint` host:port, `pid` of its process."""

    endpoint: str
    pid: int


@contextmanager
def started(role: str, model: Path, *flags: str) -> Iterator[ServiceProcess]:
    """`python -m zrelay_<role>` on a checkpoint until the block ends; a generator's jobs are kept in a folder that
    goes with it. Raises RuntimeError, with the end of its log, where it does not start."""
    with tempfile.TemporaryDirectory(prefix="zrelay-") as folder:
        address, log = Path(folder) / "address", Path(folder) / "log"
        command = [sys.executable, "-m", f"zrelay_{role}", "--model", str(model), "--listen", "127.0.0.1:0"]
        command += ["--address-file", str(address), *flags]
        if role == "generator" and "--state" not in flags:
            command += ["--state", str(Path(folder) / "state")]
        with log.open("w") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield ServiceProcess(ready(process, address, log), process.pid)
        finally:
            process.terminate()
            try:
                process.wait(60.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ready(process: subprocess.Popen[bytes], address: Path, log: Path) -> str:
    """Its endpoint, once it serves."""
    ends = time.monotonic() + _START_S
    while not address.exists():
        _check(process, log, ends)
    endpoint = address.read_text()
    with grpc.insecure_channel(endpoint) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)  # its stubs lack the methods
        serving = health_pb2.HealthCheckResponse.SERVING
        while health.Check(health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=10.0).status != serving:
            _check(process, log, ends)
    return endpoint


def _check(process: subprocess.Popen[bytes], log: Path, ends: float) -> None:
    if process.poll() is not None or time.monotonic() > ends:
        raise RuntimeError(f"expected a service that starts, got {process.args!r}: {log.read_text()[-2000:]}")
    time.sleep(0.05)
