"""A TCP relay to a service whose connections can be cut at any moment: what a bad network looks like from here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Cuttable:
    """Made by `cuttable`; clients dial `endpoint`."""

    def __init__(self, target: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._links: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.endpoint = ""

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.endpoint = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Ends every connection; new ones are taken."""
        for link in self._links:
            link.cancel()

    async def close(self) -> None:
        """Ends every connection and takes no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        if link is None:
            return
        self._links.add(link)
        there: asyncio.StreamWriter | None = None
        try:
            far, there = await asyncio.open_connection(self._host, self._port)
            await asyncio.gather(_pump(reader, there), _pump(far, writer))
        except (OSError, asyncio.CancelledError):  # cut, or the service is gone: the caller sees a closed connection
            pass
        finally:
            self._links.discard(link)
            for one in (writer, there):
                if one is not None:
                    one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


@contextlib.asynccontextmanager
async def cuttable(target: str) -> AsyncIterator[Cuttable]:
    """A relay to `host:port` while the block runs."""
    relay = Cuttable(target)
    await relay.open()
    try:
        yield relay
    finally:
        await relay.close()
