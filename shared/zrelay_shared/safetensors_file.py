"""Writes and reads small safetensors files with metadata, for embeddings, image states and reference statistics.

The library is not used, for three reasons. Its functions for raw bytes take pointers since 0.8 and dicts before, so
that they would tie zrelay to one version; `deserialize` returns no metadata and copies every tensor; and its errors do
not say which tensor is wrong or whether the file is truncated. Checkpoints are read tensor by tensor instead
(`safetensors_header.read_header`).
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from zrelay_shared import atomic, strict_json
from zrelay_shared.limits import MAX_MESSAGE_FIELDS
from zrelay_shared.safetensors_header import SafetensorsError, parse_header

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class FileTensor:
    """One tensor: dtype by safetensors' name, shape, and little-endian row-major bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """The metadata of a file, and its tensors by name in the order of their bytes."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, FileTensor]


def write(path: Path, tensors: Iterable[tuple[str, FileTensor]], metadata: Mapping[str, str]) -> None:
    """Writes a file, atomically. Raises OSError."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    blobs: list[memoryview] = []
    at = 0
    for name, entry in tensors:
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.data.nbytes],
        }
        blobs.append(entry.data)
        at += entry.data.nbytes
    raw = json.dumps(header, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with atomic.writing(path) as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for blob in blobs:
            file.write(blob)


def read(path: Path, *, max_bytes: int) -> SafetensorsFile:
    """Reads a file of at most `max_bytes` and checks its header. Raises OSError and SafetensorsError."""
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise SafetensorsError(f"has more than the {max_bytes} bytes that are allowed")
    header = parse_header(io.BytesIO(raw), len(raw))
    view = memoryview(raw)
    return SafetensorsFile(
        header.metadata,
        {entry.name: FileTensor(entry.dtype, entry.shape, view[entry.begin : entry.end]) for entry in header.entries},
    )


def parse_message(text: str, message: M) -> M:
    """Fills a message from protobuf JSON in a file's metadata, and returns it. Unknown fields are ignored.

    Raises:
        ValueError: The text is not such a message, or has more than MAX_MESSAGE_FIELDS values.
    """
    content = strict_json.parse(text, max_values=MAX_MESSAGE_FIELDS)
    try:
        return json_format.ParseDict(content, message, ignore_unknown_fields=True)
    except (json_format.ParseError, AttributeError, TypeError) as error:
        raise ValueError(f"expected {message.DESCRIPTOR.name} as protobuf JSON, got something else") from error
