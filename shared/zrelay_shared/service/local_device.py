"""The device of this machine as far as it can be known without torch, for plans that a client prints or makes."""

import importlib.util
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.host_memory import cpu_has_bfloat16, host_memory
from zrelay_shared.limits import MIB
from zrelay_shared.service.memory_plan import PlannedDevice

_AMPERE = 8.0
"""Least compute capability of a GPU with bfloat16."""
_QUERY_S = 10.0
_NO_CUDA = re.compile(r"^cuda\b[^=]*= *None *$", re.MULTILINE)
"""The line of torch's version.py in a build without CUDA."""


def local_device(requested: str, environment: Mapping[str, str], root: Path = Path("/")) -> PlannedDevice:
    """Returns the device that a service on this machine would most probably use.

    A service knows its device from torch, which this function does not import. An NVIDIA GPU is known from nvidia-smi,
    Apple's from the platform; everything else is the CPU. A GPU counts only where CUDA_VISIBLE_DEVICES does not hide it
    and the installed torch, if there is one, is a build for CUDA.

    Args:
        requested: auto, cuda, mps or cpu.
        environment: The environment variables of the service.
        root: Folder that holds proc/ and sys/, for tests.

    Raises:
        FailedPrecondition: DEVICE_MISSING, this machine does not have the requested device.
    """
    host = host_memory(root)
    if requested in ("auto", "cuda") and (gpu := _nvidia(environment)) is not None:
        return gpu
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    if requested == "cuda" or (requested == "mps" and not apple):
        seen = "nvidia-smi or torch shows no usable GPU" if requested == "cuda" else "it has no GPU of Apple"
        raise FailedPrecondition(
            f"device: {requested} was requested, but this machine does not have it ({seen}): choose another "
            "--device, or plan on the machine of the service",
            reason="DEVICE_MISSING",
            metadata={"expected": requested, "got": "cpu"},
        )
    if requested == "mps" or (requested == "auto" and apple):
        most = host.total * 3 // 4  # what Metal recommends
        return PlannedDevice("mps", True, most, min(host.free, most))
    return PlannedDevice("cpu", cpu_has_bfloat16(root / "proc/cpuinfo"), host.total, host.free, host.limited_by)


def _nvidia(environment: Mapping[str, str]) -> PlannedDevice | None:
    """Returns the first GPU that a service may use as far as nvidia-smi knows, None where there is none."""
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    first = None if visible is None else visible.split(",")[0].strip()
    if program is None or not Path(program).is_absolute():  # Windows also looks in the current folder
        return None
    if first in ("", "-1") or not _torch_may_use_cuda():
        return None
    query = "--query-gpu=memory.total,memory.free,compute_cap"
    try:
        ran = subprocess.run(
            [program, query, "--format=csv,noheader,nounits", *([] if first is None else [f"--id={first}"])],
            capture_output=True,
            text=True,
            timeout=_QUERY_S,
            check=True,
        )
        total, free, capability = (part.strip() for part in ran.stdout.splitlines()[0].split(","))
        return PlannedDevice("cuda", float(capability) >= _AMPERE, int(total) * MIB, int(free) * MIB)
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def _torch_may_use_cuda() -> bool:
    """Returns False if the installed torch is a build without CUDA; True also where torch is not installed.

    It reads torch's version file: importing torch takes seconds.
    """
    try:
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return True
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except (OSError, ValueError, ImportError):
        return True
    return _NO_CUDA.search(text) is None
