"""Pairing over real connections: what docs/explanation/pairing.md claims about attackers and hostile sides.

Both sides run in the test's process. An attacker is a relay between them, or calls the pairing port itself.
"""

import asyncio
import base64
import contextlib
import logging
import re
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.polling import until_async
from tests.helpers.refusals import refused_async
from zrelay.v1 import pairing_pb2 as pb
from zrelay_shared.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    MessageTooLarge,
    NotFound,
    Unauthenticated,
    Unavailable,
    ZrelayError,
)
from zrelay_shared.limits import PAIRING_MESSAGE_BYTES
from zrelay_shared.rpc import Stub
from zrelay_shared.security import certificates, joining, pairing_code
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.joining import Membership
from zrelay_shared.security.key_exchange import Exchange
from zrelay_shared.security.pairing_code import PairingCode
from zrelay_shared.security.permissions import CALLER, Permission
from zrelay_shared.service import pairing
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.service.pairing import PairingOptions, PairingSession

LOCAL = "127.0.0.1"
SERVICES = {"encoder": "gpu.local:7501", "generator": "[::1]:7503"}


@dataclass
class Seconds:
    """A clock that a test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    made = Installation(tmp_path / "security")
    made.prepare("gpu", ["gpu.local", LOCAL])
    return made


@contextlib.asynccontextmanager
async def paired(
    installation: Installation, kind: type[PairingSession] = PairingSession, **options: Any
) -> AsyncIterator[PairingSession]:
    """Opens a pairing port until the block ends."""
    values = {"box": "gpu", "host": LOCAL, "services": SERVICES, "listen": ListenAddress(LOCAL, 0), **options}
    session = kind(installation, PairingOptions(**values))
    await session.start()
    try:
        yield session
    finally:
        await session.stop()


def join(session: PairingSession, name: str = "mac", port: int = 0, **options: Any) -> Coroutine[Any, Any, Membership]:
    """Joins with the code of a session; at another port where an attacker stands between."""
    if pairing_code.is_short(session.code):
        digits = pairing_code.parse_short(session.code)
        return joining.join_with_digits(LOCAL, port or session.port, digits, name, **options)
    code = pairing_code.parse(session.code)
    return joining.join_with_code(PairingCode(LOCAL, port or code.port, code.fingerprint, code.secret), name, **options)


@contextlib.asynccontextmanager
async def calling(session: PairingSession) -> AsyncIterator[Stub]:
    """Yields a stub of the pairing port that sends whatever an attacker wants to."""
    certificate = await joining._certificate_at(LOCAL, session.port, 10)
    where = f"{LOCAL}:{session.port}"
    async with joining._channel(where, certificate) as channel:
        yield Stub(channel, pairing.SERVICE, where)


def secret_of(session: PairingSession) -> bytes:
    return pairing_code.parse(session.code).secret


def wrong(right: str) -> str:
    """Other digits."""
    return f"{(int(right) + 1) % 10**8:08d}"


def request_of(name: str = "mac") -> bytes:
    return certificates.new_request(certificates.new_key(), name)


both = pytest.mark.parametrize("short", [False, True], ids=["long code", "short code"])


@both
async def test_a_machine_joins(installation: Installation, short: bool) -> None:
    async with paired(installation, short=short) as session:
        membership = await join(session)
        new = await session.wait()
    assert (new.name, new.peer) == ("mac", LOCAL)
    assert (membership.box, membership.name, membership.services) == ("gpu", "mac", SERVICES)
    assert (membership.permissions, membership.hosts) == (CALLER, ("gpu.local", LOCAL))
    assert membership.authority == installation.authority_certificate
    assert certificates.is_issued_by(membership.certificate, membership.authority)
    assert certificates.belong_together(membership.certificate, membership.key)
    found = certificates.describe(membership.certificate)
    assert found.name == "mac" and found.server_names == () and found.not_after == membership.expires
    assert [(each.name, each.serial) for each in installation.members()] == [("mac", found.serial)]
    assert abs(membership.clock_ahead_s) < 5


async def test_the_certificate_allows_what_the_pairing_says(installation: Installation) -> None:
    async with paired(installation, permissions=frozenset({Permission.ENCODE})) as session:
        assert (await join(session)).permissions == {Permission.ENCODE}
    assert installation.members()[0].permissions == ("encode",)


# A man in the middle


@dataclass
class Attacker:
    """A relay between a machine that joins and the pairing port. It keeps what the joining machine sends."""

    port: int = 0
    connections: int = 0
    read: list[bytes] = field(default_factory=list)
    """Every piece that the joining machine sent, decrypted where the attacker can."""


@contextlib.asynccontextmanager
async def relaying(port: int, own: Path | None = None, only_after: int = 0) -> AsyncIterator[Attacker]:
    """Relays connections to the pairing port.

    Args:
        port: The pairing port.
        own: The attacker's certificate with its key, with which it ends TLS; None to pass bytes on unread.
        only_after: Connections that are passed on unread before it uses its certificate.
    """
    attacker = Attacker()
    theirs = None
    if own is not None:
        theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        theirs.load_cert_chain(own)
        theirs.set_alpn_protocols(["h2"])
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.check_hostname, ours.verify_mode = False, ssl.CERT_NONE
    ours.set_alpn_protocols(["h2"])

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: list[bytes] | None) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if keep is not None:
                    keep.append(data)
                writer.write(data)
                await writer.drain()
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        attacker.connections += 1
        with contextlib.suppress(OSError):
            there = None
            if theirs is not None and attacker.connections > only_after:
                await writer.start_tls(theirs)
                there = await asyncio.open_connection(LOCAL, port, ssl=ours)
            there = there or await asyncio.open_connection(LOCAL, port)
            await asyncio.gather(pump(reader, there[1], attacker.read), pump(there[0], writer, None))

    server = await asyncio.start_server(relay, LOCAL, 0)
    attacker.port = server.sockets[0].getsockname()[1]
    try:
        yield attacker
    finally:
        server.close()


@pytest.fixture
def own_certificate(tmp_path: Path) -> Path:
    """The attacker's own certificate, which has the same name as the real one."""
    file = tmp_path / "attacker.pem"
    file.write_bytes(b"".join(certificates.self_signed(pairing_code.SERVER_NAME)))
    return file


