"""A connection that speaks HTTP/2 as no client library does: half requests, and answers that are never read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from tests.helpers.http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    INITIAL_WINDOW_SIZE,
    PREFACE,
    FrameKind,
    call_fields,
    frame,
    grpc_message,
    header_block,
    settings,
)
from zrelay_shared.wire import Parcel


@dataclass(frozen=True)
class Frame:
    """One frame: its type, flags and payload."""

    kind: int
    flags: int
    payload: bytes

    @property
    def last(self) -> bool:
        """Whether the server's side of the stream ends with it."""
        return self.kind == FrameKind.RST_STREAM or (
            self.kind in (FrameKind.DATA, FrameKind.HEADERS) and bool(self.flags & END_STREAM)
        )


class RawConnection:
    """One connection to a server.

    Attributes:
        closed: Set when the server has closed it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next_stream = 1
        self._frames: list[tuple[int, Frame]] = []
        self._arrived = asyncio.Event()
        self.closed = asyncio.Event()

    def begin(self, path: str) -> int:
        """Sends the headers of a call, and returns the number of its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        self._send(FrameKind.HEADERS, END_HEADERS, stream, header_block(call_fields(path.encode())))
        return stream

    def call(self, path: str, request: Message | Parcel[Any]) -> int:
        """Sends a whole call, and returns the number of its stream."""
        stream = self.begin(path)
        raw = request.to_bytes() if isinstance(request, Parcel) else request.SerializeToString()
        self.data(stream, grpc_message(raw), end=True)
        return stream

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> None:
        """Sends bytes of a request."""
        self._send(FrameKind.DATA, END_STREAM if end else 0, stream, payload)

    async def drain(self) -> None:
        """Waits until what was sent is under way."""
        await self._writer.drain()

    def frames(self, stream: int) -> list[Frame]:
        """Returns what the server has sent on a stream."""
        return [one for number, one in self._frames if number == stream]

    def ended(self, stream: int) -> bool:
        """Whether the server has ended a stream."""
        return any(one.last for one in self.frames(stream))

    async def end_of(self, stream: int) -> None:
        """Waits until the server ends a stream."""
        while not self.ended(stream):
            self._arrived.clear()
            await asyncio.wait_for(self._arrived.wait(), 60)

    async def read(self) -> None:
        """Reads frames until the connection is closed. Grants the server no further bytes."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await self._reader.readexactly(9)
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._frames.append((stream, Frame(kind, flags, payload)))
                self._arrived.set()
                if kind in (FrameKind.SETTINGS, FrameKind.PING) and not flags & ACK:
                    self._send(kind, ACK, 0, payload if kind == FrameKind.PING else b"")
        self.closed.set()

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        self._writer.write(frame(kind, flags, stream, payload))


@asynccontextmanager
async def raw_connection(port: int, *, window: int = 65_535, host: str = "127.0.0.1") -> AsyncIterator[RawConnection]:
    """Connects to a port of this machine.

    Args:
        port: The port.
        window: Bytes of each answer that the server may send; no more are granted.
        host: Address to connect from, which the server takes for the caller.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))
    connection = RawConnection(reader, writer)
    writer.write(PREFACE + settings((INITIAL_WINDOW_SIZE, window)))
    reading = asyncio.create_task(connection.read())
    try:
        yield connection
    finally:
        reading.cancel()
        writer.close()
