"""Embeddings of images as a safetensors file, for later use or for machines without a connection.

`zrelay vision encode` writes it. Tensors are named `hidden_states.0` (Qwen3-VL) or `grid.0` (SigLIP), ... in the order
of the images; the metadata holds `format` and `images`, an EncodeImagesResponse as protobuf JSON without its bytes,
fingerprints and checksums included. docs/reference/files.md has the specification.
"""

import shlex
from pathlib import Path

from google.protobuf import json_format

from zrelay.v1.tensor_pb2 import Tensor
from zrelay.v1.vision_pb2 import EncodedImage, EncodeImagesResponse
from zrelay_shared import safetensors_file, vision_fingerprint
from zrelay_shared.errors import InvalidArgument, invalid
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.safetensors_file import FileTensor
from zrelay_shared.safetensors_header import SafetensorsError
from zrelay_shared.tensors import check, dtype_name
from zrelay_shared.wire import Parcel

FORMAT = "zrelay.vision_embeds.v1"
_RANK = {"grid": 3, "hidden_states": 2}


def write(path: Path, images: Parcel[EncodeImagesResponse]) -> None:
    """Writes the embedding of every image to a file, atomically. Raises OSError."""
    message = EncodeImagesResponse()
    message.CopyFrom(images.message)
    tensors: list[tuple[str, FileTensor]] = []
    for index, image in enumerate(message.results):
        name, tensor = tensor_of(image)
        data = images.bytes_of(tensor)
        tensor.ClearField("data")
        tensors.append((f"{name}.{index}", FileTensor(dtype_name(tensor.dtype), tuple(tensor.shape), data)))
    text = json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)
    safetensors_file.write(path, tensors, {"format": FORMAT, "images": text})


def read(path: Path) -> Parcel[EncodeImagesResponse]:
    """Reads a file that `write` wrote, and verifies checksums and fingerprints.

    Raises:
        OSError: The file cannot be read.
        InvalidArgument: VISION_FILE_INVALID, FINGERPRINT_INVALID, or as `tensors.check`: it is not such a file.
        PayloadCorrupt: Its bytes are damaged.
    """
    try:
        content = safetensors_file.read(path, max_bytes=MAX_MESSAGE_BYTES)
    except SafetensorsError as error:
        raise _refusal(path, f"a safetensors file of at most {MAX_MESSAGE_BYTES} bytes", f"one that {error}") from error
    if content.metadata.get("format") != FORMAT or "images" not in content.metadata:
        raise _refusal(path, f"metadata with format {FORMAT!r}", "a safetensors file without it")
    images = Parcel(EncodeImagesResponse())
    try:
        safetensors_file.parse_message(content.metadata["images"], images.message)
    except ValueError as error:
        raise _refusal(path, "metadata 'images' as `zrelay vision encode` writes it", "something else") from error
    if not images.message.results:
        raise _refusal(path, "at least one image", "none")
    for index, image in enumerate(images.message.results):
        if image.WhichOneof("result") is None:
            raise _refusal(path, f"an embedding of image {index}", "none")
        kind, tensor = tensor_of(image)
        name = f"{kind}.{index}"
        if (entry := content.tensors.get(name)) is None:
            raise _refusal(path, f"a tensor {name!r}", "none")
        if (entry.dtype, entry.shape) != (dtype_name(tensor.dtype), tuple(tensor.shape)):
            wanted = f"{name!r} of {dtype_name(tensor.dtype)} {list(tensor.shape)}, as its metadata says"
            raise _refusal(path, wanted, f"{entry.dtype} {list(entry.shape)}")
        field = f"{path.name}: {name}"
        check(tensor, entry.data, field=field, rank=_RANK[kind])
        images.attach(tensor, entry.data)
        made_by = image.states.fingerprint if kind == "hidden_states" else image.siglip_embeds.fingerprint
        vision_fingerprint.from_message(made_by, path=field)
    return images


def tensor_of(image: EncodedImage) -> tuple[str, Tensor]:
    """Returns the name and the message of an encoded image's tensor."""
    if image.WhichOneof("result") == "states":
        return "hidden_states", image.states.hidden_states
    return "grid", image.siglip_embeds.grid


def _refusal(path: Path, expected: str, got: str) -> InvalidArgument:
    return invalid(
        "images",
        expected,
        got,
        reason="VISION_FILE_INVALID",
        remedy=f"write it with `zrelay vision encode -o {shlex.quote(path.name)}`",
        subject=path.name,
    )
