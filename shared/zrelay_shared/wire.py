"""Messages whose tensor bytes stay out of protobuf: parsed, moved and written without copying them.

protobuf copies a `bytes` field up to five times on its way (performance.md, section 2), and refuses memoryviews. A
`Parcel` is a message in which every `Tensor.data` holds a short marker, and the real bytes stand beside it as views.
The bytes on the wire are exactly protobuf's: a plain protobuf client talks to a Parcel server and the other way round.

    parcel = Parcel.parse(EncodePromptsResponse, raw)       # no copy of the tensors
    request = Parcel(GenerateRequest(...), parcel)          # sub-messages copied from `parcel` keep their bytes
    raw = request.to_bytes()                                # one copy, into the message that is sent
"""

import itertools
from collections.abc import Iterator
from functools import cache
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared.errors import InvalidArgument

M = TypeVar("M", bound=Message)
Buffer = bytes | bytearray | memoryview
Paths = dict[int, "Paths | None"]
"""Fields of a message that lead to tensor bytes: number -> paths within the field, None where it is the bytes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10
_markers = itertools.count(1)


@cache
def tensor_paths(descriptor: Descriptor) -> Paths:
    """The fields of a message type that lead to `Tensor.data`; empty where none does."""
    if descriptor.full_name == Tensor.DESCRIPTOR.full_name:
        return {Tensor.DESCRIPTOR.fields_by_name["data"].number: None}
    paths: Paths = {}
    for field in descriptor.fields:
        if field.message_type is not None and (inner := tensor_paths(field.message_type)):
            paths[field.number] = inner
    return paths


class Parcel(Generic[M]):
    """A message and the tensor bytes that belong to it.

    `message` may be read and changed as any message, except that `Tensor.data` holds markers: use `bytes_of` and
    `attach`. Parcels given as `sources` lend their bytes, so that sub-messages copied from them stay complete.
    """

    __slots__ = ("_blobs", "message")

    def __init__(self, message: M, *sources: "Parcel[Any]") -> None:
        self.message = message
        self._blobs: dict[bytes, memoryview] = {}
        for source in sources:
            self._blobs.update(source._blobs)

    def attach(self, tensor: Tensor, data: Buffer) -> None:
        """Makes `data` the bytes of `tensor`, a part of this parcel's message. Keeps a view, copies nothing."""
        tensor.data = self._store(data)

    def bytes_of(self, tensor: Tensor) -> memoryview:
        """The bytes of a tensor of this parcel's message; empty where it has none."""
        return self._blobs.get(tensor.data, memoryview(b""))

    @classmethod
    def parse(cls, message_type: type[M], raw: Buffer) -> "Parcel[M]":
        """Reads a serialized message. Raises InvalidArgument (reason MESSAGE_MALFORMED) on anything else."""
        parcel = cls(message_type())
        try:
            paths = tensor_paths(message_type.DESCRIPTOR)
            skeleton = b"".join(parcel._cut(memoryview(raw), paths)) if paths else bytes(raw)
            parcel.message.ParseFromString(skeleton)
        except (DecodeError, ValueError, IndexError) as error:
            name = message_type.DESCRIPTOR.full_name
            raise InvalidArgument(
                f"expected a serialized {name}, got {len(raw)} bytes that are not one: generate your client from the "
                "zrelay.v1 contract",
                reason="MESSAGE_MALFORMED",
            ) from error
        return parcel

    def to_bytes(self) -> bytes:
        """The serialized message, with every tensor's bytes in their place."""
        skeleton = self.message.SerializeToString()
        paths = tensor_paths(self.message.DESCRIPTOR)
        if not paths or not self._blobs:
            return skeleton
        return b"".join(self._fill(memoryview(skeleton), paths))

    def _store(self, data: Buffer) -> bytes:
        marker = next(_markers).to_bytes(8, "little")
        view = memoryview(data)
        self._blobs[marker] = view if view.format == "B" and view.ndim == 1 else view.cast("B")
        return marker

    def _cut(self, raw: memoryview, paths: Paths) -> list[Buffer]:
        """The message with markers in place of tensor bytes, in pieces."""
        pieces: list[Buffer] = []
        for number, whole, payload in _fields(raw):
            if payload is None or number not in paths:
                pieces.append(whole)
                continue
            inner = paths[number]
            if inner is not None:
                pieces += _nested(number, self._cut(payload, inner))
            else:
                pieces += _nested(number, [self._store(payload)] if len(payload) else [])
        return pieces

    def _fill(self, raw: memoryview, paths: Paths) -> list[Buffer]:
        """The message with tensor bytes in place of markers, in pieces."""
        pieces: list[Buffer] = []
        for number, whole, payload in _fields(raw):
            if payload is None or number not in paths:
                pieces.append(whole)
                continue
            inner = paths[number]
            pieces += _nested(number, [self._blobs[bytes(payload)]] if inner is None else self._fill(payload, inner))
        return pieces


def _fields(raw: memoryview) -> Iterator[tuple[int, memoryview, memoryview | None]]:
    """(number, the whole field, its payload if length-delimited) for each field of a serialized message.

    Raises ValueError or IndexError on what is not one. Encoding: protobuf.dev/programming-guides/encoding.
    """
    at, end = 0, len(raw)
    while at < end:
        start = at
        key, at = _varint(raw, at)
        kind = key & 7
        payload = None
        if kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _BYTES:
            length, at = _varint(raw, at)
            if length > end - at:
                raise ValueError(f"a field of {length} bytes where {end - at} are left")
            payload = raw[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("the message ends inside a field")
        yield key >> 3, raw[start:at], payload


def _nested(number: int, pieces: list[Buffer]) -> list[Buffer]:
    """A length-delimited field made of pieces."""
    length = sum(len(piece) for piece in pieces)
    return [_varint_bytes(number << 3 | _BYTES) + _varint_bytes(length), *pieces]


def _varint(raw: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    for _ in range(_MAX_VARINT_BYTES):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a varint of more than 10 bytes")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
