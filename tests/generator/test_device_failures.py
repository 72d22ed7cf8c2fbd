"""A device or an engine that fails beyond one job: told at once, nothing that was accepted is lost."""

import asyncio
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.jobs import ENDLESS
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import jobs_pb2 as jpb
from zrelay_generator.engine.device import DeviceThread
from zrelay_generator.engine.engine import StepEngine
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.engine.events import EngineEvent, ImagePixels, JobFailed
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.ticks import Tick
from zrelay_generator.scheduling.shares import ServiceLedger
from zrelay_generator.scheduling.ticks import TickSelector
from zrelay_shared import exits
from zrelay_shared.channels import dial
from zrelay_shared.errors import Draining, InternalError, Unavailable
from zrelay_shared.rpc import Stub
from zrelay_shared.torch_devices import is_device_lost, is_out_of_memory
from zrelay_shared.wire import Parcel

from .engine_harness import LatentsKept
from .fault_injection import FATAL_WIDTH, LOST, failing_scheduler, loader, ready, serve_broken
from .fixture_types import Load, MakeSpec, RequestOf, Serve
from .generator_client import SERVICE, SOON_S, GeneratorClient, pixels
from .test_process import START_S, address_in

__all__ = ["serve_broken"]
ROOT = Path(__file__).parents[2]
SMALL = {"num_inference_steps": 2, "height": 64}
FATAL = {**SMALL, "width": FATAL_WIDTH}


async def is_refused(caller: GeneratorClient, request: Parcel[pb.GenerateRequest]) -> None:
    with pytest.raises(Unavailable) as refused:
        await caller.generate(request, timeout=SOON_S)
    assert refused.value.reason == "DEVICE_LOST" and refused.value.retry_after_s
    assert "use another" in refused.value.message and "CUDA" not in refused.value.message


async def test_a_lost_device_is_reported_and_the_next_process_continues(
    serve_broken: Serve, request_of: RequestOf
) -> None:
    caller = await serve_broken(loader())
    expected = await caller.generate(request_of(seed=1, **{**SMALL, "width": 64}))
    bad = await caller.submit(request_of(request_id="bad", seed=1, **FATAL), detached=True)
    with pytest.raises(Draining) as refused:
        await caller.watch(bad.job_id)
    assert refused.value.metadata == {"job_id": bad.job_id, "parked": "true"}
    await is_refused(caller, request_of(**SMALL, width=64))
    await ready(caller.channel, False)
    assert caller.server.restart_needed.is_set(), "the process ends, which supervisors hear"
    assert (await caller.job(bad.job_id)).state in (jpb.JOB_STATE_QUEUED, jpb.JOB_STATE_RUNNING), "it has not failed"
    caller = await serve_broken(loader(when=lambda segments: False))
    await ready(caller.channel)
    assert (await caller.watch(bad.job_id))[-1].WhichOneof("event") == "done"
    assert pixels(await caller.generate(request_of(seed=1, **{**SMALL, "width": 64}))) == pixels(expected)


async def test_jobs_that_wait_behind_a_lost_device_are_kept(serve_broken: Serve, request_of: RequestOf) -> None:
    lose: list[int] = []
    caller = await serve_broken(loader(when=lambda segments: bool(lose)))
    jobs = [await caller.submit(request_of(request_id="long", **ENDLESS), detached=True)]
    for number in range(20):
        jobs.append(await caller.submit(request_of(request_id=f"{number}", width=64, **SMALL), detached=True))
    lose.append(1)
    outcomes = await asyncio.gather(*(caller.watch(job.job_id) for job in jobs), return_exceptions=True)
    assert all(
        isinstance(outcome, Draining) or (isinstance(outcome, list) and outcome[-1].WhichOneof("event") == "done")
        for outcome in outcomes
    )
    assert isinstance(outcomes[0], Draining)
    caller = await serve_broken(loader(when=lambda segments: False))
    await caller.cancel(jobs[0].job_id)
    for job in jobs[1:]:
        assert (await caller.watch(job.job_id))[-1].WhichOneof("event") == "done"


async def test_a_job_that_loses_the_device_each_time_is_given_up(serve_broken: Serve, request_of: RequestOf) -> None:
    caller = await serve_broken(loader())
    longer = {"width": 64, "height": 64, "num_inference_steps": 60}
    good = await caller.submit(request_of(request_id="good", **longer), detached=True)
    await caller.submit(request_of(request_id="bad", **FATAL), detached=True)
    for _ in range(3):
        await ready(caller.channel, False)
        caller = await serve_broken(loader())
    (bad,) = [job for job in await caller.jobs() if job.request_id == "bad"]
    with pytest.raises(InternalError) as refused:
        await caller.watch(bad.job_id)
    assert (refused.value.reason, refused.value.metadata["times"]) == ("DEVICE_LOST", "3")
    assert (await caller.watch(good.job_id))[-1].WhichOneof("event") == "done", "its company is not blamed"
    await ready(caller.channel)
    again = await caller.submit(request_of(request_id="sound", width=64, **SMALL), detached=True)
    assert (await caller.watch(again.job_id))[-1].WhichOneof("event") == "done"


