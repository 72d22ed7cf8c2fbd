"""The parts of GetInfo that all services have."""

import contextlib
import time
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Protocol

from zrelay.v1 import info_pb2
from zrelay.v1.info_pb2 import ConnectionInfo, DeviceInfo, QueueInfo, ServerVersion
from zrelay_shared import __version__
from zrelay_shared.callers import PortKind, current_caller

if TYPE_CHECKING:
    from zrelay_shared.torch_devices import DeviceReport

CONTRACT = "v1"
"""Version of the contract, the last part of its package name."""


_PORTS = {
    PortKind.LOOPBACK: info_pb2.PORT_SECURITY_LOOPBACK,
    PortKind.INSECURE: info_pb2.PORT_SECURITY_INSECURE,
    PortKind.CERTIFICATE: info_pb2.PORT_SECURITY_CERTIFICATE,
    PortKind.TOKEN: info_pb2.PORT_SECURITY_TOKEN,
}


class QueueState(Protocol):
    """An object that reports waiting and running calls, for example a `DeviceWorker`."""

    @property
    def waiting(self) -> int:
        """Number of waiting calls."""

    @property
    def running(self) -> int:
        """Number of running calls."""

    @property
    def estimated_wait_s(self) -> float:
        """Estimated seconds until a call that arrives now would start."""


@cache
def server_version(service: str, libraries: tuple[str, ...]) -> ServerVersion:
    """Returns the versions of a service and of its libraries; cached, since looking one up takes a millisecond.

    Args:
        service: The role, for example `encoder`.
        libraries: Names of distributions; those that are not installed are left out.
    """
    return ServerVersion(service=service, version=__version__, contract=CONTRACT, libraries=library_versions(libraries))


def library_versions(names: Sequence[str]) -> dict[str, str]:
    """Returns the versions of installed distributions by name; those that are not installed are left out."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def queue_info(queue: QueueState, max_waiting: int) -> QueueInfo:
    """Returns the state of a queue."""
    return QueueInfo(
        waiting=queue.waiting,
        running=queue.running,
        max_waiting=max_waiting,
        estimated_wait_s=queue.estimated_wait_s,
    )


def connection_info() -> ConnectionInfo:
    """Returns how the running call reaches this server, and who makes it."""
    caller = current_caller()
    connection = caller.connection
    return ConnectionInfo(
        security=_PORTS[connection.port],
        caller=caller.name,
        permissions=sorted(caller.permissions),
        credentials_end=_seconds(connection.credentials_end),
        server_certificate_ends=_seconds(connection.certificate_ends),
        server_time=int(time.time()),
    )


def _seconds(moment: datetime | None) -> int:
    return 0 if moment is None else int(moment.timestamp())


def device_info(report: "DeviceReport", compute_dtype: str) -> DeviceInfo:
    """Returns the description of a device.

    Args:
        report: Kind, name and memory of the device.
        compute_dtype: Data type in which the model computes, by torch's name; "" if no model is loaded.
    """
    return DeviceInfo(
        kind=report.kind,
        name=report.name,
        memory_total_bytes=report.memory_total_bytes,
        memory_free_bytes=report.memory_free_bytes,
        compute_dtype=compute_dtype,
    )