async def test_with_a_long_code_a_man_in_the_middle_receives_nothing(
    installation: Installation, own_certificate: Path
) -> None:
    async with paired(installation) as session, relaying(session.port, own_certificate) as attacker:
        await refused_async(
            join(session, port=attacker.port),
            Unauthenticated,
            reason="PAIRING_CERTIFICATE",
            match="Nothing was sent",
        )
        assert attacker.connections == 1 and attacker.read == []
        assert session.attempts_left == pairing.MAX_ATTEMPTS
        assert (await join(session)).box == "gpu"  # the code is still good


async def test_with_a_short_code_a_man_in_the_middle_learns_neither_digits_nor_request(
    installation: Installation, own_certificate: Path
) -> None:
    async with paired(installation, short=True) as session, relaying(session.port, own_certificate) as attacker:
        error = await refused_async(
            join(session, "macbook", port=attacker.port), Unauthenticated, reason="PAIRING_CODE_WRONG"
        )
        assert error.metadata["attempts_left"] == "4"
        sent = b"".join(attacker.read)
        digits = pairing_code.parse_short(session.code).encode()
        assert sent and digits not in sent and b"macbook" not in sent and b"CERTIFICATE" not in sent
    assert not installation.members()


@both
async def test_an_attacker_who_comes_between_after_the_first_look_receives_nothing(
    installation: Installation, own_certificate: Path, short: bool
) -> None:
    """The fetch of the certificate is passed on to the real machine; only the next connection is attacked."""
    async with paired(installation, short=short) as session:
        async with relaying(session.port, own_certificate, only_after=1) as attacker:
            await refused_async(join(session, port=attacker.port, timeout_s=2.0), ZrelayError)
            assert attacker.connections > 1 and b"".join(attacker.read[1:]).count(b"Pairing") == 0
        assert session.attempts_left == pairing.MAX_ATTEMPTS
    assert not installation.members()


