"""A TCP link to a service that can be cut at any moment, as a bad network is: for benchmarks and tests."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class CuttableLink:
    """A TCP link to an endpoint that can be reset, cut, left hanging, and restored. It belongs to one event loop.

    Attributes:
        target: Where new connections lead.
        endpoint: Where the link listens; known after the first `restore`.
    """

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        """Creates a link that does not listen yet; `cuttable` makes one that does.

        Args:
            target: The endpoint.
            host: The loopback address of the link.
        """
        self.target = target
        self.endpoint = f"{host}:0"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()

    async def restore(self) -> None:
        """Carries what is sent, and takes new connections."""
        self._open.set()
        if self._server is None:
            host, _, port = self.endpoint.rpartition(":")
            self._server = await asyncio.start_server(self._carry, host, int(port))
            self.endpoint = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    def reset(self) -> None:
        """Resets every connection; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def cut(self) -> None:
        """Resets every connection and takes no more."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def hang(self) -> None:
        """Carries nothing any more; connections stay open."""
        self._open.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.target.rpartition(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= both

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def cuttable(target: str, host: str = "127.0.0.1") -> AsyncIterator[CuttableLink]:
    """A link to `target` that carries; it is cut when the block ends."""
    link = CuttableLink(target, host)
    await link.restore()
    try:
        yield link
    finally:
        await link.cut()
