"""The step engine tick by tick: order, cancelling, failing, previews."""

import threading
import time
from dataclasses import replace

import pytest
import torch

from zrelay_generator.engine.calibrate import calibrate, warm_up_side
from zrelay_generator.engine.device import DeviceThread
from zrelay_generator.engine.engine import Engine, run_to_end
from zrelay_generator.engine.events import Failed, ImagePixels, PreviewPixels, Progress, Stage
from zrelay_generator.engine.job import JobSpec, Output, Priority
from zrelay_generator.engine.pulse import Pulse
from zrelay_generator.engine.work import Speed
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
    assert on.speed.measured and on.speed.snapshot().decode_s_per_pixel > 0


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
    (event,) = [event for job, event in on.events if job == "job-0" and isinstance(event, Failed)]
    assert isinstance(event.error, FailedPrecondition)
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


def test_priority_goes_before_arrival(demo, load, bench, spec):
    on = bench(load(demo))
    on.paint(spec(priority=Priority.BATCH), spec(), spec(priority=Priority.INTERACTIVE))
    assert [job for job, event in on.events if isinstance(event, ImagePixels)] == ["job-2", "job-1", "job-0"]


@pytest.mark.parametrize(
    ("device", "default", "side"), [("cpu", 1024, 64), ("cuda", 1024, 512), ("cuda", 128, 128), ("mps", 16, 64)]
)
def test_what_is_painted_to_warm_up(device, default, side):
    assert warm_up_side(device, 64, default) == side


def denoised_by(on, name):
    """How often a job was told of a step."""
    steps = [event for job, event in on.events if job == name and isinstance(event, Progress)]
    return sum(event.stage is Stage.DENOISE for event in steps)


def test_a_preview_waits_a_step_of_a_poster_and_not_for_the_poster(demo, load, bench, spec):
    on = bench(load(demo))
    calibrate(load(demo), on.speed, 64)
    on.add(replace(spec(), sampling=replace(spec(steps=20).sampling, width=512, height=512)), "poster")
    on.tick()
    on.add(spec(steps=3), "preview")
    while not any(job == "preview" and isinstance(event, ImagePixels) for job, event in on.events):
        on.tick()
    assert denoised_by(on, "poster") == 1, "it was left alone until the preview was done"


def test_cancelling_one_leaves_its_company_as_it_is(demo, load, bench, spec):
    specs = [spec(steps=4, seed=seed) for seed in range(3)]
    (_, expected, _), on = bench(load(demo), packs=True).paint(*specs), bench(load(demo), packs=True)
    jobs = [on.add(each, str(number)) for number, each in enumerate(specs)]
    on.tick()
    jobs[0].cancelled = True
    on.tick()
    assert [job.steps_done for job in jobs] == [1, 2, 2]
    assert isinstance(on.events[-3][1], Failed) and isinstance(on.events[-3][1].error, Cancelled)
    while not on.engine.idle:
        on.tick()
    torch.testing.assert_close(on.vae.latents[0], expected, rtol=1e-4, atol=1e-4)


class Failing:
    """A forward that fails wherever `when` says so of its segments."""

    def __init__(self, transformer, when, error):
        self._transformer, self._when, self._error = transformer, when, error
        self.calls = []

    def __getattr__(self, name):
        return getattr(self._transformer, name)

    def forward(self, segments):
        self.calls.append(len(segments))
        if self._when(segments):
            raise self._error
        return self._transformer.forward(segments)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("a bug")])
def test_company_that_fails_is_taken_apart_and_only_the_guilty_fails(error, demo, load, bench, spec):
    model = load(demo)
    guilty = replace(spec(steps=2), sampling=replace(spec(steps=2).sampling, width=80))
    failing = Failing(model.transformer, lambda segments: any(s.latents.shape[2] == 10 for s in segments), error)
    on = bench(replace(model, transformer=failing), packs=True)
    on.paint(spec(steps=2), guilty, spec(steps=2, seed=9))
    assert kinds(on, "job-0")[-1] is kinds(on, "job-2")[-1] is ImagePixels
    (failed,) = [event for job, event in on.events if isinstance(event, Failed)]
    assert kinds(on, "job-1")[-1] is Failed
    assert isinstance(failed.error, OutOfMemory if "memory" in str(error) else InternalError)
    assert failing.calls[:4] == [3, 1, 1, 1]


