"""What durable jobs are refused for, and what damage, overload and a full disk leave as it was."""

import asyncio
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict

from tests.helpers.jobs import ENDLESS
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_shared.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PayloadCorrupt,
    QueueFull,
    ZrelayError,
)

from .fixture_types import MakeEmbeds, RequestOf, Serve
from .generator_client import digest, images, serialized


async def test_damage_is_one_jobs_trouble(
    serve_kept: Serve, request_of: RequestOf, embeds: MakeEmbeds, tmp_path: Path
) -> None:
    caller = await serve_kept()
    blocker = await caller.submit(request_of(request_id="blocker", **ENDLESS), detached=True)
    bad = request_of(embeds(7, 128, 1), request_id="bad", num_inference_steps=1)
    good = request_of(embeds(8, 128, 2), request_id="good", num_inference_steps=1)
    jobs = [await caller.submit(request, detached=True) for request in (bad, good)]
    done = await caller.generate(request_of(request_id="done", num_inference_steps=1, seed=9))
    await caller.cancel(blocker.job_id)
    running_now = request_of(embeds(9, 128, 3), request_id="slow", **ENDLESS)
    slow = await caller.submit(running_now, detached=True)
    blobs = tmp_path / "state" / "blobs"
    await caller.server.close()
    (blobs / digest(serialized(running_now))).write_bytes(b"rotten")
    (blobs / images(done)[0].file_sha256).write_bytes(b"rotten")
    caller = await serve_kept()
    with pytest.raises(PayloadCorrupt) as refused:
        await caller.watch(slow.job_id)
    assert refused.value.reason == "STORE_DAMAGED"
    with pytest.raises(PayloadCorrupt):
        await caller.watch(done[0].accepted.job_id)
    assert [(await caller.watch(job.job_id))[-1].WhichOneof("event") for job in jobs] == ["done", "done"]
    again = await caller.submit(running_now)
    assert again.job_id != slow.job_id, "sent again, it is taken"
    await caller.cancel(again.job_id)
    anew = await caller.generate(request_of(request_id="done", num_inference_steps=1, seed=9))
    assert images(anew)[0].pixels_sha256 == images(done)[0].pixels_sha256, "and painted"


async def test_overload_is_refused_and_nothing_is_lost(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept(max_waiting=8, caller_share=100)
    await caller.generate(request_of(num_inference_steps=1))
    started = asyncio.get_running_loop().time()
    await caller.generate(request_of(num_inference_steps=4, seed=1))
    alone_s = asyncio.get_running_loop().time() - started

    async def one(number: int) -> list[jpb.JobEvent] | None:
        try:
            return await caller.generate(request_of(request_id=f"r{number}", num_inference_steps=4, seed=number))
        except QueueFull as error:
            assert (error.retry_after_s or 0.0) >= 1.0
            return None

    outcomes = await asyncio.gather(*(one(number) for number in range(80)))
    painted = [outcome for outcome in outcomes if outcome is not None]
    assert 8 <= len(painted) < 80
    assert all(events[-1].WhichOneof("event") == "done" for events in painted)
    done = await caller.jobs(jpb.JOB_STATE_SUCCEEDED)
    assert len(done) == len(painted) + 2 and len(await caller.jobs()) == len(done)
    times = []
    for _ in range(5):
        started = asyncio.get_running_loop().time()
        await caller.generate(request_of(num_inference_steps=4, seed=1))
        times.append(asyncio.get_running_loop().time() - started)
    assert min(times) < 3 * alone_s + 0.2, "normal latency again"


async def test_a_disk_that_refuses_is_reported(serve_kept: Serve, request_of: RequestOf, tmp_path: Path) -> None:
    caller = await serve_kept()
    blobs = tmp_path / "state" / "blobs"
    blobs.rename(tmp_path / "state" / "gone")
    with pytest.raises(ZrelayError) as refused:
        await caller.submit(request_of(request_id="a", num_inference_steps=1))
    assert (refused.value.code, refused.value.reason) == ("UNAVAILABLE", "STATE_UNWRITABLE")
    assert refused.value.retry_after_s and str(tmp_path) not in refused.value.message
    (tmp_path / "state" / "gone").rename(blobs)
    assert (await caller.generate(request_of(request_id="a", num_inference_steps=1)))[-1].WhichOneof("event") == "done"


async def test_deadlines_are_looked_at_first(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept()
    with pytest.raises(DeadlineExceeded) as refused:
        await caller.generate(request_of(**{**ENDLESS, "num_images": 16}), timeout=3)
    assert refused.value.metadata["stage"] == "generate"
    assert await caller.jobs() == []


async def test_hostile_job_requests(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept()
    with pytest.raises(InvalidArgument):
        await caller.submit(request_of(request_id=""))
    with pytest.raises(NotFound) as refused:
        await caller.watch("nobody")
    assert refused.value.reason == "JOB_UNKNOWN"
    bad = request_of(request_id="bad")
    bad.message.spec.prompt.content.sha256 = "../../etc/passwd"
    with pytest.raises(InvalidArgument) as invalid:
        await caller.submit(bad)
    assert invalid.value.reason == "CONTENT_INVALID"
    noise = b"not embeddings"
    await caller.upload(noise)
    bad.message.spec.prompt.content.sha256 = digest(noise)
    with pytest.raises(InvalidArgument):
        await caller.submit(bad)
    for states in ([jpb.JOB_STATE_UNSPECIFIED], [99]):
        with pytest.raises(InvalidArgument):
            await caller.jobs(*states)
    assert MessageToDict(await caller.submit(request_of(request_id="good", num_inference_steps=1))), "and it lives"


@pytest.mark.parametrize("bound", ["count", "bytes"])
async def test_jobs_are_taken_up_to_a_count_and_up_to_a_share_of_the_disk(
    serve_kept: Serve, request_of: RequestOf, embeds: MakeEmbeds, bound: str
) -> None:
    size = len(serialized(request_of(embeds(20, 128, 0))))
    limit = {"count": {"max_waiting": 20}, "bytes": {"max_waiting_bytes": int(2.5 * size)}}[bound]
    caller = await serve_kept(max_wait_s=1e9, caller_share=100, **limit)
    taken = []
    with pytest.raises(QueueFull) as refused:
        for number in range(60):  # some of them wait next to the device, where bytes do not count
            request = request_of(embeds(20, 128, number), request_id=f"{number}", **ENDLESS)
            taken.append(await caller.submit(request, detached=True))
    assert (refused.value.retry_after_s or 0.0) >= 1.0 and "use another generator" in refused.value.message
    assert 16 <= len(taken) <= 22
    for job in taken[-3:]:
        await caller.cancel(job.job_id)
    again = request_of(embeds(20, 128, 99), request_id="again", **ENDLESS)
    assert (await caller.submit(again, detached=True)).state == jpb.JOB_STATE_QUEUED, "there is room again"
