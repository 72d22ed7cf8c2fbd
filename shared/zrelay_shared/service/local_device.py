"""The device of this machine as far as it can be known without torch, for plans that a client prints or makes."""

import platform
import shutil
import subprocess
from pathlib import Path

from zrelay_shared.host_memory import cpu_has_bfloat16, host_memory
from zrelay_shared.limits import MIB
from zrelay_shared.service.memory_plan import PlannedDevice

_AMPERE = 8.0
"""Least compute capability of a GPU with bfloat16."""
_QUERY_S = 10.0


def local_device(requested: str = "auto", root: Path = Path("/")) -> PlannedDevice:
    """Returns the device that a service on this machine would most probably use.

    A service knows its device from torch. Without torch, an NVIDIA GPU is known from nvidia-smi, and Apple's from the
    platform; everything else is the CPU.

    Args:
        requested: auto, cuda, mps or cpu.
        root: Folder that holds proc/ and sys/, for tests.
    """
    host = host_memory(root)
    if requested in ("auto", "cuda") and (gpu := _nvidia()) is not None:
        return gpu
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if requested == "mps" or (requested == "auto" and apple):
        most = host.total * 3 // 4  # what Metal recommends
        return PlannedDevice("mps", True, most, min(host.free, most))
    return PlannedDevice("cpu", cpu_has_bfloat16(root / "proc/cpuinfo"), host.total, host.free, host.limited_by)


def _nvidia() -> PlannedDevice | None:
    """Returns the first GPU that nvidia-smi lists, None where it lists none."""
    program = shutil.which("nvidia-smi")
    if program is None or not Path(program).is_absolute():  # Windows also looks in the current folder
        return None
    query = "--query-gpu=memory.total,memory.free,compute_cap"
    try:
        ran = subprocess.run(
            [program, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_QUERY_S,
            check=True,
        )
        total, free, capability = (part.strip() for part in ran.stdout.splitlines()[0].split(","))
        return PlannedDevice("cuda", float(capability) >= _AMPERE, int(total) * MIB, int(free) * MIB)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None
