"""The packed forward against diffusers' forward, and company against being alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import ZImageTransformer2DModel

from tests.helpers.comparisons import relative_difference
from zrelay_generator.model.transformer import PackedTransformer, Segment

from .fixture_types import Load, MakeEmbeds

Company = Callable[[PackedTransformer], list[Segment]]
CASES = [((16, 16), 20, 0.3), ((20, 12), 40, 0.5), ((16, 16), 20, 0.3), ((8, 24), 64, 0.0)]


@pytest.fixture
def company(embeds: MakeEmbeds) -> Company:
    """Makes segments of several sizes, caption lengths and timesteps."""

    def segments(transformer: PackedTransformer) -> list[Segment]:
        made = []
        for number, ((height, width), tokens, timestep) in enumerate(CASES):
            latents = torch.randn(16, height, width, generator=torch.Generator().manual_seed(number))
            context = transformer.context(embeds(tokens, transformer.weights.width, seed=number))
            made.append(
                Segment(latents, transformer.conditioning(context, height, width), transformer.modulation(timestep))
            )
        return made

    return segments


@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_company_equals_diffusers_one_by_one(
    name: str, request: pytest.FixtureRequest, load: Load, company: Company, embeds: MakeEmbeds
) -> None:
    folder = request.getfixturevalue(name)
    transformer = load(folder).transformer
    reference = ZImageTransformer2DModel.from_pretrained(folder, subfolder="transformer").eval()
    with torch.inference_mode():
        segments = company(transformer)
        packed = transformer.forward(segments)
        for number, (segment, (_, tokens, timestep)) in enumerate(zip(segments, CASES, strict=True)):
            caption = embeds(tokens, transformer.weights.width, seed=number)
            theirs = reference([segment.latents[:, None]], torch.tensor([timestep]), [caption], return_dict=False)
            assert relative_difference(packed[number].full, theirs[0][0][:, 0]) < 2e-6


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
def test_company_equals_alone(dtype: torch.dtype, bound: float, demo: Path, load: Load, company: Company) -> None:
    transformer = load(demo, dtype).transformer
    with torch.inference_mode():
        segments = company(transformer)
        for packed, segment in zip(transformer.forward(segments), segments, strict=True):
            (alone,) = transformer.forward([segment])
            assert relative_difference(packed.full, alone.full) < bound


def test_alone_is_the_same_bit_for_bit(demo: Path, load: Load, company: Company) -> None:
    transformer = load(demo, torch.bfloat16).transformer
    with torch.inference_mode():
        segment = company(transformer)[0]
        first, again = [transformer.forward([segment])[0].full for _ in range(2)]
    assert torch.equal(first, again)


def test_a_timestep_is_modulated_once(demo: Path, load: Load) -> None:
    transformer = load(demo).transformer
    with torch.inference_mode():
        assert transformer.modulation(0.125) is transformer.modulation(0.125)
