"""The step engine tick by tick: order, cancelling, failing, previews."""

from dataclasses import replace

import pytest
import torch

from zrelay_generator.events import Failed, ImagePixels, PreviewPixels, Progress, Stage
from zrelay_generator.job import JobSpec, Output, Priority
from zrelay_generator.policy import Decode, Steps, image_tokens, next_work
from zrelay_generator.runtime import warm_up_side
from zrelay_shared.errors import Cancelled, FailedPrecondition, InternalError, OutOfMemory


@pytest.fixture
def spec(sampling, embeds):
    def made(output=None, priority=Priority.NORMAL, deterministic=False, **changed):
        asked = sampling(width=64, height=64, **changed)
        return JobSpec(embeds(20, 128), None, asked, output or Output(), priority=priority, deterministic=deterministic)

    return made


def kinds(bench, name):
    return [type(event) for job, event in bench.events if job == name]


def test_stages_come_in_order(demo, load, bench, spec):
    on = bench(load(demo))
    on.paint(spec(steps=2))
    stages = [(event.stage, event.completed, event.total) for _, event in on.events if isinstance(event, Progress)]
    assert stages == [
        (Stage.PREPARE, 1, 1),
        (Stage.DENOISE, 1, 2),
        (Stage.DENOISE, 2, 2),
        (Stage.DECODE, 1, 1),
    ]
    assert on.events[-1][1].last and on.engine.idle
    assert on.speed.tokens_per_s > 0 and on.speed.pixels_per_s > 0


def test_a_cancelled_job_takes_no_further_step(demo, load, bench, spec):
    on = bench(load(demo))
    job = on.add(spec(steps=50))
    on.tick()
    on.tick()
    job.cancelled = True
    on.tick()
    assert job.steps_done == 2 and on.engine.idle
    (_, event) = on.events[-1]
    assert isinstance(event, Failed) and isinstance(event.error, Cancelled)
    assert all(image.latents is None for image in job.images)


def test_a_job_is_cancelled_between_its_pictures(demo, load, bench, spec):
    on = bench(load(demo))
    job = on.add(spec(steps=1, num_images=3))
    on.tick()
    on.tick()
    job.cancelled = True
    on.tick()
    assert len(on.vae.latents) == 1 and on.engine.idle


def test_the_next_job_follows(demo, load, bench, spec):
    on = bench(load(demo))
    on.paint(spec(steps=2), spec(steps=1))
    assert [job for job, event in on.events if isinstance(event, ImagePixels)] == ["job-0", "job-1"]


def test_latents_that_are_not_finite_fail_the_job_alone(demo, load, bench, spec):
    on = bench(load(demo))
    bad = replace(spec(steps=3), prompt_embeds=torch.full((4, 128), torch.nan))
    on.paint(bad, spec(steps=1))
    event = on.events[0 if isinstance(on.events[0][1], Failed) else 1][1]
    assert isinstance(event, Failed) and isinstance(event.error, FailedPrecondition)
    assert event.error.reason == "LATENTS_NOT_FINITE" and "after step 1 of 3" in event.error.message
    assert kinds(on, "job-1")[-1] is ImagePixels


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), OutOfMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("shape '[3]' is invalid"), InternalError),
        (KeyError("a bug"), InternalError),
        (FloatingPointError("decoded"), FailedPrecondition),
    ],
)
def test_a_failing_device_ends_the_job_and_not_the_engine(error, expected, demo, load, bench, spec):
    on = bench(load(demo))
    decode, on.vae.decode = on.vae.decode, lambda latents: (_ for _ in ()).throw(error)
    on.paint(spec(steps=1))
    (_, event) = on.events[-1]
    assert isinstance(event, Failed) and type(event.error) is expected
    assert "Traceback" not in event.error.message and "invalid" not in event.error.message
    on.vae.decode = decode
    on.paint(spec(steps=1))
    assert isinstance(on.events[-1][1], ImagePixels)


def test_out_of_memory_says_what_would_fit(demo, load, bench, spec):
    on = bench(load(demo))
    on.vae.decode = lambda latents: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory."))
    on.add(JobSpec(spec().prompt_embeds, None, replace(spec().sampling, width=512, height=256)))
    for _ in range(20):
        on.tick()
    error = on.events[-1][1].error
    assert (error.metadata["fits_width"], error.metadata["fits_height"]) == ("352", "176")
    assert error.retry_after_s is None and "352 x 176" in error.message


def test_previews_come_every_so_many_steps(demo, load, bench, spec):
    on = bench(load(demo))
    on.paint(spec(Output(preview_every=2, preview_max_side=6), steps=7))
    previews = [event for _, event in on.events if isinstance(event, PreviewPixels)]
    assert [preview.step for preview in previews] == [2, 4, 6]
    assert previews[0].pixels.shape == (6, 6, 3)


def test_a_deterministic_job_is_the_same_in_any_company(demo, load, bench, spec):
    model = load(demo, torch.bfloat16)
    together = bench(model).paint(spec(deterministic=True, num_images=3, seed=5))
    alone = [bench(model).paint(spec(seed=5 + i))[0] for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_images_are_packed_within_the_budget(demo, load, bench, spec):
    on = bench(load(demo))
    job = on.add(spec(num_images=5, steps=2))
    tokens = image_tokens(job)
    assert tokens == 32 + 32
    work = next_work([job], tick_tokens=2 * tokens + 1)
    assert isinstance(work, Steps) and [image.index for image in work.images] == [0, 1]
    assert len(next_work([job], tick_tokens=1).images) == 1
    for image in work.images:
        image.step = 1
    assert next_work([job], 1 << 20).images == work.images, "images that have begun run on by themselves"
    work.images[0].step = 2
    assert next_work([job], 1 << 20) == Decode(work.images[0])


def test_priority_goes_before_arrival(demo, load, bench, spec):
    on = bench(load(demo))
    on.paint(spec(priority=Priority.BATCH), spec(), spec(priority=Priority.INTERACTIVE))
    assert [job for job, event in on.events if isinstance(event, ImagePixels)] == ["job-2", "job-1", "job-0"]
    assert next_work([], 1) is None


@pytest.mark.parametrize(
    ("device", "default", "side"), [("cpu", 1024, 64), ("cuda", 1024, 512), ("cuda", 128, 128), ("mps", 16, 64)]
)
def test_what_is_painted_to_warm_up(device, default, side):
    assert warm_up_side(device, 64, default) == side
