"""Writes HTTP/2 frames to a socket, right ones and wrong ones (RFC 9113, RFC 7541), for attacks on a server."""

import socket
import struct
from collections.abc import Iterable
from types import TracebackType

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MAX_FRAME_BYTES = 16_384
Field = tuple[bytes, bytes]


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Returns one frame; its payload is at most 16,384 bytes unless the attack is just that."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def hpack(fields: Iterable[Field]) -> bytes:
    """Returns header fields as literals without indexing and without Huffman codes."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def call_fields(path: bytes, *more: Field) -> list[Field]:
    """Returns the header fields of a gRPC call."""
    usual = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"localhost")]
    return [*usual, (b"te", b"trailers"), (b"content-type", b"application/grpc"), *more]


def headers(stream: int, block: bytes, *, end_stream: bool = False) -> bytes:
    """Returns a header block as one HEADERS frame and as many CONTINUATION frames as it needs."""
    parts = [block[at : at + MAX_FRAME_BYTES] for at in range(0, max(1, len(block)), MAX_FRAME_BYTES)]
    out = []
    for index, part in enumerate(parts):
        flags = (END_HEADERS if index == len(parts) - 1 else 0) | (END_STREAM if end_stream and index == 0 else 0)
        out.append(frame(CONTINUATION if index else HEADERS, flags, stream, part))
    return b"".join(out)


def message(payload: bytes, *, length: int | None = None) -> bytes:
    """Returns a gRPC message, whose prefix may name another length."""
    return struct.pack(">BI", 0, len(payload) if length is None else length) + payload


class RawConnection:
    """A socket to an endpoint, over which the preface and empty settings were sent.

    Raises:
        OSError: The server refuses the connection.
    """

    def __init__(self, endpoint: str, timeout_s: float = 5.0, receive_bytes: int | None = None) -> None:
        host, _, port = endpoint.rpartition(":")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        try:
            self.socket.connect((host, int(port)))
            self.send(PREFACE + frame(SETTINGS))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> "RawConnection":
        """Returns the connection."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the socket."""
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes. Raises OSError if the server has closed the connection or does not read."""
        self.socket.sendall(data)

    def call(self, stream: int, path: bytes, body: bytes, *more: Field, end: bool = True) -> None:
        """Sends a call: its headers and its body, which may be half a message. Raises OSError as `send`."""
        self.send(headers(stream, hpack(call_fields(path, *more))))
        self.send(frame(DATA, END_STREAM if end else 0, stream, body))

    def drain(self, most: int = 1 << 16) -> int:
        """Reads what is there, and returns the number of bytes."""
        self.socket.settimeout(0.2)
        try:
            return len(self.socket.recv(most))
        except OSError:
            return 0


def _text(value: bytes) -> bytes:
    return _length(len(value)) + value


def _length(value: int) -> bytes:
    if value < 127:
        return bytes([value])
    out, value = [127], value - 127
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])
