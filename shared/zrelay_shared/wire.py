"""The parcel codec: protobuf messages whose tensor bytes are parsed, moved and serialised without copies.

protobuf copies a `bytes` field up to five times between socket and user (performance.md, section 2), and does not
accept memoryviews. In a `Parcel` every `Tensor.data` holds a short marker, and the parcel keeps views of the real
bytes. The serialised form is identical to protobuf's, so that plain protobuf clients and servers can be used with it.

    parcel = Parcel.parse(EncodePromptsResponse, raw)       # no copy of the tensors
    request = Parcel(GenerateRequest(...), parcel)          # sub-messages copied from `parcel` keep their bytes
    raw = request.to_bytes()                                # one copy, into the message that is sent
"""

import io
import itertools
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.message_scan import Buffer, MessageScan, scanned_fields

M = TypeVar("M", bound=Message)
_JOINED_AT_ONCE = 8 << 20
"""Bytes that are copied without a pause."""
_PART_BYTES = 1 << 20
"""Bytes copied between two pauses, in which other threads can run."""
_markers = itertools.count(1)


class Parcel(Generic[M]):
    """A message and the tensor bytes that belong to it.

    `message` may be read and changed as any message, except that `Tensor.data` holds markers: use `bytes_of` and
    `attach`. Sub-messages may be copied from parcels that are given as `sources`; their bytes come with them. `size` is
    the number of bytes that the parcel was parsed from, 0 if it was not parsed.
    """

    __slots__ = ("_blobs", "message", "size")

    def __init__(self, message: M, *sources: "Parcel[Any]") -> None:
        self.message = message
        self.size = 0
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
            InvalidArgument: MESSAGE_MALFORMED, the bytes are not such a message; MESSAGE_TOO_COMPLEX, it has more
                fields, or a field has more elements, than `zrelay_shared.limits` allows; TEXT_TOO_LARGE, likewise.
        """
        parcel = cls(message_type())
        try:
            pieces = MessageScan(raw, parcel._store).pieces(scanned_fields(message_type.DESCRIPTOR))
            skeleton = b"".join(pieces) if parcel._blobs else bytes(raw)
            parcel.message.ParseFromString(skeleton)
            parcel.size = len(raw)
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
        scan = MessageScan(skeleton, self._look_up, bounded=False)
        pieces = scan.pieces(scanned_fields(self.message.DESCRIPTOR))
        return _joined(pieces) if scan.replaced else skeleton

    @property
    def attached_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(blob.nbytes for blob in self._blobs.values())

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


def _joined(pieces: list[Buffer]) -> bytes:
    """Joins pieces, many MiB of them in parts: `bytes.join` holds the interpreter if a piece is a memoryview."""
    if sum(map(len, pieces)) <= _JOINED_AT_ONCE:
        return b"".join(pieces)
    joined = io.BytesIO()
    for piece in pieces:
        for at in range(0, len(piece), _PART_BYTES):
            joined.write(memoryview(piece)[at : at + _PART_BYTES])
    return joined.getvalue()
