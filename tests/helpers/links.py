"""Links to a generator that can be cut in mid-job: a proxy, or a network namespace of its own."""

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
