"""Processes identified by pid and start time, so that a recycled pid is never mistaken for one of ours."""

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_POLL_S = 0.05
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TOLERANCE_S = 2.0
"""Linux rounds the time of the boot to a second, and start times are computed from it."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its pid, and a mark of its start (`start_mark`) that no later process with this pid has."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        return self._process() is not None

    def _process(self) -> "psutil.Process | None":
        process = _running(self.pid)
        return process if process is not None and _same_start(_mark(process), self.started) else None


def start_mark(pid: int) -> str | None:
    """Returns a mark of when a process started, None where there is no such process or only a zombie."""
    process = _running(pid)
    return None if process is None else _mark(process)


def end(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """Ends exactly these processes: SIGTERM, `grace_s` seconds to finish, then SIGKILL.

    Returns:
        The processes that had to be killed.
    """
    # Not psutil.wait_procs: it counts a zombie of another parent as running.
    running = [process for process in processes if _signal(process, kill=False)]
    deadline = time.monotonic() + grace_s
    while (running := [process for process in running if process.alive]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    killed = [process for process in running if _signal(process, kill=True)]
    while any(process.alive for process in killed):
        time.sleep(_POLL_S)
    return killed


def _signal(target: ProcessId, *, kill: bool) -> bool:
    """Sends SIGTERM or SIGKILL, and returns whether the process was there to receive it."""
    import psutil

    process = target._process()
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill() if kill else process.terminate()
        return True
    return False


def _running(pid: int) -> "psutil.Process | None":
    import psutil  # only where a stack is recorded: commands must start at once

    try:
        process = psutil.Process(pid)
        return None if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) else process
    except psutil.NoSuchProcess:
        return None


def _mark(process: "psutil.Process") -> str:
    """Returns the boot and the start time in seconds: since the boot on Linux, where the time since the epoch changes
    when the clock is set, else since the epoch."""
    import psutil

    try:
        if not _BOOT_ID.exists():
            return f":{process.create_time():.2f}"
        return f"{_BOOT_ID.read_text().strip()}:{process.create_time() - psutil.boot_time():.2f}"
    except psutil.NoSuchProcess:
        return ""


def _same_start(one: str, other: str) -> bool:
    (boot, _, seconds), (other_boot, _, other_seconds) = one.rpartition(":"), other.rpartition(":")
    try:
        return boot == other_boot and abs(float(seconds) - float(other_seconds)) <= _TOLERANCE_S
    except ValueError:
        return False