async def test_a_bug_outside_of_any_job_ends_those_on_the_device_alone(
    serve_broken: Serve, request_of: RequestOf
) -> None:
    def fails(jobs: Sequence[DeviceJob]) -> bool:
        return any(job.spec.sampling.width == FATAL_WIDTH for job in jobs)

    caller = await serve_broken(loader(when=lambda segments: False), failing_scheduler(fails))
    for _ in range(4):  # as often as one likes, where other work goes well in between
        with pytest.raises(InternalError) as refused:
            await caller.generate(request_of(**FATAL), timeout=SOON_S)
        assert refused.value.metadata["incident"] and "bug" not in refused.value.message
        assert (await caller.generate(request_of(width=64, **SMALL)))[-1].WhichOneof("event") == "done"
    await ready(caller.channel)


def test_a_bug_while_the_engine_decides_whether_to_wait_does_not_end_it(demo: Path, load: Load, spec: MakeSpec) -> None:
    """The selection of work raises while the thread of the decoder works, when the engine asks it for other work."""
    events: queue.Queue[tuple[str, EngineEvent]] = queue.Queue()
    decode = threading.Event()
    model, estimator = load(demo), JobEstimator()
    vae = LatentsKept(model.vae)
    keep = vae.decode

    def decode_later(latents: Tensor) -> Tensor:
        assert decode.wait(SOON_S)
        return keep(latents)

    vae.decode = decode_later
    selector = TickSelector(estimator, ServiceLedger())

    def select(jobs: Sequence[DeviceJob], tick_tokens: int) -> Tick | None:
        if any(image.decoding for job in jobs for image in job.images if job.id == "fatal"):
            raise KeyError("a bug of the scheduler")
        return selector.select(jobs, tick_tokens)

    thread = DeviceThread(1)

    def engine() -> StepEngine:
        return StepEngine(
            replace(model, vae=vae),  # type: ignore[arg-type]
            1 << 20,
            estimator,
            select,
            lambda job, event: events.put((job.id, event)),
            completed=selector.completed,
            changed=thread.wake,
            decode_beside=True,
        )

    def last_event(job_id: str) -> EngineEvent:
        while True:
            got, event = events.get(timeout=SOON_S)
            if got == job_id and isinstance(event, JobFailed | ImagePixels):
                return event

    thread.start(engine).result(SOON_S)
    try:
        thread.add(DeviceJob("fatal", spec(steps=1), 1))
        failed = last_event("fatal")
        assert isinstance(failed, JobFailed) and isinstance(failed.error, InternalError)
        decode.set()
        thread.add(DeviceJob("sound", spec(steps=1), 2))
        assert isinstance(last_event("sound"), ImagePixels)
        assert not thread.broken
    finally:
        decode.set()
        thread.stop()
        thread.join(SOON_S)


async def test_an_engine_that_fails_at_everything_ends(serve_broken: Serve, request_of: RequestOf) -> None:
    caller = await serve_broken(loader(when=lambda segments: False), failing_scheduler(bool))
    for _ in range(2):
        with pytest.raises(InternalError):
            await caller.generate(request_of(width=64, **SMALL), timeout=SOON_S)
    job = await caller.submit(request_of(request_id="a", width=64, **SMALL), detached=True)
    with pytest.raises(Draining):
        await caller.watch(job.job_id)
    await is_refused(caller, request_of(width=64, **SMALL))
    await ready(caller.channel, False)
    caller = await serve_broken(loader(when=lambda segments: False))
    assert (await caller.watch(job.job_id))[-1].WhichOneof("event") == "done"


async def test_the_process_ends_in_an_error_so_that_it_is_started_again(
    demo: Path, tmp_path: Path, request_of: RequestOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZRELAY_STATE", str(tmp_path))
    file = tmp_path / "address"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.generator.fault_injection", str(demo), str(tmp_path / "state"), str(file)),
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        async with dial(await address_in(file)) as channel:
            await ready(channel)
            with pytest.raises(Unavailable):
                async for _ in Stub(channel, SERVICE).stream("Generate", request_of(**FATAL), pb.GenerateResponse):
                    pass
        _, said = await asyncio.wait_for(process.communicate(), START_S)
        assert process.returncode == exits.UNREACHABLE, said.decode()
    finally:
        if process.returncode is None:
            process.kill()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (torch.AcceleratorError(LOST), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: unspecified launch failure"), True),
        (RuntimeError("CUDA error: operation not supported on global/shared address space"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (RuntimeError("HIP error: an illegal memory access was encountered"), True),
        (torch.AcceleratorError("CUDA error: something of next year"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx`"), False),
        (RuntimeError("CUDA error: invalid configuration argument"), False),
        (RuntimeError("shape '[3]' is invalid for input of size 4"), False),
        (KeyError("CUDA error"), False),
    ],
)
def test_which_errors_a_device_does_not_survive(error: Exception, lost: bool) -> None:
    assert is_device_lost(error) is lost
    assert not (lost and is_out_of_memory(error))
