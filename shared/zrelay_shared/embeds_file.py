"""Prompt embeddings as a safetensors file, with the encoder's fingerprint in its header.

`zrelay encode` writes it and `zrelay generate --prompt-embeds` reads it, for machines without a connection.
Tensors are named `prompt_embeds.0`, `prompt_embeds.1`, ... (segments) and `negative_prompt_embeds.0`, ...; the metadata
holds `format`, each PromptEmbeds as protobuf JSON without its bytes, and the prompt unless it is private. Any
safetensors reader can open it. docs/reference/files.md has the specification.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import json_format

from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay_shared import safetensors_file
from zrelay_shared.errors import InvalidArgument, invalid
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.safetensors_file import FileTensor
from zrelay_shared.safetensors_header import SafetensorsError
from zrelay_shared.tensors import check, dtype_name
from zrelay_shared.wire import Parcel

FORMAT = "zrelay.prompt_embeds.v1"
_PARTS = {"prompt_embeds": "prompt", "negative_prompt_embeds": "negative_prompt"}
"""Tensor prefix and metadata key -> field of GenerationSpec."""


def write(path: Path, spec: Parcel[GenerationSpec]) -> None:
    """Writes prompt, negative prompt and provenance of `spec` to a file, atomically.

    Raises:
        OSError: The file cannot be written.
        ValueError: `spec` holds the embeddings by reference.
    """
    tensors: list[tuple[str, FileTensor]] = []
    metadata = {"format": FORMAT}
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
            tensors.append((f"{key}.{index}", FileTensor(dtype_name(tensor.dtype), tuple(tensor.shape), data)))
        metadata[key] = json_format.MessageToJson(embeds, indent=None, preserving_proto_field_name=True)
    for name in ("prompt", "negative_prompt"):
        if spec.message.provenance.HasField(name):
            metadata[name] = getattr(spec.message.provenance, name)
    safetensors_file.write(path, tensors, metadata)


def read(path: Path) -> Parcel[GenerationSpec]:
    """Reads a file of `write` into a new GenerationSpec, and verifies the checksums.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: EMBEDS_FILE_INVALID, or as `tensors.check`: it is not such a file.
        PayloadCorrupt: Its bytes are damaged.
    """
    try:
        content = safetensors_file.read(path, max_bytes=MAX_MESSAGE_BYTES)
    except SafetensorsError as error:
        raise _refusal(path, f"a safetensors file of at most {MAX_MESSAGE_BYTES} bytes", f"one that {error}") from error
    metadata = content.metadata
    if metadata.get("format") != FORMAT or "prompt_embeds" not in metadata:
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
            if (entry := content.tensors.get(name)) is None:
                raise _refusal(path, f"a tensor {name!r}", "none")
            if (entry.dtype, entry.shape) != (dtype_name(tensor.dtype), tuple(tensor.shape)):
                wanted = f"{name!r} of {dtype_name(tensor.dtype)} {list(tensor.shape)}, as its metadata says"
                raise _refusal(path, wanted, f"{entry.dtype} {list(entry.shape)}")
            check(tensor, entry.data, field=f"{path.name}: {name}", rank=2)
            spec.attach(tensor, entry.data)
    for name in ("prompt", "negative_prompt"):
        if (text := metadata.get(name)) is not None:
            setattr(spec.message.provenance, name, text)
    return spec


def _parse(path: Path, metadata: Mapping[str, str], key: str, embeds: PromptEmbeds) -> None:
    try:
        safetensors_file.parse_message(metadata[key], embeds)
    except ValueError as error:
        raise _refusal(path, f"metadata {key!r} as `zrelay encode` writes it", "something else") from error


def _refusal(path: Path, expected: str, got: str) -> InvalidArgument:
    return invalid(
        "prompt_embeds",
        expected,
        got,
        reason="EMBEDS_FILE_INVALID",
        remedy=f"write it with `zrelay encode -o {shlex.quote(path.stem + '.safetensors')}`",
        subject=path.name,
    )
