"""Pictures that are made to cost a generator much: its memory, its threads, and the callers beside them."""

import asyncio
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.hostile_pictures import flat_png, jpeg_of_scans
from tests.helpers.polling import eventually
from tests.helpers.processes import GeneratorProcess
from zrelay.v1 import generator_pb2 as pb
from zrelay_shared.wire import Parcel

from .fixture_types import RequestOf, Serve
from .generator_client import GeneratorClient, images

pytestmark = pytest.mark.hostile

SIDE = 5760
"""Sides of a picture of almost 2 ** 25 pixels, the most that a generator accepts."""


def from_picture(request: Parcel[pb.GenerateRequest], data: bytes) -> Parcel[pb.GenerateRequest]:
    """Returns the request, with a picture to start from."""
    request.message.spec.image_to_image.image.data = data
    return request


@pytest.fixture
def generator(tmp_path: Path) -> Iterator[GeneratorProcess]:
    """A generator as a process."""
    process = GeneratorProcess(tmp_path, ("--state", "none"))
    process.start()
    yield process
    process.kill()


def memory(process: GeneratorProcess, name: str) -> int:
    """Returns a figure of a process in MiB: VmRSS is what is resident, VmHWM the most since the last `reset_peak`."""
    assert process.popen is not None
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{process.popen.pid}/status").read_text())
    assert found is not None
    return int(found[1]) // 1024


def reset_peak(process: GeneratorProcess) -> None:
    """Begins a new measurement of VmHWM."""
    assert process.popen is not None
    Path(f"/proc/{process.popen.pid}/clear_refs").write_text("5")


@pytest.mark.deep
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_many_large_pictures_at_once_cost_bounded_memory_which_is_given_back(
    generator: GeneratorProcess, request_of: RequestOf
) -> None:
    caller = GeneratorClient(await asyncio.to_thread(generator.ready))
    try:
        await caller.image(from_picture(request_of(num_inference_steps=1), flat_png(128)))
        before, data = memory(generator, "VmRSS"), jpeg_of_scans(SIDE, 4)
        reset_peak(generator)
        requests = [from_picture(request_of(num_inference_steps=1, seed=seed), data) for seed in range(6)]
        done = await asyncio.gather(*map(caller.generate, requests))
        assert all(images(events) for events in done)
        most, after = memory(generator, "VmHWM") - before, memory(generator, "VmRSS") - before
        assert most < 700, "MiB: one of the largest pictures at 17 bytes for each pixel, and some for the job"
        assert after < 150
    finally:
        await caller.channel.close()


@pytest.mark.deep
async def test_requests_without_pictures_do_not_wait_for_those_with_pictures(
    serve: Serve, request_of: RequestOf
) -> None:
    caller = await serve()
    data = jpeg_of_scans(4096, 40)
    hostile = [
        asyncio.create_task(caller.generate(from_picture(request_of(num_inference_steps=1, seed=seed), data)))
        for seed in range(12)
    ]
    budget = caller.runtime.pictures.budget
    await eventually(lambda: budget.used > 0, "the first picture is being decoded")
    assert await caller.image(request_of(num_inference_steps=1))
    assert not any(task.done() for task in hostile[4:]), "most of the pictures are not decoded yet"
    for task in hostile:
        task.cancel()
    await asyncio.gather(*hostile, return_exceptions=True)
    await eventually(lambda: budget.used == budget.waiting == 0, "callers that have left cost nothing")
