"""Loads the weights of safetensors files into a module on the meta device, chunk by chunk.

The libraries' own loaders need up to 3.0 times the memory of the weights while they convert their dtype (measured with
350 M parameters), map files that another process may overwrite, and leave out or make up tensors with a warning. Here
each tensor is read once into its place on the device, and a file that does not match the module is refused.
"""

from collections.abc import Callable
from contextlib import nullcontext
from threading import Lock

import torch
from torch import nn

from zrelay_shared.checkpoint_files import join
from zrelay_shared.errors import CheckpointError, listed
from zrelay_shared.torch_tensors import FLOAT_DTYPES
from zrelay_shared.weight_files import Sink, StoredTensor, WeightFiles

STORED_DTYPES = {**FLOAT_DTYPES, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
"""torch's dtypes of `weight_formats.ACCEPTED_DTYPES`."""


def load_weights(
    module: nn.Module,
    weights: WeightFiles,
    device: torch.device,
    dtype: torch.dtype,
    *,
    name_of: Callable[[str], str | None] = lambda name: name,
) -> None:
    """Loads weights into a module and prepares it for inference. Computes the digest of the files on the way.

    Buffers that are not saved, such as rotary tables, are left to the caller.

    Args:
        module: A module on the meta device.
        weights: The files.
        device: Where the weights go.
        dtype: Their dtype.
        name_of: Maps the name of a tensor in the files to its name in the module's state_dict, None to skip it.

    Raises:
        CheckpointError: A tensor is missing, left over, stored twice, has another shape or dtype, or is not finite; or
            a file changed while it was read.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    located = _located(weights, wanted, name_of)
    # Copies to an accelerator go one after another: not every backend takes them from several threads.
    lock = Lock() if device.type != "cpu" else nullcontext()
    state: dict[str, torch.Tensor] = {}
    sinks: dict[StoredTensor, Sink] = {}
    for name, stored in located.items():
        _check(stored, wanted[name])
        state[name] = torch.empty(stored.entry.shape, dtype=dtype, device=device)
        sinks[stored] = _copy_to(state[name], stored, lock)
    weights.read(sinks)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _located(
    weights: WeightFiles, wanted: dict[str, tuple[int, ...]], name_of: Callable[[str], str | None]
) -> dict[str, StoredTensor]:
    located: dict[str, StoredTensor] = {}
    left_over = []
    for stored in weights.tensors:
        name = name_of(stored.entry.name)
        if name is None:
            continue
        if name not in wanted:
            left_over.append(stored.entry.name)
        elif name in located:
            raise CheckpointError(
                f"{weights.name}: {located[name].entry.name} in {located[name].path.name} and {stored.entry.name} in "
                f"{stored.path.name} are the same tensor; copy the checkpoint again"
            )
        else:
            located[name] = stored
    if missing := sorted(set(wanted) - set(located)):
        raise CheckpointError(
            f"{weights.name}: the weights lack {listed(missing)}, which config.json requires; copy the checkpoint again"
        )
    if left_over:
        raise CheckpointError(
            f"{weights.name}: the weights hold {listed(sorted(left_over))}, which a model of this config.json does not "
            "have; the weights and config.json belong to different models, copy the checkpoint again"
        )
    return located


def _check(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    entry = stored.entry
    if entry.shape != shape:
        raise CheckpointError(
            f"{_place(stored)}: tensor {entry.name} has shape {list(entry.shape)}, config.json requires "
            f"{list(shape)}; the weights and config.json belong to different models"
        )
    if entry.dtype not in STORED_DTYPES:
        raise CheckpointError(
            f"{_place(stored)}: tensor {entry.name} is {entry.dtype}; expected {', '.join(STORED_DTYPES)}"
        )


def _copy_to(target: torch.Tensor, stored: StoredTensor, lock: "Lock | nullcontext[None]") -> Sink:
    """Returns the consumer that fills `target` with the bytes of a tensor, and refuses values that are not finite."""
    flat, kept, done = target.view(-1), STORED_DTYPES[stored.entry.dtype], 0

    def copy(chunk: memoryview) -> None:
        nonlocal done
        source = torch.frombuffer(chunk, dtype=kept)
        with torch.inference_mode(), lock:  # the thread is not the caller's, whose inference mode does not apply here
            part = flat[done : done + source.numel()]
            part.copy_(source)
            converted = part if part.device.type == "cpu" else source.to(part.dtype)
            if not _all_finite(converted):
                raise _not_finite(stored, source, part.dtype)
        done += source.numel()

    return copy


def _all_finite(values: torch.Tensor) -> bool:
    """Returns whether no value is NaN or infinite. aminmax passes on NaN, and takes a thirtieth of isfinite's time."""
    return all(bool(torch.isfinite(limit)) for limit in torch.aminmax(values))


def _not_finite(stored: StoredTensor, source: torch.Tensor, dtype: torch.dtype) -> CheckpointError:
    where = f"{_place(stored)}: tensor {stored.entry.name}"
    metadata = {"file": stored.path.name, "tensor": stored.entry.name}
    wider = [_name(each) for each in (torch.bfloat16, torch.float32) if _all_finite(source.to(each))]
    if wider:
        return CheckpointError(
            f"{where} has values that {_name(dtype)} cannot hold; start with --dtype {' or '.join(wider)}",
            metadata=metadata,
        )
    return CheckpointError(
        f"{where} holds NaN or infinity; the file is damaged, or the model was trained to failure: copy it again, or "
        "use another checkpoint",
        metadata=metadata,
    )


def _place(stored: StoredTensor) -> str:
    """Returns the folder and the file of a tensor, for messages."""
    return join(stored.path.parent.name, stored.path.name)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