# Recorded messages


@both
async def test_recorded_bytes_hold_no_secret_and_cannot_be_sent_again(installation: Installation, short: bool) -> None:
    async with paired(installation, short=short, attempts=2) as session:
        async with relaying(session.port) as attacker:
            membership = await join(session, port=attacker.port)
        recorded = b"".join(attacker.read)
        assert membership.certificate not in recorded and b"CERTIFICATE REQUEST" not in recorded
        code = session.code.encode() if short else secret_of(session)
        assert code not in recorded
    async with paired(installation, short=short) as session:
        reader, writer = await asyncio.open_connection(LOCAL, session.port)
        writer.write(recorded)
        with contextlib.suppress(OSError):
            async with asyncio.timeout(5):
                while await reader.read(65536):
                    pass
        writer.close()
        assert session.attempts_left == pairing.MAX_ATTEMPTS
    assert [each.name for each in installation.members()] == ["mac"]


async def test_messages_of_an_exchange_are_good_for_that_exchange_alone(installation: Installation) -> None:
    async with paired(installation, short=True) as session, calling(session) as stub:
        exchange = exchange_with(session)
        begun = await begin(stub, exchange.share)
        key = exchange.finish(begun.share)
        confirm = pb.ConfirmExchangeRequest(exchange_id=begun.exchange_id, proof=key.joiner)
        await stub.call("ConfirmExchange", confirm, pb.ConfirmExchangeResponse)
        again = await begin(stub, exchange.share)  # the same share, to which the server answers with a new one
        assert (again.exchange_id, again.share) != (begun.exchange_id, begun.share)
        confirm.exchange_id = again.exchange_id
        await refused_async(
            stub.call("ConfirmExchange", confirm, pb.ConfirmExchangeResponse),
            Unauthenticated,
            reason="PAIRING_CODE_WRONG",
        )
        confirm.exchange_id = begun.exchange_id
        await refused_async(
            stub.call("ConfirmExchange", confirm, pb.ConfirmExchangeResponse),
            FailedPrecondition,
            reason="PAIRING_EXCHANGE",
        )


async def test_a_confirmation_of_one_side_is_none_of_the_other(installation: Installation) -> None:
    """An attacker cannot reflect what it receives."""
    async with paired(installation, short=True) as session, calling(session) as stub:
        exchange = exchange_with(session)
        begun = await begin(stub, exchange.share)
        key = exchange.finish(begun.share)
        assert len({key.joiner, key.server, key.join}) == 3
        await refused_async(begin(stub, begun.share), InvalidArgument, reason="SHARE_INVALID")
        join = pb.JoinRequest(
            exchange=pb.ConfirmedExchange(exchange_id=begun.exchange_id, proof=key.join),
            name="mac",
            signing_request=request_of(),
        )
        await refused_async(  # it was not confirmed
            stub.call("Join", join, pb.JoinResponse), Unauthenticated, reason="PAIRING_CODE_WRONG"
        )


def exchange_with(session: PairingSession, digits: str = "") -> Exchange:
    """Begins an exchange as a joining machine does, by default with the right digits."""
    certificate = ssl.PEM_cert_to_DER_cert(session._certificate.decode())
    digits = digits or pairing_code.parse_short(session.code)
    return Exchange(digits, sha256(certificate).digest(), joins=True)


async def begin(stub: Stub, share: bytes) -> pb.BeginExchangeResponse:
    parcel = await stub.call("BeginExchange", pb.BeginExchangeRequest(share=share), pb.BeginExchangeResponse)
    return parcel.message


# Guesses


