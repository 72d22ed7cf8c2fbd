"""The step engine tick by tick: order, cancelling, previews."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zrelay_generator.engine.calibrate import calibrate, warm_up_side
from zrelay_generator.engine.events import ImagePixels, JobFailed, JobStage, PreviewPixels, StageProgress
from zrelay_generator.features.protocol import Output
from zrelay_generator.priority import Priority
from zrelay_shared.errors import Cancelled

from .engine_harness import EngineHarness, denoised_by
from .fixture_types import Load, MakeSpec


def test_stages_come_in_order(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    on.paint(spec(steps=2))
    stages = [(event.stage, event.completed, event.total) for _, event in on.events if isinstance(event, StageProgress)]
    assert stages == [
        (JobStage.PREPARE, 1, 1),
        (JobStage.DENOISE, 1, 2),
        (JobStage.DENOISE, 2, 2),
        (JobStage.DECODE, 1, 1),
    ]
    _, last = on.events[-1]
    assert isinstance(last, ImagePixels) and last.last and on.engine.idle
    assert on.estimator.cost.measured and on.estimator.cost.snapshot().decode_s_per_pixel > 0


def test_a_cancelled_job_takes_no_further_step(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    job = on.add(spec(steps=50))
    (image,) = job.images
    on.tick()
    on.tick()
    job.cancelled = True
    on.tick()
    assert image.done == 2 and on.engine.idle
    (_, event) = on.events[-1]
    assert isinstance(event, JobFailed) and isinstance(event.error, Cancelled)
    assert image.latents is None


def test_a_job_is_cancelled_between_its_pictures(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    job = on.add(spec(steps=1, num_images=3))
    on.tick()
    on.tick()
    job.cancelled = True
    on.tick()
    assert len(on.vae.latents) == 1 and on.engine.idle


def test_the_next_job_follows(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    on.paint(spec(steps=2), spec(steps=1))
    assert [job for job, event in on.events if isinstance(event, ImagePixels)] == ["job-0", "job-1"]


def test_previews_come_every_so_many_steps(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    on.paint(spec(Output(preview_every=2, preview_max_side=6), steps=7))
    previews = [event for _, event in on.events if isinstance(event, PreviewPixels)]
    assert [preview.step for preview in previews] == [2, 4, 6]
    assert previews[0].pixels.shape == (6, 6, 3)


def test_a_deterministic_job_is_the_same_in_any_company(demo: Path, load: Load, spec: MakeSpec) -> None:
    model = load(demo, torch.bfloat16)
    together = EngineHarness(model).paint(spec(deterministic=True, num_images=3, seed=5))
    alone = [EngineHarness(model).paint(spec(seed=5 + i))[0] for i in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_priority_goes_before_arrival(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    on.paint(spec(priority=Priority.BATCH), spec(), spec(priority=Priority.INTERACTIVE))
    assert [job for job, event in on.events if isinstance(event, ImagePixels)] == ["job-2", "job-1", "job-0"]


@pytest.mark.parametrize(
    ("device", "default", "side"), [("cpu", 1024, 64), ("cuda", 1024, 512), ("cuda", 128, 128), ("mps", 16, 64)]
)
def test_what_is_painted_to_warm_up(device: str, default: int, side: int) -> None:
    assert warm_up_side(device, 64, default) == side


def test_a_preview_waits_a_step_of_a_poster_and_not_for_the_poster(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    calibrate(load(demo), on.estimator.cost, 64)
    on.add(replace(spec(), sampling=replace(spec(steps=20).sampling, width=512, height=512)), "poster")
    on.tick()
    on.add(spec(steps=3), "preview")
    while not any(job == "preview" and isinstance(event, ImagePixels) for job, event in on.events):
        on.tick()
    assert denoised_by(on, "poster") == 1, "it was left alone until the preview was done"


def test_cancelling_one_leaves_its_company_as_it_is(demo: Path, load: Load, spec: MakeSpec) -> None:
    specs = [spec(steps=4, seed=seed) for seed in range(3)]
    (_, expected, _), on = EngineHarness(load(demo), packs=True).paint(*specs), EngineHarness(load(demo), packs=True)
    jobs = [on.add(each, str(number)) for number, each in enumerate(specs)]
    images = [image for job in jobs for image in job.images]
    on.tick()
    jobs[0].cancelled = True
    on.tick()
    assert [image.done for image in images] == [1, 2, 2]
    assert isinstance(on.events[-3][1], JobFailed) and isinstance(on.events[-3][1].error, Cancelled)
    while not on.engine.idle:
        on.tick()
    torch.testing.assert_close(on.vae.latents[0], expected, rtol=1e-4, atol=1e-4)