def test_a_tick_that_was_too_large_is_not_tried_again(demo, load, bench, spec):
    model, error = load(demo), torch.OutOfMemoryError("CUDA out of memory.")
    failing = Failing(model.transformer, lambda segments: len(segments) > 2, error)
    on = bench(replace(model, transformer=failing), packs=True)
    on.paint(*(spec(steps=3, seed=seed) for seed in range(4)))
    assert not [event for _, event in on.events if isinstance(event, Failed)]
    assert max(failing.calls[2:]) <= 3 and failing.calls.count(4) == 1


def test_a_job_that_cannot_begin_fails_alone(demo, load, bench, spec):
    on = bench(load(demo), packs=True)
    on.paint(replace(spec(steps=2), prompt_embeds=torch.zeros(4, 99)), spec(steps=2))
    assert kinds(on, "job-0") == [Failed] and kinds(on, "job-1")[-1] is ImagePixels


def test_decoding_beside_the_next_step(demo, load, bench, spec):
    woken = []
    on = bench(load(demo), packs=True, changed=lambda: woken.append(1), decode_beside=True)
    on.add(spec(steps=1), "short")
    on.add(spec(steps=40), "long")
    decode, gate = on.vae.decode, threading.Event()
    on.vae.decode = lambda latents: gate.wait(20) and decode(latents)
    for _ in range(5):
        on.tick()
    assert denoised_by(on, "long") == 5 and ImagePixels not in kinds(on, "short")
    assert not on.engine.waits
    gate.set()
    while not woken:
        time.sleep(0.01)
    on.tick()
    assert kinds(on, "short")[-1] is ImagePixels
    run_to_end(on.engine)
    assert kinds(on, "long")[-1] is ImagePixels
    on.engine.close()


def test_a_picture_that_is_being_decoded_can_be_cancelled(demo, load, bench, spec):
    on = bench(load(demo), decode_beside=True)
    gate, decode = threading.Event(), on.vae.decode
    on.vae.decode = lambda latents: gate.wait(20) and decode(latents)
    job = on.add(spec(steps=1))
    on.tick()
    assert on.engine.waits
    job.cancelled = True
    gate.set()
    on.tick()
    assert on.engine.idle and kinds(on, "job")[-1] is Failed


def test_a_decode_that_did_not_fit_beside_a_step_is_tried_by_itself(demo, load, bench, spec):
    on = bench(load(demo), decode_beside=True)
    decode, threads = on.vae.decode, []

    def crowded(latents):
        threads.append(threading.current_thread().name)
        if len(threads) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(latents)

    on.vae.decode = crowded
    on.paint(spec(steps=1))
    assert kinds(on, "job-0")[-1] is ImagePixels
    assert threads[0].startswith("decode") and not threads[1].startswith("decode")


def test_a_step_that_never_ends_is_seen_from_outside(monkeypatch):
    pulse = Pulse()
    assert pulse.stuck_s == 0.0
    clock = iter([100.0, 150.0, 170.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with pulse.beat(0.1):
        assert pulse.stuck_s == 0.0
        assert pulse.stuck_s == pytest.approx(10.0)
    assert pulse.stuck_s == 0.0


def test_a_decode_beside_a_step_that_never_ends_is_seen_as_well(demo, load, bench, spec, monkeypatch):
    on = bench(load(demo), decode_beside=True)
    gate, began, decode = threading.Event(), threading.Event(), on.vae.decode
    on.vae.decode = lambda latents: began.set() or (gate.wait(20) and decode(latents))
    on.add(spec(steps=1))
    on.tick()
    assert began.wait(20) and on.engine.stuck_s == 0.0
    now = time.monotonic()
    with monkeypatch.context() as later:
        later.setattr(time, "monotonic", lambda: now + 3600.0)
        assert on.engine.stuck_s > 3000.0
    gate.set()
    run_to_end(on.engine)
    assert on.engine.stuck_s == 0.0
    on.engine.close()


def test_the_device_thread_says_when_it_is_not_well(demo, load):
    thread = DeviceThread(1)
    assert thread.stuck == ""
    thread.start(lambda: Engine(load(demo), 1 << 20, Speed(), lambda job, event: None)).result(20)
    assert thread.alive and thread.stuck == ""
    thread.stop()
    thread.join(20)
    assert not thread.alive and thread.stuck == "", "it was asked to end"
