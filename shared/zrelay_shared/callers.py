"""Callers: who makes a call, and what they may do.

A caller is identified by `service/authentication.py`, or by its network address where the service authenticates no one.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

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
        connection: How the call reaches the server.
    """

    name: str
    permissions: frozenset[Permission]
    connection: Connection = field(default=Connection(), compare=False)

    @property
    def administers(self) -> bool:
        """Whether the caller may see and change what belongs to others."""
        return Permission.ADMINISTER in self.permissions


Identify: TypeAlias = Callable[[str, _Context], Caller]
"""Full name of a method, without the first slash, and the call's context -> the caller, if it may call the method.

Raises:
    Unauthenticated: The caller is unknown.
    PermissionDenied: The caller may not call the method.
"""

NOBODY = Caller("", ALL)
"""The caller of work that belongs to no call."""
_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def by_address(method: str, context: _Context) -> Caller:
    """Returns a caller with every permission, identified by its address without the port."""
    return Caller(address_of(context), ALL)


def address_of(context: _Context) -> str:
    """Returns the network address of a caller, without the port."""
    peer = str(context.peer())
    return peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer


def current_caller() -> Caller:
    """Returns the caller of the call that the running task serves, `NOBODY` outside of a call."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Sets the caller for the running task and those that it starts."""
    _current.set(caller)
