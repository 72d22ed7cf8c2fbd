"""Pairing on the machine that joins: it verifies the other machine before it sends anything, then gets a certificate.

First it fetches the certificate of the pairing port, which takes a TLS handshake and sends nothing of its own. A long
code names that certificate. A short code is checked by an exchange to which the certificate is bound. Every further
connection accepts that certificate and no other.
"""

import asyncio
import hmac
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import NoReturn

import grpc
import grpc.aio

from zrelay.v1 import pairing_pb2 as pb
from zrelay_shared.errors import FailedPrecondition, Unauthenticated, Unavailable, invalid_from
from zrelay_shared.limits import DEFAULT_PORTS, PAIRING_MESSAGE_BYTES
from zrelay_shared.rpc import Stub
from zrelay_shared.security import certificates
from zrelay_shared.security.certificates import CertificateInvalid
from zrelay_shared.security.key_exchange import Exchange, ShareInvalid
from zrelay_shared.security.pairing_code import SERVER_NAME, PairingCode
from zrelay_shared.security.permissions import Permission
from zrelay_shared.texts import one_line

_SERVICE = pb.DESCRIPTOR.services_by_name["PairingService"]
TIMEOUT_S = 10.0
"""Seconds for each step: the handshake, and each call."""
CLOCK_S = 240.0
"""Seconds by which two clocks may differ. Certificates are valid from five minutes before they are issued."""
_ENDPOINT = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?):([0-9]{1,5})")
_WHERE = "`zrelay pair` on that machine; a code is valid for ten minutes and for one machine"


@dataclass(frozen=True, slots=True)
class Membership:
    """What a machine has received by joining.

    Attributes:
        box: Name of the machine that it joined.
        name: Its own name there.
        authority: Certificate of the box's authority, PEM.
        certificate: Its own certificate, PEM.
        key: Its private key, PEM. It was made here and never sent.
        permissions: What the certificate allows.
        services: Role -> HOST:PORT.
        hosts: Names and addresses that the services' certificate is valid for.
        expires: When the certificate ends.
        clock_ahead_s: Seconds by which the clock here is ahead of the box's; negative if it is behind.
    """

    box: str
    name: str
    authority: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    permissions: frozenset[Permission]
    services: Mapping[str, str]
    hosts: tuple[str, ...]
    expires: datetime
    clock_ahead_s: float


def _now() -> datetime:
    return datetime.now(UTC)


async def join_with_code(
    code: PairingCode, name: str, clock: Callable[[], datetime] = _now, timeout_s: float = TIMEOUT_S
) -> Membership:
    """Joins with a long code.

    Args:
        code: The code.
        name: The name of this machine.
        clock: The present time, in UTC.
        timeout_s: Seconds for each step.

    Raises:
        ZrelayError: Another machine answers, the code is wrong or no longer valid, or the answer is invalid.
    """
    _checked_name(name)
    where = _place(code.host, code.port)
    certificate = await _certificate_at(code.host, code.port, timeout_s)
    if not code.matches(sha256(certificate).digest()):
        raise Unauthenticated(
            f"another machine answers at {where} than the one that printed the code: its certificate has another "
            f"fingerprint. Nothing was sent to it. Copy the code again, or start again with {_WHERE}",
            reason="PAIRING_CERTIFICATE",
        )
    async with _channel(where, certificate) as channel:
        stub = Stub(channel, _SERVICE, where)
        return await _join(stub, where, pb.JoinRequest(secret=code.secret), name, clock, timeout_s)


async def join_with_digits(
    host: str,
    port: int,
    digits: str,
    name: str,
    clock: Callable[[], datetime] = _now,
    timeout_s: float = TIMEOUT_S,
) -> Membership:
    """Joins with a short code.

    Args:
        host, port: The pairing port.
        digits: The eight digits.
        name: The name of this machine.
        clock: The present time, in UTC.
        timeout_s: Seconds for each step.

    Raises:
        ZrelayError: As `join_with_code`.
    """
    _checked_name(name)
    where = _place(host, port)
    certificate = await _certificate_at(host, port, timeout_s)
    async with _channel(where, certificate) as channel:
        stub = Stub(channel, _SERVICE, where)
        exchange = Exchange(digits, sha256(certificate).digest(), joins=True)
        begin = pb.BeginExchangeRequest(share=exchange.share)
        begun = (await stub.call("BeginExchange", begin, pb.BeginExchangeResponse, timeout=timeout_s)).message
        try:
            key = exchange.finish(begun.share)
        except ShareInvalid as error:
            raise _invalid_answer(where, f"no message of the exchange ({error})") from error
        confirm = pb.ConfirmExchangeRequest(exchange_id=begun.exchange_id, proof=key.joiner)
        confirmed = (await stub.call("ConfirmExchange", confirm, pb.ConfirmExchangeResponse, timeout=timeout_s)).message
        if not hmac.compare_digest(key.server, confirmed.proof):
            raise Unauthenticated(
                f"the machine at {where} does not know the digits: they are wrong, or another machine stands between. "
                f"Nothing was sent to it. Compare the digits, or start again with {_WHERE}",
                reason="PAIRING_CODE_WRONG",
            )
        proved = pb.ConfirmedExchange(exchange_id=begun.exchange_id, proof=key.join)
        return await _join(stub, where, pb.JoinRequest(exchange=proved), name, clock, timeout_s)


