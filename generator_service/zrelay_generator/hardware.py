"""How running out of a device's memory looks, and how to give memory back."""

import torch


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