async def test_five_wrong_secrets_revoke_a_code(installation: Installation) -> None:
    async with paired(installation) as session, calling(session) as stub:
        waiting = asyncio.create_task(session.wait())
        for number in range(pairing.MAX_ATTEMPTS):
            guess = pb.JoinRequest(secret=number.to_bytes(8), name="mac", signing_request=request_of())
            error = await refused_async(
                stub.call("Join", guess, pb.JoinResponse), Unauthenticated, reason="PAIRING_CODE_WRONG"
            )
            assert error.metadata["attempts_left"] == str(pairing.MAX_ATTEMPTS - 1 - number)
        await refused_async(join(session), FailedPrecondition, reason="PAIRING_ENDED", match="wrong attempts")
        await refused_async(waiting, FailedPrecondition, reason="PAIRING_ENDED")
    assert not installation.members()


async def test_five_wrong_digits_revoke_a_code(installation: Installation) -> None:
    async with paired(installation, short=True) as session:
        digits = wrong(pairing_code.parse_short(session.code))
        for _ in range(pairing.MAX_ATTEMPTS):
            await refused_async(
                joining.join_with_digits(LOCAL, session.port, digits, "mac"),
                Unauthenticated,
                reason="PAIRING_CODE_WRONG",
            )
        await refused_async(join(session), FailedPrecondition, reason="PAIRING_ENDED")
        await refused_async(session.wait(), FailedPrecondition, reason="PAIRING_ENDED")


async def test_many_exchanges_at_once_allow_no_more_guesses(installation: Installation) -> None:
    async with paired(installation, short=True) as session, calling(session) as stub:
        begun = [await begin(stub, exchange_with(session, "00000000").share) for _ in range(pairing.MAX_EXCHANGES)]
        guesses = [pb.ConfirmExchangeRequest(exchange_id=each.exchange_id, proof=bytes(32)) for each in begun]
        calls = [stub.call("ConfirmExchange", guess, pb.ConfirmExchangeResponse) for guess in guesses]
        results = await asyncio.gather(*calls, return_exceptions=True)
        reasons = [result.reason for result in results if isinstance(result, ZrelayError)]
        assert sorted(reasons) == ["PAIRING_CODE_WRONG"] * pairing.MAX_ATTEMPTS + ["PAIRING_ENDED"] * 3


async def test_exchanges_that_are_not_finished_are_bounded(installation: Installation) -> None:
    async with paired(installation, short=True) as session, calling(session) as stub:
        for _ in range(pairing.MAX_EXCHANGES + 3):
            await begin(stub, exchange_with(session).share)
        assert len(session._exchanges) == pairing.MAX_EXCHANGES
        assert session.attempts_left == pairing.MAX_ATTEMPTS
        assert (await join(session)).box == "gpu"


async def test_a_server_without_the_digits_receives_no_request(installation: Installation) -> None:
    """An attacker in the place of the box can test one guess for each try of the user, and gets nothing else."""

    class Impostor(PairingSession):
        def confirm(self, exchange_id: bytes, proof: bytes) -> bytes:
            received.append(proof)
            return bytes(32)

        def join(self, request: pb.JoinRequest, peer: str) -> bytes:
            raise AssertionError("a request arrived")

    received: list[bytes] = []
    async with paired(installation, Impostor, short=True) as session:
        digits = wrong(pairing_code.parse_short(session.code))
        await refused_async(
            joining.join_with_digits(LOCAL, session.port, digits, "mac"),
            Unauthenticated,
            reason="PAIRING_CODE_WRONG",
            match="Nothing was sent",
        )
    assert len(received) == 1


async def test_each_kind_of_code_is_refused_by_the_other_kind_of_pairing(installation: Installation) -> None:
    async with paired(installation) as session:
        await refused_async(
            joining.join_with_digits(LOCAL, session.port, "12345678", "mac"), FailedPrecondition, reason="PAIRING_KIND"
        )
        assert session.attempts_left == pairing.MAX_ATTEMPTS
    async with paired(installation, short=True) as session, calling(session) as stub:
        for secret in (b"", bytes(8)):
            request = pb.JoinRequest(secret=secret, name="mac", signing_request=request_of())
            await refused_async(stub.call("Join", request, pb.JoinResponse), Unauthenticated)


