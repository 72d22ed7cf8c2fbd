"""Contents of requests. A spec gives a content by value or by name (a ContentRef); uploads store it in advance."""

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from zrelay.v1 import content_pb2, embeds_pb2, generator_pb2, tensor_pb2
from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.store.blobs import IncomingContent
from zrelay_generator.store.protocol import JobStore
from zrelay_shared.callers import Caller
from zrelay_shared.errors import DeadlineExceeded, InvalidArgument, PayloadCorrupt, QuotaExceeded, invalid
from zrelay_shared.limits import MAX_MESSAGE_BYTES
from zrelay_shared.shares import Shares
from zrelay_shared.wire import Parcel

MAX_CONTENT_BYTES = MAX_MESSAGE_BYTES
"""Limit of one content: what also fits into a request."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMES, _VALUES = "_contents", "_embeds"
"""Endings of the two fields of a list of contents: in the contract `x_contents` names the messages of `x_embeds`."""
_UPLOAD_FIELD = "content"
_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class NamedSpec:
    """A spec in which every content is given by name.

    Attributes:
        parcel: The spec.
        inputs: Contents that were sent by value, by their digest.
        refs: Path, digest and stated size in bytes (0: none) of the contents that were sent by name.
    """

    parcel: Parcel[pb.GenerationSpec]
    inputs: dict[str, bytes]
    refs: tuple[tuple[str, str, int], ...]

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of everything that is requested; equal whether contents were sent by value or by name."""
        plain = pb.GenerationSpec()
        plain.CopyFrom(self.parcel.message)
        for _, message in _messages(plain, "spec"):
            if isinstance(message, tensor_pb2.Tensor):
                message.data = hashlib.sha256(self.parcel.bytes_of(message)).digest()
            elif isinstance(message, content_pb2.ContentRef):
                message.size_bytes = 0
        return hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()


def named(source: Parcel[Any], spec: pb.GenerationSpec) -> NamedSpec:
    """Replaces every content of a spec by its name.

    Args:
        source: The message that contains `spec`, with its tensor bytes.
        spec: The spec. It is not changed.

    Raises:
        InvalidArgument: A digest is invalid (CONTENT_INVALID, CONTENT_SIZE), or a list gives contents both by value and
            by name.
    """
    message = pb.GenerationSpec()
    message.CopyFrom(spec)
    inputs: dict[str, bytes] = {}
    refs = []

    def stored(raw: bytes) -> content_pb2.ContentRef:
        sha256 = hashlib.sha256(raw).hexdigest()
        inputs[sha256] = raw
        return content_pb2.ContentRef(sha256=sha256, size_bytes=len(raw))

    for path, holder in list(_holders(message)):
        which = holder.WhichOneof("source")
        if which == "content":
            refs.append(_ref(holder.content, f"{path}.content"))
        elif which is not None:
            raw = Parcel(holder.prompt_embeds, source).to_bytes() if which == "prompt_embeds" else holder.data
            holder.content.CopyFrom(stored(raw))
    for each in list(_lists(message)):
        names, values = each.names, each.values
        if names and values:
            raise invalid(
                each.path,
                f"none beside {each.stem}{_VALUES}",
                len(names),
                reason=f"{each.stem.upper()}_COUNT_INVALID",
                remedy="send all by value, or all by name",
            )
        refs += [_ref(content, f"{each.path}[{index}]") for index, content in enumerate(names)]
        names.extend(stored(Parcel(value, source).to_bytes()) for value in values)
        del values[:]
    return NamedSpec(Parcel(message, source), inputs, tuple(refs))


def whole(spec: Parcel[pb.GenerationSpec], read: Callable[[str, int, str], bytes]) -> Parcel[pb.GenerationSpec]:
    """Replaces every name of a content by the content's value.

    Args:
        spec: The spec. It is not changed.
        read: Returns a content. Its arguments are the digest, the stated size in bytes (0: none) and the field's path.

    Raises:
        InvalidArgument: A content is not what the field holds.
        Exception: What `read` raises.
    """
    message = pb.GenerationSpec()
    message.CopyFrom(spec.message)
    parsed: dict[tuple[type[Message], str], Parcel[Any]] = {}

    def value(kind: type[Message], content: content_pb2.ContentRef, field: str) -> Message:
        raw = read(content.sha256, content.size_bytes, field)
        if (kind, content.sha256) not in parsed:  # one content may have several names
            parsed[kind, content.sha256] = Parcel.parse(kind, raw)
        found: Message = parsed[kind, content.sha256].message
        return found

    for path, holder in list(_holders(message)):
        if holder.WhichOneof("source") != "content":
            continue
        if isinstance(holder, content_pb2.ImageInput):
            holder.data = read(holder.content.sha256, holder.content.size_bytes, f"{path}.content")
        else:
            holder.prompt_embeds.CopyFrom(value(embeds_pb2.PromptEmbeds, holder.content, f"{path}.content"))
    for each in list(_lists(message)):
        for index, content in enumerate(each.names):
            each.values.add().CopyFrom(value(each.kind, content, f"{each.path}[{index}]"))
        del each.names[:]
    return Parcel(message, spec, *parsed.values())


