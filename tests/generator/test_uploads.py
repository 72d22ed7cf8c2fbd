"""Uploads that never end, or end too late, keep nobody else out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from zrelay.v1.content_pb2 import ContentRef
from zrelay.v1.generator_pb2 import UploadBlobRequest, UploadBlobResponse
from zrelay_generator.api.contents import DEFAULT_UPLOAD_LIMITS, UploadLimits, Uploads
from zrelay_shared.callers import NOBODY, Caller
from zrelay_shared.errors import DeadlineExceeded, QuotaExceeded
from zrelay_shared.security.permissions import CALLER
from zrelay_shared.wire import Parcel

from .fixture_types import OpenStore, Serve
from .generator_client import SERVICE, digest
from .stores import named

pytestmark = pytest.mark.hostile

Parts = AsyncIterator[Parcel[UploadBlobRequest]]


def part(data: bytes, sha256: str = "") -> Parcel[UploadBlobRequest]:
    """Returns a part of an upload; the first one names the content."""
    return Parcel(UploadBlobRequest(content=ContentRef(sha256=sha256) if sha256 else None, data=data))


async def endless(number: int, ends: asyncio.Event) -> Parts:
    """Sends the first part of a content, and the rest once `ends` is set."""
    data = number.to_bytes(2, "big")
    yield part(data[:1], named(data))
    await ends.wait()
    yield part(data[1:])


async def test_one_caller_leaves_uploads_for_the_others(opened: OpenStore) -> None:
    uploads, ends, turn = Uploads(opened()), asyncio.Event(), iter(range(1000))
    running: list[asyncio.Task[UploadBlobResponse]] = []

    async def begin(caller: str) -> int:
        """Begins uploads of a caller until one is refused; their number."""
        for count in range(DEFAULT_UPLOAD_LIMITS.running + 1):
            task = asyncio.create_task(uploads.receive(endless(next(turn), ends), Caller(caller, CALLER)))
            await asyncio.sleep(0)
            if task.done():
                with pytest.raises(QuotaExceeded, match="try again in 2 s") as refused:
                    await task
                assert refused.value.retry_after_s == 2.0
                return count
            running.append(task)
        raise AssertionError("one caller takes every place")

    assert [await begin(caller) for caller in "abcd"] == [12, 3, 1, 0]
    ends.set()
    await asyncio.gather(*running)
    assert (await uploads.receive(endless(next(turn), ends), Caller("d", CALLER))).content.size_bytes == 2


def trickle(pass_time: Callable[[float], None], chunk: bytes, every_s: float) -> Parts:
    """Sends a chunk at intervals, without end."""

    async def parts() -> Parts:
        yield part(chunk, "0" * 64)
        while True:
            pass_time(every_s)
            yield part(chunk)

    return parts()


@pytest.mark.parametrize(
    ("chunk_bytes", "every_s", "ends_after_s"),
    [(1, 1.0, 60.0), (4096, 1.0, 80.0), (1 << 20, 20.0, 600.0)],
    ids=["a byte a second", "too slow", "fast enough, too long"],
)
async def test_a_trickling_upload_ends(
    opened: OpenStore, chunk_bytes: int, every_s: float, ends_after_s: float
) -> None:
    store, clock_s = opened(), 0.0

    def pass_time(seconds: float) -> None:
        nonlocal clock_s
        clock_s += seconds

    uploads = Uploads(store, clock=lambda: clock_s)
    with pytest.raises(DeadlineExceeded, match="16 KiB a second") as refused:
        await uploads.receive(trickle(pass_time, bytes(chunk_bytes), every_s), NOBODY)
    assert refused.value.metadata["stage"] == "upload"
    assert clock_s == pytest.approx(ends_after_s, abs=every_s)
    assert store.blobs.names() == set() and await store.sweep() == 0, "nothing is left of it"


@pytest.mark.deep
async def test_trickling_uploads_of_a_client_end(serve_kept: Serve) -> None:
    limits = UploadLimits(running=4, stall_s=0.5, bytes_per_s=1 << 20, total_s=5.0)
    caller = await serve_kept(parts={"upload_limits": limits})
    call: Any = caller.channel.stream_unary(f"/{SERVICE.full_name}/UploadBlob")

    async def parts() -> AsyncIterator[bytes]:
        yield part(b"x", "0" * 64).message.SerializeToString()
        while True:
            await asyncio.sleep(0.05)
            yield part(b"x").message.SerializeToString()

    outcomes = await asyncio.gather(*(call(parts()) for _ in range(10)), return_exceptions=True)
    codes = [outcome.code() for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert sorted(code.name for code in codes) == ["DEADLINE_EXCEEDED"] * 3 + ["RESOURCE_EXHAUSTED"] * 7
    assert (await caller.upload(b"content")).content.sha256 == digest(b"content")
