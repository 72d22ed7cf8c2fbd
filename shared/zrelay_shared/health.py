"""grpc.health.v1 for a server that drains: it lets its watchers go."""

import asyncio
from typing import Any

from grpc_health.v1 import health, health_pb2


class HealthServicer(health.aio.HealthServicer):
    """The library's servicer, whose watches would else last as long as the server and hold up its end."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Streams a service's states until the caller or `end_watches` ends it."""
        watching = asyncio.create_task(super().Watch(request, context))
        ended = asyncio.create_task(self._ended.wait())
        try:
            done, _ = await asyncio.wait({watching, ended}, return_when=asyncio.FIRST_COMPLETED)
            if watching in done:
                watching.result()  # a watch ends by itself only where it failed
        finally:
            watching.cancel()
            ended.cancel()

    def end_watches(self) -> None:
        """Ends the watches there are, and those to come."""
        self._ended.set()
