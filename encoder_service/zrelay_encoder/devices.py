"""Which device and dtype the encoder computes with, and why."""

from dataclasses import dataclass

import torch

from zrelay_shared.errors import FailedPrecondition

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}
STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""Weights' dtypes that can be loaded, by safetensors' names."""


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The device as GetInfo tells it; memory in bytes, 0 where the platform does not tell."""

    kind: str
    name: str
    memory_total_bytes: int
    memory_free_bytes: int


def choose_device(wanted: str) -> torch.device:
    """The device of `wanted` (auto: cuda, else mps, else cpu). Raises FailedPrecondition where it is absent."""
    present = [
        name
        for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        if there
    ] + ["cpu"]
    if wanted == "auto":
        return torch.device(present[0])
    if wanted not in present:
        raise FailedPrecondition(
            f"device: {wanted} was asked for, this machine has {', '.join(present)}: leave --device out, or install "
            f"the torch build for it",
            reason="DEVICE_MISSING",
            metadata={"wanted": wanted, "present": ",".join(present)},
        )
    return torch.device(wanted)


def choose_dtype(wanted: str, device: torch.device, stored: torch.dtype) -> tuple[torch.dtype, str]:
    """The compute dtype of `wanted`, and the reason. `stored` is the weights' own dtype.

    auto never takes float16: Qwen3's massive activations (thousands, in two dimensions) leave it little headroom.
    """
    if wanted != "auto":
        return _DTYPES[wanted], "asked for"
    if stored is torch.float32 and device.type == "cpu":
        return torch.float32, "the weights are float32 and a CPU has the memory"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes in bfloat16"
        return torch.float32, "the GPU has no bfloat16"
    if device.type == "mps":
        return torch.bfloat16, "MPS computes in bfloat16"
    if "AVX512" in torch.backends.cpu.get_cpu_capability():
        return torch.bfloat16, "the CPU computes in bfloat16"
    return torch.float32, "the CPU is slow in bfloat16"


def report(device: torch.device) -> DeviceReport:
    """What there is to say about `device`. Touches no stream and allocates nothing."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceReport("cuda", torch.cuda.get_device_name(device), total, free)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return DeviceReport("mps", "Apple GPU", total, max(0, total - torch.mps.driver_allocated_memory()))
    return DeviceReport("cpu", f"CPU ({torch.backends.cpu.get_cpu_capability()})", 0, 0)
