"""Endpoints: where a service is, and how the client opens a channel to it.

An endpoint is written as `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a target of gRPC (`dns:...`, `unix:...`). Several
endpoints are separated by commas.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from zrelay_client._transport.credentials import TlsOptions, Token
from zrelay_shared.config import checked_role
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import DEFAULT_PORTS

if TYPE_CHECKING:
    import grpc.aio

_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")
_MAX_PORT = 65535
_TCP = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^\s:/\[\],]+))(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service that the client can connect to.

    Attributes:
        role: "encoder", "vision" or "generator".
        address: The target for gRPC, for example "127.0.0.1:7503".
        origin: Where the address comes from, for example "flag" or "zrelay up"; "" for an argument.
        tls: How both sides are verified; None for a connection without TLS.
        token: The bearer token that every call sends over TLS. A connection without TLS, which stays on this machine,
            sends none.

    Raises:
        InvalidArgument: ROLE_INVALID, there is no such role; ENDPOINT_INVALID, the address is no target of gRPC with a
            host and a port. `parse` reads what users write. TOKEN_NEEDS_TLS, a token would travel unencrypted to
            another machine.
    """

    role: str
    address: str
    origin: str = ""
    tls: TlsOptions | None = None
    token: Token | None = None

    def __post_init__(self) -> None:
        checked_role(self.role)
        if not _is_grpc_target(self.address) and (_split(self.address) or ("", None))[1] is None:
            raise _invalid(self.role, self.address)
        if self.token is not None and self.tls is None and not self.is_local:
            raise InvalidArgument(
                f"{self.role}: expected TLS to {self.address} for a bearer token, got a connection that others can "
                "read: pass --tls-authority FILE, or join the machine with `zrelay pair` there and `zrelay join CODE` "
                "here",
                field=self.role,
                reason="TOKEN_NEEDS_TLS",
            )

    @classmethod
    def parse(
        cls, role: str, text: str, origin: str = "", *, tls: TlsOptions | None = None, token: Token | None = None
    ) -> "Endpoint":
        """Reads one endpoint. Without a port it gets the default port of the role.

        Raises:
            InvalidArgument: ENDPOINT_INVALID, the text is no endpoint; TOKEN_NEEDS_TLS; ROLE_INVALID.
        """
        checked_role(role)
        stripped = text.strip()
        if _is_grpc_target(stripped):
            return cls(role, stripped, origin, tls, token)
        found = _split(stripped)
        if found is None:
            raise _invalid(role, text)
        host, port = found
        return cls(role, f"{host}:{DEFAULT_PORTS[role] if port is None else port}", origin, tls, token)

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """Host and port of a TCP address, None for another target of gRPC."""
        if self.address.startswith(_GRPC_SCHEMES):
            return None
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def is_local(self) -> bool:
        """Whether the connection stays on this machine: a loopback address, localhost, or a socket file."""
        if self.address.startswith(("unix:", "unix-abstract:")):
            return True
        address = re.sub("^ipv[46]:", "", self.address)
        host = (_split(address) or ("", None))[0].strip("[]")
        return is_loopback(host)

    def channel(self) -> "grpc.aio.Channel":
        """Returns a new channel to the service. It connects with the first call; close it when done.

        Raises:
            InvalidArgument: TLS_FILE_INVALID, TOKEN_INVALID.
            OSError: A file of the credentials cannot be read.
        """
        from zrelay_shared.channels import dial  # gRPC is not needed to read a configuration

        if self.tls is None:
            return dial(self.address)
        if self.token is not None:
            self.token.value()  # a missing file is reported here, not as a failed call
        return dial(self.address, tls=self.tls.read(), token=None if self.token is None else self.token.value)

    def __str__(self) -> str:
        return self.address


EndpointSource: TypeAlias = str | Endpoint | Sequence[str | Endpoint] | None
"""Endpoints of one role as callers give them: text, with commas for several, or Endpoint, or a sequence of them."""


def parse_endpoints(
    role: str,
    source: EndpointSource,
    origin: str = "",
    parse: Callable[[str, str, str], Endpoint] = Endpoint.parse,
) -> tuple[Endpoint, ...]:
    """Returns the endpoints of a role without repetitions; an empty tuple for None.

    Args:
        role: The role.
        source: The endpoints.
        origin: Where texts come from.
        parse: Reads one text: role, text and origin -> endpoint.

    Raises:
        InvalidArgument: ENDPOINT_INVALID, a text is no endpoint, or an endpoint belongs to another role;
            ROLE_INVALID.
    """
    checked_role(role)
    parts = [source] if isinstance(source, (str, Endpoint)) else list(source or ())
    found: dict[str, Endpoint] = {}
    for part in parts:
        if isinstance(part, Endpoint):
            if part.role != role:
                raise InvalidArgument(
                    f"{role}: expected an endpoint with the role {role}, got one with the role {part.role}",
                    field=role,
                    reason="ENDPOINT_INVALID",
                )
            found.setdefault(part.address, part)
            continue
        for text in _parts(part):
            endpoint = parse(role, text, origin)
            found.setdefault(endpoint.address, endpoint)
    return tuple(found.values())


def _parts(text: str) -> list[str]:
    """Returns the parts of a text with commas; the text itself if there are none."""
    return [part.strip() for part in text.split(",") if part.strip()] or [text]


def _is_grpc_target(text: str) -> bool:
    scheme = next((scheme for scheme in _GRPC_SCHEMES if text.startswith(scheme)), None)
    if scheme is None or not text.isascii() or not text.isprintable():
        return False
    place = text.removeprefix(scheme)
    if scheme in ("ipv4:", "ipv6:"):
        found = _split(place)
        return found is not None and _is_ipv6(found[0].strip("[]")) == (scheme == "ipv6:") and _is_address(found[0])
    if scheme == "dns:" and place.startswith("//"):
        place = place[2:].partition("/")[2]  # after the name server, which may be left out
    return bool(place)


def _split(text: str) -> tuple[str, int | None] | None:
    """Returns the host, an IPv6 address in brackets, and the port if there is one; None for a text that is neither."""
    if _is_ipv6(text):
        return f"[{text}]", None
    found = _TCP.fullmatch(text)
    if found is None or not text.isprintable() or (found["v6"] is not None and not _is_ipv6(found["v6"])):
        return None
    if found["host"] is not None and not all(found["host"].removesuffix(".").split(".")):
        return None  # a name with an empty part
    port = None if found["port"] is None else int(found["port"])
    if port is not None and not 0 < port <= _MAX_PORT:
        return None
    return found["host"] or f"[{found['v6']}]", port


def _is_ipv6(text: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Returns whether a host name or address, without brackets, means the machine itself."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return False


def _invalid(role: str, text: str) -> InvalidArgument:
    host, _, port = text.rpartition(":")
    is_range = bool(host) and port.isdecimal() and not 0 < int(port[:6]) <= _MAX_PORT
    remedy = f"; a port is 1 to {_MAX_PORT}" if is_range else ""
    return InvalidArgument(
        f"{role}: expected an endpoint such as macbook.local or 127.0.0.1:{DEFAULT_PORTS[role]}, got {text!r}{remedy}",
        field=role,
        reason="ENDPOINT_INVALID",
    )