async def _join(
    stub: Stub, where: str, request: pb.JoinRequest, name: str, clock: Callable[[], datetime], timeout_s: float
) -> Membership:
    key = certificates.new_key()
    request.name, request.signing_request = name, certificates.new_request(key, name)
    answer = (await stub.call("Join", request, pb.JoinResponse, timeout=timeout_s)).message
    return _checked(answer, where, name, key, clock())


def _checked(answer: pb.JoinResponse, where: str, name: str, key: bytes, now: datetime) -> Membership:
    """Returns the content of an answer. A box can be hostile, too; what it sends is written to files here."""
    try:
        authority = certificates.canonical(answer.authority)
        certificate = certificates.canonical(answer.certificate)
        found = certificates.describe(certificate)
        _expect(certificates.is_authority(authority), "an authority that is none")
        _expect(certificates.is_issued_by(certificate, authority), "a certificate of another authority")
        _expect(certificates.belong_together(certificate, key), "a certificate for another key")
        _expect(found.name == name, "a certificate for another name")
        box = certificates.checked_name(answer.box)
        permissions = frozenset(Permission(each) for each in answer.permissions)
        services = {each.role: _checked_endpoint(each.role, each.endpoint) for each in answer.services}
        hosts = tuple(certificates.checked_server_name(each) for each in answer.hosts)
        there = answer.time.ToDatetime(UTC)
        _expect(
            found.not_before <= there < found.not_after - timedelta(days=1),
            "a certificate that is valid at other times",
        )
    except Exception as error:  # whatever the parser of certificates makes of bytes that are made to do harm
        raise _invalid_answer(where, one_line(str(error))[:200]) from error
    return Membership(
        box=box,
        name=name,
        authority=authority,
        certificate=certificate,
        key=key,
        permissions=permissions,
        services=services,
        hosts=hosts,
        expires=found.not_after,
        clock_ahead_s=(now - there).total_seconds(),
    )


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise CertificateInvalid(f"it sent {otherwise}")


def _checked_endpoint(role: str, endpoint: str) -> str:
    found = _ENDPOINT.fullmatch(endpoint)
    _expect(role in DEFAULT_PORTS, "a service that zrelay does not have")
    _expect(found is not None and 0 < int(found[1]) <= 0xFFFF, "an endpoint that is not HOST:PORT")
    return endpoint


def _invalid_answer(where: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"the machine at {where} gave an invalid answer, and nothing was written: {why}; check that both machines have "
        "the same version of zrelay (`zrelay --version`), and whose machine it is",
        reason="PAIRING_ANSWER_INVALID",
    )


def _checked_name(name: str) -> None:
    try:
        certificates.checked_name(name)
    except CertificateInvalid as error:
        raise invalid_from("name", error, reason="NAME_INVALID") from error


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _channel(where: str, certificate: bytes) -> grpc.aio.Channel:
    """Returns a channel that accepts one certificate."""
    pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
    return grpc.aio.secure_channel(
        where,
        grpc.ssl_channel_credentials(root_certificates=pem),
        options=[
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.max_receive_message_length", PAIRING_MESSAGE_BYTES),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),  # a second Join would be refused, the code having been used
        ],
    )


async def _certificate_at(host: str, port: int, timeout_s: float) -> bytes:
    """Returns the certificate (DER) that a server shows in its TLS handshake. It is not verified; nothing is sent.

    Raises:
        Unavailable: No TLS server answers.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=SERVER_NAME)
    except (OSError, UnicodeError) as error:  # TimeoutError and SSLError, too; UnicodeError: the host is no name
        _unreachable(_place(host, port), error, timeout_s)
    try:
        found: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    if not found:
        raise Unavailable(
            f"{_place(host, port)} shows no certificate: is it the port of `zrelay pair`?", reason="PAIRING_UNREACHABLE"
        )
    return found


def _unreachable(where: str, error: Exception, timeout_s: float) -> NoReturn:
    if isinstance(error, ConnectionRefusedError):
        why = f"no pairing is open at {where}: run {_WHERE}"
    elif isinstance(error, TimeoutError):
        why = (
            f"{where} did not answer within {timeout_s:g} s: is the machine awake and in this network, and does its "
            "firewall admit the port? `zrelay pair --port` and `--address` choose others"
        )
    elif isinstance(error, socket.gaierror | UnicodeError):
        why = f"the name in {where} does not resolve: run `zrelay pair --address` with an IP address"
    elif isinstance(error, ssl.SSLError):
        why = f"{where} does not speak TLS as `zrelay pair` does: is it its port?"
    elif isinstance(error, ConnectionError):
        why = f"{where} closes the connection: it is no port of `zrelay pair`, or has too many connections; try again"
    else:
        why = f"cannot reach {where}: {error.strerror if isinstance(error, OSError) else error}"
    raise Unavailable(why, reason="PAIRING_UNREACHABLE") from error
