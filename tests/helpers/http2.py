"""HTTP/2 by hand: frames, header blocks and gRPC calls that no well-behaved client sends."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from tests.helpers.http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    HEADER_TABLE_SIZE,
    PREFACE,
    FrameKind,
    call_fields,
    frame,
    grpc_message,
    header_block,
    settings,
)


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it was received. `kind` is a FrameKind, or the number of a type that is not listed there."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def grpc_status(frames: Iterable[Frame]) -> int | None:
    """Returns the grpc-status of an answer, None where it has none. The answer's table size must be 0 (`connected`)."""
    for one in frames:
        if one.kind == FrameKind.HEADERS and (at := one.payload.find(name := b"grpc-status")) >= 0:
            start = at + len(name) + 1
            return int(one.payload[start : start + one.payload[start - 1]])
    return None


class RawConnection:
    """A connection whose bytes a test writes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next_stream = 1

    async def send(self, *data: bytes) -> None:
        """Sends bytes as they are."""
        self._writer.write(b"".join(data))
        await self._writer.drain()

    async def receive(self) -> Frame | None:
        """Returns the next frame, None once the connection has ended."""
        try:
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return Frame(head[3], head[4], int.from_bytes(head[5:], "big"), payload)

    async def handshake(self, *values: tuple[int, int]) -> None:
        """Sends the preface and settings, with a header table of size 0 unless `values` says otherwise."""
        await self.send(PREFACE, settings((HEADER_TABLE_SIZE, 0), *values))

    async def start_call(self, path: bytes, *more: tuple[bytes, bytes], end: bool = False) -> int:
        """Sends the headers of a call, and returns its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        flags = END_HEADERS | (END_STREAM if end else 0)
        await self.send(frame(FrameKind.HEADERS, flags, stream, header_block(call_fields(path, *more))))
        return stream

    async def call(self, path: bytes, message: bytes = b"", *more: tuple[bytes, bytes]) -> list[Frame]:
        """Makes a call with one request, and returns the frames of its answer up to the last one.

        Returns:
            The frames of the call's stream; the list ends early where the connection does.
        """
        stream = await self.start_call(path, *more)
        await self.send(frame(FrameKind.DATA, END_STREAM, stream, grpc_message(message)))
        return await self.answer(stream)

    async def answer(self, stream: int) -> list[Frame]:
        """Returns the frames of a stream up to the one that ends it, and answers settings and pings meanwhile."""
        frames = []
        while (got := await self.receive()) is not None:
            if got.kind in (FrameKind.SETTINGS, FrameKind.PING) and not got.flags & ACK:
                payload = got.payload if got.kind == FrameKind.PING else b""
                await self.send(frame(got.kind, ACK, 0, payload))
            if got.stream != stream:
                continue
            frames.append(got)
            ends = got.kind in (FrameKind.DATA, FrameKind.HEADERS) and got.flags & END_STREAM
            if ends or got.kind == FrameKind.RST_STREAM:
                break
        return frames

    async def closed(self) -> None:
        """Reads until the server ends the connection."""
        with suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    async def close(self) -> None:
        """Ends the connection."""
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def connected(host: str, port: int, *, handshake: bool = True) -> AsyncIterator[RawConnection]:
    """Connects to a server. Without `handshake` not a byte is sent."""
    connection = RawConnection(*await asyncio.open_connection(host, port))
    try:
        if handshake:
            await connection.handshake()
        yield connection
    finally:
        await connection.close()
