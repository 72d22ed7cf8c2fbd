"""Identifies the caller of a call, by its certificate or its token, and refuses what it may not call."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from zrelay_shared.callers import Caller, Connection, PortKind, by_address
from zrelay_shared.errors import PermissionDenied, Unauthenticated, Unavailable, ZrelayError
from zrelay_shared.security.permissions import ALL, Permission, may_call, needed

if TYPE_CHECKING:
    from pathlib import Path

    import grpc.aio

    from zrelay_shared.security.certificates import CertificateInfo
    from zrelay_shared.security.installation import Installation
    from zrelay_shared.service.tls import ServerCertificate

log = logging.getLogger(__name__)
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
K = TypeVar("K")
CACHE_S = 1.0
"""Seconds for which a caller that was identified is not looked up again. A revocation counts from then on."""
_CACHED_CALLERS = 1024
_SCHEME = "bearer "
_PAIR_AGAIN = "pair the machines again: `zrelay pair` on the machine of the service, `zrelay join CODE` on this one"


def _renew(name: str) -> str:
    """Returns what admits a member again under its name."""
    return f"run `zrelay pair --renew {name}` on the machine of the service, and `zrelay join CODE` on this one"


def _grant(caller: str) -> str:
    """Returns what gives a caller further permissions."""
    kind, _, name = caller.partition(" ")
    if kind == "token":
        return f"`zrelay pair --token {name} --permissions LIST` makes a token that has it"
    return (
        f"`zrelay pair --renew {name} --permissions LIST` makes a code for a certificate that has it, and "
        "--tls-permissions gives it to certificates of another authority"
    )


@dataclass(frozen=True, slots=True)
class CredentialOwner:
    """Whom a certificate or token belongs to.

    Attributes:
        name: Name of the caller, for example "member mac".
        permissions: What the caller may do.
        ends: When the certificate or token ends, None for never.
    """

    name: str
    permissions: frozenset[Permission]
    ends: datetime | None


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """The certificate of a service, and who its callers are.

    Attributes:
        certificate: The certificate that its ports show.
        member: Finds the owner of a client certificate, which TLS has verified. Raises Unauthenticated.
        token: Finds the owner of a bearer token. Raises Unauthenticated.
        clock: The present time, in UTC.
    """

    certificate: "ServerCertificate"
    member: "Callable[[CertificateInfo], CredentialOwner]"
    token: Callable[[str], CredentialOwner]
    clock: Callable[[], datetime]


def installed(folder: "Path", tokens: "Path | None", clock: Callable[[], datetime]) -> ServerSecurity:
    """Returns the security of a machine that `zrelay pair` has prepared.

    Args:
        folder: The security folder.
        tokens: File with the records of tokens, None for the folder's own.
        clock: The present time, in UTC.

    Raises:
        FailedPrecondition: CERTIFICATE_UNUSABLE.
    """
    from zrelay_shared.security.installation import Installation  # with cryptography, which plaintext does not need
    from zrelay_shared.service.tls import ServerCertificate, TlsFiles

    files = TlsFiles(
        folder / "server.pem",
        folder / "server.key",
        folder / "authority.pem",
        "run `zrelay pair --renew` on this machine, as the user of the services",
    )
    certificate = ServerCertificate(files, clock)
    installation = Installation(folder, clock, tokens=tokens)

    def member(found: "CertificateInfo") -> CredentialOwner:
        if found.serial == certificate.info.serial:  # who can read its key owns the service
            return CredentialOwner("owner", ALL, found.not_after)
        record = installation.member_of(found.serial)
        if record is None:
            raise Unauthenticated(
                f"this service does not know the certificate of {found.name!r}; {_PAIR_AGAIN}",
                reason="CERTIFICATE_UNKNOWN",
            )
        if record.revoked:
            raise Unauthenticated(
                f"the certificate of {record.name!r} was revoked, or replaced by a newer one: if it was renewed, start "
                f"the client again; otherwise {_renew(record.name)}",
                reason="CERTIFICATE_REVOKED",
            )
        return CredentialOwner(f"member {record.name}", _permissions(record.permissions), found.not_after)

    return ServerSecurity(certificate, member, _token_owner(installation, clock), clock)


def given(
    certificate: "ServerCertificate",
    permissions: frozenset[Permission],
    installation: "Installation",
    clock: Callable[[], datetime],
) -> ServerSecurity:
    """Returns the security of a service whose certificates another authority issues, for example cert-manager.

    Args:
        certificate: The certificate of the service.
        permissions: What the owner of a client certificate of the authority may do.
        installation: The records of tokens.
        clock: The present time, in UTC.
    """
    from zrelay_shared.security.certificates import CertificateInvalid, checked_name

    def member(found: "CertificateInfo") -> CredentialOwner:
        try:
            name = checked_name(found.name)
        except CertificateInvalid as error:
            raise Unauthenticated(
                f"the common name of the certificate names the caller: {error}; issue a certificate with such a name",
                reason="CERTIFICATE_NAME_INVALID",
            ) from error
        return CredentialOwner(f"member {name}", permissions, found.not_after)

    return ServerSecurity(certificate, member, _token_owner(installation, clock), clock)


def _token_owner(installation: "Installation", clock: Callable[[], datetime]) -> Callable[[str], CredentialOwner]:
    def token(text: str) -> CredentialOwner:
        record = installation.token_of(text)
        if record is None:
            raise Unauthenticated(
                "this service does not know the token: make one with `zrelay pair --token NAME` on its machine",
                reason="TOKEN_INVALID",
            )
        ends = datetime.fromisoformat(record.expires) if record.expires else None
        if ends is not None and ends <= clock():
            raise Unauthenticated(
                f"the token of {record.name!r} has ended, because a newer one replaced it: use that one, or make one "
                f"with `zrelay pair --token {record.name}` on the machine of the service",
                reason="TOKEN_EXPIRED",
            )
        return CredentialOwner(f"token {record.name}", _permissions(record.permissions), ends)

    return token


class Authenticator:
    """Identifies the callers of a server, whose ports may be secured in different ways."""

    def __init__(
        self,
        plaintext: PortKind | None,
        security: ServerSecurity | None = None,
        tick: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts without callers.

        Args:
            plaintext: Kind of the plaintext port, None if there is none. Its callers have every permission.
            security: Who the callers of the other ports are, None if there are no others.
            tick: Seconds that pass, for the cache.
        """
        self._plaintext, self._security = plaintext, security
        self._by_certificate: _Cache[bytes] = _Cache(tick)
        self._by_token: _Cache[bytes] = _Cache(tick)
        self._trouble = ""

    def identify(self, method: str, context: _Context) -> Caller:
        """Returns the caller of a method; see `callers.Identify`."""
        caller = self._caller(method, context)
        if not may_call(caller.permissions, method):
            permission, has = needed(method), ", ".join(sorted(caller.permissions)) or "none"
            raise PermissionDenied(
                f"{method.rpartition('.')[2]} needs the permission {permission}, and {caller.name!r} has: {has}; on "
                f"the machine of the service, {_grant(caller.name)}",
                reason="PERMISSION_MISSING",
                metadata={"permission": permission},
            )
        return caller

    def _caller(self, method: str, context: _Context) -> Caller:
        security = self._security
        if security is None:
            return self._anyone(method, context)
        properties = context.auth_context()
        if certificate := next(iter(properties.get("x509_pem_cert", ())), b""):
            return self._by_certificate.get(certificate, lambda: self._member(security, certificate))
        if b"ssl" in properties.get("transport_security_type", ()):
            token = _bearer(context)
            key = sha256(token.encode("utf-8", "replace")).digest()  # so that no token stays in memory
            return self._by_token.get(key, lambda: self._token(security, token))
        return self._anyone(method, context)

    def _anyone(self, method: str, context: _Context) -> Caller:
        if self._plaintext is None:
            raise Unauthenticated("this port needs TLS: connect with a certificate or a token")
        return replace(by_address(method, context), connection=Connection(self._plaintext))

    def _member(self, security: ServerSecurity, pem: bytes) -> Caller:
        found = _described(pem)
        if found.not_after <= security.clock():  # it ended while the connection was open
            raise Unauthenticated(
                f"the certificate of {found.name!r} ended on {found.not_after:%Y-%m-%d}: {_renew(found.name)}; or "
                "issue a new one, if it is not from `zrelay pair`",
                reason="CERTIFICATE_EXPIRED",
            )
        return self._found(PortKind.CERTIFICATE, security, lambda: security.member(found))

    def _token(self, security: ServerSecurity, token: str) -> Caller:
        return self._found(PortKind.TOKEN, security, lambda: security.token(token))

    def _found(self, port: PortKind, security: ServerSecurity, find: Callable[[], CredentialOwner]) -> Caller:
        try:
            identity = find()
        except Unauthenticated:
            raise
        except (ZrelayError, OSError) as error:  # the security folder cannot be read: nobody is admitted
            if str(error) != self._trouble:
                self._trouble = str(error)
                log.error("nobody can be authenticated: %s", error)
            raise Unavailable(
                "this service cannot read who may call it: its log has the reason", reason="SECURITY_UNREADABLE"
            ) from error
        self._trouble = ""
        connection = Connection(port, identity.ends, security.certificate.info.not_after)
        return Caller(identity.name, identity.permissions, connection=connection)


