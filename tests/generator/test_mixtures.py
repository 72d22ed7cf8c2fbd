"""Mixtures: whatever a job asks for and whoever shares its ticks, it paints what diffusers paints.

diffusers is the oracle: its own pipelines where they can do a job, and its transformer and scheduler in a plain loop
where they cannot (skip-layer guidance).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageImg2ImgPipeline, ZImagePipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from tests.helpers.comparisons import relative_difference
from zrelay_generator.engine.events import JobStage, StageProgress
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec, first_step
from zrelay_generator.features.protocol import FeatureSpec, JobSpec, Prompt
from zrelay_generator.features.schedule import explicit_schedule
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec
from zrelay_generator.model.phases import Variant, phases_of

from .engine_harness import EngineHarness
from .fixture_types import Load, MakeEmbeds, MakeSampling
from .helpers import FLOAT32_BOUND


class Oracle:
    """diffusers on one checkpoint, in float32."""

    def __init__(self, folder: Path) -> None:
        parts = {"text_encoder": None, "tokenizer": None, "dtype": torch.float32}
        self._paint: Any = ZImagePipeline.from_pretrained(folder, **parts)
        self._repaint: Any = ZImageImg2ImgPipeline(**self._paint.components)
        pipeline: Any
        for pipeline in (self._paint, self._repaint):
            pipeline.set_progress_bar_config(disable=True)

    def latents(self, spec: JobSpec, image: int = 0) -> Tensor:
        """[16, h, w] of one image of a job, by a pipeline where one can do it."""
        return self.looped(spec, image) if spec.feature(SkipLayerSpec) is not None else self.piped(spec, image)

    def piped(self, spec: JobSpec, image: int = 0) -> Tensor:
        """By ZImagePipeline or ZImageImg2ImgPipeline."""
        asked, guidance, start = spec.sampling, spec.feature(GuidanceSpec), spec.feature(ImageToImageSpec)
        pipeline = self._paint if start is None else self._repaint
        pipeline.scheduler = scheduler(spec)
        extra: dict[str, Any] = {} if start is None else {"image": pil_image(start), "strength": start.strength}
        result: Tensor = pipeline(
            prompt_embeds=[spec.prompt.embeds.float()],
            negative_prompt_embeds=None if guidance is None else [guidance.negative_prompt.embeds.float()],
            width=asked.width,
            height=asked.height,
            num_inference_steps=asked.num_inference_steps,
            sigmas=None if asked.shift is not None else list(asked.schedule.sigmas[:-1]),
            guidance_scale=asked.guidance_scale,
            cfg_normalization=asked.cfg_normalization,
            cfg_truncation=asked.cfg_truncation,
            generator=torch.Generator("cpu").manual_seed(asked.seed + image),
            output_type="latent",
            **extra,
        ).images
        return result[0]

    @torch.no_grad()
    def looped(self, spec: JobSpec, image: int = 0) -> Tensor:
        """By the transformer, the scheduler and the formulas: v + g (v - u), bounded, + s (v - v without blocks)."""
        asked, schedule, guidance = spec.sampling, scheduler(spec), spec.feature(GuidanceSpec)
        sigmas = torch.linspace(1.0, 1 / asked.num_inference_steps, asked.num_inference_steps).tolist()
        schedule.set_timesteps(sigmas=sigmas if asked.shift is not None else list(asked.schedule.sigmas[:-1]))
        schedule.set_begin_index(asked.first_step)
        times = schedule.timesteps[asked.first_step :]
        latents = self._start(spec, schedule, times[:1], torch.Generator("cpu").manual_seed(asked.seed + image))
        for number, time in enumerate(times):
            timestep = (1000 - time) / 1000
            positive = self._forward(latents, timestep, spec.prompt.embeds)
            prediction = positive
            if guidance is not None and asked.guidance_scale > 0 and not float(timestep) > asked.cfg_truncation:
                negative = self._forward(latents, timestep, guidance.negative_prompt.embeds)
                prediction = positive + asked.guidance_scale * (positive - negative)
                if asked.cfg_normalization > 0:
                    most = positive.norm() * asked.cfg_normalization
                    prediction = prediction * min(1.0, float(most / prediction.norm()))
            skip = spec.feature(SkipLayerSpec)
            if skip is not None and skip.start <= number / len(times) < skip.stop:
                with self._without(skip.layers):
                    without = self._forward(latents, timestep, spec.prompt.embeds)
                prediction = prediction + skip.scale * (positive - without)
            latents = schedule.step(-prediction[None], time, latents[None], return_dict=False)[0][0]
        return latents

    def _start(self, spec: JobSpec, schedule: Any, time: Tensor, generator: torch.Generator) -> Tensor:
        asked = spec.sampling
        shape = (1, 16, asked.height // 8, asked.width // 8)
        start = spec.feature(ImageToImageSpec)
        if start is None:
            return torch.randn(shape, generator=generator)[0]
        self._repaint.scheduler = schedule
        pixels = self._repaint.image_processor.preprocess(pil_image(start))
        size = (1, 16, asked.height, asked.width, torch.float32, "cpu", generator)
        latents: Tensor = self._repaint.prepare_latents(pixels, time, *size)[0]
        return latents

    def _forward(self, latents: Tensor, timestep: Tensor, embeds: Tensor) -> Tensor:
        result = self._paint.transformer([latents[:, None]], timestep[None], [embeds.float()], return_dict=False)
        prediction: Tensor = result[0][0][:, 0].float()
        return prediction

    @contextmanager
    def _without(self, layers: frozenset[int]) -> Iterator[None]:
        hooks = [
            self._paint.transformer.layers[i].register_forward_hook(lambda block, given, made: given[0]) for i in layers
        ]
        yield
        for hook in hooks:
            hook.remove()


def scheduler(spec: JobSpec) -> Any:
    """A new one for each job: they keep state."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0 if spec.sampling.shift is None else spec.sampling.shift)