# Time, and one success


@both
async def test_a_code_expires(installation: Installation, short: bool) -> None:
    clock = Seconds()
    async with paired(installation, short=short, clock=clock) as session:
        clock.now += pairing.LIFETIME_S - 1
        session.check_open()
        clock.now += 1
        await refused_async(join(session), DeadlineExceeded, reason="PAIRING_EXPIRED", match="10 minutes")
        await refused_async(session.wait(), DeadlineExceeded, reason="PAIRING_EXPIRED")
    assert not installation.members()


async def test_an_exchange_that_began_in_time_ends_in_time(installation: Installation) -> None:
    clock = Seconds()
    async with paired(installation, short=True, clock=clock) as session, calling(session) as stub:
        exchange = exchange_with(session)
        begun = await begin(stub, exchange.share)
        clock.now += pairing.LIFETIME_S
        confirm = pb.ConfirmExchangeRequest(exchange_id=begun.exchange_id, proof=exchange.finish(begun.share).joiner)
        await refused_async(
            stub.call("ConfirmExchange", confirm, pb.ConfirmExchangeResponse),
            DeadlineExceeded,
            reason="PAIRING_EXPIRED",
        )


@both
async def test_a_code_admits_one_machine(installation: Installation, short: bool) -> None:
    async with paired(installation, short=short) as session:
        await join(session)
        await refused_async(join(session, "laptop"), FailedPrecondition, reason="PAIRING_ENDED", match="was used")
    await refused_async(join(session, "laptop"), Unavailable, reason="PAIRING_UNREACHABLE", match="no pairing is open")
    assert [each.name for each in installation.members()] == ["mac"]


@both
async def test_of_two_machines_at_once_one_joins(installation: Installation, short: bool) -> None:
    async with paired(installation, short=short) as session:
        results = await asyncio.gather(join(session, "mac"), join(session, "laptop"), return_exceptions=True)
        (admitted,) = (result for result in results if isinstance(result, Membership))
        (error,) = (result for result in results if isinstance(result, FailedPrecondition))
        assert error.reason == "PAIRING_ENDED"
        assert (await session.wait()).name == admitted.name
    assert [each.name for each in installation.members()] == [admitted.name]


@both
@pytest.mark.parametrize("ahead", [timedelta(days=3), timedelta(days=-20_000)], ids=["fast", "without a battery"])
async def test_a_machine_with_the_wrong_clock_joins_and_learns_the_difference(
    installation: Installation, short: bool, ahead: timedelta
) -> None:
    async with paired(installation, short=short) as session:
        membership = await join(session, clock=lambda: datetime.now(UTC) + ahead)
    assert membership.clock_ahead_s == pytest.approx(ahead.total_seconds(), abs=5)


def test_the_certificate_of_the_pairing_port_is_valid_by_every_clock() -> None:
    found = certificates.describe(certificates.self_signed("a")[0])
    assert found.not_before.year == 1970 and found.not_after.year == 9999


# Names


async def test_a_name_belongs_to_the_machine_that_took_it(installation: Installation) -> None:
    """Jobs and contents belong to names, so that a second machine may not take one, not even of a revoked member."""
    async with paired(installation) as session:
        await join(session)
    installation.revoke("mac")
    async with paired(installation) as session:
        await refused_async(join(session), FailedPrecondition, reason="NAME_TAKEN", match="pair --renew mac")
        assert session.attempts_left == pairing.MAX_ATTEMPTS
        await join(session, "mac2")
    assert [each.name for each in installation.members()] == ["mac", "mac2"]


