"""A job that is over leaves nothing on the device thread that only Python's collector of cycles would find."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.protocol import JobFeature, JobSpec, Prompt
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec
from zrelay_generator.model.packing import Conditioning

from .engine_harness import EngineHarness
from .fixture_types import Load, MakeEmbeds, MakeSpec


def kept() -> int:
    """How many jobs, images, features and sequences there are in this process."""
    return sum(issubclass(type(one), DeviceJob | ImageState | JobFeature | Conditioning) for one in gc.get_objects())


@pytest.fixture
def uncollected() -> Iterator[int]:
    """No cycle is collected meanwhile; what there was before."""
    gc.collect()
    gc.disable()
    yield kept()
    gc.enable()


@pytest.fixture
def everything(spec: MakeSpec, embeds: MakeEmbeds) -> JobSpec:
    """A job with every feature that a plain checkpoint has."""
    return replace(
        spec(steps=3, num_images=2, guidance_scale=2.0, first_step=1),
        features=(
            GuidanceSpec(Prompt(embeds(3, 128, 5))),
            ImageToImageSpec(torch.zeros(3, 64, 64, dtype=torch.uint8), "0" * 64, 0.7),
            SkipLayerSpec(2.0, frozenset({1}), 0.0, 1.0),
        ),
    )


def test_a_finished_job_leaves_nothing(
    demo: Path, load: Load, spec: MakeSpec, everything: JobSpec, uncollected: int
) -> None:
    on = EngineHarness(load(demo))
    on.paint(everything, spec(steps=2), everything)
    assert kept() <= uncollected


def test_a_cancelled_job_leaves_nothing(
    demo: Path, load: Load, spec: MakeSpec, everything: JobSpec, uncollected: int
) -> None:
    on = EngineHarness(load(demo))
    jobs = [on.add(everything), on.add(spec(steps=4))]
    on.tick()
    on.tick()
    assert kept() > uncollected
    for job in jobs:
        job.cancelled = True
    del job
    jobs.clear()
    on.tick()
    assert on.engine.idle and kept() <= uncollected


def test_a_job_whose_latents_are_not_finite_leaves_nothing(
    demo: Path, load: Load, spec: MakeSpec, uncollected: int
) -> None:
    on = EngineHarness(load(demo))
    on.paint(replace(spec(steps=3), prompt=Prompt(torch.full((4, 128), torch.nan))), spec(steps=2))
    assert kept() <= uncollected


def test_a_job_that_has_left_takes_no_more_time(demo: Path, load: Load, spec: MakeSpec) -> None:
    on = EngineHarness(load(demo))
    job = on.add(spec(steps=2))
    while not on.engine.idle:
        on.tick()
    assert on.estimator.cost.measured and on.estimator.remaining_s(job) == 0.0
