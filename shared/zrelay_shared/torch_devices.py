"""The device that a service computes on: which one, in which dtype and why, and how much memory it has."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from zrelay_shared.errors import FailedPrecondition
from zrelay_shared.safetensors_header import read_header
from zrelay_shared.torch_tensors import FLOAT_DTYPES

_MEMINFO = Path("/proc/meminfo")
_HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "invalid resource handle",
    "no kernel image",
    "operation not supported\n",
    "too many resources requested",
)
"""CUDA errors that a call reports before anything ran: the next call is as good as before."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The device as GetInfo tells it; memory in bytes, 0 where the platform does not tell."""

    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int


def pick_device(asked: str) -> torch.device:
    """The device of `asked` (auto: cuda, else mps, else cpu). Raises FailedPrecondition (DEVICE_MISSING)."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, is_there in there.items() if is_there]
    if asked == "auto":
        return torch.device(present[0])
    if asked not in present:
        raise FailedPrecondition(
            f"device: {asked} was asked for, this machine has {', '.join(present)}: leave --device out, or install the "
            "torch build for it",
            reason="DEVICE_MISSING",
            metadata={"expected": asked, "got": ",".join(present)},
        )
    return torch.device(asked)


def pick_dtype(asked: str, device: torch.device, stored: torch.dtype) -> tuple[torch.dtype, str]:
    """The compute dtype of `asked`, and the reason. `stored` is the weights' own dtype.

    auto never takes float16: Qwen3's massive activations (thousands, in two dimensions) leave it little headroom.
    """
    if asked != "auto":
        return _DTYPES[asked], "asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes in bfloat16"
        return torch.float32, "the GPU has no bfloat16"
    if device.type == "mps":
        return torch.bfloat16, "MPS computes in bfloat16"
    if stored is torch.float32:
        return torch.float32, "the weights are float32 and a CPU has the memory"
    if _cpu_has_bfloat16():
        return torch.bfloat16, "the CPU computes in bfloat16"
    return torch.float32, "the CPU is slow in bfloat16"


def stored_dtype(files: Sequence[Path]) -> torch.dtype:
    """The dtype of the first floating tensor of a checkpoint's safetensors files; bfloat16 where none is plain."""
    entries = (entry for file in files for entry in read_header(file))
    return next((FLOAT_DTYPES[entry.dtype] for entry in entries if entry.dtype in FLOAT_DTYPES), torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def report(device: torch.device) -> DeviceReport:
    """What the device is and how much memory this process could take now; what torch holds and does not use counts as
    free. Touches no stream and allocates nothing."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceReport("cuda", torch.cuda.get_device_name(device), total, min(total, free + max(0, cached)))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.current_allocated_memory()
        return DeviceReport("mps", platform.processor() or "Apple GPU", total, max(0, free))
    total, free = _host_memory()
    return DeviceReport("cpu", f"CPU ({torch.backends.cpu.get_cpu_capability()})", total, free)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory. Only CUDA has a type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    said = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in text for words in said)


def is_device_lost(error: BaseException) -> bool:
    """Whether a GPU has failed so that every later call of this process fails as well: an illegal access, an assertion
    in a kernel, an ECC error. Only a new process has the device again.

    What CUDA says and is not known here counts as lost: to go on beside a dead device fails every job that comes, to
    start again costs a minute.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = f"{error}\n"
    if "_STATUS_" in text:  # of a library on CUDA: wrong arguments too, which harm nothing
        return any(f"_STATUS_{word}" in text for word in ("EXECUTION_FAILED", "MAPPING_ERROR"))
    said = isinstance(error, torch.AcceleratorError) or "CUDA error" in text or "HIP error" in text
    return said and not any(words in text for words in _HARMLESS)


def release_cached_memory(device: torch.device) -> None:
    """Give unused blocks back to the device, so that a smaller job fits after one that did not."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; emulated it is slower than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.9
        return "AVX512" in torch.backends.cpu.get_cpu_capability()
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(flag)) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _host_memory() -> tuple[int, int]:
    """Total and available bytes of the host; 0 where it does not tell."""
    if _MEMINFO.exists():  # on Linux sysconf leaves out what files take in memory while nobody needs it
        said = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
        if "MemTotal" in said and "MemAvailable" in said:
            return _kib(said["MemTotal"]), _kib(said["MemAvailable"])
    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names or "SC_AVPHYS_PAGES" not in names:
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page


def _kib(text: str) -> int:
    """Bytes of "   123 kB"."""
    return int(text.split()[0]) * 1024