async def test_a_pairing_that_renews_admits_its_member_alone(installation: Installation) -> None:
    async with paired(installation) as session:
        old = certificates.describe((await join(session)).certificate)
    async with paired(installation, member="mac") as session:
        await refused_async(join(session, "laptop"), InvalidArgument, reason="NAME_INVALID", match="expected mac")
        new = certificates.describe((await join(session)).certificate)
    assert [(each.serial, bool(each.revoked)) for each in installation.members()] == [
        (old.serial, True),
        (new.serial, False),
    ]
    assert installation.latest("mac").serial == new.serial
    with pytest.raises(NotFound):
        installation.latest("laptop")


def test_the_server_certificate_is_renewed_for_all_its_names(installation: Installation) -> None:
    before = certificates.describe(installation.server_pair[1])
    assert installation.prepare("gpu", ["gpu.local"]) is False
    assert installation.prepare("gpu", ["10.0.0.7"]) is True
    after = certificates.describe(installation.server_pair[1])
    assert after.serial != before.serial and after.server_names == ("10.0.0.7", *before.server_names)
    assert installation.renew_server().server_names == after.server_names
    assert certificates.belong_together(*reversed(installation.server_pair))


# A hostile box


Change = Callable[[pb.JoinResponse, Installation], None]


def _other_key(answer: pb.JoinResponse, installation: Installation) -> None:
    answer.certificate = installation.issue(request_of("mac"), "mac")


def _other_name(answer: pb.JoinResponse, installation: Installation) -> None:
    answer.certificate = installation.issue(request_of("root"), "root")


def _other_authority(answer: pb.JoinResponse, installation: Installation) -> None:
    answer.authority = certificates.Authority.create("other", datetime.now(UTC)).certificate


def _no_authority(answer: pb.JoinResponse, installation: Installation) -> None:
    answer.authority = answer.certificate


def _set(**values: Any) -> Change:
    def change(answer: pb.JoinResponse, installation: Installation) -> None:
        for name, value in values.items():
            if isinstance(value, list):
                answer.ClearField(name)
                getattr(answer, name).extend(value)
            else:
                setattr(answer, name, value)

    return change


def _later(answer: pb.JoinResponse, installation: Installation) -> None:
    answer.time.FromDatetime(datetime.now(UTC) + timedelta(days=400))


