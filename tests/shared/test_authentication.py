"""Who may call a service over TLS: every kind of wrong caller is refused, and the next good one is served."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.helpers.certificates import KeyPair, authority, issued
from zrelay.v1 import info_pb2, vision_pb2
from zrelay_shared import rpc, status
from zrelay_shared.callers import Caller
from zrelay_shared.errors import FeatureMissing, PermissionDenied, Unauthenticated, Unavailable, ZrelayError
from zrelay_shared.security import certificates
from zrelay_shared.security.installation import Installation
from zrelay_shared.security.permissions import ALL, CALLER, Permission
from zrelay_shared.service import authentication, info, lifecycle
from zrelay_shared.service.listening import ListenAddress
from zrelay_shared.service.self_probe import ProbeOptions, ProbeResult, probe
from zrelay_shared.wire import Parcel

from .services import NAME, ControlledService

pytestmark = pytest.mark.hostile

ANYWHERE = ListenAddress("127.0.0.1", 0)
QUICK = ProbeOptions(interval_s=3600.0, deadline_s=10.0)
FAIL_FAST = [("grpc.enable_retries", 0), ("grpc.initial_reconnect_backoff_ms", 60_000)]
GetInfoResponse: TypeAlias = vision_pb2.VisionServiceGetInfoResponse


class DescribingService(ControlledService):
    """Its GetInfo describes the connection, as those of all services do."""

    async def GetInfo(self, parcel: Parcel[Any], context: rpc.Context) -> GetInfoResponse:
        return GetInfoResponse(ready=True, connection=info.connection_info())


@dataclass(frozen=True)
class Box:
    """A machine with a service that has a port for certificates, one for tokens and one for health.

    Attributes:
        security: Its security folder.
        server: The running server.
    """

    security: Installation
    server: lifecycle.RunningServer

    def member(self, name: str = "mac", permissions: frozenset[Permission] = CALLER) -> KeyPair:
        """Issues a certificate."""
        key = certificates.new_key()
        return KeyPair(key, self.security.issue(certificates.new_request(key, name), name, permissions))

    @property
    def owner(self) -> certificates.Authority:
        """The authority of this machine."""
        folder = self.security.folder
        return certificates.Authority((folder / "authority.pem").read_bytes(), (folder / "authority.key").read_bytes())

    def channel(
        self, pair: KeyPair | None, *, token: str | None = None, ca: bytes | None = None, host: str = "localhost"
    ) -> grpc.aio.Channel:
        """A channel to the port of certificates, or with a token (also "") to that of tokens."""
        address = self.server.address if token is None else self.server.token_address
        assert address is not None
        key, certificate = (None, None) if pair is None else (pair.key, pair.certificate)
        credentials = grpc.ssl_channel_credentials(ca or self.security.authority_certificate, key, certificate)
        options = [*FAIL_FAST, ("grpc.ssl_target_name_override", host)]
        return grpc.aio.secure_channel(f"127.0.0.1:{address.port}", credentials, options=options)


async def info_over(channel: grpc.aio.Channel, token: str | None = None) -> info_pb2.ConnectionInfo:
    """Calls GetInfo once, and closes the channel."""
    call: Any = channel.unary_unary(f"/{NAME}/GetInfo", response_deserializer=GetInfoResponse.FromString)
    async with channel:
        try:
            answer = await call(b"", timeout=20, metadata=[("authorization", token)] if token else None)
        except grpc.RpcError as error:
            raise status.from_call(error, service="vision", endpoint="") from error
    connection: info_pb2.ConnectionInfo = answer.connection
    return connection


@asynccontextmanager
async def serving(folder: Path, **options: Any) -> AsyncIterator[Box]:
    box = Installation(folder)
    box.prepare("box", ["localhost"])
    service = DescribingService()
    service.load_now.set()
    service.drain_now.set()
    clock = options.pop("clock", authentication.utc_now)
    chosen: dict[str, Any] = {
        "tls": True,
        "token_listen": ANYWHERE,
        "health_listen": ANYWHERE,
        "probe": QUICK,
    } | options
    security = authentication.installed(folder, None, clock)
    async with lifecycle.running(service, lifecycle.ServeOptions(ANYWHERE, security=security, **chosen)) as server:
        await server.loaded
        yield Box(box, server)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with serving(tmp_path / "security") as found:
        yield found


async def test_a_member_is_served_and_named(box: Box) -> None:
    found = await info_over(box.channel(box.member("mac")))
    assert (found.caller, list(found.permissions)) == ("member mac", ["encode", "generate", "vision"])
    assert found.security == info_pb2.PORT_SECURITY_CERTIFICATE
    year = datetime.now(UTC) + timedelta(days=365)
    for ends in (found.credentials_end, found.server_certificate_ends):
        assert abs(ends - year.timestamp()) < 3600


async def test_the_owner_of_a_token_is_served_and_named(box: Box) -> None:
    token = box.security.new_token("ci", frozenset({Permission.ENCODE}))
    for scheme in ("Bearer", "bearer", "BEARER"):
        found = await info_over(box.channel(None, token=""), f"{scheme} {token}")
        assert (found.caller, list(found.permissions)) == ("token ci", ["encode"])
        assert (found.security, found.credentials_end) == (info_pb2.PORT_SECURITY_TOKEN, 0)


async def test_who_has_the_key_of_the_server_owns_the_service(box: Box) -> None:
    key, certificate = box.security.server_pair
    found = await info_over(box.channel(KeyPair(key, certificate)))
    assert found.caller == "owner" and set(found.permissions) == set(ALL)


async def test_plaintext_on_loopback_beside_a_port_for_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path / "security", tls=False) as box:
        found = await info_over(grpc.aio.insecure_channel(str(box.server.address)))
        assert (found.security, found.caller) == (info_pb2.PORT_SECURITY_LOOPBACK, "ipv4:127.0.0.1")
        assert found.server_certificate_ends == 0
        with pytest.raises(Unauthenticated) as refusal:
            await info_over(box.channel(None, token=""))
        assert refusal.value.reason == "TOKEN_MISSING"


Attempt: TypeAlias = Callable[[Box], grpc.aio.Channel]


def no_certificate(box: Box) -> grpc.aio.Channel:
    return box.channel(None)


def wrong_authority(box: Box) -> grpc.aio.Channel:
    return box.channel(issued("mac"))


def expired(box: Box) -> grpc.aio.Channel:
    return box.channel(issued("mac", by=box.owner, starts_in=-timedelta(days=9), days=8))


def not_yet_valid(box: Box) -> grpc.aio.Channel:
    return box.channel(issued("mac", by=box.owner, starts_in=timedelta(days=1)))


def wrong_name(box: Box) -> grpc.aio.Channel:
    return box.channel(box.member(), host="other.example")


def server_of_another_authority(box: Box) -> grpc.aio.Channel:
    return box.channel(box.member(), ca=authority().certificate)


def plaintext_to_tls(box: Box) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(str(box.server.address), options=FAIL_FAST)


def tls_to_plaintext(box: Box) -> grpc.aio.Channel:
    credentials = grpc.ssl_channel_credentials(box.security.authority_certificate)
    return grpc.aio.secure_channel(str(box.server.health_address), credentials, options=FAIL_FAST)


@pytest.mark.parametrize(
    "attempt",
    [
        no_certificate,
        wrong_authority,
        expired,
        not_yet_valid,
        wrong_name,
        server_of_another_authority,
        plaintext_to_tls,
        tls_to_plaintext,
    ],
)
async def test_a_connection_that_is_refused(box: Box, attempt: Attempt) -> None:
    """The handshake fails; what a client prints is tested with the client."""
    with pytest.raises(Unavailable):
        await info_over(attempt(box))
    assert (await info_over(box.channel(box.member("good")))).caller == "member good"


def unknown(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    return box.channel(issued("mac", by=box.owner)), None


def revoked(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    pair = box.member("mac")
    box.security.revoke("mac")
    return box.channel(pair), None


def replaced(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    pair = box.member("mac")
    box.member("mac")
    return box.channel(pair), None


def no_token(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    return box.channel(None, token=""), None


def another_scheme(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    return box.channel(None, token=""), "Basic bWU6c2VjcmV0"


def empty_token(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    return box.channel(None, token=""), "Bearer "


def wrong_token(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    box.security.new_token("ci", CALLER)
    return box.channel(None, token=""), "Bearer zrt_" + "a" * 43


def old_token(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    token = box.security.new_token("ci", CALLER)
    box.security.new_token("ci", CALLER)
    return box.channel(None, token=""), f"Bearer {token}"


def revoked_token(box: Box) -> tuple[grpc.aio.Channel, str | None]:
    token = box.security.new_token("ci", CALLER)
    box.security.revoke("ci")
    return box.channel(None, token=""), f"Bearer {token}"


@pytest.mark.parametrize(
    ("attempt", "reason", "fix"),
    [
        (unknown, "CERTIFICATE_UNKNOWN", "zrelay pair"),
        (revoked, "CERTIFICATE_REVOKED", "zrelay join"),
        (replaced, "CERTIFICATE_REVOKED", "start the client again"),
        (no_token, "TOKEN_MISSING", "authorization: Bearer TOKEN"),
        (another_scheme, "TOKEN_INVALID", "Bearer TOKEN"),
        (empty_token, "TOKEN_INVALID", "Bearer TOKEN"),
        (wrong_token, "TOKEN_INVALID", "zrelay pair --token"),
        (old_token, "TOKEN_EXPIRED", "zrelay pair --token ci"),
        (revoked_token, "TOKEN_INVALID", "zrelay pair --token"),
    ],
)
async def test_a_caller_that_is_refused(
    box: Box, attempt: Callable[[Box], tuple[grpc.aio.Channel, str | None]], reason: str, fix: str
) -> None:
    channel, token = attempt(box)
    with pytest.raises(Unauthenticated) as refusal:
        await info_over(channel, token)
    assert refusal.value.reason == reason and fix in refusal.value.message
    assert "zrt_" not in refusal.value.message and str(box.security.folder) not in refusal.value.message
    assert (await info_over(box.channel(box.member("good")))).caller == "member good"


async def encode_over(channel: grpc.aio.Channel, token: str | None = None) -> None:
    async with channel:
        try:
            metadata = [("authorization", f"Bearer {token}")] if token else None
            call: Any = channel.unary_unary(f"/{NAME}/EncodeImages")
            await call(b"", timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            raise status.from_call(error, service="vision", endpoint="") from error


@pytest.mark.parametrize("permission", [Permission.ENCODE, Permission.GENERATE])
async def test_a_wrong_role(box: Box, permission: Permission) -> None:
    few = frozenset({permission})
    for attempt in (
        encode_over(box.channel(box.member("mac", few))),
        encode_over(box.channel(None, token=""), box.security.new_token("ci", few)),
    ):
        with pytest.raises(PermissionDenied) as refusal:
            await attempt
        assert refusal.value.reason == "PERMISSION_MISSING" and refusal.value.metadata["permission"] == "vision"
        assert "needs the permission vision, and" in refusal.value.message and str(permission) in refusal.value.message
    with pytest.raises(FeatureMissing):  # the handler itself
        await encode_over(box.channel(box.member("good", frozenset({Permission.ADMINISTER}))))


async def test_a_revocation_counts_on_an_open_connection(box: Box) -> None:
    pair = box.member("mac")
    async with box.channel(pair) as channel:
        call: Any = channel.unary_unary(f"/{NAME}/GetInfo")
        await call(b"", timeout=20)
        box.security.revoke("mac")
        started = asyncio.get_running_loop().time()
        with pytest.raises(grpc.RpcError) as refusal:
            while asyncio.get_running_loop().time() < started + 30:
                await call(b"", timeout=20)
                await asyncio.sleep(0.05)
    assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert asyncio.get_running_loop().time() < started + 5


async def test_a_certificate_that_ends_on_an_open_connection(tmp_path: Path) -> None:
    later = timedelta(0)
    async with serving(tmp_path / "security", clock=lambda: datetime.now(UTC) + later) as box:
        pair = box.member("mac")
        async with box.channel(pair) as channel:
            call: Any = channel.unary_unary(f"/{NAME}/GetInfo")
            later = timedelta(days=366)
            with pytest.raises(grpc.RpcError) as refusal:
                await call(b"", timeout=20)
    error = status.from_call(refusal.value, service="vision", endpoint="")
    assert (error.code, error.reason) == ("UNAUTHENTICATED", "CERTIFICATE_EXPIRED")


async def test_health_is_open_where_a_connection_is(box: Box) -> None:
    server, pair = box.server, box.member("mac")
    box.security.revoke("mac")
    health = grpc.aio.insecure_channel(str(server.health_address))
    for channel in (box.channel(pair), box.channel(None, token=""), health):
        async with channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_port_of_health_has_nothing_else(box: Box) -> None:
    async with grpc.aio.insecure_channel(str(box.server.health_address)) as channel:
        for path in (f"/{NAME}/GetInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"):
            call: Any = channel.unary_unary(path)
            with pytest.raises(grpc.RpcError) as refusal:
                await call(b"", timeout=20)
            assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_the_port_of_health_says_that_the_service_drains(box: Box) -> None:
    async with grpc.aio.insecure_channel(str(box.server.health_address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        await box.server.drain()
        assert await watch.read() in (
            grpc.aio.EOF,
            health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING),
        )


async def reflected(channel: grpc.aio.Channel, token: str | None = None) -> set[str]:
    async with channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        call = stub.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")]),
            timeout=20,
            metadata=[("authorization", f"Bearer {token}")] if token else None,
        )
        try:
            answer = await call.read()
        except grpc.RpcError as error:
            raise status.from_call(error, service="vision", endpoint="") from error
    return {service.name for service in answer.list_services_response.service}


async def test_reflection_is_for_authenticated_callers(box: Box) -> None:
    token = box.security.new_token("ci", frozenset({Permission.ENCODE}))
    assert NAME in await reflected(box.channel(box.member()))
    assert NAME in await reflected(box.channel(None, token=""), token)
    for wrong in (None, "zrt_x"):
        with pytest.raises(Unauthenticated):
            await reflected(box.channel(None, token=""), wrong)


async def test_a_damaged_folder_admits_nobody_until_it_is_repaired(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    pair, path = box.member("mac"), box.security.folder / "members.json"
    good = path.read_bytes()
    path.write_bytes(b"{")
    for _ in range(3):
        with pytest.raises(Unavailable) as refusal:
            await info_over(box.channel(pair))
        assert refusal.value.reason == "SECURITY_UNREADABLE" and str(path) not in refusal.value.message
    assert caplog.text.count("nobody can be authenticated") == 1 and str(path) in caplog.text
    path.write_bytes(good)
    assert (await info_over(box.channel(pair))).caller == "member mac"


async def test_a_new_certificate_is_used_without_a_restart(box: Box) -> None:
    pair = box.member("mac")
    first = (await info_over(box.channel(pair))).server_certificate_ends
    folder = box.security.folder
    issued("box", by=box.owner, server_names=["localhost"], days=90).write(folder, "server")
    second = (await info_over(box.channel(box.member("laptop")))).server_certificate_ends
    assert first - second > 200 * 86400
    token = box.security.new_token("ci", CALLER)
    assert (await info_over(box.channel(None, token=""), f"Bearer {token}")).server_certificate_ends == second


async def test_a_broken_certificate_leaves_the_previous_one(box: Box, caplog: pytest.LogCaptureFixture) -> None:
    pair, folder = box.member("mac"), box.security.folder
    ends = (await info_over(box.channel(pair))).server_certificate_ends
    good = (folder / "server.key").read_bytes()
    for broken in (b"x", certificates.new_key()):
        (folder / "server.key").write_bytes(broken)
        for _ in range(2):
            assert (await info_over(box.channel(pair))).server_certificate_ends == ends
    assert caplog.text.count("the new certificate is not used") == 2 and "server.key" in caplog.text
    (folder / "server.key").write_bytes(good)
    assert (await info_over(box.channel(pair))).caller == "member mac"


async def test_a_new_authority_ends_the_trust_in_the_old_one(box: Box) -> None:
    old = box.member("mac")
    new = certificates.Authority.create("new", datetime.now(UTC))
    KeyPair(new.key, new.certificate).write(box.security.folder, "authority")
    with pytest.raises(Unavailable):
        await info_over(box.channel(old, ca=certificates.canonical(new.certificate)))
    assert box.security.prepare("box", ["localhost"])
    assert (await info_over(box.channel(box.member("mac")))).caller == "member mac"


async def test_the_log_warns_before_the_certificate_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, later = tmp_path / "security", timedelta(0)
    Installation(folder).prepare("box", ["localhost"])
    certificate = authentication.installed(folder, None, lambda: datetime.now(UTC) + later).certificate
    for days, count in ((0, 0), (334, 0), (336, 1), (336.5, 1), (337.1, 2), (366, 3)):
        later = timedelta(days=days)
        certificate.warn()
        assert caplog.text.count("the certificate of this service") == count
    assert "ends in 28 days" in caplog.text and "has ended" in caplog.text and "zrelay pair --renew" in caplog.text


async def test_the_self_probe_over_tls(box: Box) -> None:
    options = box.server._options
    assert options.security is not None and box.server.token_address is not None
    tls = options.security.certificate.client_context
    for address in (box.server.address, box.server.token_address):
        assert await probe(address, QUICK, tls) is ProbeResult.ANSWERED
    (box.security.folder / "server.key").unlink()  # the probe has no certificate then, and its refusal is an answer
    assert await probe(box.server.address, QUICK, tls) is ProbeResult.ANSWERED


@pytest.mark.parametrize("setting", ["token_listen", "health_listen"])
async def test_a_further_port_that_is_taken(box: Box, setting: str) -> None:
    with pytest.raises(Unavailable) as refusal:
        async with serving(box.security.folder, **{setting: box.server.address}):
            pytest.fail("two servers share a port")
    assert refusal.value.reason == "LISTEN_FAILED"
    assert f"--{setting.replace('_', '-')} HOST:PORT" in refusal.value.message


def test_a_caller_is_looked_up_again_after_a_second(tmp_path: Path) -> None:
    now, found = 0.0, 0

    def find() -> Caller:
        nonlocal found
        found += 1
        return Caller("member mac", CALLER)

    cache: authentication._Cache[int] = authentication._Cache(lambda: now)
    for now, count in ((0.0, 1), (0.9, 1), (1.0, 2), (1.9, 2), (2.0, 3)):  # noqa: B007  # the clock reads it
        cache.get(1, find)
        assert found == count
    for number in range(3000):
        cache.get(number, find)
    assert len(cache._found) <= 1024

    def refuse() -> Caller:
        raise ZrelayError("no")

    for _ in range(2):
        with pytest.raises(ZrelayError):
            cache.get(-1, refuse)
    assert -1 not in cache._found


async def test_plaintext_beyond_loopback_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    service = DescribingService()
    service.load_now.set()
    options = lifecycle.ServeOptions(ListenAddress("0.0.0.0", 0))
    async with lifecycle.running(service, options) as server:
        found = await info_over(grpc.aio.insecure_channel(f"127.0.0.1:{server.address.port}"))
    assert found.security == info_pb2.PORT_SECURITY_INSECURE
    assert "neither encrypted nor authenticated" in caplog.text
