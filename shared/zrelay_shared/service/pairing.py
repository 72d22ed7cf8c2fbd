"""Pairing on the serving machine: one certificate for one machine that knows the code, within ten minutes.

`joining` in `zrelay_shared.security` is the other side.
"""

import asyncio
import hmac
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import grpc

from zrelay.v1 import pairing_pb2 as pb
from zrelay_shared import rpc
from zrelay_shared.calls import CallLimits, OpenCalls
from zrelay_shared.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Unauthenticated,
    Unavailable,
    ZrelayError,
    invalid,
    invalid_from,
)
from zrelay_shared.limits import PAIRING_MESSAGE_BYTES
from zrelay_shared.security import certificates, pairing_code
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.key_exchange import Exchange, ExchangeKey, ShareInvalid
from zrelay_shared.security.pairing_code import PairingCode
from zrelay_shared.security.permissions import CALLER, Permission
from zrelay_shared.service.grpc_server import make_server
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.wire import Parcel

SERVICE = pb.DESCRIPTOR.services_by_name["PairingService"]
LIFETIME_S = 600.0
"""Seconds for which a code is valid."""
MAX_ATTEMPTS = 5
"""Wrong attempts after which a code is revoked."""
MAX_CONNECTIONS = 16
"""Connections of the pairing port."""
MAX_EXCHANGES = 8
"""Exchanges of a short code that are not finished; the oldest is dropped."""
CONNECTION_S = 30
"""Seconds after which the pairing port ends a connection."""
_HANDSHAKE_S = 5.0
_LIMITS = CallLimits(calls=16, receive_s=10.0, prompt_receive_s=2.0, slow_requests=8, send_s=10.0, slow_bytes=1 << 20)
_STOP_S = 5.0
_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class PairingOptions:
    """How a machine is paired.

    Attributes:
        box: Name of this machine.
        host: Host name or IP address by which the other machine reaches it.
        services: Role -> HOST:PORT of the services that the other machine is told.
        listen: Where the pairing port is bound; port 0 takes a free one.
        permissions: What the issued certificate allows.
        short: Whether the code is eight digits.
        member: Name of the member whose certificate is replaced; "" if a new member joins.
        lifetime_s: Seconds for which the code is valid.
        attempts: Wrong attempts after which it is revoked.
        clock: Seconds that pass, for `lifetime_s`.
    """

    box: str
    host: str
    services: Mapping[str, str]
    listen: ListenAddress
    permissions: frozenset[Permission] = CALLER
    short: bool = False
    member: str = ""
    lifetime_s: float = LIFETIME_S
    attempts: int = MAX_ATTEMPTS
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True, slots=True)
class NewMember:
    """A machine that has joined.

    Attributes:
        name: Its name.
        peer: Its network address.
        expires: When its certificate ends, ISO 8601 in UTC.
    """

    name: str
    peer: str
    expires: str


