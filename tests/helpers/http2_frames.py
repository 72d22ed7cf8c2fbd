"""Frames, header blocks and gRPC messages as bytes (RFC 9113, RFC 7541), for connections that no library would make."""

from collections.abc import Iterable
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
MAX_FRAME_BYTES = 16_384
"""Largest payload that a receiver must accept unless it has announced more."""
HEADER_TABLE_SIZE, INITIAL_WINDOW_SIZE = 1, 4
"""Identifiers of settings."""
Field = tuple[bytes, bytes]


class FrameKind(IntEnum):
    """Types of frames (RFC 9113, section 6)."""

    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Returns the bytes of a frame. The length of the payload is not checked."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def settings(*values: tuple[int, int]) -> bytes:
    """Returns the bytes of a SETTINGS frame with these identifiers and values."""
    payload = b"".join(key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in values)
    return frame(FrameKind.SETTINGS, payload=payload)


def header_block(fields: Iterable[Field]) -> bytes:
    """Returns header fields as HPACK literals without indexing and without Huffman codes (RFC 7541, section 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in fields)


def call_fields(path: bytes, *more: Field) -> list[Field]:
    """Returns the header fields of a gRPC call."""
    pseudo = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost")]
    return [*pseudo, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more]


def grpc_message(payload: bytes, *, length: int | None = None) -> bytes:
    """Returns an uncompressed gRPC message. Its prefix names the length of the payload, or `length`."""
    return b"\x00" + (len(payload) if length is None else length).to_bytes(4, "big") + payload


def _string(value: bytes) -> bytes:
    return _integer(len(value)) + value


def _integer(value: int) -> bytes:
    """Encodes the length of a string: an integer with a prefix of 7 bits (RFC 7541, section 5.1)."""
    if value < 127:
        return bytes((value,))
    out, rest = bytearray((127,)), value - 127
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    out.append(rest)
    return bytes(out)
