"""Where a server may listen, and why not elsewhere."""

import ipaddress
import re
from dataclasses import dataclass

from zrelay_shared.errors import InvalidArgument

_LISTEN = re.compile(r"(?:(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]]*)):)?(?P<port>[0-9]{1,5})")


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
    found = _LISTEN.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise InvalidArgument(
            f"listen: expected HOST:PORT (an IPv6 host in brackets) with a port of 0 to 65535, got {text!r}",
            field="listen",
            reason="LISTEN_INVALID",
        )
    address = ListenAddress(found["v6"] or found["host"] or "127.0.0.1", int(found["port"]))
    if not address.loopback and not insecure:
        raise InvalidArgument(
            f"listen: {address} can be reached from other machines, and there is no encryption and no authentication: "
            "listen on 127.0.0.1 and use an SSH tunnel (README, Two machines), or pass --insecure-listen where "
            "something else guards the network, such as a container behind a network policy",
            field="listen",
            reason="LISTEN_INSECURE",
        )
    return address
