"""A service without free file descriptors: what callers receive, what systemd hears, how many there are."""

import asyncio
import errno
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest

from tests.helpers.descriptors import few_free
from tests.helpers.servers import serve
from zrelay.v1 import vision_pb2
from zrelay_shared import descriptors, rpc
from zrelay_shared.errors import InternalError, Unavailable
from zrelay_shared.service.systemd import Systemd
from zrelay_shared.wire import Parcel

from .services import ControlledService

pytestmark = pytest.mark.hostile


class ReadingService(ControlledService):
    """A service that opens a file for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.load_now.set()
        self.drain_now.set()

    async def GetInfo(self, parcel: Parcel[Any], context: rpc.Context) -> vision_pb2.VisionServiceGetInfoResponse:
        try:
            with Path(os.devnull).open("rb"):
                return vision_pb2.VisionServiceGetInfoResponse(ready=True)
        except OSError as error:
            raise ValueError("the table could not be read") from error


async def test_a_call_without_a_descriptor_is_unavailable_and_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    request, kind = vision_pb2.VisionServiceGetInfoRequest(), vision_pb2.VisionServiceGetInfoResponse
    async with serve(ReadingService()) as served:
        assert (await served.stub.call("GetInfo", request, kind)).message.ready
        with few_free(), pytest.raises(Unavailable) as refusal:
            await served.stub.call("GetInfo", request, kind)
        assert refusal.value.reason == "DESCRIPTORS_EXHAUSTED" and refusal.value.retry_after_s == descriptors.RETRY_S
        assert "no free file descriptor" in refusal.value.message and "LimitNOFILE" in refusal.value.message
        assert (await served.stub.call("GetInfo", request, kind)).message.ready
    assert "incident" not in caplog.text


async def test_other_errors_of_files_stay_bugs() -> None:
    service = ReadingService()

    async def fail(parcel: Parcel[Any], context: rpc.Context) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "gone")

    service.GetInfo = fail  # type: ignore[method-assign]
    request, kind = vision_pb2.VisionServiceGetInfoRequest(), vision_pb2.VisionServiceGetInfoResponse
    async with serve(service) as served:
        with pytest.raises(InternalError):
            await served.stub.call("GetInfo", request, kind)


async def test_the_heartbeat_goes_on_without_descriptors(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.setblocking(False)
        systemd = Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "20000"})
        with few_free():
            beating = asyncio.create_task(systemd.heartbeat())
            loop = asyncio.get_running_loop()
            for _ in range(3):
                assert await asyncio.wait_for(loop.sock_recv(listener, 100), 60) == b"WATCHDOG=1"
            systemd.notify("STOPPING=1", "STATUS=ending")
            while (message := await asyncio.wait_for(loop.sock_recv(listener, 100), 60)) == b"WATCHDOG=1":
                pass
            assert message == b"STOPPING=1\nSTATUS=ending"
        beating.cancel()
        systemd.close()


async def test_without_systemd_nothing_is_sent_and_no_heartbeat_runs() -> None:
    systemd = Systemd({})
    systemd.notify("READY=1")
    await systemd.heartbeat()
    systemd.close()


def test_sqlite_without_a_descriptor_is_recognised(tmp_path: Path) -> None:
    def opened(name: str) -> sqlite3.OperationalError:
        with pytest.raises(sqlite3.OperationalError) as failure:
            sqlite3.connect(tmp_path / name)
        return failure.value

    with few_free():
        assert descriptors.exhausted(opened("jobs.db"))
    assert not descriptors.exhausted(opened("no/such/folder.db"))
    assert not descriptors.exhausted(None)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "limit"),
    [(64, 200, 150, 150), (64, 200, 4000, 200), (90, 90, 150, 90), (180, 200, 150, 150)],
)
def test_the_soft_limit_is_raised_as_far_as_the_hard_one_permits(soft: int, hard: int, wanted: int, limit: int) -> None:
    script = (
        "import resource; from zrelay_shared import descriptors; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); "
        f"print(descriptors.raise_limit({wanted}), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(limit), str(max(soft, limit)), str(hard)]


@pytest.mark.parametrize(
    ("limit", "connections"), [(1, 1), (256, 128), (1024, 512), (20_000, descriptors.MAX_CONNECTIONS)]
)
def test_connections_take_at_most_half_of_the_descriptors(limit: int, connections: int) -> None:
    assert descriptors.connection_share(limit) == connections


async def test_a_client_without_descriptors_learns_the_cause() -> None:
    request, kind = vision_pb2.VisionServiceGetInfoRequest(), vision_pb2.VisionServiceGetInfoResponse
    async with serve(ReadingService()) as served:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        async with grpc.aio.insecure_channel(served.endpoint, options) as channel:
            with few_free(), pytest.raises(Unavailable) as refusal:
                await rpc.Stub(channel, served.service.descriptor, served.endpoint).call("GetInfo", request, kind)
    assert "this process has no free file descriptor" in refusal.value.message
