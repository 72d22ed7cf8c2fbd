"""The hand-over format: prompt embeddings as a safetensors file with their fingerprint in its header.

One format, written by `zrelay encode` and read by `zrelay generate --prompt-embeds`, for machines that never meet.
Tensors are named `prompt_embeds.0`, `prompt_embeds.1`, ... (segments) and `negative_prompt_embeds.0`, ...; the metadata
holds `format`, each PromptEmbeds as protobuf JSON without its bytes, and the prompt where it may be told. Any
safetensors reader opens it. docs/contract.md has the specification.
"""

import json
import math
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared import atomic
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.tensors import ITEM_BYTES, check, dtype_name
from zrelay_shared.wire import Parcel

FORMAT = "zrelay.prompt_embeds.v1"
_MAX_HEADER_BYTES = 1 << 20
_PARTS = {"prompt_embeds": "prompt", "negative_prompt_embeds": "negative_prompt"}
"""Tensor prefix and metadata key -> field of GenerationSpec."""


def write(path: Path, spec: Parcel[GenerationSpec]) -> None:
    """Writes the prompt, the negative prompt and the provenance of `spec` to `path`, whole or not at all.

    Raises OSError as writing does.
    """
    header: dict[str, Any] = {}
    metadata = {"format": FORMAT}
    blobs: list[memoryview] = []
    at = 0
    for key, field in _PARTS.items():
        if not spec.message.HasField(field):
            continue
        embeds = PromptEmbeds()
        embeds.CopyFrom(getattr(spec.message, field).prompt_embeds)
        for index, segment in enumerate(embeds.segments):
            tensor = segment.prompt_embeds
            data = spec.bytes_of(tensor)
            tensor.ClearField("data")
            header[f"{key}.{index}"] = {
                "dtype": dtype_name(tensor.dtype),
                "shape": list(tensor.shape),
                "data_offsets": [at, at + len(data)],
            }
            blobs.append(data)
            at += len(data)
        metadata[key] = json_format.MessageToJson(embeds, indent=None, preserving_proto_field_name=True)
    for name in ("prompt", "negative_prompt"):
        if spec.message.provenance.HasField(name):
            metadata[name] = getattr(spec.message.provenance, name)
    raw = json.dumps({"__metadata__": metadata, **header}, ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with atomic.writing(path) as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for blob in blobs:
            file.write(blob)


def read(path: Path) -> Parcel[GenerationSpec]:
    """The beginning of a GenerationSpec from a file of `write`, checksums verified.

    Raises OSError where it cannot be read, InvalidArgument (EMBEDS_FILE_INVALID) where it is not such a file, and
    PayloadCorrupt where its bytes were damaged.
    """
    size = path.stat().st_size
    if size > MAX_MESSAGE_BYTES:
        raise _refusal(path, f"at most {MAX_MESSAGE_BYTES} bytes", f"{size} bytes")
    raw = path.read_bytes()
    header, body = _split(path, raw)
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or "prompt_embeds" not in metadata:
        raise _refusal(path, f"metadata with format {FORMAT!r}", "a safetensors file without it")
    spec = Parcel(GenerationSpec())
    for key, field in _PARTS.items():
        if key not in metadata:
            continue
        embeds = getattr(spec.message, field).prompt_embeds
        try:
            json_format.Parse(metadata[key], embeds, ignore_unknown_fields=True)
        except (json_format.ParseError, TypeError) as error:
            raise _refusal(path, f"metadata {key!r} as `zrelay encode` writes it", "something else") from error
        if not embeds.segments:
            raise _refusal(path, f"at least one segment in {key!r}", "none")
        for index, segment in enumerate(embeds.segments):
            _attach(path, spec, segment.prompt_embeds, f"{key}.{index}", header, body)
    for name in ("prompt", "negative_prompt"):
        if isinstance(metadata.get(name), str):
            setattr(spec.message.provenance, name, metadata[name])
    return spec


def _attach(
    path: Path, spec: Parcel[GenerationSpec], tensor: Tensor, name: str, header: dict[str, Any], body: memoryview
) -> None:
    entry = header.get(name)
    try:
        dtype, shape, (begin, end) = entry["dtype"], [int(n) for n in entry["shape"]], entry["data_offsets"]  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        raise _refusal(path, f"a tensor {name!r}", "none" if entry is None else "a broken entry") from error
    if dtype != dtype_name(tensor.dtype) or shape != list(tensor.shape):
        wanted = f"{name!r} of {dtype_name(tensor.dtype)} {list(tensor.shape)}, as its metadata says"
        raise _refusal(path, wanted, f"{dtype} {shape}")
    whole = type(begin) is int and type(end) is int and 0 <= begin <= end <= len(body)
    if not whole or end - begin != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _refusal(path, f"the bytes of {name!r} inside the file", f"offsets {begin} to {end} of {len(body)}")
    data = body[begin:end]
    spec.attach(tensor, data)
    check(tensor, data, field=f"{path.name}: {name}", rank=2)


def _split(path: Path, raw: bytes) -> tuple[dict[str, Any], memoryview]:
    length = int.from_bytes(raw[:8], "little")
    if len(raw) < 8 or length > min(_MAX_HEADER_BYTES, len(raw) - 8):
        raise _refusal(path, "a safetensors file", f"{len(raw)} bytes that are not one, or not whole")
    try:
        header = json.loads(raw[8 : 8 + length])
    except ValueError as error:
        raise _refusal(path, "a safetensors file", "a header that is not JSON") from error
    if not isinstance(header, dict):
        raise _refusal(path, "a safetensors file", "a header that is not a JSON object")
    return header, memoryview(raw)[8 + length :]


def _refusal(path: Path, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"{path.name}: expected {expected}, got {got}: write it with `zrelay encode -o {path.stem}.safetensors`",
        field="prompt_embeds",
        reason="EMBEDS_FILE_INVALID",
        metadata={"expected": expected, "got": got},
    )
