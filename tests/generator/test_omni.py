"""The engine paints what diffusers' ZImageOmniPipeline paints, on the same weights, references, seed and forwards."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.comparisons import relative_difference
from tests.helpers.images import encoded, picture
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.engine.stepping import begin
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.omni.images import read_reference
from zrelay_generator.features.protocol import JobSpec, Prompt, SamplingSettings
from zrelay_generator.features.registry import step_sizes
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec

from .engine_harness import EngineHarness
from .fixture_types import Load, MakeEmbeds, MakeSampling
from .helpers import FLOAT32_BOUND
from .omni import Oracle, Words, omni_job
from .parsing import part_of

Oracles = Callable[..., Oracle]
PICTURES = [picture(128, 128, 1), picture(200, 90, 2), picture(77, 161, 3)]


@pytest.fixture(scope="module")
def oracle() -> Oracles:
    known: dict[tuple[object, ...], Oracle] = {}

    def find(*asked: Any) -> Oracle:
        if asked not in known:
            known[asked] = Oracle(*asked)
        return known[asked]

    return find


def spec_of(
    oracle: Oracle,
    pictures: Sequence[Image.Image],
    words: Words,
    asked: SamplingSettings,
    negative: Words | None = None,
) -> JobSpec:
    grids = oracle.grids(pictures, asked.width * asked.height)
    return omni_job(pictures, grids, words, asked, negative)


@pytest.mark.parametrize("images", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["demo_omni", "tiny_omni"])
def test_latents(
    name: str,
    images: int,
    request: pytest.FixtureRequest,
    load: Load,
    oracle: Oracles,
    sampling: MakeSampling,
) -> None:
    folder = request.getfixturevalue(name)
    model, their, asked = load(folder), oracle(folder), sampling(width=144, height=112, steps=3)
    words = Words.of(images, 37, model.limits.embeds_width)
    (ours,) = EngineHarness(model).paint(spec_of(their, PICTURES[:images], words, asked))
    assert relative_difference(ours, their.latents(PICTURES[:images], words, asked)) < FLOAT32_BOUND


@pytest.mark.parametrize(
    ("images", "guidance", "normalization", "truncation"),
    [(0, 3.0, 0.0, 1.0), (1, 2.0, 0.0, 1.0), (2, 4.0, 0.8, 1.0), (2, 3.0, 0.0, 0.5)],
)
@pytest.mark.parametrize("name", ["demo_omni", "tiny_omni"])
def test_latents_with_guidance(
    name: str,
    images: int,
    guidance: float,
    normalization: float,
    truncation: float,
    request: pytest.FixtureRequest,
    load: Load,
    oracle: Oracles,
    sampling: MakeSampling,
) -> None:
    folder = request.getfixturevalue(name)
    model, their = load(folder), oracle(folder)
    asked = sampling(
        steps=4, guidance_scale=guidance, cfg_normalization=normalization, cfg_truncation=truncation, height=96
    )
    words, negative = (Words.of(images, count, model.limits.embeds_width, seed=count) for count in (40, 9))
    (ours,) = EngineHarness(model).paint(spec_of(their, PICTURES[:images], words, asked, negative))
    assert relative_difference(ours, their.latents(PICTURES[:images], words, asked, negative)) < FLOAT32_BOUND


def test_a_reference_above_a_megapixel_gets_the_area_of_the_picture(
    demo_omni: Path, load: Load, oracle: Oracles, sampling: MakeSampling
) -> None:
    model, their, asked = load(demo_omni), oracle(demo_omni), sampling(width=160, height=128, steps=2)
    words, large = Words.of(1, 20, 128), [picture(1201, 905, 4)]
    (ours,) = EngineHarness(model).paint(spec_of(their, large, words, asked))
    assert relative_difference(ours, their.latents(large, words, asked)) < FLOAT32_BOUND
    assert read_reference(encoded(large[0]), 160 * 128, 16, 1024, 1 << 24, field="image").shape == (3, 112, 160)


def test_every_image_of_a_job_has_its_seed_and_references_are_read_once(
    demo_omni: Path, load: Load, oracle: Oracles, sampling: MakeSampling
) -> None:
    model, their, asked = load(demo_omni), oracle(demo_omni), sampling(steps=2, num_images=2, guidance_scale=2.0)
    words, negative = Words.of(2, 20, 128), Words.of(2, 5, 128, seed=1)
    on: Any = EngineHarness(model)
    read, reference = [], on.vae.reference

    def counted(pixels: Tensor) -> Tensor:
        read.append(pixels)
        latents: Tensor = reference(pixels)
        return latents

    on.vae.reference = counted
    ours = on.paint(spec_of(their, PICTURES[:2], words, asked, negative))
    assert len(read) == 2
    for number, mine in enumerate(ours):
        theirs = their.latents(PICTURES[:2], words, replace(asked, seed=asked.seed + number), negative)
        assert relative_difference(mine, theirs) < FLOAT32_BOUND


@pytest.mark.parametrize("name", ["demo_omni", "tiny_omni"])
def test_in_company_with_ordinary_jobs(
    name: str,
    request: pytest.FixtureRequest,
    load: Load,
    oracle: Oracles,
    sampling: MakeSampling,
    embeds: MakeEmbeds,
) -> None:
    """References, guidance and skipped layers in one tick with plain jobs: everyone as alone."""
    folder = request.getfixturevalue(name)
    model, their = load(folder), oracle(folder)
    width = model.limits.embeds_width
    one, two = Words.of(1, 33, width), Words.of(2, 12, width, seed=2)
    negative = Words.of(2, 7, width, seed=3)
    plain, guided = sampling(steps=4, height=96), sampling(steps=3, guidance_scale=2.5, seed=9)
    first = spec_of(their, PICTURES[:1], one, plain)
    specs = [
        first,
        JobSpec(Prompt(embeds(20, width)), sampling(steps=4, width=96)),
        spec_of(their, PICTURES[1:], two, guided, negative),
        JobSpec(Prompt(embeds(50, width)), guided, features=(GuidanceSpec(Prompt(embeds(3, width, 5))),)),
        replace(first, features=(*first.features, SkipLayerSpec(2.0, frozenset({1}), 0.0, 1.0))),
    ]
    alone = [EngineHarness(model).paint(spec)[0] for spec in specs]
    on = EngineHarness(model)
    jobs = [on.add(spec, str(number)) for number, spec in enumerate(specs)]
    on.tick()
    assert sum(job.steps_done > 0 for job in jobs) > 2
    while not on.engine.idle:
        on.tick()
    for mine in alone:
        assert (
            min(relative_difference(mine, packed) for packed in on.vae.latents if packed.shape == mine.shape)
            < FLOAT32_BOUND
        )
    assert relative_difference(alone[0], their.latents(PICTURES[:1], one, plain)) < FLOAT32_BOUND
    assert relative_difference(alone[2], their.latents(PICTURES[1:], two, guided, negative)) < FLOAT32_BOUND


@pytest.mark.deep
def test_bfloat16_is_as_near_to_float32_as_diffusers_is(
    demo_omni: Path, load: Load, oracle: Oracles, sampling: MakeSampling
) -> None:
    """The stated bound in bfloat16: no farther from the float32 result than diffusers, plus a tenth."""
    ours_off, theirs_off = 0.0, 0.0
    exact, rough = oracle(demo_omni), oracle(demo_omni, torch.bfloat16)
    for seed in range(6):
        asked = sampling(seed=seed, steps=6)
        words = Words([segment.bfloat16().float() for segment in Words.of(1, 20, 128, seed=seed).segments])
        goal = exact.latents(PICTURES[:1], words, asked)
        spec = spec_of(exact, PICTURES[:1], words, asked)
        (ours,) = EngineHarness(load(demo_omni, torch.bfloat16)).paint(spec)
        ours_off += relative_difference(ours, goal)
        theirs_off += relative_difference(rough.latents(PICTURES[:1], words, asked), goal)
    print(f"\nrelative error in bfloat16: ours {ours_off / 6:.4f}, diffusers {theirs_off / 6:.4f}")
    assert ours_off < 1.1 * theirs_off


@pytest.mark.parametrize("images", [0, 1, 3])
def test_the_cost_model_counts_every_token(
    images: int, demo_omni: Path, load: Load, oracle: Oracles, sampling: MakeSampling
) -> None:
    """Guided steps are two sequences, those after the truncation one."""
    model = load(demo_omni)
    asked = sampling(width=144, height=112, steps=4, guidance_scale=2.0, cfg_truncation=0.4)
    words, negative = Words.of(images, 37, 128), Words.of(images, 5, 128)
    job = DeviceJob("job", spec_of(oracle(demo_omni), PICTURES[:images], words, asked, negative), 1)
    with torch.inference_mode():
        begin(job, model)
        conditioning = [
            found.conditioning(model, part_of(job.spec, GuidanceSpec).negative_prompt) for found in job.features
        ]
    assert job.conditioning is not None
    tokens, other = job.conditioning.tokens, next(found.tokens for found in conditioning if found is not None)
    sizes = step_sizes(job.spec, job.features, model.limits.layers)
    assert [size.tokens for size in sizes] == [tokens + other] * 3 + [tokens]
    assert [size.squares for size in sizes] == [tokens**2 + other**2] * 3 + [tokens**2]


@pytest.mark.parametrize(
    ("width", "height", "said"),
    [(63, 300, "at least 64"), (80, 648, "8 times"), (1040, 200, "at most 1024"), (3000, 400, "not resized")],
)
def test_references_that_are_refused(width: int, height: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_reference(encoded(Image.new("RGB", (width, height))), 2048 * 2048, 16, 1024, 1 << 24, field="image")