def has_pictures(spec: pb.GenerationSpec) -> bool:
    """Returns whether a spec may contain pictures, from the names of its fields alone."""
    return any(field.name in _PICTURE_FIELDS for field, _ in spec.ListFields())


def parse_digest(content: content_pb2.ContentRef, field: str) -> str:
    """Returns the digest of a ContentRef.

    Raises:
        InvalidArgument: CONTENT_INVALID or CONTENT_SIZE.
    """
    if not _SHA256.fullmatch(content.sha256):
        got = repr(content.sha256[:80])
        raise invalid(f"{field}.sha256", "64 lower-case hex digits", got, reason="CONTENT_INVALID")
    if content.size_bytes > MAX_CONTENT_BYTES:
        expected = f"at most {MAX_CONTENT_BYTES}"
        raise invalid(f"{field}.size_bytes", expected, content.size_bytes, reason="CONTENT_SIZE")
    return content.sha256


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits of uploads, so that slow ones do not keep others out.

    Attributes:
        running: Uploads at one time, of which one caller gets the share of `Shares`.
        stall_s: Longest wait for the next chunk.
        bytes_per_s: Least rate: an upload may take `stall_s` and what its bytes take at this rate.
        total_s: Longest time of an upload.
    """

    running: int = 16
    stall_s: float = 60.0
    bytes_per_s: float = 16 * 1024.0
    total_s: float = 600.0

    def time_s(self, received: int) -> float:
        """Returns the seconds that an upload of which `received` bytes have arrived may take until its next bytes."""
        return min(self.total_s, self.stall_s + received / self.bytes_per_s)


DEFAULT_UPLOAD_LIMITS = UploadLimits()


class Uploads:
    """Receives contents into the store. A content is stored whole or not at all."""

    def __init__(
        self,
        store: JobStore,
        limits: UploadLimits = DEFAULT_UPLOAD_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Creates a receiver.

        Args:
            store: Where contents are stored.
            limits: Limits of uploads.
            clock: Seconds that only grow.
        """
        self._store, self._limits, self._clock = store, limits, clock
        self._running = Shares(limits.running)

    async def receive(
        self, parcels: AsyncIterator[Parcel[generator_pb2.UploadBlobRequest]], caller: Caller
    ) -> generator_pb2.UploadBlobResponse:
        """Receives one content. Returns before the last chunk if the caller may name the content already.

        A content that only others have sent is received like one that is not stored.

        Args:
            parcels: The chunks.
            caller: The caller.

        Raises:
            InvalidArgument: CONTENT_INVALID or CONTENT_SIZE.
            PayloadCorrupt: The digest does not match.
            QuotaExceeded: Too many uploads are running, of all callers or of this one.
            DeadlineExceeded: The upload is too slow.
        """
        if not self._running.take(caller.name):
            raise self._refusal(caller.name)
        try:
            return await self._receive(_TimedChunks(aiter(parcels), self._limits, self._clock), caller.owner)
        finally:
            self._running.give(caller.name)

    def _refusal(self, caller: str) -> QuotaExceeded:
        running = self._running
        if running.used >= running.total:
            text, most = f"{running.used} uploads are running already", running.total
        else:
            own, most = running.used_by(caller), running.limit_of(caller)
            text = (
                f"{own} of your uploads are running already, and at most {most} of one caller may; send fewer at once"
            )
        return QuotaExceeded(
            f"{text}; try again in {_RETRY_S:.0f} s", metadata={"uploads": most}, retry_after_s=_RETRY_S
        )

    async def _receive(self, parcels: "_TimedChunks", owner: str) -> generator_pb2.UploadBlobResponse:
        first = await parcels.next()
        if first is None:
            raise invalid(_UPLOAD_FIELD, "a digest and data", "no message", reason=InvalidArgument.default_reason)
        sha256 = parse_digest(first.content, _UPLOAD_FIELD)
        known = await self._store.known_size(sha256, owner)
        if known is not None:
            return _upload_response(sha256, known, existed=True)
        incoming = self._store.incoming()
        try:
            size = await self._chunks(incoming, first, parcels)
            await self._store.keep_incoming(incoming, sha256, size, owner)
        finally:
            await self._store.drop_incoming(incoming)
        return _upload_response(sha256, size, existed=False)

    async def _chunks(
        self,
        incoming: IncomingContent,
        first: generator_pb2.UploadBlobRequest,
        parcels: "_TimedChunks",
    ) -> int:
        """Writes all chunks. Returns the size of the content in bytes."""
        sha256, stated = first.content.sha256, first.content.size_bytes
        digest, size = hashlib.sha256(), 0
        chunk: generator_pb2.UploadBlobRequest | None = first
        while chunk is not None:
            size += len(chunk.data)
            if size > (stated or MAX_CONTENT_BYTES):
                raise _wrong_size(f"{stated} bytes" if stated else f"at most {MAX_CONTENT_BYTES} bytes", "more")
            digest.update(chunk.data)
            await self._store.write_incoming(incoming, chunk.data)
            chunk = await parcels.next()
        if stated and size != stated:
            raise _wrong_size(f"{stated} bytes", f"{size}")
        if digest.hexdigest() != sha256:
            raise PayloadCorrupt(
                f"content: expected bytes with the digest {sha256}, got bytes with {digest.hexdigest()}: send it again",
                field=f"{_UPLOAD_FIELD}.sha256",
                metadata={"expected": sha256, "got": digest.hexdigest()},
            )
        return size


