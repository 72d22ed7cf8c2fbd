"""The device of a service: selection, compute dtype, memory and failures."""

import platform
from dataclasses import dataclass

import torch

from zrelay_shared.errors import FailedPrecondition, OutOfMemory
from zrelay_shared.host_memory import host_memory

_HARMLESS = (
    "invalid argument",
    "invalid configuration argument",
    "invalid device function",
    "invalid resource handle",
    "no kernel image",
    "operation not supported\n",
    "too many resources requested",
)
"""CUDA errors that are reported before anything ran; later calls are not affected."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """Description of a device. Memory is in bytes, 0 if the platform does not report it."""

    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int


def pick_device(requested: str) -> torch.device:
    """Returns the device to use.

    Args:
        requested: cuda, mps or cpu; auto takes the first of them that is available.

    Raises:
        FailedPrecondition: DEVICE_MISSING, the machine does not have the device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    present = [kind for kind, usable in available.items() if usable]
    if requested == "auto":
        return torch.device(present[0])
    if requested not in present:
        raise FailedPrecondition(
            f"device: expected one of {', '.join(present)}, which this machine has, got {requested}: omit --device, "
            "or install a build of torch that supports it",
            reason="DEVICE_MISSING",
            metadata={"expected": requested, "got": ",".join(present)},
        )
    return torch.device(requested)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns torch's name of a dtype without the module, for example `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def report(device: torch.device) -> DeviceReport:
    """Returns the description of a device. Memory that torch has reserved and does not use counts as free.

    It touches no stream and allocates nothing, but the driver may block the calling thread.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return DeviceReport("cuda", torch.cuda.get_device_name(device), total, min(total, free + max(0, cached)))
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        free = total - torch.mps.current_allocated_memory()
        return DeviceReport("mps", platform.processor() or "Apple GPU", total, max(0, free))
    host = host_memory()
    return DeviceReport("cpu", f"CPU ({torch.backends.cpu.get_cpu_capability()})", host.total, host.free)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error means that device or host ran out of memory. Only CUDA has an exception type for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    known = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(words in text for words in known)


def weights_do_not_fit(what: str, device: torch.device, dtype: torch.dtype) -> OutOfMemory:
    """Returns the error for weights that do not fit into the device's memory.

    Args:
        what: The weights, for example `text_encoder/`.
        device: The device.
        dtype: The dtype of the weights in memory.
    """
    found = report(device)
    remedies = ["use --dtype bfloat16, which needs half"] if dtype.itemsize > torch.bfloat16.itemsize else []
    remedies += ["end other programs that use its memory"]
    remedies += ["use --device cpu"] if device.type != "cpu" else ["use a machine with more memory"]
    return OutOfMemory(
        f"{what} needs more memory in {dtype_name(dtype)} than {device.type} has: {found.memory_free_bytes >> 20} of "
        f"{found.memory_total_bytes >> 20} MiB are free; {', or '.join(remedies)}",
        metadata={"free_bytes": found.memory_free_bytes},
    )


def is_device_lost(error: BaseException) -> bool:
    """Returns whether an error makes every later call of this process fail too.

    Examples are an illegal memory access, an assertion in a kernel and an ECC error. Only a new process can use the
    device again. Unknown CUDA errors count as lost: continuing with a broken device would fail every later job, while a
    restart costs a minute.
    """
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    text = f"{error}\n"
    if "_STATUS_" in text:  # of a CUDA library; errors about arguments have no lasting effect
        return any(f"_STATUS_{word}" in text for word in ("EXECUTION_FAILED", "MAPPING_ERROR"))
    from_device = isinstance(error, torch.AcceleratorError) or "CUDA error" in text or "HIP error" in text
    return from_device and not any(words in text for words in _HARMLESS)


def release_cached_memory(device: torch.device) -> None:
    """Returns unused memory to the device, so that a smaller job fits after one that did not fit."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def has_bfloat16(device: torch.device) -> bool:
    """Returns whether a device multiplies bfloat16 natively; emulation is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # older than torch 2.9
        return "AVX512" in torch.backends.cpu.get_cpu_capability()
    has = torch.cpu.get_capabilities()
    return any(bool(has.get(flag)) for flag in ("avx512_bf16", "amx_bf16", "bf16"))