HOSTILE: dict[str, Change] = {
    "a certificate for another key": _other_key,
    "a certificate for another name": _other_name,
    "another authority": _other_authority,
    "an authority that is none": _no_authority,
    "no certificate": _set(certificate=b""),
    "garbage": _set(certificate=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    "control characters in its name": _set(box="gpu\x1b[2J"),
    "a path as its name": _set(box="../../x"),
    "an unknown permission": _set(permissions=["everything"]),
    "an unknown service": _set(services=[pb.PairedService(role="gateway", endpoint="a:1")]),
    "a command in an endpoint": _set(services=[pb.PairedService(role="encoder", endpoint="a:1; rm -rf ~")]),
    "an endpoint without a port": _set(services=[pb.PairedService(role="encoder", endpoint="a")]),
    "an endpoint with port 0": _set(services=[pb.PairedService(role="encoder", endpoint="a:0")]),
    "a host that is none": _set(hosts=["a b"]),
    "another time": _later,
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
async def test_an_invalid_answer_is_refused(installation: Installation, change: Change) -> None:
    class Hostile(PairingSession):
        def answer(self, certificate: bytes) -> pb.JoinResponse:
            answer = super().answer(certificate)
            change(answer, installation)
            return answer

    async with paired(installation, Hostile) as session:
        error = await refused_async(join(session), FailedPrecondition, reason="PAIRING_ANSWER_INVALID")
        assert error.message.isprintable() and "nothing was written" in error.message


@pytest.mark.parametrize(
    "change",
    [_set(box="x" * (PAIRING_MESSAGE_BYTES + 1)), _set(hosts=["a"] * 4000), _set(authority=bytes(1 << 20))],
    ids=["a long text", "many hosts", "a megabyte"],
)
async def test_a_huge_answer_is_not_received(installation: Installation, change: Change) -> None:
    class Huge(PairingSession):
        def answer(self, certificate: bytes) -> pb.JoinResponse:
            answer = super().answer(certificate)
            change(answer, installation)
            return answer

    async with paired(installation, Huge) as session:
        await refused_async(join(session), ZrelayError)


async def test_what_is_kept_is_what_was_verified(installation: Installation) -> None:
    """Further certificates in an answer are not among what is returned."""
    other = certificates.Authority.create("other", datetime.now(UTC)).certificate

    class Adding(PairingSession):
        def answer(self, certificate: bytes) -> pb.JoinResponse:
            answer = super().answer(certificate)
            answer.authority += other
            return answer

    async with paired(installation, Adding) as session:
        assert (await join(session)).authority == installation.authority_certificate


@pytest.mark.parametrize("banner", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes(100_000)])
async def test_another_program_at_the_port_is_refused(banner: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(banner)
        if banner:
            writer.close()

    server = await asyncio.start_server(answer, LOCAL, 0)
    code = PairingCode(LOCAL, server.sockets[0].getsockname()[1], bytes(16), bytes(8))
    try:
        await refused_async(
            joining.join_with_code(code, "mac", timeout_s=0.3), Unavailable, reason="PAIRING_UNREACHABLE"
        )
    finally:
        server.close()


# A hostile joining machine


@pytest.mark.parametrize(
    "name",
    ["", "Mac", "a b", "../x", "mac\x1b[31m", "mac\n", "m\u0430c", "x" * 64, "-mac", "mac:"],
)
async def test_a_strange_name_is_refused(installation: Installation, name: str) -> None:
    async with paired(installation) as session, calling(session) as stub:
        request = pb.JoinRequest(secret=secret_of(session), name=name, signing_request=request_of())
        error = await refused_async(
            stub.call("Join", request, pb.JoinResponse), InvalidArgument, reason="NAME_INVALID", field="name"
        )
        assert error.message.isprintable()
        await refused_async(join(session, name), InvalidArgument, reason="NAME_INVALID")  # nor is it sent
        assert (await join(session)).name == "mac"


def _rsa_request() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mac")])
    signed = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _other_curve() -> bytes:
    key = ec.generate_private_key(ec.SECP384R1())
    signed = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _bad_signature() -> bytes:
    der = x509.load_pem_x509_csr(request_of()).public_bytes(serialization.Encoding.DER)
    broken = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1]))
    return broken.public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    "made",
    [_rsa_request, _other_curve, _bad_signature, lambda: b"", lambda: b"\0" * 1000, lambda: request_of()[:200]],
    ids=["RSA", "P-384", "bad signature", "nothing", "zeros", "a part"],
)
async def test_a_strange_signing_request_is_refused(installation: Installation, made: Callable[[], bytes]) -> None:
    async with paired(installation) as session, calling(session) as stub:
        request = pb.JoinRequest(secret=secret_of(session), name="mac", signing_request=made())
        await refused_async(
            stub.call("Join", request, pb.JoinResponse), InvalidArgument, reason="SIGNING_REQUEST_INVALID"
        )
        assert session.attempts_left == pairing.MAX_ATTEMPTS
        assert (await join(session)).name == "mac"
    assert [each.name for each in installation.members()] == ["mac"]


REQUEST = x509.load_pem_x509_csr(request_of()).public_bytes(serialization.Encoding.DER)
AUTHORITY = certificates.Authority.create("tests", datetime.now(UTC))