class _Cache(Generic[K]):
    """Callers that were identified a moment ago. What is refused is looked up again."""

    def __init__(self, tick: Callable[[], float]) -> None:
        self._tick = tick
        self._found: OrderedDict[K, tuple[float, Caller]] = OrderedDict()

    def get(self, key: K, find: Callable[[], Caller]) -> Caller:
        """Returns the caller of a key; one that is not known, or not since a moment ago, is found with `find`."""
        now = self._tick()
        known = self._found.get(key)
        if known is not None and now - known[0] < CACHE_S:
            return known[1]
        self._found.pop(key, None)
        caller = find()
        self._found[key] = now, caller
        if len(self._found) > _CACHED_CALLERS:
            self._found.popitem(last=False)
        return caller


@lru_cache(maxsize=_CACHED_CALLERS)
def _described(pem: bytes) -> "CertificateInfo":
    from zrelay_shared.security import certificates

    return certificates.describe(pem)


def _bearer(context: _Context) -> str:
    """Returns the bearer token of a call. Raises Unauthenticated."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            if not text.lower().startswith(_SCHEME) or not text[len(_SCHEME) :].strip():
                raise Unauthenticated(
                    "authorization: expected `Bearer TOKEN`, got another scheme or no token", reason="TOKEN_INVALID"
                )
            return text[len(_SCHEME) :].strip()
    raise Unauthenticated(
        "this port needs a bearer token, and the call has none: pass --token-file FILE, or send the metadata "
        "`authorization: Bearer TOKEN`; `zrelay pair --token NAME` on the machine of the service makes one",
        reason="TOKEN_MISSING",
    )


def _permissions(names: tuple[str, ...]) -> frozenset[Permission]:
    return frozenset(Permission(name) for name in names)


def utc_now() -> datetime:
    """Returns the present time."""
    return datetime.now(UTC)
