"""Schedule, latents, positions, guidance and attention, each against diffusers or by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from diffusers.utils.torch_utils import randn_tensor

from zrelay_generator.features.guidance.hooks import guidance_at, guided
from zrelay_generator.features.schedule import explicit_schedule, linear_sigmas, shifted_schedule
from zrelay_generator.model.attention import AttentionRun, ragged_attention, runs_of, spans_of
from zrelay_generator.model.latents import denoised, euler_step, image_seed, is_finite, noise, patchify, unpatchify
from zrelay_generator.model.sequence import caption_positions, image_positions, padded

from .fixture_types import Load


@pytest.mark.parametrize("steps", [1, 4, 8, 9, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_schedule_is_that_of_diffusers(steps: int, shift: float) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps))
    ours = shifted_schedule(steps, shift)
    torch.testing.assert_close(torch.tensor(ours.sigmas), scheduler.sigmas, rtol=1e-6, atol=1e-7)
    theirs = (1000 - scheduler.timesteps) / 1000
    torch.testing.assert_close(torch.tensor(ours.timesteps), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [-1.0, 0.0, 1e-300, 1e-17, 1e-7, math.inf, math.nan])
def test_a_shift_whose_formula_divides_by_zero_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="shift: expected a number of at least 1e-06"):
        shifted_schedule(8, shift)
    assert shifted_schedule(8, 1e-6).sigmas[0] == pytest.approx(1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
def test_sigmas_under_a_shift_are_those_of_diffusers(shift: float) -> None:
    sigmas = [1.0, 0.75, 0.5, 0.11]
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=sigmas)
    ours = explicit_schedule(sigmas, shift)
    torch.testing.assert_close(torch.tensor(ours.sigmas), scheduler.sigmas, rtol=1e-6, atol=1e-7)
    assert explicit_schedule(sigmas).sigmas == (*sigmas, 0.0)


def test_schedule_of_eight_forwards() -> None:
    expected = [1.0, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0.0]
    assert shifted_schedule(8, 3.0).sigmas == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("sigmas", [[], [1.0, 1.0], [0.5, 0.6], [1.1], [0.5, 0.0], [float("nan")], [-0.1]])
def test_a_schedule_that_is_none(sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match="sigmas: expected"):
        explicit_schedule(sigmas)


def test_a_schedule_of_no_steps() -> None:
    with pytest.raises(ValueError, match="num_inference_steps: expected at least 1, got 0"):
        linear_sigmas(0)


def test_noise_is_that_of_diffusers() -> None:
    theirs = randn_tensor((1, 16, 12, 20), generator=torch.Generator("cpu").manual_seed(99), dtype=torch.float32)
    assert torch.equal(noise(99, 16, 12, 20), theirs[0])
    assert noise((1 << 64) - 1, 1, 2, 2).isfinite().all()
    assert image_seed((1 << 64) - 1, 1) == 0


def test_patches_are_those_of_diffusers(load: Load, tiny: Path) -> None:
    latents = torch.randn(16, 6, 10)
    theirs, *_ = ZImageTransformer2DModel._patchify_image(None, latents[:, None], 2, 1)
    assert torch.equal(patchify(latents), theirs)
    assert torch.equal(unpatchify(patchify(latents), 6, 10), latents)


def test_positions() -> None:
    assert padded(1) == padded(32) == 32 and padded(33) == 64
    assert caption_positions(3).tolist() == [[i, 0, 0] for i in range(1, 33)]
    image = image_positions(2, 3, caption_tokens=40)
    assert image[:6].tolist() == [[65, 0, 0], [65, 0, 1], [65, 0, 2], [65, 1, 0], [65, 1, 1], [65, 1, 2]]
    assert len(image) == 32 and not image[6:].any()


def test_euler_step_and_what_it_points_to() -> None:
    clean, drawn = torch.randn(4, 4), torch.randn(4, 4)
    latents = 0.25 * clean + 0.75 * drawn
    prediction = clean - drawn
    torch.testing.assert_close(euler_step(latents, prediction, 0.75, 0.0), clean)
    torch.testing.assert_close(euler_step(latents, prediction, 0.75, 0.5), 0.5 * clean + 0.5 * drawn)
    torch.testing.assert_close(denoised(latents, prediction, 0.75), clean)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_is_seen(bad: float) -> None:
    latents = torch.zeros(16, 8, 8)
    assert is_finite(latents)
    latents[3, 4, 5] = bad
    assert not is_finite(latents)


def test_guidance_is_bounded_by_its_normalisation() -> None:
    positive, negative = torch.tensor([3.0, 4.0]), torch.tensor([-3.0, 0.0])
    torch.testing.assert_close(guided(positive, negative, 2.0, 0.0), torch.tensor([15.0, 12.0]))
    assert guided(positive, negative, 2.0, 1.5).norm().item() == pytest.approx(7.5)
    torch.testing.assert_close(guided(positive, negative, 2.0, 100.0), torch.tensor([15.0, 12.0]))
    assert not guided(torch.zeros(2), torch.zeros(2), 2.0, 1.0).isnan().any()


def test_guidance_ends_where_it_is_cut() -> None:
    assert [guidance_at(t, 3.0, 0.5) for t in (0.0, 0.5, 0.51, 1.0)] == [3.0, 3.0, 0.0, 0.0]
    assert guidance_at(0.999, 3.0, 1.0) == 3.0


def test_segments_attend_to_themselves_alone() -> None:
    lengths = [5, 5, 3, 5]
    assert runs_of(lengths) == (AttentionRun(0, 2, 5), AttentionRun(10, 1, 3), AttentionRun(13, 1, 5))
    q, k, v = torch.randn(3, sum(lengths), 2, 4)
    packed, start = ragged_attention(q, k, v, spans_of(lengths, q.device)), 0
    for length in lengths:
        own = [t[start : start + length].transpose(0, 1) for t in (q, k, v)]
        alone = F.scaled_dot_product_attention(*own).transpose(0, 1)
        torch.testing.assert_close(packed[start : start + length], alone)
        start += length
