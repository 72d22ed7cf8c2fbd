"""Where a server may listen, and why not elsewhere."""

import ipaddress
from dataclasses import dataclass

from zrelay_shared.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """`host:port`; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse_listen(text: str, *, insecure: bool = False) -> ListenAddress:
    """`host:port` or `port` (on 127.0.0.1). Beyond loopback only with `insecure`, since nothing is encrypted yet.

    Raises InvalidArgument (LISTEN_INVALID, LISTEN_INSECURE).
    """
    host, _, port = text.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(
            f"listen: expected HOST:PORT with a port of 0 to 65535, got {text!r}",
            field="listen",
            reason="LISTEN_INVALID",
        )
    address = ListenAddress(host, int(port))
    if not address.loopback and not insecure:
        raise InvalidArgument(
            f"listen: {address} can be reached from other machines, and there is no encryption and no authentication: "
            "listen on 127.0.0.1 and use an SSH tunnel (README, Two machines), or pass --insecure-listen where "
            "something else guards the network, such as a container behind a network policy",
            field="listen",
            reason="LISTEN_INSECURE",
        )
    return address
