"""How a process is: memory, threads, files, processor time, as Linux tells in /proc."""

import os
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Vitals:
    """Of one process: resident bytes now and at their peak, threads, open files, seconds of processor time; `tasks`
    of its event loop where it tells (-1: it does not)."""

    rss_bytes: int
    peak_bytes: int
    threads: int
    files: int
    cpu_s: float
    tasks: int = -1


def vitals(pid: int, tasks: int = -1) -> Vitals:
    """Of a process that lives. Raises FileNotFoundError where it does not."""
    process = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    times = (process / "stat").read_text().rpartition(")")[2].split()
    return Vitals(
        rss_bytes=_kib(status["VmRSS"]),
        peak_bytes=_kib(status["VmHWM"]),
        threads=int(status["Threads"]),
        files=len(list((process / "fd").iterdir())),
        cpu_s=(int(times[11]) + int(times[12])) * _TICK_S,
        tasks=tasks,
    )


def _kib(text: str) -> int:
    return int(text.split()[0]) * 1024


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line of least squares through (x, y); 0 for fewer than two x."""
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
