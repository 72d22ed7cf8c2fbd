"""What the cost model knows of pictures that are encoded, and of Omni beside skip-layer guidance."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from zrelay_generator.cost.model import CostModel, MemoryModel
from zrelay_generator.engine.estimates import JobEstimator
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.omni.hooks import omni_size
from zrelay_generator.features.omni.spec import OmniSpec
from zrelay_generator.features.protocol import JobSpec, Prompt
from zrelay_generator.features.registry import features_of, step_sizes
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec

from .fixture_types import MakeSampling


def black_pixels(width: int, height: int) -> Tensor:
    return torch.zeros(3, height, width, dtype=torch.uint8)


@pytest.fixture
def spec(sampling: MakeSampling) -> JobSpec:
    return JobSpec(Prompt(torch.zeros(40, 8)), sampling(width=128, height=128, steps=4))


def with_references(spec: JobSpec, *pictures: Tensor) -> JobSpec:
    grids = tuple(torch.zeros(4, 4, 8) for _ in pictures)
    lengths = (40 - 10 * len(pictures), *(10 for _ in pictures))
    return replace(spec, prompt=Prompt(spec.prompt.embeds, lengths), features=(OmniSpec(pictures, grids),))


def test_memory_covers_the_largest_picture_that_is_encoded(spec: JobSpec) -> None:
    estimator = JobEstimator(CostModel(MemoryModel(layers=3, bytes_per_token=1, bytes_per_pixel=100)))
    plain = estimator.estimate(spec).memory_bytes
    assert plain == 128 * 128 * 100
    start = replace(spec, features=(ImageToImageSpec(black_pixels(128, 128), "", 0.5),))
    assert estimator.estimate(start).memory_bytes == plain, "encoded before the result is decoded, not beside it"
    omni = with_references(spec, black_pixels(256, 64), black_pixels(512, 256))
    assert estimator.estimate(omni).memory_bytes == 512 * 256 * 100
    assert not estimator.fits(omni, 512 * 256 * 100 - 1) and estimator.fits(omni, 512 * 256 * 100)


def test_skip_layer_guidance_counts_references_as_well(spec: JobSpec) -> None:
    omni = with_references(spec, black_pixels(256, 256))
    guided = replace(omni, features=(*omni.features, SkipLayerSpec(1.0, frozenset({1}), 0.0, 1.0)))
    (size, *_), (more, *_) = (step_sizes(each, features_of(each), 4) for each in (omni, guided))
    references = omni.feature(OmniSpec)
    assert references is not None and size == omni_size(omni.sampling, references, omni.prompt.lengths)
    assert more.tokens - size.tokens == pytest.approx(size.tokens * 0.5), "two blocks of four run twice"
    assert more.squares - size.squares == pytest.approx(size.squares * 0.5)
