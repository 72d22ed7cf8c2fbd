"""Validation of received tensors: header, size and checksum, before anything is allocated. Needs no torch or numpy.

The contract fixes the order of the checks: dtype, rank, dimensions and their product, byte count, size limit, checksum.
Finiteness needs arithmetic and is checked where torch tensors are made (`zrelay_shared.torch_tensors`).
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

from crc32c import crc32c as _crc32c

from zrelay.v1.tensor_pb2 import Tensor, TensorDtype
from zrelay_shared.errors import InvalidArgument, PayloadCorrupt, invalid
from zrelay_shared.limits import MAX_TENSOR_BYTES, MAX_TENSOR_RANK
from zrelay_shared.message_scan import Buffer

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1, "I64": 8}
"""Known dtypes, by safetensors' names, and the bytes of one element."""

FLOATS = ("BF16", "F16", "F32")

_PREFIX = "TENSOR_DTYPE_"


@dataclass(frozen=True, slots=True)
class TensorView:
    """A checked tensor: dtype by safetensors' name, shape, and its little-endian row-major bytes, not copied."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def dtype_name(value: int) -> str:
    """Returns safetensors' name of a dtype of the contract, "" if it is unspecified or unknown."""
    known = value in TensorDtype.values()
    name = TensorDtype.Name(value).removeprefix(_PREFIX) if known else ""
    return name if name in ITEM_BYTES else ""


def dtype_value(name: str) -> TensorDtype:
    """Returns the contract's dtype for safetensors' name. Raises ValueError if the contract does not have it."""
    if name not in ITEM_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(ITEM_BYTES)}, got {name!r}")
    return cast(TensorDtype, TensorDtype.Value(_PREFIX + name))


def crc32c(data: Buffer) -> int:
    """Returns the CRC-32C (Castagnoli) of some bytes."""
    return int(_crc32c(data))


def header(dtype: str, shape: Sequence[int], data: Buffer) -> Tensor:
    """Returns the message of a tensor with its checksum, without its bytes (`Parcel.attach` adds them)."""
    return Tensor(dtype=dtype_value(dtype), shape=shape, crc32c=crc32c(data))


def check(
    tensor: Tensor,
    data: memoryview,
    *,
    field: str,
    rank: int | None = None,
    dtypes: Collection[str] = FLOATS,
    max_bytes: int = MAX_TENSOR_BYTES,
) -> TensorView:
    """Checks a received tensor.

    Args:
        tensor: Its message.
        data: Its bytes.
        field: Its path in the request, for error messages.
        rank: The number of dimensions, None for any.
        dtypes: The dtypes that are allowed, by safetensors' names.
        max_bytes: The size that is allowed.

    Raises:
        InvalidArgument: TENSOR_DTYPE, TENSOR_RANK, TENSOR_SHAPE, TENSOR_SIZE or TENSOR_CHECKSUM_MISSING.
        PayloadCorrupt: CHECKSUM_MISMATCH.
    """

    def refuse(reason: str, expected: str, got: object) -> InvalidArgument:
        return invalid(field, expected, got, reason=reason)

    name = dtype_name(tensor.dtype)
    if name not in dtypes:
        raise refuse("TENSOR_DTYPE", f"dtype {' or '.join(dtypes)}", name or f"unknown dtype {tensor.dtype}")
    dimensions = len(tensor.shape)
    if not 1 <= dimensions <= MAX_TENSOR_RANK or (rank is not None and dimensions != rank):
        wanted = f"{rank} dimensions" if rank is not None else f"1 to {MAX_TENSOR_RANK} dimensions"
        raise refuse("TENSOR_RANK", wanted, f"{dimensions} dimensions")
    shape = tuple(tensor.shape)
    if min(shape) < 1:
        raise refuse("TENSOR_SHAPE", "every dimension at least 1", f"shape {list(shape)}")
    size = math.prod(shape) * ITEM_BYTES[name]
    if len(data) != size:
        raise refuse("TENSOR_SIZE", f"{size} bytes for shape {list(shape)} of {name}", f"{len(data)} bytes")
    if size > max_bytes:
        raise refuse("TENSOR_SIZE", f"at most {max_bytes} bytes", f"shape {list(shape)} of {name}, {size} bytes")
    if not tensor.HasField("crc32c"):
        raise refuse("TENSOR_CHECKSUM_MISSING", "a crc32c of the bytes", "none")
    if (actual := crc32c(data)) != tensor.crc32c:
        raise PayloadCorrupt(
            f"{field}: the checksum says 0x{tensor.crc32c:08x}, the {size} bytes that arrived have 0x{actual:08x}: "
            "they were damaged in transit; send them again",
            field=field,
            metadata={"expected": f"0x{tensor.crc32c:08x}", "got": f"0x{actual:08x}"},
        )
    return TensorView(name, shape, data)
