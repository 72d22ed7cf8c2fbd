"""Servers with real TLS for tests of clients: authorities, certificates with chosen validity, and an encoder."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health

from zrelay_client._transport.credentials import TlsOptions
from zrelay_client._transport.endpoint import Endpoint
from zrelay_client.profiles import Box
from zrelay_client.testing import FakeEncoder
from zrelay_shared import rpc
from zrelay_shared.callers import Caller, Connection, Identify, PortKind
from zrelay_shared.channels import server_options
from zrelay_shared.errors import Unauthenticated
from zrelay_shared.security import certificates
from zrelay_shared.security.permissions import CALLER, Permission

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: bytes
    key: bytes


def authority(name: str = "one", age_days: int = 1) -> certificates.Authority:
    """Returns an authority, the same for the same arguments."""
    return _authority(name, age_days)


@cache
def _authority(name: str, age_days: int) -> certificates.Authority:
    return certificates.Authority.create(f"authority {name}", datetime.now(UTC) - timedelta(days=age_days))


@cache
def issued(
    by: str = "one", names: tuple[str, ...] = (), *, starts_days: int = 0, days: int = 90, age_days: int = 1
) -> Pair:
    """Returns a certificate that starts after `starts_days` days, for a server where it has names."""
    key = certificates.new_key()
    request = certificates.new_request(key, "server" if names else "mac")
    start = datetime.now(UTC) + timedelta(days=starts_days)
    name = "server" if names else "mac"
    issuer = authority(by, age_days)
    return Pair(issuer.issue(request, name, start, server_names=names, days=days), key)


def tls_of(client: Pair | None, by: str = "one", age_days: int = 1) -> TlsOptions:
    """Returns the options of a client that trusts an authority."""
    trusted = authority(by, age_days).certificate
    return TlsOptions(trusted, *((client.certificate, client.key) if client is not None else (None, None)))


def caller_of(
    permissions: frozenset[Permission] = CALLER, *, token: str | None = None, ends_days: float = 90
) -> Identify:
    """Returns what identifies every caller as `member mac`, or with a token as `token ci` and nobody else."""
    now = datetime.now(UTC)
    port = PortKind.CERTIFICATE if token is None else PortKind.TOKEN
    connection = Connection(port, now + timedelta(days=ends_days), now + timedelta(days=60))

    def identify(method: str, context: rpc.Context) -> Caller:
        sent = dict(context.invocation_metadata() or ()).get("authorization")
        if token is not None and sent != f"Bearer {token}":
            raise Unauthenticated("the token is not known here: make a new one", reason="TOKEN_INVALID")
        return Caller("member mac" if token is None else "token ci", permissions, connection=connection)

    return identify


@asynccontextmanager
async def serving(
    server: Pair | None = None,
    *,
    clients_of: str | None = "one",
    age_days: int = 1,
    identify: Identify | None = None,
) -> AsyncIterator[str]:
    """Serves an encoder, and yields HOST:PORT.

    Args:
        server: Its certificate; None serves without TLS.
        clients_of: The authority of its callers, None where they need no certificate.
        age_days: Age of that authority.
        identify: Identifies callers.
    """
    running = grpc.aio.server(options=server_options())
    encoder, checks = FakeEncoder(), health.HealthServicer()
    rpc.add_service(running, encoder.descriptor, encoder, identify=caller_of() if identify is None else identify)
    health_pb2_grpc.add_HealthServicer_to_server(checks, running)
    for name in ("", encoder.descriptor.full_name):
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    if server is None:
        port = running.add_insecure_port(f"{HOST}:0")
    else:
        roots = None if clients_of is None else authority(clients_of, age_days).certificate
        credentials = grpc.ssl_server_credentials([(server.key, server.certificate)], roots, roots is not None)
        port = running.add_secure_port(f"{HOST}:0", credentials)
    await running.start()
    try:
        yield f"{HOST}:{port}"
    finally:
        await running.stop(None)


def endpoint(address: str, tls: TlsOptions | None) -> Endpoint:
    """Returns the endpoint of an encoder."""
    return Endpoint("encoder", address, tls=tls)


def box(name: str, address: str, tls: TlsOptions) -> Box:
    """Returns a joined box with an encoder."""
    return Box(name, {"encoder": address}, tls)
