"""Weights in bfloat16 and computation in float32 paint what float32 weights paint."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.helpers.comparisons import relative_difference
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.protocol import JobSpec, Prompt
from zrelay_generator.model.loading import LoadedModel, load_model

from .engine_harness import EngineHarness
from .fixture_types import Load, MakeEmbeds, MakeSampling
from .helpers import FLOAT32_BOUND


@pytest.fixture(scope="module")
def kept(demo: Path) -> LoadedModel:
    return load_model(demo, torch.device("cpu"), torch.float32, torch.bfloat16)


def test_the_matrices_of_the_blocks_stay_in_bfloat16(kept: LoadedModel) -> None:
    weights = kept.transformer.weights
    assert weights.dtype is torch.float32
    for block in (*weights.layers, *weights.noise_refiner, *weights.context_refiner):
        assert {m.dtype for m in (block.query, block.out, block.gate, block.down)} == {torch.bfloat16}
        assert {block.norms.dtype, block.query_norm.dtype} == {torch.float32}


def test_mixed_company_paints_what_float32_paints(
    kept: LoadedModel, demo: Path, load: Load, sampling: MakeSampling, embeds: MakeEmbeds
) -> None:
    whole = load(demo)
    width = whole.limits.embeds_width
    specs = [
        JobSpec(Prompt(embeds(20, width)), sampling(width=128, height=96, steps=3)),
        JobSpec(Prompt(embeds(70, width)), sampling(width=64, height=64, steps=4)),
        JobSpec(
            Prompt(embeds(33, width)),
            sampling(width=96, height=96, steps=2, guidance_scale=3.0),
            features=(GuidanceSpec(Prompt(embeds(5, width))),),
        ),
    ]
    paint: Callable[[LoadedModel], list[torch.Tensor]] = lambda model: EngineHarness(model).paint(*specs)  # noqa: E731
    for ours, expected in zip(paint(kept), paint(whole), strict=True):
        assert relative_difference(ours, expected) < FLOAT32_BOUND


def test_it_needs_half_the_memory_of_float32(kept: LoadedModel, demo: Path, load: Load) -> None:
    def block_bytes(model: LoadedModel) -> int:
        block = model.transformer.weights.layers[0]
        return sum(m.nbytes for m in (block.query, block.key, block.value, block.out, block.gate, block.up, block.down))

    assert 2 * block_bytes(kept) == block_bytes(load(demo))
