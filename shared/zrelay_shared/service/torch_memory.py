"""Plans the memory of a service on the device that torch reports, and converts the dtype of the settings to torch's."""

import logging

import torch

from zrelay_shared.host_memory import host_memory
from zrelay_shared.limits import BFLOAT16_WEIGHTS
from zrelay_shared.service.memory_plan import MemoryPlan, PlannedDevice, needs_of, plan
from zrelay_shared.service.roles import ServiceConfig
from zrelay_shared.torch_devices import has_bfloat16, report

log = logging.getLogger(__name__)
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def plan_memory(config: ServiceConfig, device: torch.device) -> MemoryPlan:
    """Plans the memory of a service on its device, and logs the dtype and the reason for it.

    auto never takes float16: Qwen3's massive activations (thousands, in two dimensions) leave it little headroom.

    Raises:
        CheckpointError: The folder is incomplete or damaged.
        OutOfMemory: MEMORY_PLAN, the model does not fit.
        FailedPrecondition: DTYPE_UNSUPPORTED.
    """
    found, host = report(device), host_memory()
    free = min(found.memory_free_bytes, host.free) if device.type == "mps" else found.memory_free_bytes
    limited_by = host.limited_by if device.type == "cpu" else "free memory"
    known = PlannedDevice(device.type, has_bfloat16(device), found.memory_total_bytes, free, limited_by)
    made = plan(needs_of(config), known, check=config.memory_plan)
    log.info("computing in %s on %s: %s", made.dtype, device.type, made.reason)
    return made


def compute_dtype(name: str) -> torch.dtype:
    """Returns the dtype of the computation for a value of --dtype, which must not be auto."""
    return torch.float32 if name == BFLOAT16_WEIGHTS else _DTYPES[name]


def stored_dtype(name: str) -> torch.dtype:
    """Returns the dtype of the weights in memory for a value of --dtype, which must not be auto."""
    return torch.bfloat16 if name == BFLOAT16_WEIGHTS else _DTYPES[name]
