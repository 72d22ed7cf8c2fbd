"""Messages that are large although every string of a known field is bounded."""

from typing import TypeVar

from google.protobuf.message import Message

M = TypeVar("M", bound=Message)
_UNKNOWN_FIELD = b"\xfa\x3f"
"""Tag of field 1023, with a length: no message of the contract has one."""


def with_unknown_bytes(message: M, size: int) -> M:
    """Returns a message with a field of `size` bytes more, as a later version may have one."""
    message.MergeFromString(_UNKNOWN_FIELD + _varint(size) + bytes(size))
    return message


def _varint(number: int) -> bytes:
    groups = [number >> shift & 0x7F for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])
