"""A blocking HTTP/2 connection that writes right and wrong frames, for attacks on a server."""

import socket
import sys
from types import TracebackType

from tests.helpers.http2_frames import (
    END_HEADERS,
    END_STREAM,
    MAX_FRAME_BYTES,
    PREFACE,
    Field,
    FrameKind,
    call_fields,
    frame,
    header_block,
    settings,
)

SOURCE = "127.0.0.2" if sys.platform == "linux" else None
"""Address of the attackers. Other systems have no second loopback address unless it is set up."""
_IP_BIND_ADDRESS_NO_PORT = 24
"""Option of Linux: the port is chosen when the socket connects, so that used ports do not run out (ip(7))."""


def headers(stream: int, block: bytes, *, end_stream: bool = False) -> bytes:
    """Returns a header block as one HEADERS frame and as many CONTINUATION frames as it needs."""
    parts = [block[at : at + MAX_FRAME_BYTES] for at in range(0, max(1, len(block)), MAX_FRAME_BYTES)]
    out = []
    for index, part in enumerate(parts):
        flags = (END_HEADERS if index == len(parts) - 1 else 0) | (END_STREAM if end_stream and index == 0 else 0)
        out.append(frame(FrameKind.CONTINUATION if index else FrameKind.HEADERS, flags, stream, part))
    return b"".join(out)


class RawConnection:
    """A socket from `SOURCE` to an endpoint on loopback, over which the preface and empty settings were sent.

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
            if SOURCE is not None:
                self.socket.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                self.socket.bind((SOURCE, 0))
            self.socket.connect((host, int(port)))
            self.send(PREFACE + settings())
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
        self.send(headers(stream, header_block(call_fields(path, *more))))
        self.send(frame(FrameKind.DATA, END_STREAM if end else 0, stream, body))

    def drain(self, most: int = 1 << 16) -> int:
        """Reads what is there, and returns the number of bytes."""
        self.socket.settimeout(0.2)
        try:
            return len(self.socket.recv(most))
        except OSError:
            return 0
