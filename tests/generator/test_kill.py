"""A generator that is killed at any moment: nothing that it accepted is lost, nothing is painted otherwise."""

import asyncio
import random
import sys
import time

import pytest

from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.store.retention import Retention
from zrelay_generator.store.store import open_store
from zrelay_shared import exits
from zrelay_shared.channels import dial
from zrelay_shared.errors import ZrelayError
from zrelay_shared.rpc import Stub
from zrelay_shared.wire import Parcel

SERVICE = pb.DESCRIPTOR.services_by_name["GeneratorService"]
JOBS = 100


class Generator:
    """A process on a state folder."""

    def __init__(self, demo, folder):
        self.demo, self.folder, self.file = demo, folder, folder / "address"
        self.process: asyncio.subprocess.Process | None = None
        self.channel = None

    async def start(self, *flags):
        self.file.unlink(missing_ok=True)
        command = ["--model", str(self.demo), "--listen", "127.0.0.1:0", "--address-file", str(self.file)]
        command += ["--state", str(self.folder / "state"), "--device", "cpu", "--threads", "1", *flags]
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "zrelay_generator", *command, stderr=asyncio.subprocess.DEVNULL
        )
        deadline = time.monotonic() + 180  # on a busy machine
        while not self.file.exists():
            assert time.monotonic() < deadline and self.process.returncode is None
            await asyncio.sleep(0.05)
        self.channel = dial(self.file.read_text())
        self.stub = Stub(self.channel, SERVICE)
        while not (await self.info()).ready:
            await asyncio.sleep(0.05)

    async def info(self):
        request = pb.GeneratorServiceGetInfoRequest()
        return (await self.stub.call("GetInfo", request, pb.GeneratorServiceGetInfoResponse, timeout=60)).message

    async def kill(self):
        self.process.kill()
        await self.process.wait()

    async def submit(self, request):
        message = pb.SubmitJobRequest(request_id=request.message.request_id, spec=request.message.spec, detached=True)
        reply = await self.stub.call("SubmitJob", Parcel(message, request), pb.SubmitJobResponse, timeout=60)
        return reply.message.job.job_id

    async def painted(self, job_id):
        watch = self.stub.stream("WatchJob", pb.WatchJobRequest(job_id=job_id), pb.WatchJobResponse, timeout=280)
        events = [parcel.message.event async for parcel in watch]
        assert events[-1].WhichOneof("event") == "done"
        (image,) = [event.image for event in events if event.WhichOneof("event") == "image"]
        return image.pixels_sha256


@pytest.fixture
async def generator(demo, tmp_path, monkeypatch):
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    made = Generator(demo, tmp_path)
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.kill()
    if made.channel is not None:
        await made.channel.close()


def small(request_of, number, name=None):
    """A picture of 64 x 64, alone on the device so that it is the same to the bit."""
    request = request_of(
        request_id=name or f"request-{number}", seed=number, width=64, height=64, num_inference_steps=2 + number % 3
    )
    request.message.spec.deterministic = True
    return request


async def test_killed_at_random_moments(generator, request_of):
    moments = random.Random(time.time_ns())
    accepted: dict[int, str] = {}

    async def send(numbers):
        for number in numbers:
            try:
                accepted[number] = await generator.submit(small(request_of, number))
            except ZrelayError:
                return  # killed meanwhile; whether it was accepted is not known, so it is sent again

    for part in range(3):
        await generator.start()
        missing = [number for number in range(JOBS * (part + 1) // 3 + 1) if number not in accepted][:JOBS]
        sending = [asyncio.create_task(send(missing[lane::4])) for lane in range(4)]
        if part < 2:
            await asyncio.sleep(moments.uniform(0.0, 0.6))
            await generator.kill()
        await asyncio.gather(*sending)
        if part < 2:
            await generator.channel.close()
    everything = range(JOBS)
    for number in everything:
        if number not in accepted:
            accepted[number] = await generator.submit(small(request_of, number))
    found = await asyncio.gather(*(generator.painted(accepted[number]) for number in everything))
    listed = []
    token = ""
    while token or not listed:
        request = pb.ListJobsRequest(page_size=64, page_token=token)
        page = (await generator.stub.call("ListJobs", request, pb.ListJobsResponse)).message
        listed += page.jobs
        token = page.next_page_token
    assert sorted(job.request_id for job in listed) == sorted({f"request-{number}" for number in range(len(listed))})
    assert {job.state for job in listed} == {jpb.JOB_STATE_SUCCEEDED}
    undisturbed = [await generator.submit(small(request_of, number, f"again-{number}")) for number in everything]
    assert await asyncio.gather(*map(generator.painted, undisturbed)) == found


async def test_a_second_process_on_the_same_folder_is_refused(demo, tmp_path):
    held = open_store(tmp_path / "state", Retention(1.0, 1, 1, 1))
    command = ["--model", str(demo), "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state")]
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zrelay_generator", *command, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(second.communicate(), 180)
    held.close()
    assert second.returncode == exits.REFUSED, said.decode()
    assert "another generator" in said.decode() and "--state" in said.decode() and "Traceback" not in said.decode()
