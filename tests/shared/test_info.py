"""The common parts of GetInfo."""

from dataclasses import dataclass

from zrelay_shared import __version__
from zrelay_shared.service import info


@dataclass(frozen=True)
class Fixed:
    """A capability, and a queue."""

    name: str = "encode.think"
    available: bool = True
    note: str = "a note"
    waiting: int = 3
    running: int = 1
    estimated_wait_s: float = 2.5


def test_installed_libraries_only() -> None:
    assert set(info.library_versions(["grpcio", "no-such-library"])) == {"grpcio"}
    version = info.server_version("encoder", ("grpcio", "no-such-library"))
    assert (version.service, version.version, version.contract) == ("encoder", __version__, "v1")
    assert list(version.libraries) == ["grpcio"]


def test_features_and_queue() -> None:
    [feature] = info.features([Fixed()])
    assert (feature.name, feature.available, feature.note) == ("encode.think", True, "a note")
    queue = info.queue_info(Fixed(), max_waiting=7)
    assert (queue.waiting, queue.running, queue.max_waiting, queue.estimated_wait_s) == (3, 1, 7, 2.5)
