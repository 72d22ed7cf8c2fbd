"""Reads and checks the header of a safetensors file without loading it: names, dtypes, shapes and byte ranges.

The library checks the same rules, but its errors do not name the tensor, a truncated file or a Git LFS pointer, and it
accepts a tensor that is named twice. Checkpoint files must be refused with the reason.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from zrelay_shared import strict_json
from zrelay_shared.strict_json import shown

MAX_HEADER_BYTES = 100_000_000
"""The limit of the format. The header is JSON and is parsed in memory."""

MAX_RANK = 64
"""Dimensions of a tensor; torch has the same limit."""

MAX_NAME_CHARS = 1024
"""Characters of a tensor's name. The longest of the published checkpoints has 77."""

_MAX_COUNT = (1 << 63) - 1
"""The largest size of a dimension and the largest offset: those of a file and of torch."""

_DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


class SafetensorsError(ValueError):
    """A file is not a complete, well-formed safetensors file; the message says what is wrong."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: `dtype` is safetensors' name, `begin` and `end` are offsets in the file in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a file: its entries in the order of their bytes, and the texts of its metadata."""

    entries: tuple[TensorEntry, ...]
    metadata: Mapping[str, str]


def read_header(path: Path) -> tuple[TensorEntry, ...]:
    """Returns the entries of a file in the order of their bytes. Raises as `read_whole_header`."""
    return read_whole_header(path).entries


def read_whole_header(path: Path) -> SafetensorsHeader:
    """Returns the header of a file.

    Raises:
        OSError: The file cannot be read.
        SafetensorsError: The header is malformed, a byte range does not have the size of its dtype and shape, or the
            ranges have gaps, overlap or do not end at the end of the file (the rules of the format).
    """
    with path.open("rb") as file:
        return parse_header(file, os.fstat(file.fileno()).st_size)


def parse_header(file: BinaryIO, file_bytes: int) -> SafetensorsHeader:
    """Returns the header of an open file of `file_bytes` bytes. Raises as `read_whole_header`."""
    start = file.read(8)
    if start == b"version ":
        raise SafetensorsError("is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
    if len(start) < 8:
        raise SafetensorsError(f"has {file_bytes} bytes, too few for a safetensors file")
    header_bytes = int.from_bytes(start, "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise SafetensorsError(
            f"is not a safetensors file: a header of {header_bytes} bytes, at most {MAX_HEADER_BYTES} are allowed"
        )
    if 8 + header_bytes > file_bytes:
        raise SafetensorsError(f"is truncated: the header takes {header_bytes} bytes, the file has {file_bytes}")
    header = _parse(file.read(header_bytes))
    metadata = _metadata(header.pop("__metadata__", {}))
    entries = tuple(
        sorted(
            (_entry(name, value, 8 + header_bytes) for name, value in header.items()),
            key=lambda entry: (entry.begin, entry.end),
        )
    )
    _check_ranges(entries, 8 + header_bytes, file_bytes)
    return SafetensorsHeader(entries, metadata)


def _parse(raw: bytes) -> dict[str, object]:
    try:
        header = strict_json.parse(raw)
    except strict_json.JsonError as error:
        raise SafetensorsError(f"is not a safetensors file: its header {error}") from error
    if not isinstance(header, dict):
        raise SafetensorsError("is not a safetensors file: its header is not a JSON object")
    return header


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise SafetensorsError("has a __metadata__ that is not an object of strings")
    return value


def _entry(name: str, value: object, data_start: int) -> TensorEntry:
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise SafetensorsError(
            f"has a tensor name of {len(name):,} characters, {shown(name)}; expected at most {MAX_NAME_CHARS:,} "
            "printable ones"
        )
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise SafetensorsError(f"has a header entry for tensor {shown(name)} that is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise SafetensorsError(f"has tensor {shown(name)} of unknown dtype {shown(dtype)}")
    if not _counts(shape, MAX_RANK) or not _counts(offsets, 2) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise SafetensorsError(
            f"has tensor {shown(name)} with bad shape {shown(shape)} or data_offsets {shown(offsets)}"
        )
    wanted = -(-math.prod(shape) * _DTYPE_BITS[dtype] // 8)
    if offsets[1] - offsets[0] != wanted:
        needs = f"{wanted} bytes" if wanted <= _MAX_COUNT else "more bytes than a file can have"
        raise SafetensorsError(
            f"has tensor {shown(name)} with {offsets[1] - offsets[0]} bytes; {dtype} {shown(shape)} needs {needs}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _counts(value: object, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= _MAX_COUNT for n in value)
    )


def _check_ranges(entries: tuple[TensorEntry, ...], data_start: int, file_bytes: int) -> None:
    at = data_start
    for entry in entries:
        if entry.begin != at:
            raise SafetensorsError(f"has tensor {shown(entry.name)} whose bytes start at {entry.begin}, expected {at}")
        at = entry.end
    if at > file_bytes:
        raise SafetensorsError(f"is truncated: the header says {at} bytes, the file has {file_bytes}")
    if at < file_bytes:
        raise SafetensorsError(f"has {file_bytes - at} bytes too many: the header says {at}, the file has {file_bytes}")
