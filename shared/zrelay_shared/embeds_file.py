"""The hand-over format: prompt embeddings as a safetensors file with their fingerprint in its header.

One format, written by `zrelay encode` and read by `zrelay generate --prompt-embeds`, for machines that never meet.
Tensors are named `prompt_embeds.0`, `prompt_embeds.1`, ... (segments) and `negative_prompt_embeds.0`, ...; the metadata
holds `format`, each PromptEmbeds as protobuf JSON without its bytes, and the prompt where it may be told. Any
safetensors reader opens it. docs/contract.md has the specification.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay_shared import atomic
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.safetensors_header import SafetensorsError, read_header
from zrelay_shared.tensors import check, dtype_name
from zrelay_shared.wire import Parcel

FORMAT = "zrelay.prompt_embeds.v1"
_PARTS = {"prompt_embeds": "prompt", "negative_prompt_embeds": "negative_prompt"}
"""Tensor prefix and metadata key -> field of GenerationSpec."""


def write(path: Path, spec: Parcel[GenerationSpec]) -> None:
    """Writes the prompt, the negative prompt and the provenance of `spec` to `path`, whole or not at all.

    Raises OSError as writing does, ValueError where the embeddings are not in `spec` by value.
    """
    header: dict[str, Any] = {}
    metadata = {"format": FORMAT}
    blobs: list[memoryview] = []
    at = 0
    for key, field in _PARTS.items():
        if not spec.message.HasField(field):
            continue
        source = getattr(spec.message, field)
        if not source.prompt_embeds.segments:
            raise ValueError(f"{field}: expected prompt_embeds by value, got {source.WhichOneof('source')}")
        embeds = PromptEmbeds()
        embeds.CopyFrom(source.prompt_embeds)
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

    Raises OSError where it cannot be read, InvalidArgument (EMBEDS_FILE_INVALID, or as `tensors.check`) where it is not
    such a file, and PayloadCorrupt where its bytes were damaged.
    """
    size = path.stat().st_size
    if size > MAX_MESSAGE_BYTES:
        raise _refusal(path, f"at most {MAX_MESSAGE_BYTES} bytes", f"{size} bytes")
    try:
        entries = {entry.name: entry for entry in read_header(path)}
    except SafetensorsError as error:
        raise _refusal(path, "a safetensors file", f"one that {error}") from error
    raw = path.read_bytes()
    metadata = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT or "prompt_embeds" not in metadata:
        raise _refusal(path, f"metadata with format {FORMAT!r}", "a safetensors file without it")
    spec = Parcel(GenerationSpec())
    for key, field in _PARTS.items():
        if key not in metadata:
            continue
        embeds = getattr(spec.message, field).prompt_embeds
        _parse(path, metadata, key, embeds)
        if not embeds.segments:
            raise _refusal(path, f"at least one segment in {key!r}", "none")
        for index, segment in enumerate(embeds.segments):
            tensor, name = segment.prompt_embeds, f"{key}.{index}"
            if (entry := entries.get(name)) is None:
                raise _refusal(path, f"a tensor {name!r}", "none")
            if (entry.dtype, entry.shape) != (dtype_name(tensor.dtype), tuple(tensor.shape)):
                wanted = f"{name!r} of {dtype_name(tensor.dtype)} {list(tensor.shape)}, as its metadata says"
                raise _refusal(path, wanted, f"{entry.dtype} {list(entry.shape)}")
            data = memoryview(raw)[entry.begin : entry.end]
            check(tensor, data, field=f"{path.name}: {name}", rank=2)
            spec.attach(tensor, data)
    for name in ("prompt", "negative_prompt"):
        if isinstance(told := metadata.get(name), str):
            setattr(spec.message.provenance, name, told.encode("utf-8", "replace").decode())
    return spec


def _parse(path: Path, metadata: Mapping[str, object], key: str, embeds: PromptEmbeds) -> None:
    said = metadata[key]
    try:
        if not isinstance(said, str):
            raise TypeError(type(said).__name__)
        json_format.Parse(said, embeds, ignore_unknown_fields=True)
    except (json_format.ParseError, TypeError, ValueError, RecursionError) as error:
        raise _refusal(path, f"metadata {key!r} as `zrelay encode` writes it", "something else") from error


def _refusal(path: Path, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(
        f"{path.name}: expected {expected}, got {got}: write it with `zrelay encode -o {path.stem}.safetensors`",
        field="prompt_embeds",
        reason="EMBEDS_FILE_INVALID",
        metadata={"expected": expected, "got": got},
    )