def pil_image(start: ImageToImageSpec) -> Image.Image:
    """The start image of a job, for diffusers."""
    return Image.fromarray(start.pixels.permute(1, 2, 0).numpy(), "RGB")


@pytest.fixture(scope="session")
def diffusers_of() -> Callable[[Path], Oracle]:
    """The oracle of a checkpoint, loaded once."""
    return cache(Oracle)


def start_image(width: int, height: int, strength: float, seed: int = 0) -> ImageToImageSpec:
    """A picture of smooth colours."""
    cells = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(cells, size=(height, width), mode="bicubic").clamp(0, 1)
    return ImageToImageSpec((smooth[0] * 255).round().to(torch.uint8), "", strength)


@pytest.fixture
def spec_of(sampling: MakeSampling, embeds: MakeEmbeds) -> Callable[..., JobSpec]:
    """A JobSpec of plain values, for a checkpoint whose embeddings are so wide."""

    def made(
        embeds_width: int,
        tokens: int = 20,
        negative: int | None = None,
        strength: float | None = None,
        skip: SkipLayerSpec | None = None,
        deterministic: bool = False,
        **asked: Any,
    ) -> JobSpec:
        sigmas = asked.pop("sigmas", None)
        plain = sampling(**asked)
        if sigmas is not None:
            plain = replace(plain, schedule=explicit_schedule(sigmas), shift=None)
        features: list[FeatureSpec] = []
        if negative is not None:
            features.append(GuidanceSpec(Prompt(embeds(negative, embeds_width, seed=plain.seed + 1))))
        if strength is not None:
            start = start_image(plain.width, plain.height, strength)
            plain = start.applied_to(plain)
            features.append(start)
        if skip is not None:
            features.append(skip)
        return JobSpec(
            prompt=Prompt(embeds(tokens, embeds_width, seed=plain.seed)),
            sampling=plain,
            deterministic=deterministic,
            features=tuple(features),
        )

    return made


