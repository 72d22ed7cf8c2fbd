"""The common parts of GetInfo."""

from dataclasses import dataclass

from zrelay_shared import __version__
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
