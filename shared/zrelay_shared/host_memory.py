"""Memory of this machine that the process may still take: what is free, limits of control groups and of the process.

The kernel kills a process that takes more than is free, or more than its control group may have, without a message.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path

import psutil

_UNLIMITED = 1 << 60
"""Control groups of version 1 report a number near 2**63 where there is no limit."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Memory in bytes.

    Attributes:
        total: What the machine has, or the smallest limit if that is less; 0 where the platform does not report it.
        free: What this process may still take.
        limited_by: What sets `free`: "free memory", "control group" or "RLIMIT_AS".
    """

    total: int
    free: int
    limited_by: str = "free memory"


def host_memory(root: Path = Path("/")) -> HostMemory:
    """Returns the memory that this process may still take.

    It is the smallest of: MemAvailable, the limits of its control groups (versions 1 and 2, all levels) less what they
    use, and RLIMIT_AS less the address space of the process. Page cache that the kernel can drop counts as free.

    Args:
        root: Folder that holds proc/ and sys/, for tests.
    """
    found = [_whole_machine(root / "proc/meminfo"), *_control_groups(root)]
    if root == Path("/"):
        found += _address_space(root)
    totals = [memory.total for memory in found if memory.total]
    if not totals:
        return HostMemory(0, 0)
    least = min((memory for memory in found if memory.total), key=lambda memory: memory.free)
    return HostMemory(min(totals), max(0, least.free), least.limited_by)


def cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Returns whether the CPU multiplies bfloat16 natively, as far as Linux reports it; False elsewhere."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return False
    words = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _whole_machine(meminfo: Path) -> HostMemory:
    if meminfo.exists():
        info = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        if "MemTotal" in info and "MemAvailable" in info:
            return HostMemory(_kib(info["MemTotal"]), _kib(info["MemAvailable"]))
    memory = psutil.virtual_memory()
    return HostMemory(memory.total, memory.available)


def _control_groups(root: Path) -> list[HostMemory]:
    """Returns what each control group of this process, and each above it, may still take."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    mounted, found = root / "sys/fs/cgroup", []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, inside = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        names = _VERSION_1 if controllers else _VERSION_2
        folder = mounted / "memory" if controllers else mounted
        if not controllers and (mounted / "unified").is_dir():
            folder = mounted / "unified"
        # In a container the path is that of the host, and the mount shows the container's own group as its root.
        levels = [part for part in inside.split("/") if part]
        for depth in range(len(levels), -1, -1):
            if (memory := names.read(folder.joinpath(*levels[:depth]))) is not None:
                found.append(memory)
    return found


@dataclass(frozen=True, slots=True)
class _GroupFiles:
    limits: tuple[str, ...]
    used: str
    cache: tuple[str, ...]

    def read(self, folder: Path) -> HostMemory | None:
        """Returns the memory of a group, None where it has no limit."""
        limits = [value for name in self.limits if (value := _number(folder / name)) is not None]
        used = _number(folder / self.used)
        if not limits or used is None or min(limits) >= _UNLIMITED:
            return None
        try:
            stat = dict(line.split(maxsplit=1) for line in (folder / "memory.stat").read_text().splitlines())
            cache = sum(int(stat.get(name, 0)) for name in self.cache)
        except (OSError, ValueError):
            cache = 0
        return HostMemory(min(limits), min(limits) - max(0, used - cache), "control group")


_VERSION_1 = _GroupFiles(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)
_VERSION_2 = _GroupFiles(("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))


def _address_space(root: Path) -> list[HostMemory]:
    process = psutil.Process()
    if not hasattr(process, "rlimit"):  # Linux alone enforces it
        return []
    limit, _ = process.rlimit(psutil.RLIMIT_AS)
    if limit in (psutil.RLIM_INFINITY, -1) or limit >= _UNLIMITED:
        return []
    pages = _number(root / "proc/self/statm")
    return [HostMemory(limit, limit - (pages or 0) * mmap.PAGESIZE, "RLIMIT_AS")]


def _number(file: Path) -> int | None:
    """Returns the first word of a file as a number, None where it is none ("max" is no limit)."""
    try:
        return int(file.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _kib(text: str) -> int:
    """Returns the bytes of a value such as "   123 kB"."""
    return int(text.split()[0]) * 1024
