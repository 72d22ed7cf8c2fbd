"""Writes safetensors files of any dtype."""

import json
from collections.abc import Mapping
from pathlib import Path

from zrelay_shared import safetensors_header

_BITS = safetensors_header._DTYPE_BITS


def write_weights(path: Path, dtypes: Mapping[str, str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a file of tensors [4] of zeros, by their names and dtypes."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, dtype in dtypes.items():
        size = 4 * _BITS[dtype] // 8
        header[name] = {"dtype": dtype, "shape": [4], "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(at))
