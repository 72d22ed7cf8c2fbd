"""Contents of a request by value and by name: taken out to be stored once, put back to be read, and what identifies
the whole."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from zrelay.v1 import content_pb2, embeds_pb2, tensor_pb2, vision_pb2
from zrelay.v1 import generation_pb2 as pb
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.wire import Parcel

_GRIDS = "spec.omni.siglip_contents"
_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_CONTENT_BYTES = MAX_MESSAGE_BYTES
"""Of one content: what could also be sent in a request."""


@dataclass(frozen=True, slots=True)
class Named:
    """A spec with every content by name: `inputs` those that came by value, `refs` (path, digest, stated bytes) those
    that came by name."""

    parcel: Parcel[pb.GenerationSpec]
    inputs: dict[str, bytes]
    refs: tuple[tuple[str, str, int], ...]

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of everything that is asked for, the same for contents by value and by name."""
        plain = pb.GenerationSpec()
        plain.CopyFrom(self.parcel.message)
        for path, message in _messages(plain, "spec"):
            if isinstance(message, tensor_pb2.Tensor):
                message.data = hashlib.sha256(self.parcel.bytes_of(message)).digest()
            elif isinstance(message, content_pb2.ContentRef) and (path.endswith(".content") or path.startswith(_GRIDS)):
                message.size_bytes = 0
        return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


def named(source: Parcel[Any], spec: pb.GenerationSpec) -> Named:
    """`spec`, a part of the parcel's message, with its contents taken out. Raises InvalidArgument for a bad digest."""
    message = pb.GenerationSpec()
    message.CopyFrom(spec)
    inputs: dict[str, bytes] = {}
    refs = []
    for path, holder in list(_holders(message)):
        which = holder.WhichOneof("source")
        if which == "content":
            refs.append((f"{path}.content", parse_digest(holder.content, f"{path}.content"), holder.content.size_bytes))
        elif which is not None:
            raw = Parcel(holder.prompt_embeds, source).to_bytes() if which == "prompt_embeds" else holder.data
            sha256 = hashlib.sha256(raw).hexdigest()
            inputs[sha256] = raw
            holder.content.CopyFrom(content_pb2.ContentRef(sha256=sha256, size_bytes=len(raw)))
    if message.HasField("omni"):
        refs += _named_grids(message.omni, source, inputs)
    return Named(Parcel(message, source), inputs, tuple(refs))


def whole(spec: Parcel[pb.GenerationSpec], read: Callable[[str, int, str], bytes]) -> Parcel[pb.GenerationSpec]:
    """The spec with every content in its place. `read` is given digest, stated bytes (0: none) and the field's path.

    Raises what `read` raises; InvalidArgument where a content is not what the field holds.
    """
    message = pb.GenerationSpec()
    message.CopyFrom(spec.message)
    sources: list[Parcel[Any]] = [spec]
    for path, holder in list(_holders(message)):
        if holder.WhichOneof("source") != "content":
            continue
        raw = read(holder.content.sha256, holder.content.size_bytes, f"{path}.content")
        if isinstance(holder, content_pb2.ImageInput):
            holder.data = raw
        else:
            embeds = Parcel.parse(embeds_pb2.PromptEmbeds, raw)
            sources.append(embeds)
            holder.prompt_embeds.CopyFrom(embeds.message)
    if message.HasField("omni"):
        for at, content in enumerate(message.omni.siglip_contents):
            grid = Parcel.parse(vision_pb2.SiglipEmbeds, read(content.sha256, content.size_bytes, f"{_GRIDS}[{at}]"))
            sources.append(grid)
            message.omni.siglip_embeds.add().CopyFrom(grid.message)
        message.omni.ClearField("siglip_contents")
    return Parcel(message, *sources)


def _named_grids(omni: pb.OmniReferences, source: Parcel[Any], inputs: dict[str, bytes]) -> list[tuple[str, str, int]]:
    """Takes the grids of references out into `inputs`, or, where they come by name, gives their refs."""
    if omni.siglip_contents and omni.siglip_embeds:
        raise InvalidArgument(
            f"{_GRIDS}: expected none beside siglip_embeds, got {len(omni.siglip_contents)}: send all by value, or all "
            "by name",
            field=_GRIDS,
            reason="SIGLIP_COUNT_INVALID",
        )
    refs = [
        (f"{_GRIDS}[{at}]", parse_digest(content, f"{_GRIDS}[{at}]"), content.size_bytes)
        for at, content in enumerate(omni.siglip_contents)
    ]
    for embeds in omni.siglip_embeds:
        raw = Parcel(embeds, source).to_bytes()
        sha256 = hashlib.sha256(raw).hexdigest()
        inputs[sha256] = raw
        omni.siglip_contents.add(sha256=sha256, size_bytes=len(raw))
    omni.ClearField("siglip_embeds")
    return refs


def parse_digest(content: content_pb2.ContentRef, field: str) -> str:
    """The digest of a ContentRef. Raises InvalidArgument."""
    if not _SHA256.fullmatch(content.sha256):
        raise InvalidArgument(
            f"{field}.sha256: expected 64 lower-case hex digits, got {content.sha256[:80]!r}",
            field=f"{field}.sha256",
            reason="CONTENT_INVALID",
        )
    if content.size_bytes > MAX_CONTENT_BYTES:
        raise InvalidArgument(
            f"{field}.size_bytes: expected at most {MAX_CONTENT_BYTES}, got {content.size_bytes}",
            field=f"{field}.size_bytes",
            reason="CONTENT_SIZE",
        )
    return content.sha256


def _holders(spec: pb.GenerationSpec) -> Iterator[tuple[str, Any]]:
    """Every EmbedsInput and ImageInput, with its path."""
    return (
        (path, message)
        for path, message in _messages(spec, "spec")
        if isinstance(message, pb.EmbedsInput | content_pb2.ImageInput)
    )


def _messages(message: Message, path: str) -> Iterator[tuple[str, Message]]:
    """Every message within a message, with its path; maps hold none in this contract."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        single = isinstance(value, Message)
        for place, inner in enumerate([value] if single else value):
            where = f"{path}.{field.name}" if single else f"{path}.{field.name}[{place}]"
            yield where, inner
            yield from _messages(inner, where)
