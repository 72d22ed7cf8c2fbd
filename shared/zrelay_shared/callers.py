"""Callers: who makes a call, and what they may do.

A caller is identified by `service/authentication.py`, or by its network address where the service authenticates no one.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from zrelay_shared.security.permissions import ALL, Permission

if TYPE_CHECKING:
    import grpc.aio

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call.

    Attributes:
        name: Identity, which shares and quotas are counted for: "member mac", "token ci", or a network address.
        permissions: What the caller may do.
        identified: Whether the name is an identity. A network address is none.
    """

    name: str
    permissions: frozenset[Permission]
    identified: bool = True

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
    peer = str(context.peer())
    address = peer.rpartition(":")[0] if peer.startswith(("ipv4:", "ipv6:")) else peer
    return Caller(address, ALL, identified=False)


def current_caller() -> Caller:
    """Returns the caller of the call that the running task serves, `NOBODY` outside of a call."""
    return _current.get()


def set_current_caller(caller: Caller) -> None:
    """Sets the caller for the running task and those that it starts."""
    _current.set(caller)
