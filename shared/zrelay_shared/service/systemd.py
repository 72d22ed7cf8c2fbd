"""Messages to systemd, which also expects the heartbeat of a service."""

import asyncio
import contextlib
import socket
from collections.abc import Mapping


class Systemd:
    """Sends messages to systemd (sd_notify's protocol); does nothing where systemd does not run the process.

    The socket is opened once, so that messages arrive also when the process has no free descriptor.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Reads NOTIFY_SOCKET and WATCHDOG_USEC."""
        where = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        self._period_s = int(environ.get("WATCHDOG_USEC") or 0) / 1e6
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if where else None

    def notify(self, *messages: str) -> None:
        """Sends messages such as `READY=1`."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(messages).encode(), self._address)

    async def heartbeat(self) -> None:
        """Notifies systemd's watchdog from the event loop, twice per period, until it is cancelled."""
        while self._period_s:
            self.notify("WATCHDOG=1")
            await asyncio.sleep(self._period_s / 2)

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()
