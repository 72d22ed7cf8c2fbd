"""Conversion between torch tensors and messages. The client never imports this module."""

import warnings
from collections.abc import Collection
from typing import Any

import torch

from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared.errors import invalid
from zrelay_shared.limits import MAX_TENSOR_RANK
from zrelay_shared.tensors import FLOATS, TensorView, check, header
from zrelay_shared.wire import Parcel

DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "U8": torch.uint8,
    "I64": torch.int64,
}
FLOAT_DTYPES = {name: DTYPES[name] for name in FLOATS}
"""The dtypes of weights and embeddings."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_wire(parcel: Parcel[Any], into: Tensor, tensor: torch.Tensor) -> None:
    """Writes a tensor into a message.

    Args:
        parcel: The parcel whose message contains `into`.
        into: The message to fill.
        tensor: A tensor on any device. A contiguous CPU tensor is not copied and must not change until the parcel is
            sent.

    Raises:
        ValueError: The contract has no such dtype or shape.
    """
    if tensor.dtype not in NAMES:
        raise ValueError(f"dtype: expected one of {', '.join(map(str, NAMES))}, got {tensor.dtype}")
    if not 1 <= tensor.dim() <= MAX_TENSOR_RANK or not tensor.numel():
        raise ValueError(f"shape: expected 1 to {MAX_TENSOR_RANK} dimensions of at least 1, got {list(tensor.shape)}")
    flat = tensor.detach().to("cpu").reshape(-1).contiguous()
    data = flat.view(torch.uint8).numpy().data
    into.CopyFrom(header(NAMES[tensor.dtype], tuple(tensor.shape), data))
    parcel.attach(into, data)


def from_wire(
    parcel: Parcel[Any],
    tensor: Tensor,
    *,
    field: str,
    rank: int | None = None,
    dtypes: Collection[str] = FLOATS,
) -> torch.Tensor:
    """Checks a received tensor and returns it as a CPU tensor that shares the received bytes. It must not be changed.

    Args:
        parcel: The parcel whose message contains `tensor`.
        tensor: The message.
        field: Its path in the request, for error messages.
        rank: The number of dimensions, None for any.
        dtypes: The dtypes that are allowed, by safetensors' names.

    Raises:
        InvalidArgument: As `tensors.check`; TENSOR_NOT_FINITE, a value is NaN or infinite.
        PayloadCorrupt: As `tensors.check`.
    """
    view = check(tensor, parcel.bytes_of(tensor), field=field, rank=rank, dtypes=dtypes)
    out = as_torch(view)
    if view.dtype in FLOATS and not all_finite(out):
        raise invalid(
            field, "finite values", "NaN or infinity", reason="TENSOR_NOT_FINITE", remedy="encode the prompt again"
        )
    return out


def as_torch(view: TensorView) -> torch.Tensor:
    """Returns a CPU tensor that shares the bytes of a view."""
    with warnings.catch_warnings():  # the buffer is read-only, and we only read
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(view.data, dtype=DTYPES[view.dtype]).view(view.shape)


def all_finite(tensor: torch.Tensor) -> bool:
    """Returns whether no value is NaN or infinite.

    It tests the bits: an exponent of all ones means NaN or infinity (IEEE 754). On bf16 this takes a twentieth of the
    time of torch.isfinite and needs no float copy.
    """
    if tensor.dtype == torch.float32:
        bits, exponent = tensor.view(torch.int32), 0x7F800000
    else:
        bits, exponent = tensor.view(torch.int16), 0x7F80 if tensor.dtype == torch.bfloat16 else 0x7C00
    magnitude = torch.iinfo(bits.dtype).max  # all but the sign bit
    return int((bits & magnitude).amax()) < exponent


def overflow_remedy(service: str, computed: str, requested: str) -> str:
    """Returns what to do about results that are not finite.

    Args:
        service: The service that computed them.
        computed: Name of its compute dtype, for example `float16`.
        requested: Name of the dtype of the results.
    """
    remedies = []
    if requested == "float16":
        remedies.append("request bfloat16")
    if computed == "float16":
        remedies.append(f"start the {service} with --dtype bfloat16 or float32")
    return " and ".join(remedies) or (
        "no other dtype helps: the weights or config.json are not those of a trained model, copy the checkpoint again"
    )
