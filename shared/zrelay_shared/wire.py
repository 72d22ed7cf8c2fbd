"""The parcel codec: protobuf messages whose tensor bytes are parsed, moved and serialised without copies.

protobuf copies a `bytes` field up to five times between socket and user (performance.md, section 2), and does not
accept memoryviews. In a `Parcel` every `Tensor.data` holds a short marker, and the parcel keeps views of the real
bytes. The serialised form is identical to protobuf's, so that plain protobuf clients and servers can be used with it.

    parcel = Parcel.parse(EncodePromptsResponse, raw)       # no copy of the tensors
    request = Parcel(GenerateRequest(...), parcel)          # sub-messages copied from `parcel` keep their bytes
    raw = request.to_bytes()                                # one copy, into the message that is sent
"""

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message

from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_FIELDS

M = TypeVar("M", bound=Message)
Buffer = bytes | bytearray | memoryview
Paths = dict[int, "Paths | None"]
"""Sub-messages of a message: field number -> their sub-messages, None for a tensor's bytes."""

_VARINT, _FIXED64, _BYTES, _GROUP, _GROUP_END, _FIXED32 = range(6)
_MAX_VARINT_BYTES, _MAX_SIZE_BYTES = 10, 5
_markers = itertools.count(1)


@cache
def message_paths(descriptor: Descriptor) -> Paths:
    """Returns the fields of a message type that are messages, down to `Tensor.data`. The type must not be recursive."""
    if descriptor.full_name == Tensor.DESCRIPTOR.full_name:
        return {Tensor.DESCRIPTOR.fields_by_name["data"].number: None}
    return {field.number: message_paths(field.message_type) for field in descriptor.fields if field.message_type}


class Parcel(Generic[M]):
    """A message and the tensor bytes that belong to it.

    `message` may be read and changed as any message, except that `Tensor.data` holds markers: use `bytes_of` and
    `attach`. Sub-messages may be copied from parcels that are given as `sources`; their bytes come with them.
    """

    __slots__ = ("_blobs", "message")

    def __init__(self, message: M, *sources: "Parcel[Any]") -> None:
        self.message = message
        self._blobs: dict[bytes, memoryview] = {}
        for source in sources:
            self._blobs.update(source._blobs)

    def attach(self, tensor: Tensor, data: Buffer) -> None:
        """Sets the bytes of `tensor`, which is part of this parcel's message. Keeps a view without a copy."""
        tensor.data = self._store(memoryview(data))

    def bytes_of(self, tensor: Tensor) -> memoryview:
        """Returns the bytes of a tensor of this parcel's message, empty if it has none.

        Raises:
            ValueError: The tensor was copied from a parcel that is not among the sources.
        """
        return self._look_up(tensor.data)

    @classmethod
    def parse(cls, message_type: type[M], raw: Buffer) -> "Parcel[M]":
        """Parses a serialised message.

        Raises:
            InvalidArgument: MESSAGE_MALFORMED, the bytes are not such a message; MESSAGE_TOO_COMPLEX, it has more than
                `limits.MAX_MESSAGE_FIELDS` fields.
        """
        parcel = cls(message_type())
        try:
            pieces = _Walk(parcel._store).pieces(memoryview(raw), message_paths(message_type.DESCRIPTOR))
            skeleton = b"".join(pieces) if parcel._blobs else bytes(raw)
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
        """Serialises the message with the bytes of every tensor.

        Raises:
            ValueError: The bytes of a tensor are missing (see `bytes_of`).
        """
        skeleton = self.message.SerializeToString()
        walk = _Walk(self._look_up)
        pieces = walk.pieces(memoryview(skeleton), message_paths(self.message.DESCRIPTOR))
        return b"".join(pieces) if walk.replaced else skeleton

    def _store(self, data: memoryview) -> bytes:
        if not data.nbytes:
            return b""
        marker = next(_markers).to_bytes(8, "little")
        self._blobs[marker] = data if data.format == "B" and data.ndim == 1 else data.cast("B")
        return marker

    def _look_up(self, marker: Buffer) -> memoryview:
        if not len(marker):
            return memoryview(b"")
        blob = self._blobs.get(bytes(marker))
        if blob is None:
            raise ValueError(
                "Tensor.data: expected a marker of this parcel, got other bytes: use attach, or name the "
                "parcel that the tensor was copied from as a source"
            )
        return blob


class _Walk:
    """One pass over a serialised message that replaces the bytes of every tensor and counts fields.

    The count limits the cost of a hostile message: 64 MiB of empty sub-messages would take minutes and gigabytes.
    """

    __slots__ = ("_left", "_replace", "replaced")

    def __init__(self, replace: Callable[[memoryview], Buffer]) -> None:
        self._replace = replace
        self._left = MAX_MESSAGE_FIELDS
        self.replaced = False

    def pieces(self, raw: memoryview, paths: Paths) -> list[Buffer]:
        """Returns the message with every tensor's bytes replaced, as a list of byte strings."""
        pieces: list[Buffer] = []
        done = 0
        for number, start, payload, end in self._fields(raw):
            if payload is None or number not in paths:
                continue
            inner = paths[number]
            if inner is None:
                changed: list[Buffer] = [self._replace(payload)]
                self.replaced = True
            else:
                changed = self.pieces(payload, inner)
            size = sum(map(len, changed))
            pieces += (raw[done:start], _varint_bytes(number << 3 | _BYTES) + _varint_bytes(size), *changed)
            done = end
        pieces.append(raw[done:])
        return pieces

    def _fields(self, raw: memoryview) -> Iterator[tuple[int, int, memoryview | None, int]]:
        """Yields (number, start, payload if length-delimited, end) of each field; a group is one field.

        The encoding is described at protobuf.dev/programming-guides/encoding.

        Raises:
            ValueError, IndexError: The bytes are not a message.
        """
        at, end, start = 0, len(raw), 0
        groups: list[int] = []
        while at < end:
            if not groups:
                start = at
            self._count()
            key, at = _varint(raw, at, _MAX_SIZE_BYTES)
            number, kind = key >> 3, key & 7
            payload = None
            if kind == _VARINT:
                _, at = _varint(raw, at, _MAX_VARINT_BYTES)
            elif kind == _FIXED64:
                at += 8
            elif kind == _FIXED32:
                at += 4
            elif kind == _BYTES:
                length, at = _varint(raw, at, _MAX_SIZE_BYTES)
                payload = raw[at : at + length]
                at += length
            elif kind == _GROUP:
                groups.append(number)
            elif kind != _GROUP_END or not groups or groups.pop() != number:
                raise ValueError(f"wire type {kind}")
            if at > end:
                raise ValueError("the message ends inside a field")
            if not groups:
                yield number, start, payload, at
        if groups:
            raise ValueError("the message ends inside a group")

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidArgument(
                f"expected a message of at most {MAX_MESSAGE_FIELDS} fields at all levels, got more: send fewer "
                "things in one call",
                reason="MESSAGE_TOO_COMPLEX",
            )


def _varint(raw: memoryview, at: int, most: int) -> tuple[int, int]:
    value = shift = 0
    for _ in range(most):
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a varint of more than {most} bytes")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
