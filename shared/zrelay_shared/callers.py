"""Callers: who makes a call, and what they may do.

A caller is identified by `service/authentication.py`, or by its network address where the service authenticates no one.
"""

import ipaddress
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

from zrelay_shared.security.permissions import ALL, Permission

if TYPE_CHECKING:
    import grpc.aio

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class PortKind(StrEnum):
    """How a port of a server is secured."""

    LOOPBACK = "loopback"
    """Plaintext; only this machine reaches it."""
    INSECURE = "insecure"
    """Plaintext; other machines reach it, because --insecure-listen allows that."""
    CERTIFICATE = "certificate"
    """TLS; callers show a certificate."""
    TOKEN = "token"
    """TLS; callers send a bearer token."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How a call reaches the server.

    Attributes:
        port: How the port is secured.
        credentials_end: When the caller's certificate or token ends, None for never.
        certificate_ends: When the server's certificate ends, None without TLS.
    """

    port: PortKind = PortKind.LOOPBACK
    credentials_end: datetime | None = None
    certificate_ends: datetime | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    Attributes:
        name: Identity, which shares and quotas are counted for: "member mac", "token ci", "owner", or a network
            address.
        permissions: What the caller may do.
        identified: Whether the name is an identity. A network address is none.
        connection: How the call reaches the server.
    """

    name: str
    permissions: frozenset[Permission]
    identified: bool = True
    connection: Connection = field(default=Connection(), compare=False)

    @property
    def administers(self) -> bool:
        """Whether the caller may see and change what belongs to others."""
        return Permission.ADMINISTER in self.permissions

    @property
    def owner(self) -> str:
        """Owner of the jobs and contents that the caller sends: its identity, or "" for every network address.

        A caller without an identity may come back from another address.
        """
        return self.name if self.identified else ""

    def may_see(self, owner: str) -> bool:
        """Whether the caller may see and change the jobs of an owner."""
        return self.administers or owner == self.owner


Identify: TypeAlias = Callable[[str, _Context], Caller]
"""Full name of a method, without the first slash, and the call's context -> the caller, if it may call the method.

Raises:
    Unauthenticated: The caller is unknown.
    PermissionDenied: The caller may not call the method.
"""

NOBODY = Caller("", ALL, identified=False)
"""The caller of work that belongs to no call."""
_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def by_address(method: str, context: _Context) -> Caller:
    """Returns a caller with every permission, identified by its address without the port."""
    return Caller(address_of(context), ALL, identified=False)


def address_of(context: _Context) -> str:
    """Returns the network address of a caller, without the port.

    A host usually has 2^64 IPv6 addresses of one network, which count as one caller.
    """
    peer = str(context.peer())
    if not peer.startswith(("ipv4:", "ipv6:")):
        return peer
    place = peer.rpartition(":")[0]
    try:
        address = ipaddress.IPv6Address(unquote(place.removeprefix("ipv6:")).strip("[]").partition("%")[0])
    except ValueError:
        return place
    if address.ipv4_mapped is not None:
        return f"ipv4:{address.ipv4_mapped}"
    if address.is_loopback or address.is_link_local:
        return f"ipv6:{address}"
    return f"ipv6:{ipaddress.ip_network((int(address) >> 64 << 64, 64))}"


def current_caller() -> Caller:
    """Returns the caller of the call that the running task serves, `NOBODY` outside of a call."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Sets the caller for the running task and those that it starts."""
    _current.set(caller)
