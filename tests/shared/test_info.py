"""The common parts of GetInfo."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from zrelay.v1 import info_pb2
from zrelay_shared import __version__
from zrelay_shared.callers import Caller, Connection, PortKind, set_current_caller
from zrelay_shared.security.permissions import ALL, CALLER
from zrelay_shared.service import info


@dataclass(frozen=True)
class FixedQueue:
    waiting: int = 3
    running: int = 1
    estimated_wait_s: float = 2.5


def test_installed_libraries_only() -> None:
    assert set(info.library_versions(["grpcio", "no-such-library"])) == {"grpcio"}
    version = info.server_version("encoder", ("grpcio", "no-such-library"))
    assert (version.service, version.version, version.contract) == ("encoder", __version__, "v1")
    assert list(version.libraries) == ["grpcio"]


def test_queue() -> None:
    queue = info.queue_info(FixedQueue(), max_waiting=7)
    assert (queue.waiting, queue.running, queue.max_waiting, queue.estimated_wait_s) == (3, 1, 7, 2.5)


async def test_the_connection_of_an_authenticated_caller() -> None:
    ends = datetime(2030, 1, 2, tzinfo=UTC)
    connection = Connection(PortKind.CERTIFICATE, ends, datetime(2030, 1, 1, tzinfo=UTC))
    set_current_caller(Caller("member mac", CALLER, connection))
    found = info.connection_info()
    assert (found.security, found.caller) == (info_pb2.PORT_SECURITY_CERTIFICATE, "member mac")
    assert list(found.permissions) == ["encode", "generate", "vision"]
    assert (found.credentials_end, found.server_certificate_ends) == (1893542400, 1893456000)
    assert abs(found.server_time - time.time()) < 60


@pytest.mark.parametrize("kind", PortKind)
async def test_every_kind_of_port_has_a_name_in_the_contract(kind: PortKind) -> None:
    set_current_caller(Caller("ipv4:127.0.0.1", ALL, Connection(kind)))
    found = info.connection_info()
    assert info_pb2.PortSecurity.Name(found.security) == f"PORT_SECURITY_{kind.name}"
    assert (found.credentials_end, found.server_certificate_ends) == (0, 0)
