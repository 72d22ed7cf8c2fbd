"""Durable jobs over a real channel: submitted, watched again, found after a restart, inputs by their digest."""

import asyncio
import hashlib
import sqlite3

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict

from zrelay.v1 import content_pb2
from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.border.contents import named
from zrelay_generator.config import GeneratorConfig
from zrelay_generator.service import GeneratorService
from zrelay_shared.channels import dial
from zrelay_shared.errors import (
    Cancelled,
    DeadlineExceeded,
    Draining,
    IdempotencyConflict,
    InvalidArgument,
    NotFound,
    PayloadCorrupt,
    QueueFull,
    ZrelayError,
)
from zrelay_shared.listening import parse_listen
from zrelay_shared.rpc import Stub
from zrelay_shared.serving import RunningServer, ServeOptions, running
from zrelay_shared.wire import Parcel

SERVICE = pb.DESCRIPTOR.services_by_name["GeneratorService"]
LONG = {"num_inference_steps": 100, "width": 512, "height": 512}
"""Tens of seconds on a CPU: never waited for."""


class Caller:
    """A client on one channel."""

    def __init__(self, address: str, server: RunningServer) -> None:
        self.channel = dial(address)
        self.server = server
        self.stub = Stub(self.channel, SERVICE)

    async def submit(self, request, detached=False) -> jpb.Job:
        message = pb.SubmitJobRequest(request_id=request.message.request_id, spec=request.message.spec)
        message.detached = detached
        reply = await self.stub.call("SubmitJob", Parcel(message, request), pb.SubmitJobResponse, timeout=60)
        return reply.message.job

    async def generate(self, request, timeout=280) -> list[jpb.JobEvent]:
        stream = self.stub.stream("Generate", request, pb.GenerateResponse, timeout=timeout)
        return [parcel.message.event async for parcel in stream]

    def watching(self, job_id, after=0):
        request = pb.WatchJobRequest(job_id=job_id, after_sequence=after)
        return self.stub.stream("WatchJob", request, pb.WatchJobResponse)

    async def watch(self, job_id, after=0) -> list[jpb.JobEvent]:
        return [parcel.message.event async for parcel in self.watching(job_id, after)]

    async def job(self, job_id) -> jpb.Job:
        return (await self.stub.call("GetJob", pb.GetJobRequest(job_id=job_id), pb.GetJobResponse)).message.job

    async def jobs(self, *states) -> list[jpb.Job]:
        request = pb.ListJobsRequest(page_size=200, states=states)
        return list((await self.stub.call("ListJobs", request, pb.ListJobsResponse)).message.jobs)

    async def cancel(self, job_id) -> jpb.Job:
        request = pb.CancelJobRequest(job_id=job_id)
        return (await self.stub.call("CancelJob", request, pb.CancelJobResponse)).message.job

    async def upload(self, data: bytes, sha256: str = "", size: int | None = None, piece: int = 1 << 18):
        call = self.channel.stream_unary(
            f"/{SERVICE.full_name}/UploadBlob",
            request_serializer=pb.UploadBlobRequest.SerializeToString,
            response_deserializer=pb.UploadBlobResponse.FromString,
        )
        content = content_pb2.ContentRef(sha256=sha256 or digest(data), size_bytes=len(data) if size is None else size)

        async def pieces():
            yield pb.UploadBlobRequest(content=content, data=data[:piece])
            for at in range(piece, len(data), piece):
                yield pb.UploadBlobRequest(data=data[at : at + piece])

        return await call(pieces())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def images(events) -> list[jpb.JobImage]:
    return [event.image for event in events if event.WhichOneof("event") == "image"]


def pixels(events) -> list[str]:
    return [image.pixels_sha256 for image in images(events)]


@pytest.fixture
async def serve(demo, tmp_path, monkeypatch):
    """Starts a generator on a state folder; starting it again ends the one before, as a crash would end its memory."""
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    open_ones = []

    async def end():
        for caller, context in open_ones:
            await caller.channel.close()
            await context.__aexit__(None, None, None)
        open_ones.clear()

    async def started(**changed) -> Caller:
        await end()
        options = {"state": tmp_path / "state", "device": "cpu", "dtype": "float32", "threads": 1, **changed}
        service = GeneratorService(GeneratorConfig(model=demo, **options))
        context = running(service, ServeOptions(parse_listen("127.0.0.1:0")))
        server = await context.__aenter__()
        await server.loaded
        open_ones.append((Caller(str(server.address), server), context))
        return open_ones[-1][0]

    yield started
    await end()


