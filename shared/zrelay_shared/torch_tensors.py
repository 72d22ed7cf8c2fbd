"""Tensors between torch and the wire. The only shared module that loads torch; the client never does."""

import warnings
from collections.abc import Collection
from typing import Any

import torch

from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared.errors import InvalidArgument
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
"""Those of weights and embeddings."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def to_wire(parcel: Parcel[Any], into: Tensor, tensor: torch.Tensor) -> None:
    """Writes a tensor of any device into `into`, a Tensor of `parcel`'s message.

    A contiguous CPU tensor is not copied: leave it as it is until the parcel is sent. Raises ValueError for a dtype or
    shape that does not travel.
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
    """A checked CPU tensor over the received bytes, without a copy: read it, do not write to it.

    Raises as `tensors.check`, and InvalidArgument (TENSOR_NOT_FINITE) where a float is NaN or infinite.
    """
    view = check(tensor, parcel.bytes_of(tensor), field=field, rank=rank, dtypes=dtypes)
    out = as_torch(view)
    if view.dtype in FLOATS and not all_finite(out):
        raise InvalidArgument(
            f"{field}: expected finite values, got NaN or infinity: encode the prompt again",
            field=field,
            reason="TENSOR_NOT_FINITE",
        )
    return out


def as_torch(view: TensorView) -> torch.Tensor:
    """A CPU tensor over the view's bytes."""
    with warnings.catch_warnings():  # the buffer is read-only, and so do we treat it
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(view.data, dtype=DTYPES[view.dtype]).view(view.shape)


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite, by the bits: an exponent of all ones means one of them (IEEE 754).

    Looking at the raw integers costs a twentieth of torch.isfinite on bf16 and makes no float copy.
    """
    if tensor.dtype == torch.float32:
        bits, exponent = tensor.view(torch.int32), 0x7F800000
    else:
        bits, exponent = tensor.view(torch.int16), 0x7F80 if tensor.dtype == torch.bfloat16 else 0x7C00
    magnitude = torch.iinfo(bits.dtype).max  # all but the sign bit
    return int((bits & magnitude).amax()) < exponent
