"""The address that a server listens on."""

import ipaddress
import re
from dataclasses import dataclass

from zrelay_shared.errors import invalid

_LISTEN = re.compile(r"(?:(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\s:/\[\]]*)):)?(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """A host and a port; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def local_host(self) -> str:
        """The host with which this machine reaches the address."""
        if self.host in ("", "localhost"):
            return "127.0.0.1"
        try:
            host = ipaddress.ip_address(self.host)
        except ValueError:
            return self.host
        if not host.is_unspecified:
            return self.host
        return "127.0.0.1" if host.version == 4 else "::1"


def parse_listen(text: str, *, insecure: bool = False, secured: bool = False, setting: str = "listen") -> ListenAddress:
    """Parses the address of a server.

    Args:
        text: `HOST:PORT`, or `PORT` on 127.0.0.1.
        insecure: Whether other machines may reach the address in plaintext.
        secured: Whether the port is secured with TLS.
        setting: Name of the setting, for refusals.

    Raises:
        InvalidArgument: LISTEN_INVALID, it is no address; LISTEN_INSECURE, other machines can reach it.
    """
    found = _LISTEN.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise invalid(
            setting,
            "HOST:PORT (an IPv6 host in brackets) with a port of 0 to 65535",
            repr(text),
            reason="LISTEN_INVALID",
        )
    address = ListenAddress(found["v6"] or found["host"] or "127.0.0.1", int(found["port"]))
    if not (address.loopback or insecure or secured):
        raise invalid(
            setting,
            "an address that other machines cannot reach, because this one has no certificates yet",
            address,
            reason="LISTEN_INSECURE",
            remedy="run `zrelay pair` on this machine, as the user of the service, which makes them; or listen on "
            "127.0.0.1 and use an SSH tunnel, or pass --insecure-listen where the network is protected otherwise, for "
            "example by a network policy",
        )
    return address
