"""Processes by pid and start time together, so that a recycled pid is never taken for ours."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid, and a mark of when it started that no later process of that pid has."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        return start_mark(self.pid) == self.started


def start_mark(pid: int) -> str | None:
    """When a process started, as the system tells it; None where there is no such process, or a zombie."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.parent.parent.joinpath("self").exists():
        return _start_mark_of_ps(pid)
    try:
        fields = stat.read_text().rpartition(")")[2].split()
    except OSError:
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _start_mark_of_ps(pid: int) -> str | None:
    said = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = said.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def end(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """Ends exactly these processes: SIGTERM, `grace_s` seconds to finish, then SIGKILL. Returns those it killed."""
    running = [process for process in processes if _signal(process, signal.SIGTERM)]
    deadline = time.monotonic() + grace_s
    while (running := [process for process in running if process.alive]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    killed = [process for process in running if _signal(process, signal.SIGKILL)]
    while any(process.alive for process in killed):
        time.sleep(_POLL_S)
    return killed


def _signal(process: ProcessId, number: signal.Signals) -> bool:
    if not process.alive:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
        return True
    return False