class _TimedChunks:
    """Receives the chunks of one upload within its time."""

    def __init__(
        self,
        parcels: AsyncIterator[Parcel[generator_pb2.UploadBlobRequest]],
        limits: UploadLimits,
        clock: Callable[[], float],
    ) -> None:
        self._parcels, self._limits, self._clock = parcels, limits, clock
        self._begun_s, self._received = clock(), 0

    async def next(self) -> generator_pb2.UploadBlobRequest | None:
        """Returns the next chunk, None after the last. Raises DeadlineExceeded if it is late."""
        limits = self._limits
        left_s = self._begun_s + limits.time_s(self._received) - self._clock()
        try:
            if left_s <= 0.0:
                raise TimeoutError
            parcel = await asyncio.wait_for(anext(self._parcels, None), min(limits.stall_s, left_s))
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"{self._received} bytes arrived in {self._clock() - self._begun_s:.0f} s: send the content again "
                f"faster, with a chunk at least every {limits.stall_s:.0f} s, {limits.bytes_per_s / 1024:.0f} KiB a "
                f"second, and all of it within {limits.total_s:.0f} s",
                metadata={"stage": "upload"},
            ) from error
        if parcel is None:
            return None
        self._received += len(parcel.message.data)
        return parcel.message


@dataclass(frozen=True, slots=True)
class _ContentList:
    """A list of contents in a message: `names` in `x_contents`, or `values` of `kind` in `x_embeds`.

    Attributes:
        path: Path of `x_contents`.
        stem: `x`.
        names: Repeated ContentRef.
        values: Repeated message.
        kind: Class of the values.
    """

    path: str
    stem: str
    names: Any
    values: Any
    kind: type[Message]


def _lists(spec: pb.GenerationSpec) -> Iterator[_ContentList]:
    """Yields every list of contents in a spec."""
    for path, message in _messages(spec, "spec"):
        fields = message.DESCRIPTOR.fields_by_name
        for name in fields:
            stem = name.removesuffix(_NAMES)
            if stem == name:
                continue
            kind = GetMessageClass(cast(Descriptor, fields[stem + _VALUES].message_type))
            names, values = getattr(message, name), getattr(message, stem + _VALUES)
            yield _ContentList(f"{path}.{name}", stem, names, values, kind)


def _holders(spec: pb.GenerationSpec) -> Iterator[tuple[str, Any]]:
    """Yields every EmbedsInput and ImageInput of a spec, with its path."""
    return (
        (path, message)
        for path, message in _messages(spec, "spec")
        if isinstance(message, pb.EmbedsInput | content_pb2.ImageInput)
    )


def _messages(message: Message, path: str) -> Iterator[tuple[str, Message]]:
    """Yields every message inside a message, with its path. Maps of this contract hold no messages."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        single = isinstance(value, Message)
        for place, inner in enumerate([value] if single else value):
            where = f"{path}.{field.name}" if single else f"{path}.{field.name}[{place}]"
            yield where, inner
            yield from _messages(inner, where)


def _holds(outer: Any, inner: Any) -> bool:
    """Returns whether messages of one kind may contain those of another, from descriptors. No kind contains itself."""
    return outer is not None and (outer is inner or any(_holds(field.message_type, inner) for field in outer.fields))


_PICTURE_FIELDS = frozenset(
    field.name
    for field in pb.GenerationSpec.DESCRIPTOR.fields
    if _holds(field.message_type, content_pb2.ImageInput.DESCRIPTOR)
)


def _ref(content: content_pb2.ContentRef, path: str) -> tuple[str, str, int]:
    return path, parse_digest(content, path), content.size_bytes


def _wrong_size(expected: str, got: str) -> InvalidArgument:
    return invalid(f"{_UPLOAD_FIELD}.size_bytes", expected, got, reason="CONTENT_SIZE")


def _upload_response(sha256: str, size: int, *, existed: bool) -> generator_pb2.UploadBlobResponse:
    content = content_pb2.ContentRef(sha256=sha256, size_bytes=size)
    return generator_pb2.UploadBlobResponse(content=content, existed=existed)
