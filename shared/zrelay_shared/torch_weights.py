"""Loads the weights of safetensors files into a module: only the tensors that it has, chunk by chunk.

transformers' from_pretrained needs 3.0 times the memory of the weights while it converts their dtype (measured with 350
M parameters), and maps files that another process may overwrite. Here each tensor is read once into its place on the
device.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.safetensors_header import TensorEntry, read_header
from zrelay_shared.torch_tensors import FLOAT_DTYPES

CHUNK_BYTES = 16 * 1024 * 1024


def load_weights(
    module: nn.Module,
    files: Sequence[Path],
    device: torch.device,
    dtype: torch.dtype,
    *,
    name_of: Callable[[str], str | None],
    what: str,
) -> None:
    """Loads weights into a module and prepares it for inference.

    Buffers that are not saved, such as rotary tables, are left to the caller.

    Args:
        module: A module on the meta device.
        files: The safetensors files; tensors that the module does not have are skipped.
        device: Where the weights go.
        dtype: Their dtype.
        name_of: Maps the name of a tensor in the files to its name in the module's state_dict, None to skip it.
        what: Name of the checkpoint in error messages.

    Raises:
        CheckpointError: A tensor is missing, quantised or has another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    located: dict[str, tuple[Path, TensorEntry]] = {}
    for path in files:
        for entry in read_header(path):
            name = name_of(entry.name)
            if name is not None and name in wanted:
                located[name] = (path, entry)
    if missing := sorted(set(wanted) - set(located)):
        raise CheckpointError(
            f"{what}: the weights lack {listed(missing)}, which config.json requires; copy the checkpoint again"
        )
    buffer = bytearray(CHUNK_BYTES)
    state = {}
    for name, (path, entry) in located.items():
        if entry.shape != wanted[name]:
            raise CheckpointError(
                f"{path.name}: tensor {entry.name} has shape {list(entry.shape)}, config.json requires "
                f"{list(wanted[name])}; the weights and config.json belong to different models"
            )
        state[name] = _read(path, entry, device, dtype, buffer)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _read(path: Path, entry: TensorEntry, device: torch.device, dtype: torch.dtype, buffer: bytearray) -> torch.Tensor:
    """Reads one tensor in `dtype` to `device`, through `buffer`. Raises CheckpointError."""
    if entry.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{path.name}: tensor {entry.name} is {entry.dtype}; expected {', '.join(FLOAT_DTYPES)}: quantised weights "
            "are not supported, use the original checkpoint"
        )
    stored = FLOAT_DTYPES[entry.dtype]
    tensor = torch.empty(entry.shape, dtype=dtype, device=device)
    flat, view, done = tensor.view(-1), memoryview(buffer), 0
    with path.open("rb") as file:
        file.seek(entry.begin)
        while done < flat.numel():
            count = min(flat.numel() - done, len(buffer) // stored.itemsize)
            if file.readinto(view[: count * stored.itemsize]) != count * stored.itemsize:
                raise CheckpointError(f"{path.name}: the file ended inside {entry.name}; it changed while it was read")
            flat[done : done + count].copy_(torch.frombuffer(buffer, dtype=stored, count=count))
            done += count
    return tensor
