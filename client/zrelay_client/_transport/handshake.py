"""Finds out why a connection fails, where TLS or its absence is the reason.

gRPC reports every failed handshake as UNAVAILABLE. These functions repeat the handshake on a second connection, send
nothing else, and name the certificate or the setting at fault.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc

from zrelay_shared.errors import Unauthenticated, Unavailable, ZrelayError

if TYPE_CHECKING:
    from zrelay_client._transport.credentials import TlsOptions
    from zrelay_client._transport.endpoint import Endpoint

DIAGNOSIS_S = 3.0
"""Longest time of each connection of a diagnosis."""
EVERY_S = 10.0
"""A channel that keeps failing is examined again after this long."""
_PLAINTEXT = {
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "RECORD_LAYER_FAILURE",
    "PACKET_LENGTH_TOO_LONG",
    "UNEXPECTED_MESSAGE",
    "UNKNOWN_PROTOCOL",
}
"""OpenSSL's reasons for an answer that is not TLS."""
_NOT_YET_VALID, _EXPIRED, _WRONG_NAMES = 9, 10, (62, 64)
"""X509_V_ERR_CERT_NOT_YET_VALID, _HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH of OpenSSL."""
_CLOCKS = "correct the clocks of both machines (`date -u`)"
_JOIN = "run `zrelay pair` there and `zrelay join CODE` here"


class ChannelDiagnosis:
    """Explains the failures of one channel. Calls that fail together share one diagnosis."""

    def __init__(self, endpoint: "Endpoint", *, every_s: float = EVERY_S) -> None:
        self._endpoint, self._every_s = endpoint, every_s
        self._begun = 0.0
        self._running: asyncio.Task[ZrelayError | None] | None = None

    async def explained(self, error: ZrelayError) -> ZrelayError:
        """Returns the reason of a failed call: an error of TLS, or the given one."""
        if not isinstance(error, Unavailable) or "grpc" not in error.metadata:
            return error  # the service answers
        now = time.monotonic()
        if self._running is None or (self._running.done() and now - self._begun > self._every_s):
            self._begun = now
            self._running = asyncio.create_task(diagnose(self._endpoint))
        return await asyncio.shield(self._running) or error


