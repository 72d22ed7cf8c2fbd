"""Durable jobs over a real channel: submitted, watched again, found after a restart."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.helpers.configurations import with_config
from tests.helpers.jobs import ENDLESS
from tests.helpers.polling import until_async
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.jobs.manager import Intervals
from zrelay_shared.errors import (
    Cancelled,
    Draining,
    IdempotencyConflict,
    ZrelayError,
)

from .fixture_types import RequestOf, Serve
from .generator_client import images, pixels


async def test_submit_watch_and_watch_again(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept()
    info = await caller.stub.call("GetInfo", pb.GeneratorServiceGetInfoRequest(), pb.GeneratorServiceGetInfoResponse)
    assert {f.name: f.note for f in info.message.features}["jobs.submit"] == ""
    alone = await caller.generate(request_of(seed=3, num_inference_steps=2))
    job = await caller.submit(request_of(request_id="one", seed=3, num_inference_steps=2))
    assert job.request_id == "one" and job.sampling.seed == 3 and job.sequence >= 1
    events = await caller.watch(job.job_id)
    assert events[0].accepted.job_id == job.job_id and events[-1].WhichOneof("event") == "done"
    assert pixels(events) == pixels(alone)
    again = await caller.watch(job.job_id, after=events[0].sequence)
    assert again[-1] == events[-1] and pixels(again) == pixels(alone)
    assert await caller.watch(job.job_id, after=events[-1].sequence) == []
    assert (await caller.job(job.job_id)).state == jpb.JOB_STATE_SUCCEEDED


async def test_the_request_outlives_the_process(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept()
    done = await caller.generate(request_of(request_id="done", num_inference_steps=1))
    running_job = await caller.submit(request_of(request_id="running", **ENDLESS))
    small = [await caller.submit(request_of(request_id=f"n{n}", num_inference_steps=2)) for n in range(3)]
    cancelled = await caller.submit(request_of(request_id="cancelled", **ENDLESS))
    await caller.cancel(cancelled.job_id)
    caller = await serve_kept()
    assert await caller.cancel(running_job.job_id)
    found = {job.request_id: job for job in await caller.jobs()}
    assert len(found) == 6 and found["cancelled"].state == jpb.JOB_STATE_CANCELLED
    assert found["cancelled"].error.reason == "CANCELLED"
    with pytest.raises(Cancelled):
        await caller.watch(cancelled.job_id)
    kept = await caller.watch(done[0].accepted.job_id)
    assert kept[0] == done[0] and kept[-1] == done[-1] and images(kept) == images(done)
    for job in small:  # the seed that the server picked was written down before the job was acknowledged
        events = await caller.watch(job.job_id)
        assert events[0].accepted.seed == job.sampling.seed and events[-1].sequence > 1 << 32
        fresh = await caller.generate(request_of(seed=job.sampling.seed, num_inference_steps=2))
        assert pixels(events) == pixels(fresh)
    again = await caller.generate(request_of(request_id="done", num_inference_steps=1))
    assert again[-1] == done[-1], "a repeat gets the result of the process before"
    with pytest.raises(IdempotencyConflict):
        await caller.generate(request_of(request_id="done", num_inference_steps=2))


async def test_a_watcher_comes_back_after_a_restart(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept()
    job = await caller.submit(request_of(request_id="a", seed=1, num_images=2, num_inference_steps=20))
    seen = []
    async for parcel in caller.watching(job.job_id):
        seen.append(parcel.message.event)
        if seen[-1].progress.completed >= 3:
            break
    caller = await serve_kept()
    rest = await caller.watch(job.job_id, after=seen[-1].sequence)
    sequences = [event.sequence for event in [*seen, *rest]]
    assert sequences == sorted(set(sequences)), "sequences rise across restarts"
    assert [image.image_index for image in images(rest)] == [0, 1]
    whole = await caller.generate(request_of(seed=1, num_images=2, num_inference_steps=20))
    assert pixels(rest) == pixels(whole)


async def test_an_unwatched_job_is_cancelled_unless_it_is_detached(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept(lease_s=1.0, parts={"intervals": Intervals(first_watch_s=0.0)})
    detached = await caller.submit(request_of(request_id="detached", **ENDLESS), detached=True)
    stream = caller.stub.stream("Generate", request_of(request_id="left", **ENDLESS), pb.GenerateResponse)
    assert isinstance(stream, AsyncGenerator)
    left = (await anext(stream)).message.event.accepted.job_id
    await stream.aclose()
    back = caller.watching(left)
    await anext(back)

    async def cancelled(job_id: str) -> None:
        async def is_cancelled() -> bool:
            return (await caller.job(job_id)).state == jpb.JOB_STATE_CANCELLED

        await until_async(is_cancelled, "the job is cancelled")

    later = await caller.submit(request_of(request_id="later", **ENDLESS))  # its lease ends last
    await cancelled(later.job_id)
    assert (await caller.job(left)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING), "a watcher renews"
    await back.aclose()
    await cancelled(left)
    assert (await caller.job(detached.job_id)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING)
    await caller.cancel(detached.job_id)


async def test_another_checkpoint_does_not_paint_what_this_one_accepted(
    serve_kept: Serve, request_of: RequestOf, tmp_path: Path
) -> None:
    caller = await serve_kept()
    job = await caller.submit(request_of(request_id="a", **ENDLESS), detached=True)
    await caller.server.close()
    with sqlite3.connect(tmp_path / "state" / "jobs.db") as db:
        db.execute("UPDATE jobs SET model = 'another'")
    db.close()
    caller = await serve_kept()
    with pytest.raises(ZrelayError) as refused:
        await caller.watch(job.job_id)
    assert refused.value.reason == "MODEL_CHANGED"


async def test_another_time_scale_is_another_checkpoint(
    serve_kept: Serve, request_of: RequestOf, demo: Path, tmp_path: Path
) -> None:
    """The weights are the same, and so is what a job of an earlier release says of its checkpoint."""
    caller = await serve_kept()
    job = await caller.submit(request_of(request_id="a", **ENDLESS), detached=True)
    before = await caller.info()
    config = json.loads((demo / "transformer/config.json").read_text()) | {"t_scale": 500.0}
    other = with_config(demo, tmp_path / "other", config, component="transformer")
    caller = await serve_kept(folder=other)
    after = await caller.info()
    assert after.transformer_digest == before.transformer_digest and after.vae_digest == before.vae_digest
    assert after.configuration_digest != before.configuration_digest and len(after.configuration_digest) == 64
    with pytest.raises(ZrelayError) as refused:
        await caller.watch(job.job_id)
    assert refused.value.reason == "MODEL_CHANGED"


async def test_a_job_of_a_release_without_configurations_continues(
    serve_kept: Serve, request_of: RequestOf, tmp_path: Path
) -> None:
    caller = await serve_kept()
    job = await caller.submit(request_of(request_id="a", **ENDLESS), detached=True)
    info = await caller.info()
    await caller.server.close()
    with sqlite3.connect(tmp_path / "state" / "jobs.db") as db:
        (kept,) = db.execute("SELECT model FROM jobs").fetchone()
        assert kept == f"{info.transformer_digest}+{info.vae_digest}+{info.configuration_digest}"
        db.execute("UPDATE jobs SET model = ?", [f"{info.transformer_digest}+{info.vae_digest}"])
    db.close()
    caller = await serve_kept()
    assert (await caller.job(job.job_id)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING)
    await caller.cancel(job.job_id)


async def test_a_drain_parks_what_it_cannot_finish(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept(grace_s=0.2)
    job = await caller.submit(request_of(request_id="long", seed=1, **ENDLESS))
    watching = asyncio.create_task(caller.watch(job.job_id))

    async def runs() -> bool:
        return (await caller.job(job.job_id)).state == jpb.JOB_STATE_RUNNING

    await until_async(runs, "the job runs")
    await caller.server.drain()
    with pytest.raises(Draining) as refused:
        await watching
    assert refused.value.metadata["job_id"] == job.job_id and refused.value.retry_after_s
    caller = await serve_kept()
    assert (await caller.job(job.job_id)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING)
    back = caller.watching(job.job_id, after=1)
    assert (await anext(back)).message.event.sequence > 1 << 32
    await back.aclose()
    await caller.cancel(job.job_id)