def serialized(request) -> bytes:
    """The PromptEmbeds of a request as a client would send them."""
    return Parcel(request.message.spec.prompt.prompt_embeds, request).to_bytes()


def by_name(request, data: bytes):
    """The same request with its embeddings by their digest."""
    message = pb.GenerateRequest()
    message.CopyFrom(request.message)
    message.spec.prompt.content.CopyFrom(content_pb2.ContentRef(sha256=digest(data), size_bytes=len(data)))
    return Parcel(message)


async def test_submit_watch_and_watch_again(serve, request_of):
    caller = await serve()
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


async def test_what_was_asked_outlives_the_process(serve, request_of):
    caller = await serve()
    done = await caller.generate(request_of(request_id="done", num_inference_steps=1))
    running_job = await caller.submit(request_of(request_id="running", **LONG))
    small = [await caller.submit(request_of(request_id=f"n{n}", num_inference_steps=2)) for n in range(3)]
    cancelled = await caller.submit(request_of(request_id="cancelled", **LONG))
    await caller.cancel(cancelled.job_id)
    caller = await serve()
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


async def test_a_watcher_comes_back_after_a_restart(serve, request_of):
    caller = await serve()
    job = await caller.submit(request_of(request_id="a", seed=1, num_images=2, num_inference_steps=20))
    seen = []
    async for parcel in caller.watching(job.job_id):
        seen.append(parcel.message.event)
        if seen[-1].progress.completed >= 3:
            break
    caller = await serve()
    rest = await caller.watch(job.job_id, after=seen[-1].sequence)
    sequences = [event.sequence for event in [*seen, *rest]]
    assert sequences == sorted(set(sequences)), "sequences rise across restarts"
    assert [image.image_index for image in images(rest)] == [0, 1]
    whole = await caller.generate(request_of(seed=1, num_images=2, num_inference_steps=20))
    assert pixels(rest) == pixels(whole)


async def test_an_unwatched_job_is_cancelled_unless_it_is_detached(serve, request_of):
    caller = await serve(lease_s=1.0)
    detached = await caller.submit(request_of(request_id="detached", **LONG), detached=True)
    stream = caller.stub.stream("Generate", request_of(request_id="left", **LONG), pb.GenerateResponse)
    left = (await anext(stream)).message.event.accepted.job_id
    await stream.aclose()
    back = caller.watching(left)
    await anext(back)
    await asyncio.sleep(1.5)
    assert (await caller.job(left)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING), "a watcher renews"
    await back.aclose()
    async with asyncio.timeout(60):
        while (await caller.job(left)).state != jpb.JOB_STATE_CANCELLED:
            await asyncio.sleep(0.05)
    assert (await caller.job(detached.job_id)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING)
    await caller.cancel(detached.job_id)


async def test_embeddings_by_their_digest(serve, request_of, embeds, tmp_path):
    caller = await serve()
    inline = request_of(request_id="inline", seed=5, num_inference_steps=2)
    data = serialized(inline)
    with pytest.raises(NotFound) as refused:
        await caller.generate(by_name(inline, data))
    assert (refused.value.reason, refused.value.metadata["sha256"]) == ("CONTENT_UNKNOWN", digest(data))
    assert refused.value.field == "spec.prompt.content"
    painted = await caller.generate(inline)
    assert pixels(await caller.generate(by_name(inline, data))) == pixels(painted), "sent inline, known by name"
    reference = by_name(request_of(request_id="named", seed=5, num_inference_steps=2), data)
    assert pixels(await caller.generate(reference)) == pixels(painted)
    for seed in range(20):  # many seeds, one embedding
        named_request = by_name(request_of(request_id=f"seed-{seed}", seed=seed, num_inference_steps=1), data)
        await caller.submit(named_request, detached=True)
    files = {path.name for path in (tmp_path / "state" / "blobs").iterdir()}
    assert digest(data) in files
    other = request_of(embeds(9, 128, 77), request_id="other", seed=5, num_inference_steps=2)
    assert not (await caller.upload(serialized(other))).existed
    assert (await caller.upload(serialized(other))).existed
    caller = await serve()
    assert pixels(await caller.generate(by_name(other, serialized(other)))) != pixels(painted)