async def diagnose(
    endpoint: "Endpoint", *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> ZrelayError | None:
    """Returns why TLS fails with an endpoint, None where it works or there is another reason.

    Args:
        endpoint: The endpoint.
        now: The present time, in UTC.
    """
    place = endpoint.host_and_port
    if place is None:
        return None
    try:
        found = await asyncio.to_thread(_examine, *place, endpoint.tls)
    except OSError:  # the port does not answer, or not as a server of TLS or gRPC does
        return None
    where = f"the {endpoint.role} service at {endpoint}"
    if found.problem == "":
        return None
    if found.problem == "certificate_needed":
        return await _refused_certificate(endpoint, where, now())
    return _error(endpoint, where, found)


@dataclass(frozen=True, slots=True)
class _Found:
    """What a handshake shows.

    Attributes:
        problem: "" for none, else a key of `_error`, or "certificate_needed".
        certificate: The server's certificate as PEM, b"" if it is unknown.
        words: OpenSSL's words.
    """

    problem: str
    certificate: bytes = b""
    words: str = ""


def _examine(host: str, port: int, tls: "TlsOptions | None") -> _Found:
    """Makes a handshake without a client certificate. Raises OSError."""
    try:
        ended = _handshake(host, port, _context(tls))[1]
    except ssl.SSLCertVerificationError as error:
        certificate, _ = _handshake(host, port, _context(None))
        problem = {_NOT_YET_VALID: "not_yet_valid", _EXPIRED: "expired"}.get(error.verify_code, "authority")
        problem = "name" if error.verify_code in _WRONG_NAMES else problem
        return _Found(problem, certificate, error.verify_message)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if tls is None:
            return _Found("tls_required" if "ALERT" in reason else "")
        if reason in _PLAINTEXT:
            return _Found("tls_not_offered")
        return _Found("certificate_needed" if "ALERT" in reason else "")
    if tls is None:
        return _Found("tls_required")
    return _Found("certificate_needed" if ended else "")


def _context(tls: "TlsOptions | None") -> ssl.SSLContext:
    """Returns a context that verifies as the channel does; one that verifies nothing, for an endpoint without TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    if tls is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    authority = tls.read()[0]
    if authority is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=authority.decode("ascii", "replace"))
    return context


def _handshake(host: str, port: int, context: ssl.SSLContext) -> tuple[bytes, bool]:
    """Returns the server's certificate, and whether the server then ends the connection: it misses a certificate."""
    with (
        socket.create_connection((host, port), DIAGNOSIS_S) as raw,
        context.wrap_socket(raw, server_hostname=host) as secured,
    ):
        binary = secured.getpeercert(binary_form=True)
        certificate = b"" if binary is None else ssl.DER_cert_to_PEM_cert(binary).encode()
        try:
            return certificate, secured.recv(1) == b""  # a server of gRPC begins with its settings
        except TimeoutError:
            return certificate, False
        except ConnectionError:
            return certificate, True


async def _refused_certificate(endpoint: "Endpoint", where: str, now: datetime) -> ZrelayError | None:
    """Returns why the server does not accept our certificate, None if it does."""
    from zrelay_shared.security.certificates import CertificateInvalid, describe  # only where a connection fails

    own = None if endpoint.tls is None else endpoint.tls.read()[2]
    if own is None:
        return _refusal(
            endpoint,
            "CERTIFICATE_MISSING",
            f"{where} wants a client certificate, and this client has none for it",
            f"{_JOIN}, or pass --tls-certificate FILE and --tls-key FILE",
        )
    try:
        found = describe(own)
    except CertificateInvalid as error:
        return _refusal(
            endpoint, "CERTIFICATE_REFUSED", f"the client certificate for {where} cannot be used ({error})", _JOIN
        )
    if now > found.not_after:
        problem = f"the client certificate {found.name} for {where} expired on {found.not_after:%Y-%m-%d %H:%M} UTC"
        return _refusal(endpoint, "CERTIFICATE_EXPIRED", problem, _JOIN)
    if now < found.not_before:
        problem = (
            f"the client certificate {found.name} for {where} is valid from {found.not_before:%Y-%m-%d %H:%M} UTC, and "
            f"this machine's clock shows {now:%Y-%m-%d %H:%M} UTC"
        )
        return _refusal(endpoint, "CERTIFICATE_NOT_YET_VALID", problem, _CLOCKS)
    if await _connects(endpoint):
        return None
    problem = (
        f"{where} refuses the client certificate {found.name}; another authority has issued it, or the clock there is "
        "wrong"
    )
    return _refusal(endpoint, "CERTIFICATE_REFUSED", problem, f"{_JOIN}, and compare the clocks (`date -u`)")


async def _connects(endpoint: "Endpoint") -> bool:
    """Returns whether a new channel connects now."""
    channel = endpoint.channel()

    async def settled() -> bool:
        state = channel.get_state(try_to_connect=True)
        while state not in (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE):
            await channel.wait_for_state_change(state)
            state = channel.get_state()
        return state is grpc.ChannelConnectivity.READY

    try:
        return await asyncio.wait_for(settled(), DIAGNOSIS_S)
    except TimeoutError:
        return False
    finally:
        await channel.close()


def _error(endpoint: "Endpoint", where: str, found: _Found) -> ZrelayError | None:
    from zrelay_shared.security.certificates import CertificateInvalid, describe  # only where a connection fails

    if found.problem == "tls_required":
        given = f" with the endpoint tls:{endpoint}" if endpoint.is_local else ""
        return _refusal(
            endpoint,
            "TLS_REQUIRED",
            f"{where} wants TLS, and this client connects without",
            f"{_JOIN}, or pass --tls-authority FILE{given}",
        )
    if found.problem == "tls_not_offered":
        return _refusal(
            endpoint,
            "TLS_NOT_OFFERED",
            f"{where} answers without TLS, and this client wants it",
            "check the port; run `zrelay pair` there and start the service again, or leave out --tls-authority if the "
            "service is open on purpose (--insecure-listen)",
        )
    try:
        server = describe(found.certificate)
    except CertificateInvalid:
        return None
    if found.problem == "expired":
        return _refusal(
            endpoint,
            "CERTIFICATE_EXPIRED",
            f"the certificate of {where} expired on {server.not_after:%Y-%m-%d %H:%M} UTC",
            "run `zrelay pair --renew` there (or issue a new one, if it is not from `zrelay pair`), and check the "
            "clock of this machine (`date -u`)",
        )
    if found.problem == "not_yet_valid":
        problem = (
            f"the certificate of {where} is valid from {server.not_before:%Y-%m-%d %H:%M} UTC, which is in the future "
            "for this machine"
        )
        return _refusal(endpoint, "CERTIFICATE_NOT_YET_VALID", problem, _CLOCKS)
    if found.problem == "name":
        names = ", ".join(server.server_names[:20]) or "no name"
        return _refusal(
            endpoint,
            "SERVER_NAME_MISMATCH",
            f"the certificate of {where} is valid for {names}, not for the name that this client uses",
            "use one of these names, or run `zrelay pair` there again with this one",
        )
    return _refusal(
        endpoint,
        "AUTHORITY_UNKNOWN",
        f"the certificate of {where} is not from the authority that this client trusts ({found.words}); perhaps "
        "another machine answers in its place",
        f"if that machine was set up again, {_JOIN}",
    )


def _refusal(endpoint: "Endpoint", reason: str, problem: str, remedy: str) -> Unauthenticated:
    metadata = {"service": endpoint.role, "endpoint": endpoint.address, "remedy": remedy}
    return Unauthenticated(f"{problem}: {remedy}", reason=reason, metadata=metadata)
