"""Endpoints: where a service is, and how the client opens a channel to it.

An endpoint is written as `HOST`, `HOST:PORT`, `[IPV6]:PORT` or a target of gRPC (`dns:...`, `unix:...`). Several
endpoints are separated by commas.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import DEFAULT_PORTS

if TYPE_CHECKING:
    import grpc.aio

_GRPC_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service that the client can connect to.

    Attributes:
        role: "encoder", "vision" or "generator".
        address: The target for gRPC, for example "127.0.0.1:7503".
        origin: Where the address comes from, for example "flag" or "zrelay up"; "" for an argument.
    """

    role: str
    address: str
    origin: str = ""

    @classmethod
    def parse(cls, role: str, text: str, origin: str = "") -> "Endpoint":
        """Reads one endpoint. Without a port it gets the default port of the role.

        Raises:
            InvalidArgument: ENDPOINT_INVALID, the text is no endpoint.
        """
        stripped = text.strip()
        if stripped.startswith(_GRPC_SCHEMES):
            return cls(role, stripped, origin)
        host, port = _split(stripped)
        if "/" in stripped or not host or not ((port.isdigit() and 0 < int(port) <= 65535) or port == ""):
            raise InvalidArgument(
                f"{role}: expected an endpoint such as macbook.local or 127.0.0.1:{DEFAULT_PORTS[role]}, got {text!r}",
                field=role,
                reason="ENDPOINT_INVALID",
            )
        return cls(role, f"{host}:{port or DEFAULT_PORTS[role]}", origin)

    @property
    def host_and_port(self) -> tuple[str, int] | None:
        """Host and port of a TCP address, None for another target of gRPC."""
        if self.address.startswith(_GRPC_SCHEMES):
            return None
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)

    def channel(self) -> "grpc.aio.Channel":
        """Returns a new channel to the service. It connects with the first call; close it when done."""
        from zrelay_shared.channels import dial  # gRPC is not needed to read a configuration

        return dial(self.address)

    def __str__(self) -> str:
        return self.address


EndpointSource: TypeAlias = str | Endpoint | Sequence[str | Endpoint] | None
"""Endpoints of one role as callers give them: text, with commas for several, or Endpoint, or a sequence of them."""


def parse_endpoints(role: str, source: EndpointSource, origin: str = "") -> tuple[Endpoint, ...]:
    """Returns the endpoints of a role without repetitions; an empty tuple for None.

    Raises:
        InvalidArgument: ENDPOINT_INVALID, a text is no endpoint, or an endpoint belongs to another role.
    """
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
            endpoint = Endpoint.parse(role, text, origin)
            found.setdefault(endpoint.address, endpoint)
    return tuple(found.values())


def _parts(text: str) -> list[str]:
    """Returns the parts of a text with commas; the text itself if there are none."""
    return [part.strip() for part in text.split(",") if part.strip()] or [text]


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, _, rest = text.partition("]")
        return f"{host}]", rest.removeprefix(":")
    if text.count(":") > 1:
        return f"[{text}]", ""
    host, _, port = text.partition(":")
    return host, port