async def test_uploads_are_kept_whole_or_not_at_all(serve, tmp_path):
    caller = await serve()
    data = bytes(range(256)) * 4096
    for changed, code in (
        ({"sha256": "0" * 64}, grpc.StatusCode.DATA_LOSS),
        ({"size": len(data) - 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"size": len(data) + 1}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"size": 1 << 40}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sha256": "../../etc/passwd"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"sha256": digest(data).upper()}, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await caller.upload(data, **changed)
        assert refused.value.code() is code, changed
    call = caller.channel.stream_unary(f"/{SERVICE.full_name}/UploadBlob")
    content = content_pb2.ContentRef(sha256=digest(data))

    async def broken_off():
        yield pb.UploadBlobRequest(content=content, data=data[:1000]).SerializeToString()
        await asyncio.sleep(30)

    interrupted = call(broken_off())
    await asyncio.sleep(0.2)
    interrupted.cancel()
    await asyncio.sleep(0.3)
    assert list((tmp_path / "state" / "blobs").iterdir()) == []
    reply = await caller.upload(data, size=0)
    assert reply.content.size_bytes == len(data) and not reply.existed
    assert [path.name for path in (tmp_path / "state" / "blobs").iterdir()] == [digest(data)]


async def test_an_image_by_its_digest(serve, request_of):
    caller = await serve()
    (first,) = images(await caller.generate(request_of(seed=1, num_inference_steps=2)))
    inline, named_request = request_of(seed=2, request_id="i"), request_of(seed=2, request_id="i")
    inline.message.spec.image_to_image.image.data = first.data
    named_request.message.spec.image_to_image.image.content.sha256 = first.file_sha256
    by_value, by_digest = await caller.generate(inline), await caller.generate(named_request)
    assert pixels(by_value) == pixels(by_digest), "a result can be named at once"


async def test_damage_is_one_jobs_trouble(serve, request_of, embeds, tmp_path):
    caller = await serve()
    blocker = await caller.submit(request_of(request_id="blocker", **LONG), detached=True)
    bad = request_of(embeds(7, 128, 1), request_id="bad", num_inference_steps=1)
    good = request_of(embeds(8, 128, 2), request_id="good", num_inference_steps=1)
    jobs = [await caller.submit(request, detached=True) for request in (bad, good)]
    done = await caller.generate(request_of(request_id="done", num_inference_steps=1, seed=9))
    await caller.cancel(blocker.job_id)
    running_now = request_of(embeds(9, 128, 3), request_id="slow", **LONG)
    slow = await caller.submit(running_now, detached=True)
    blobs = tmp_path / "state" / "blobs"
    await caller.server.close()
    (blobs / digest(serialized(running_now))).write_bytes(b"rotten")
    (blobs / images(done)[0].file_sha256).write_bytes(b"rotten")
    caller = await serve()
    with pytest.raises(PayloadCorrupt) as refused:
        await caller.watch(slow.job_id)
    assert refused.value.reason == "STORE_DAMAGED"
    with pytest.raises(PayloadCorrupt):
        await caller.watch(done[0].accepted.job_id)
    assert [(await caller.watch(job.job_id))[-1].WhichOneof("event") for job in jobs] == ["done", "done"]
    again = await caller.submit(request_of(embeds(9, 128, 3), request_id="slow", num_inference_steps=1))
    assert (await caller.watch(again.job_id))[-1].WhichOneof("event") == "done", "sent again, it is painted"


async def test_another_checkpoint_does_not_paint_what_this_one_accepted(serve, request_of, tmp_path):
    caller = await serve()
    job = await caller.submit(request_of(request_id="a", **LONG), detached=True)
    await caller.server.close()
    with sqlite3.connect(tmp_path / "state" / "jobs.db") as db:
        db.execute("UPDATE jobs SET model = 'another'")
    db.close()
    caller = await serve()
    with pytest.raises(ZrelayError) as refused:
        await caller.watch(job.job_id)
    assert refused.value.reason == "MODEL_CHANGED"


async def test_a_drain_parks_what_it_cannot_finish(serve, request_of):
    caller = await serve()
    job = await caller.submit(request_of(request_id="long", seed=1, **LONG))
    watching = asyncio.create_task(caller.watch(job.job_id))
    await asyncio.sleep(0.3)
    caller.server._options = ServeOptions(parse_listen("127.0.0.1:0"), grace_s=0.2)
    await caller.server.drain()
    with pytest.raises(Draining) as refused:
        await watching
    assert refused.value.metadata["job_id"] == job.job_id and refused.value.retry_after_s
    caller = await serve()
    assert (await caller.job(job.job_id)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING)
    back = caller.watching(job.job_id, after=1)
    assert (await anext(back)).message.event.sequence > 1 << 32
    await back.aclose()
    await caller.cancel(job.job_id)


async def test_overload_is_told_and_nothing_is_lost(serve, request_of):
    caller = await serve(max_waiting=8)
    await caller.generate(request_of(num_inference_steps=1))
    started = asyncio.get_running_loop().time()
    await caller.generate(request_of(num_inference_steps=4, seed=1))
    alone_s = asyncio.get_running_loop().time() - started

    async def one(number):
        try:
            return await caller.generate(request_of(request_id=f"r{number}", num_inference_steps=4, seed=number))
        except QueueFull as error:
            assert error.retry_after_s >= 1.0
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


async def test_a_disk_that_refuses_is_told(serve, request_of, tmp_path):
    caller = await serve()
    blobs = tmp_path / "state" / "blobs"
    blobs.rename(tmp_path / "state" / "gone")
    with pytest.raises(ZrelayError) as refused:
        await caller.submit(request_of(request_id="a", num_inference_steps=1))
    assert (refused.value.code, refused.value.reason) == ("UNAVAILABLE", "STATE_UNWRITABLE")
    assert refused.value.retry_after_s and str(tmp_path) not in refused.value.message
    (tmp_path / "state" / "gone").rename(blobs)
    assert (await caller.generate(request_of(request_id="a", num_inference_steps=1)))[-1].WhichOneof("event") == "done"


async def test_deadlines_are_looked_at_first(serve, request_of):
    caller = await serve()
    with pytest.raises(DeadlineExceeded) as refused:
        await caller.generate(request_of(**{**LONG, "num_images": 16}), timeout=3)
    assert refused.value.metadata["stage"] == "generate"
    assert await caller.jobs() == []


async def test_hostile_job_requests(serve, request_of):
    caller = await serve()
    with pytest.raises(InvalidArgument):
        await caller.submit(request_of(request_id=""))
    with pytest.raises(NotFound) as refused:
        await caller.watch("nobody")
    assert refused.value.reason == "JOB_UNKNOWN"
    bad = request_of(request_id="bad")
    bad.message.spec.prompt.content.sha256 = "../../etc/passwd"
    with pytest.raises(InvalidArgument) as refused:
        await caller.submit(bad)
    assert refused.value.reason == "CONTENT_INVALID"
    noise = b"not embeddings"
    await caller.upload(noise)
    bad.message.spec.prompt.content.sha256 = digest(noise)
    with pytest.raises(InvalidArgument):
        await caller.submit(bad)
    for states in ([jpb.JOB_STATE_UNSPECIFIED], [99]):
        with pytest.raises(InvalidArgument):
            await caller.jobs(*states)
    assert MessageToDict(await caller.submit(request_of(request_id="good", num_inference_steps=1))), "and it lives"


def test_the_identity_is_of_the_whole_request(request_of, embeds):
    def identity(request):
        return named(request, request.message.spec).identity

    plain = request_of(seed=1)
    same, inline = request_of(seed=1), identity(plain)
    assert identity(same) == inline, "not of the markers that stand for the bytes"
    assert identity(by_name(plain, serialized(plain))) == inline
    others = [request_of(embeds(20, 128, 1), seed=1), request_of(seed=2), request_of()]
    labelled, formatted = request_of(seed=1), request_of(seed=1)
    labelled.message.spec.provenance.labels["a"] = "b"
    formatted.message.spec.output.format = gpb.IMAGE_FORMAT_JPEG
    omni = request_of(seed=1)
    grid = omni.message.spec.omni.siglip_embeds.add().grid
    omni.attach(grid, b"\0\0")
    found = [identity(request) for request in (*others, labelled, formatted, omni)]
    omni.attach(grid, b"\0\1")
    found.append(identity(omni))
    assert len({inline, *found}) == len(found) + 1
