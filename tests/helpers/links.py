"""Links to a generator that can be cut in mid-job: a proxy, or a network namespace of its own."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cutting import CuttableLink, cuttable


@asynccontextmanager
async def linked(target: str) -> AsyncIterator[CuttableLink]:
    """A link to an endpoint, cut when the block ends.

    It has a loopback address of its own, so that no other socket takes its port while it is cut.
    """
    async with cuttable(target, "127.0.0.9") as link:
        yield link


@asynccontextmanager
async def spoiling(target: str, old: bytes, new: bytes) -> AsyncIterator[str]:
    """Yields the endpoint of a proxy that replaces bytes in what an endpoint answers, as a faulty machine may."""
    host, _, port = target.rpartition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, spoil: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 20):
                writer.write(data.replace(old, new) if spoil else data)
                await writer.drain()
        writer.close()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(copy(reader, far_writer, spoil=False), copy(far_reader, writer, spoil=True))

    server = await asyncio.start_server(carry, "127.0.0.1", 0)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


LinkTo = Callable[[str], Awaitable[CuttableLink]]
"""Makes a link to an endpoint."""


@dataclass(frozen=True)
class Proxied:
    """A network that is a link through a proxy: while it is down, nothing is carried."""

    link: CuttableLink

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
