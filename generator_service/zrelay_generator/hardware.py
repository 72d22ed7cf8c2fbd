"""The device: which one, what it can, how much memory it has, and how running out of it looks."""

import os
import platform
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DeviceReport:
    """The device for people and for GetInfo; memory in bytes, 0 where the platform does not tell."""

    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_dtype: str


def pick_device(asked: str) -> torch.device:
    """The device for "auto", "cuda", "mps" or "cpu". Raises ValueError where it is not there."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    if not present[asked]:
        raise ValueError(
            f"device: {asked} is not available here; available are "
            f"{', '.join(kind for kind, there in present.items() if there)}"
        )
    return torch.device(asked)


def pick_dtype(asked: str, device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it, else float32; or what was asked for."""
    if asked == "auto":
        native = device.type != "cpu" or _cpu_has_bfloat16()
        return torch.bfloat16 if native else torch.float32
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
    return dtypes[asked]


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def report(device: torch.device, dtype: torch.dtype) -> DeviceReport:
    """What the device is and how much memory is free now."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceReport("cuda", torch.cuda.get_device_name(device), total, free, dtype_name(dtype))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.driver_allocated_memory()
        return DeviceReport("mps", platform.processor() or "Apple GPU", total, max(0, free), dtype_name(dtype))
    total, free = _host_memory()
    return DeviceReport("cpu", platform.processor() or platform.machine(), total, free, dtype_name(dtype))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host ran out of memory. Only CUDA has a type of its own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def release_cached_memory(device: torch.device) -> None:
    """Give unused blocks back to the device, so that a smaller job fits after one that did not."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 natively; emulated it is slower than float32."""
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.9
        return False
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(flag)) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def _host_memory() -> tuple[int, int]:
    """Total and available bytes of the host; 0 where sysconf does not tell."""
    names = os.sysconf_names
    if "SC_PHYS_PAGES" not in names or "SC_AVPHYS_PAGES" not in names:
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
