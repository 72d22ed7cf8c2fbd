"""The engine paints what diffusers' ZImagePipeline paints, on the same weights, seed and forwards."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.helpers.comparisons import relative_difference
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.protocol import JobSpec, Prompt

from .engine_harness import EngineHarness
from .fixture_types import Load, MakeEmbeds, MakeSampling
from .helpers import FLOAT32_BOUND


@pytest.mark.parametrize(
    ("width", "height", "steps", "tokens"),
    [(128, 128, 8, 20), (64, 64, 1, 31), (192, 96, 4, 32), (80, 208, 9, 33), (256, 256, 2, 70)],
)
@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_latents_without_guidance(
    name: str,
    width: int,
    height: int,
    steps: int,
    tokens: int,
    request: pytest.FixtureRequest,
    load: Load,
    oracle: Callable[..., Tensor],
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    folder = request.getfixturevalue(name)
    model = load(folder)
    asked = sampling(width=width, height=height, steps=steps)
    prompt = embeds(tokens, model.limits.embeds_width)
    (ours,) = EngineHarness(model).paint(JobSpec(Prompt(prompt), asked))
    assert relative_difference(ours, oracle(folder, prompt, asked)[0]) < FLOAT32_BOUND


@pytest.mark.parametrize(
    ("guidance", "normalization", "truncation"),
    [(2.0, 0.0, 1.0), (4.0, 1.0, 1.0), (4.0, 0.8, 1.0), (3.0, 0.0, 0.5), (3.0, 1.2, 0.1)],
)
@pytest.mark.parametrize("name", ["demo", "tiny"])
def test_latents_with_guidance(
    name: str,
    guidance: float,
    normalization: float,
    truncation: float,
    request: pytest.FixtureRequest,
    load: Load,
    oracle: Callable[..., Tensor],
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    folder = request.getfixturevalue(name)
    model = load(folder)
    asked = sampling(
        width=96,
        height=128,
        steps=6,
        guidance_scale=guidance,
        cfg_normalization=normalization,
        cfg_truncation=truncation,
    )
    prompt, negative = embeds(40, model.limits.embeds_width), embeds(9, model.limits.embeds_width, seed=1)
    (ours,) = EngineHarness(model).paint(JobSpec(Prompt(prompt), asked, features=(GuidanceSpec(Prompt(negative)),)))
    theirs = oracle(folder, prompt, asked, negative=negative)[0]
    assert relative_difference(ours, theirs) < FLOAT32_BOUND


@pytest.mark.parametrize("shift", [1.0, 2.5, 6.0])
def test_latents_under_other_shifts(
    shift: float,
    demo: Path,
    load: Load,
    oracle: Callable[..., Tensor],
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    asked, prompt = sampling(shift=shift, steps=5), embeds(12, 128)
    (ours,) = EngineHarness(load(demo)).paint(JobSpec(Prompt(prompt), asked))
    assert relative_difference(ours, oracle(demo, prompt, asked)[0]) < FLOAT32_BOUND


def test_several_images_have_consecutive_seeds(
    demo: Path,
    load: Load,
    oracle: Callable[..., Tensor],
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    asked, prompt = sampling(num_images=3), embeds(25, 128)
    ours = EngineHarness(load(demo)).paint(JobSpec(Prompt(prompt), asked))
    for mine, theirs in zip(ours, oracle(demo, prompt, asked), strict=True):
        assert relative_difference(mine, theirs) < FLOAT32_BOUND


def test_bfloat16_is_as_near_to_float32_as_diffusers_is(
    demo: Path,
    load: Load,
    oracle: Callable[..., Tensor],
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    """The stated bound in bfloat16: no farther from the float32 result than diffusers, plus a tenth."""
    ours_off, theirs_off = 0.0, 0.0
    for seed in range(8):
        asked = sampling(seed=seed, steps=8)
        prompt = embeds(20, 128, seed=seed).bfloat16().float()
        exact = oracle(demo, prompt, asked)[0]
        (ours,) = EngineHarness(load(demo, torch.bfloat16)).paint(JobSpec(Prompt(prompt), asked))
        ours_off += relative_difference(ours, exact)
        theirs_off += relative_difference(oracle(demo, prompt, asked, dtype=torch.bfloat16)[0], exact)
    print(f"\nrelative error in bfloat16: ours {ours_off / 8:.4f}, diffusers {theirs_off / 8:.4f}")
    assert ours_off < 1.1 * theirs_off


def test_pixels(
    demo: Path,
    load: Load,
    oracle: Callable[..., Tensor],
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    """At most one level of difference in at most 0.1 % of values."""
    model, asked, prompt = load(demo), sampling(steps=8), embeds(20, 128)
    (latents,) = EngineHarness(model).paint(JobSpec(Prompt(prompt), asked))
    ours = model.vae.decode(latents).int()
    theirs = torch.from_numpy(oracle(demo, prompt, asked, output_type="np")[0] * 255).round().int()
    apart = (ours - theirs).abs()
    assert apart.max() <= 1
    assert apart.ne(0).float().mean() <= 0.001