@given(st.lists(st.tuples(st.integers(0, len(REQUEST) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_changed_signing_request_is_refused(changes: list[tuple[int, int]]) -> None:
    der = bytearray(REQUEST)
    for place, change in changes:
        der[place] ^= change
    if bytes(der) != REQUEST:
        with pytest.raises(certificates.CertificateInvalid):
            AUTHORITY.issue(_pem(bytes(der)), "mac", datetime.now(UTC))


def test_a_signing_request_with_one_wrong_byte_is_refused() -> None:
    for place in range(len(REQUEST)):
        der = bytearray(REQUEST)
        der[place] ^= 0x21
        with pytest.raises(certificates.CertificateInvalid):
            AUTHORITY.issue(_pem(bytes(der)), "mac", datetime.now(UTC))


def _pem(der: bytes) -> bytes:
    text = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE REQUEST-----\n" + text + b"-----END CERTIFICATE REQUEST-----\n"


async def test_everything_in_a_request_but_its_key_is_ignored(installation: Installation) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gpu")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("gpu.local")]), critical=False)
    signed = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    async with paired(installation) as session, calling(session) as stub:
        request = pb.JoinRequest(secret=secret_of(session), name="mac", signing_request=signed)
        answer = (await stub.call("Join", request, pb.JoinResponse)).message
    found = certificates.describe(answer.certificate)
    assert (found.name, found.server_names) == ("mac", ())
    assert not certificates.is_authority(answer.certificate)


async def test_large_messages_are_refused_before_the_code_is_looked_at(installation: Installation) -> None:
    async with paired(installation) as session, calling(session) as stub:
        for size in (PAIRING_MESSAGE_BYTES, 1 << 20):
            request = pb.JoinRequest(secret=bytes(8), name="mac", signing_request=bytes(size))
            await refused_async(stub.call("Join", request, pb.JoinResponse), MessageTooLarge)
        assert session.attempts_left == pairing.MAX_ATTEMPTS
        assert (await join(session)).name == "mac"


@pytest.mark.parametrize("share", [b"", bytes(33), b"A" + bytes(32), b"A" + b"\xff" * 32, b"A\x01" + bytes(31)])
async def test_an_invalid_share_is_refused(installation: Installation, share: bytes) -> None:
    async with paired(installation, short=True) as session, calling(session) as stub:
        await refused_async(begin(stub, share), InvalidArgument, reason="SHARE_INVALID")
        assert session.attempts_left == pairing.MAX_ATTEMPTS
        assert (await join(session)).name == "mac"


async def test_connections_of_the_port_are_bounded(installation: Installation) -> None:
    async with paired(installation) as session:
        idle = [await asyncio.open_connection(LOCAL, session.port) for _ in range(pairing.MAX_CONNECTIONS + 8)]
        async with asyncio.timeout(10):
            closed = asyncio.as_completed([reader.read(1) for reader, _ in idle])
            assert [await next(closed) for _ in range(8)] == [b""] * 8
        for _, writer in idle:
            writer.transport.abort()

        async def joined() -> Membership | None:
            with contextlib.suppress(Unavailable):  # the port has not noticed the end of the others
                return await join(session)
            return None

        assert (await until_async(joined, "a connection is free")).name == "mac"


async def test_a_port_that_is_taken_is_named(installation: Installation) -> None:
    async with paired(installation) as session:
        other = PairingOptions("gpu", LOCAL, {}, ListenAddress(LOCAL, session.port))
        await refused_async(
            PairingSession(installation, other).start(), Unavailable, reason="LISTEN_FAILED", match="--port"
        )


# Secrets


@both
async def test_secrets_stand_in_no_text(
    installation: Installation, short: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with paired(installation, short=short) as session:
        code = session.code
        membership = await join(session)
    secrets = [code, pairing_code.parse_short(code)] if short else [code, str(pairing_code.parse(code).secret)]
    key = membership.key.decode().splitlines()[1]
    for text in (caplog.text, repr(membership), repr(session), str(session.__dict__["_options"])):
        assert not [secret for secret in (*secrets, key) if secret in text]


def test_every_claim_of_the_threat_model_has_its_test() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/explanation/pairing.md").read_text(encoding="utf-8")
    tests = Path(__file__).read_text(encoding="utf-8")
    tests += (root / "tests/client/test_cli_pair.py").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 20
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []
