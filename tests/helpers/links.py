"""Links to a generator that can be cut in mid-job: a proxy, or a network namespace of its own."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass


class Link:
    """A TCP link to an endpoint that can be cut, left hanging, and restored. Lives in the test's event loop.

    Attributes:
        target: Where new connections lead.
        endpoint: Where the link listens; known after the first `restore`.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._server: asyncio.Server | None = None
        self._wires: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.endpoint = "127.0.0.9:0"

    async def restore(self) -> None:
        """Carries what is sent, and takes new connections."""
        self._open.set()
        host, port = self.endpoint.split(":")
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, host, int(port))
            self.endpoint = "{}:{}".format(*self._server.sockets[0].getsockname()[:2])

    async def cut(self) -> None:
        """Resets what is connected and refuses what would be."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for wire in self._wires:
            wire.transport.abort()
        self._wires.clear()

    def hang(self) -> None:
        """Carries nothing any more, without a word."""
        self._open.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = self.target.split(":")
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._wires |= {writer, far_writer}
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def linked(target: str) -> AsyncIterator[Link]:
    """A link that carries; it is cut when the block ends."""
    link = Link(target)
    await link.restore()
    try:
        yield link
    finally:
        await link.cut()


LinkTo = Callable[[str], Awaitable[Link]]
"""Makes a link to an endpoint."""


@dataclass(frozen=True)
class Proxied:
    """A link through a proxy: while it is down, what is sent stays where it is."""

    link: Link

    @property
    def endpoint(self) -> str:
        return self.link.endpoint

    def down(self) -> None:
        self.link.hang()

    async def up(self) -> None:
        await self.link.restore()


@dataclass(frozen=True)
class Cable:
    """A veth pair to a network namespace: while its far end is down, packets are lost. (With the near end down, the
    route would be gone, and connections might go elsewhere.)"""

    namespace: str
    endpoint: str

    def down(self) -> None:
        self._set("down")

    async def up(self) -> None:
        self._set("up")

    def _set(self, how: str) -> None:
        subprocess.run(["ip", "-n", self.namespace, "link", "set", f"{self.namespace}b", how], check=True)