class PairingSession:
    """The pairing port and its code. `start` opens it; `wait` returns the machine that joined; `stop` closes it."""

    def __init__(self, installation: Installation, options: PairingOptions) -> None:
        """Prepares the session.

        Args:
            installation: The prepared installation, whose authority issues the certificate.
            options: How.
        """
        self._installation, self._options = installation, options
        self._certificate, key = certificates.self_signed(pairing_code.SERVER_NAME)
        self._fingerprint = sha256(ssl.PEM_cert_to_DER_cert(self._certificate.decode())).digest()
        self._digits = pairing_code.new_short() if options.short else ""
        self._secret = b"" if options.short else pairing_code.new_secret()
        self._ends = options.clock() + options.lifetime_s
        self._attempts = options.attempts
        self._exchanges: OrderedDict[bytes, _OpenExchange] = OrderedDict()
        self._ended = asyncio.Event()
        self._joined: NewMember | None = None
        self._server = make_server(
            max_connections=MAX_CONNECTIONS,
            max_streams=_LIMITS.calls,
            max_request_bytes=PAIRING_MESSAGE_BYTES,
            handshake_s=_HANDSHAKE_S,
            further_options=[
                ("grpc.max_send_message_length", PAIRING_MESSAGE_BYTES),
                ("grpc.max_connection_age_ms", CONNECTION_S * 1000),
                ("grpc.max_connection_age_grace_ms", int(_STOP_S * 1000)),
            ],
        )
        rpc.add_service(self._server, SERVICE, _PairingServicer(self), calls=OpenCalls(_LIMITS))
        self._credentials = grpc.ssl_server_credentials([(key, self._certificate)])
        self.port = options.listen.port

    @property
    def code(self) -> str:
        """The code, once the session has started: a long one, or eight digits in two groups."""
        if self._options.short:
            return f"{self._digits[:4]} {self._digits[4:]}"
        return str(PairingCode(self._options.host, self.port, self._fingerprint[:16], self._secret))

    @property
    def left_s(self) -> float:
        """Seconds for which the code is still valid."""
        return max(0.0, self._ends - self._options.clock())

    @property
    def attempts_left(self) -> int:
        """Wrong attempts that are still possible; the last one revokes the code."""
        return self._attempts

    async def start(self) -> None:
        """Opens the port.

        Raises:
            Unavailable: LISTEN_FAILED, the port cannot be bound.
        """
        try:
            self.port = int(self._server.add_secure_port(str(self._options.listen), self._credentials))
        except RuntimeError as error:
            await self._server.start()  # gRPC frees only a server that was started and stopped without faults
            await self._server.stop(None)
            raise Unavailable(
                f"cannot listen on {self._options.listen} for the pairing: the port is taken; choose another with "
                "--port, or end the other `zrelay pair`",
                reason="LISTEN_FAILED",
            ) from error
        await self._server.start()

    async def wait(self) -> NewMember:
        """Returns the machine that has joined.

        Raises:
            DeadlineExceeded: PAIRING_EXPIRED, none has within the time.
            FailedPrecondition: PAIRING_ENDED, there were too many wrong attempts.
        """
        while self._joined is None:
            self.check_open()
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._ended.wait()
            except TimeoutError:
                continue
        return self._joined

    async def stop(self) -> None:
        """Closes the port. An answer that is being sent has a few seconds."""
        await self._server.stop(_STOP_S)

    def check_open(self) -> None:
        """Checks that the code is valid.

        Raises:
            DeadlineExceeded: PAIRING_EXPIRED.
            FailedPrecondition: PAIRING_ENDED, it was used or revoked.
        """
        if self._joined is not None:
            raise FailedPrecondition(
                "this code was used: it admits one machine. If that was not yours, revoke it: `zrelay pair --list` and "
                "`zrelay pair --revoke NAME`; then run `zrelay pair` again",
                reason="PAIRING_ENDED",
            )
        if self._attempts <= 0:
            raise FailedPrecondition(
                f"this code is revoked after {self._options.attempts} wrong attempts: run `zrelay pair` again",
                reason="PAIRING_ENDED",
            )
        if self.left_s <= 0:
            raise DeadlineExceeded(
                f"this code has expired: it was valid for {self._options.lifetime_s / 60:g} minutes; run `zrelay pair` "
                "again",
                reason="PAIRING_EXPIRED",
                metadata={"stage": "pairing"},
            )

    def begin(self, share: bytes) -> tuple[bytes, bytes]:
        """Begins an exchange of the short code. Returns its id and this side's share.

        Raises:
            ZrelayError: The code is not valid, or is no short one; or the share is invalid.
        """
        self.check_open()
        if not self._options.short:
            raise FailedPrecondition(
                "this pairing has a long code, which begins with zr1: pass it to `zrelay join`", reason="PAIRING_KIND"
            )
        exchange = Exchange(self._digits, self._fingerprint, joins=False)
        try:
            key = exchange.finish(share)
        except ShareInvalid as error:
            raise invalid_from("share", error, reason="SHARE_INVALID") from error
        exchange_id = pairing_code.new_exchange_id()
        self._exchanges[exchange_id] = _OpenExchange(key)
        while len(self._exchanges) > MAX_EXCHANGES:
            self._exchanges.popitem(last=False)
        return exchange_id, exchange.share

    def confirm(self, exchange_id: bytes, proof: bytes) -> bytes:
        """Checks the proof of the joining machine, and returns that of this side.

        Raises:
            ZrelayError: The code is not valid, or the proof is wrong.
        """
        self.check_open()
        exchange = self._exchanges.get(exchange_id)
        if exchange is None or exchange.confirmed:
            raise FailedPrecondition(
                "this exchange is unknown or was confirmed before: run `zrelay join` again", reason="PAIRING_EXCHANGE"
            )
        if not hmac.compare_digest(exchange.key.joiner, proof):
            del self._exchanges[exchange_id]
            raise self._wrong()
        exchange.confirmed = True
        return exchange.key.server

    def join(self, request: pb.JoinRequest, peer: str) -> bytes:
        """Issues the certificate, and ends the session. Nothing else runs meanwhile, so that one machine joins.

        Raises:
            ZrelayError: The code is not valid, or the credential, the name or the signing request is refused.
        """
        self.check_open()
        if not self._proves(request):
            raise self._wrong()
        name = _name(request.name)
        if self._options.member and name != self._options.member:
            raise invalid(
                "name",
                f"{self._options.member}, whose certificate this pairing replaces",
                name,
                remedy="pass it to `zrelay join --name`",
            )
        certificate = self._issue(request.signing_request, name)
        expires = certificates.describe(certificate).not_after.isoformat(timespec="seconds")
        self._joined = NewMember(name, peer, expires)
        self._exchanges.clear()
        self._ended.set()
        return certificate

    def answer(self, certificate: bytes) -> pb.JoinResponse:
        """Returns the answer to the machine that has joined."""
        options = self._options
        answer = pb.JoinResponse(
            box=options.box,
            authority=self._installation.authority_certificate,
            certificate=certificate,
            permissions=sorted(options.permissions),
            services=[pb.PairedService(role=role, endpoint=where) for role, where in options.services.items()],
            hosts=certificates.describe(self._installation.server_pair[1]).server_names,
        )
        answer.time.FromDatetime(self._installation.now)
        return answer

    def _issue(self, request: bytes, name: str) -> bytes:
        new = not self._options.member
        try:
            return self._installation.issue(request, name, self._options.permissions, only_new=new)
        except certificates.CertificateInvalid as error:
            raise invalid_from("signing_request", error, reason="SIGNING_REQUEST_INVALID") from error

    def _proves(self, request: pb.JoinRequest) -> bool:
        """Returns whether a request shows that its sender knows the code."""
        if not self._options.short:
            return hmac.compare_digest(self._secret, request.secret)
        exchange = self._exchanges.get(request.exchange.exchange_id)
        if exchange is None or not exchange.confirmed:
            return False
        return hmac.compare_digest(exchange.key.join, request.exchange.proof)

    def _wrong(self) -> ZrelayError:
        """Counts a wrong attempt, and returns its refusal."""
        self._attempts -= 1
        if self._attempts <= 0:
            self._exchanges.clear()
            self._ended.set()
        left = self._attempts
        rest = f"{left} more wrong attempts revoke it" if left else "it is revoked: run `zrelay pair` again"
        return Unauthenticated(
            f"the code is wrong, or another machine stands between: compare it with what `zrelay pair` shows; {rest}",
            reason="PAIRING_CODE_WRONG",
            metadata={"attempts_left": left},
        )


@dataclass(slots=True)
class _OpenExchange:
    """An exchange on its way, and whether the joining machine has proved that it knows the code."""

    key: ExchangeKey
    confirmed: bool = False


class _PairingServicer:
    """The PairingService of a session."""

    def __init__(self, session: PairingSession) -> None:
        self._session = session

    async def BeginExchange(self, parcel: Parcel[Any], context: rpc.Context) -> pb.BeginExchangeResponse:
        exchange_id, share = self._session.begin(parcel.message.share)
        return pb.BeginExchangeResponse(exchange_id=exchange_id, share=share)

    async def ConfirmExchange(self, parcel: Parcel[Any], context: rpc.Context) -> pb.ConfirmExchangeResponse:
        request = parcel.message
        return pb.ConfirmExchangeResponse(proof=self._session.confirm(request.exchange_id, request.proof))

    async def Join(self, parcel: Parcel[Any], context: rpc.Context) -> pb.JoinResponse:
        peer = str(context.peer()).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0]
        certificate = self._session.join(parcel.message, peer)
        return self._session.answer(certificate)


def _name(name: str) -> str:
    try:
        return certificates.checked_name(name)
    except certificates.CertificateInvalid as error:
        raise invalid_from("name", error, reason="NAME_INVALID") from error
