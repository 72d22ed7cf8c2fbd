"""Which jobs come to the device of a real generator: a short one beside many long ones, none whose file is bad."""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.helpers.jobs import ENDLESS, SMALL
from tests.helpers.polling import until_async
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.jobs.manager import Intervals
from zrelay_generator.scheduling.scheduler import LOADED_PER_CLASS
from zrelay_generator.store.blobs import FolderBlobs
from zrelay_shared.errors import PayloadCorrupt

from .fault_injection import ready
from .fixture_types import RequestOf, Serve
from .generator_client import SOON_S, GeneratorClient, digest, serialized
from .helpers import make_embeds

BadFile = Callable[..., Awaitable[tuple[GeneratorClient, jpb.Job, jpb.Job]]]


async def test_a_short_job_does_not_wait_for_long_jobs(serve_kept: Serve, request_of: RequestOf) -> None:
    caller = await serve_kept(max_wait_s=1e6)
    posters = [
        await caller.submit(request_of(request_id=f"poster-{number}", **ENDLESS), detached=True)
        for number in range(LOADED_PER_CLASS + 4)
    ]
    events = await caller.generate(request_of(request_id="short", **SMALL))
    assert events[0].accepted.queue_position <= 1 and events[-1].WhichOneof("event") == "done"
    assert (await succeeded_requests(caller))[0] == "short", "not even the poster that had begun came before it"
    for poster in posters:
        await caller.cancel(poster.job_id)


@pytest.fixture
def bad_file(serve_kept: Serve, request_of: RequestOf, tmp_path: Path) -> BadFile:
    """Serves a job at the head of the line whose input cannot be read, and one behind it; tries again after a while."""

    async def start(again_s: float) -> tuple[GeneratorClient, jpb.Job, jpb.Job]:
        caller = await serve_kept(max_wait_s=1e6, parts={"intervals": Intervals(retry_s=again_s)})
        before = [
            await caller.submit(request_of(request_id=f"before-{number}", **ENDLESS), detached=True)
            for number in range(LOADED_PER_CLASS)
        ]
        requests = [
            request_of(make_embeds(20, 128, seed=images), request_id=f"{images}", num_images=images, **ENDLESS)
            for images in (2, 3)  # more work than those before, so they wait behind them
        ]
        bad, behind = [await caller.submit(request, detached=True) for request in requests]
        path = tmp_path / "state" / "blobs" / digest(serialized(requests[0]))
        path.unlink()
        path.mkdir()
        for job in before:
            await caller.cancel(job.job_id)
        return caller, bad, behind

    return start


async def test_a_file_that_cannot_be_read_ends_its_job_alone(bad_file: BadFile) -> None:
    caller, bad, behind = await bad_file(again_s=0.1)
    with pytest.raises(PayloadCorrupt) as damaged:
        await asyncio.wait_for(caller.watch(bad.job_id), SOON_S)
    assert damaged.value.reason == "STORE_DAMAGED"
    await job_runs(caller, behind)
    assert not caller.service.unhealthy_reason
    await ready(caller.channel)


async def test_others_pass_a_job_whose_file_is_in_doubt(bad_file: BadFile) -> None:
    caller, bad, behind = await bad_file(again_s=1000.0)
    await job_runs(caller, behind)
    assert (await caller.job(bad.job_id)).state == jpb.JOB_STATE_QUEUED


def test_a_file_that_could_not_be_read_is_written_anew_when_it_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, path = FolderBlobs(tmp_path), tmp_path / digest(b"content")

    def unreadable(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    blobs.put(path.name, b"content")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(Path, "read_bytes", unreadable)
        blobs.read(path.name)
    inodes = [path.stat().st_ino]
    for _ in range(2):
        # Held open, so that its number is not used for another.
        with path.open("rb"):
            blobs.put(path.name, b"content")
        inodes.append(path.stat().st_ino)
    assert inodes[0] != inodes[1] == inodes[2]


async def succeeded_requests(caller: GeneratorClient) -> list[str]:
    """Returns the request ids of the jobs that succeeded, in the order of their ends."""
    done = await caller.jobs(jpb.JOB_STATE_SUCCEEDED)
    return [job.request_id for job in sorted(done, key=lambda job: job.ended_at)]


async def job_runs(caller: GeneratorClient, job: jpb.Job) -> None:
    """Returns once a job runs."""

    async def runs() -> bool:
        return (await caller.job(job.job_id)).state == jpb.JOB_STATE_RUNNING

    await until_async(runs, f"job {job.job_id} runs")