@pytest.mark.parametrize("strength", [0.1, 0.3, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_image_to_image(
    strength: float,
    guidance: float,
    demo: Path,
    load: Load,
    spec_of: Callable[..., JobSpec],
    diffusers_of: Callable[[Path], Oracle],
) -> None:
    spec = spec_of(128, width=96, height=128, steps=10, strength=strength, guidance_scale=guidance, negative=12)
    (ours,) = EngineHarness(load(demo)).paint(spec)
    assert relative_difference(ours, diffusers_of(demo).piped(spec)) < FLOAT32_BOUND


def test_images_of_one_picture_draw_their_own_noise(
    tiny: Path,
    load: Load,
    spec_of: Callable[..., JobSpec],
    diffusers_of: Callable[[Path], Oracle],
) -> None:
    spec = spec_of(48, width=64, height=64, strength=0.5, num_images=3)
    for index, ours in enumerate(EngineHarness(load(tiny)).paint(spec)):
        assert relative_difference(ours, diffusers_of(tiny).piped(spec, index)) < FLOAT32_BOUND


@pytest.mark.parametrize("strength", [0.0, 0.05, 0.1, 0.3, 0.5, 0.6, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 4, 8, 9, 10, 50])
def test_where_a_run_of_some_strength_begins(
    steps: int, strength: float, demo: Path, diffusers_of: Callable[[Path], Oracle]
) -> None:
    pipeline = diffusers_of(demo)._repaint
    pipeline.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    _, left = pipeline.get_timesteps(steps, strength, "cpu")
    assert steps - first_step(steps, strength) == left


def test_the_loop_of_this_file_is_the_pipelines(
    tiny: Path, spec_of: Callable[..., JobSpec], diffusers_of: Callable[[Path], Oracle]
) -> None:
    oracle = diffusers_of(tiny)
    for asked in ({}, {"strength": 0.6}, {"guidance_scale": 4.0, "cfg_normalization": 0.8, "negative": 7}):
        spec = spec_of(48, width=64, height=80, steps=5, **asked)
        assert relative_difference(oracle.looped(spec), oracle.piped(spec)) < 1e-5


@pytest.mark.parametrize("layers", [{0}, {1}, {5}, {2, 3}, {0, 2, 5}, {0, 1, 2, 3, 4, 5}])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_skip_layer_guidance(
    layers: set[int],
    guidance: float,
    demo: Path,
    load: Load,
    spec_of: Callable[..., JobSpec],
    diffusers_of: Callable[[Path], Oracle],
) -> None:
    skip = SkipLayerSpec(2.0, frozenset(layers), 0.2, 0.8)
    spec = spec_of(128, width=64, height=96, steps=5, skip=skip, guidance_scale=guidance, negative=40)
    (ours,) = EngineHarness(load(demo)).paint(spec)
    assert relative_difference(ours, diffusers_of(demo).looped(spec)) < FLOAT32_BOUND


def test_blocks_before_the_first_skipped_one_are_computed_once() -> None:
    skipped = frozenset({3})
    before, without, behind = phases_of([[], [skipped]], 6)
    assert (before.first, before.stop, before.variants) == (0, 3, ())
    assert (without.first, without.stop, without.variants) == (3, 4, ())
    assert (behind.first, behind.stop, behind.variants) == (4, 6, (Variant(1, 0, skipped),))
    assert without.begins == behind.variants
    with pytest.raises(ValueError, match="expected some blocks of 0 to 5, got \\[6\\]"):
        phases_of([[frozenset({6})]], 6)


SKIPS = st.builds(
    lambda scale, layers, window: SkipLayerSpec(scale, frozenset(layers), *window),
    st.sampled_from([0.5, 2.5]),
    st.sets(st.integers(0, 2), min_size=1),
    st.sampled_from([(0.0, 1.0), (0.05, 0.5), (0.5, 0.5)]),
)
JOBS = st.fixed_dictionaries(
    {
        "width": st.sampled_from([64, 80, 112]),
        "height": st.sampled_from([64, 96]),
        "steps": st.integers(1, 4),
        "tokens": st.integers(1, 70),
        "seed": st.integers(0, 1 << 32),
        "num_images": st.integers(1, 2),
        "negative": st.sampled_from([None, 1, 33]),
        "strength": st.sampled_from([None, None, 0.5, 1.0]),
        "skip": st.none() | SKIPS,
        "sigmas": st.sampled_from([None, None, [1.0, 0.5], [0.9, 0.4, 0.3]]),
        "shift": st.sampled_from([1.0, 3.0]),
        "guidance": st.sampled_from([(2.0, 0.0, 1.0), (4.0, 0.9, 1.0), (3.0, 0.0, 0.5)]),
        "after": st.integers(0, 3),
        "deterministic": st.booleans(),
    }
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(mix=st.lists(JOBS, min_size=1, max_size=4))
def test_any_mixture(
    mix: list[dict[str, Any]],
    tiny: Path,
    load: Load,
    spec_of: Callable[..., JobSpec],
    diffusers_of: Callable[[Path], Oracle],
) -> None:
    specs, after = [], []
    for drawn in mix:
        asked = dict(drawn)
        after.append(asked.pop("after"))
        guidance = asked.pop("guidance")
        if asked["negative"] is not None:
            asked |= dict(zip(("guidance_scale", "cfg_normalization", "cfg_truncation"), guidance, strict=True))
        specs.append(spec_of(48, **asked))
    painted = EngineHarness(load(tiny), packs=True).paint_as_they_come(specs, after)
    for number, spec in enumerate(specs):
        for image in range(spec.sampling.num_images):
            theirs = diffusers_of(tiny).latents(spec, image)
            assert relative_difference(painted[number, image], theirs) < FLOAT32_BOUND


def test_a_deterministic_job_is_the_same_bit_for_bit_in_any_company(
    demo: Path, load: Load, spec_of: Callable[..., JobSpec]
) -> None:
    model, skip = load(demo, torch.bfloat16), SkipLayerSpec(2.0, frozenset({3}), 0.0, 1.0)
    asked = {"width": 64, "height": 80, "steps": 4, "skip": skip, "strength": 0.8, "guidance_scale": 2.0, "negative": 9}
    spec = spec_of(128, deterministic=True, **asked)
    others = [spec_of(128, width=64, height=64, steps=6, seed=seed) for seed in range(3)]
    (alone,) = EngineHarness(model, packs=True).paint(spec)
    among = EngineHarness(model, packs=True).paint_as_they_come([*others, spec], [0, 0, 0, 2])
    assert torch.equal(among[3, 0], alone)


def test_company_shares_forwards(demo: Path, load: Load, spec_of: Callable[..., JobSpec]) -> None:
    on = EngineHarness(load(demo), packs=True)
    on.paint(*(spec_of(128, width=64 + 16 * i, height=64, steps=2 + i, seed=i) for i in range(3)))
    steps = [job for job, event in on.events if isinstance(event, StageProgress) and event.stage is JobStage.DENOISE]
    assert steps[:6] == ["job-0", "job-1", "job-2"] * 2
