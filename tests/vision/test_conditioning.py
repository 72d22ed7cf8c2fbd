"""Conditioning as a whole: unchanged at alpha 0, the order of the steps, refusals."""

from typing import Any

import pytest
import torch

from zrelay_vision.conditioning import blend as blends
from zrelay_vision.conditioning.blend import BlendMode, GraduatedCurve
from zrelay_vision.conditioning.condition import ConditioningOptions, condition
from zrelay_vision.conditioning.normalize import Normalization, normalize_token_rms
from zrelay_vision.conditioning.outliers import OutlierMask, find_outliers, mask_outliers
from zrelay_vision.conditioning.reference import ReferenceStatistics
from zrelay_vision.qwen3_vl.states import ImageStates, TokenMode, select_rows

WIDTH = 16
REFERENCE = ReferenceStatistics(torch.linspace(-1, 1, WIDTH), torch.linspace(0.5, 2, WIDTH))


def rows(tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed))).to(dtype)


def states(tokens: int = 11, start: int = 3, count: int = 6) -> ImageStates:
    return ImageStates(rows(tokens, 5), start, count, TokenMode.FULL)


def options(**changes: Any) -> ConditioningOptions:
    return ConditioningOptions(**changes)


@pytest.mark.parametrize("mode", BlendMode)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_alpha_0_gives_the_prompt_back_bit_for_bit(mode: BlendMode, dtype: torch.dtype) -> None:
    prompt = rows(7, 1, dtype)
    prompt[0, 0] = -0.0
    weights = (1.0,) * 7 if mode is BlendMode.TOKEN_WEIGHTS else ()
    for how in Normalization:
        chosen = options(alpha=0.0, blend=mode, normalization=how, token_weights=weights)
        got = condition(prompt, states(), chosen, REFERENCE, rows(11, 6))
        assert got.prompt_embeds is prompt


@pytest.mark.parametrize("mode", BlendMode)
@pytest.mark.parametrize("mask", OutlierMask)
def test_every_blend_gives_rows_of_the_prompts_dtype(mode: BlendMode, mask: OutlierMask) -> None:
    prompt = rows(7, 1, torch.bfloat16)
    weights = (0.5,) * 7 if mode is BlendMode.TOKEN_WEIGHTS else ()
    for how in Normalization:
        chosen = options(blend=mode, normalization=how, outlier_mask=mask, token_weights=weights)
        got = condition(prompt, states(), chosen, REFERENCE, rows(11, 6))
        assert got.prompt_embeds.dtype is torch.bfloat16 and got.prompt_embeds.shape == prompt.shape
        assert not torch.equal(got.prompt_embeds, prompt)
        assert (got.before.tokens, got.states.tokens, got.after.tokens) == (7, 11, 7)


def test_the_default_is_token_rms_and_interpolate() -> None:
    prompt, image = rows(7, 1), states()
    ready = normalize_token_rms(image.hidden_states, prompt)
    wanted = 0.3 * blends.resample(ready, 7) + 0.7 * prompt
    got = condition(prompt, image, ConditioningOptions())
    assert torch.allclose(got.prompt_embeds, wanted, atol=1e-5)
    assert got.states.token_rms == pytest.approx(got.before.token_rms, rel=0.05)


def test_linear_cuts_a_prompt_longer_than_the_states_and_says_so() -> None:
    got = condition(rows(20, 1), states(), options(blend=BlendMode.LINEAR))
    assert (got.before.tokens, got.after.tokens) == (20, 11)


def test_token_weights_are_shares_of_alpha() -> None:
    prompt = rows(3, 1)
    got = condition(prompt, states(), options(alpha=0.5, blend=BlendMode.TOKEN_WEIGHTS, token_weights=(0.0, 1.0, 0.5)))
    whole = condition(prompt, states(), options(alpha=0.5)).prompt_embeds
    assert torch.equal(got.prompt_embeds[0], prompt[0])
    assert torch.allclose(got.prompt_embeds[1], whole[1])
    assert torch.allclose(got.prompt_embeds[2], (prompt[2] + whole[2]) / 2, atol=1e-5)


def test_a_graduated_blend_leaves_the_first_token_alone() -> None:
    prompt = rows(5, 1)
    got = condition(prompt, states(), options(blend=BlendMode.GRADUATED, curve=GraduatedCurve.EASE_IN))
    assert torch.equal(got.prompt_embeds[0], prompt[0])


def test_outliers_are_those_of_the_image_rows_and_mchosen_there_alone() -> None:
    image = states()
    image.hidden_states[3:9, 2] *= 100
    chosen = options(
        alpha=1.0, blend=BlendMode.LINEAR, normalization=Normalization.NONE, outlier_mask=OutlierMask.CLAMP
    )
    got = condition(rows(11, 1), image, chosen, REFERENCE)
    found = find_outliers(image.hidden_states[3:9], REFERENCE.std, 10.0)
    assert got.outliers == found and found.dimensions == (2,)
    wanted = image.hidden_states.clone()
    wanted[3:9] = mask_outliers(wanted[3:9], found, OutlierMask.CLAMP, 10.0)
    assert torch.allclose(got.prompt_embeds, wanted)


def test_where_no_image_rows_were_kept_all_count() -> None:
    text = ImageStates(rows(9, 5), 0, 0, TokenMode.TEXT_ONLY)
    text.hidden_states[:, 4] *= 100
    got = condition(rows(9, 1), text, options(outlier_mask=OutlierMask.ZERO), REFERENCE)
    assert got.outliers.dimensions == (4,)


def test_a_plain_image_loses_the_dimensions_that_the_image_loses() -> None:
    """A dimension that is removed from the image alone would come back as the plain image's, turned round."""
    prompt, image, plain = rows(9, 1), states(), rows(11, 8)
    image.hidden_states[:, 4] *= 100
    chosen = options(
        blend=BlendMode.STYLE_DELTA, outlier_mask=OutlierMask.ZERO, normalization=Normalization.NONE, alpha=0.5
    )
    got = condition(prompt, ImageStates(image.hidden_states, 0, 11, TokenMode.IMAGE_ONLY), chosen, REFERENCE, plain)
    assert got.outliers.dimensions == (4,)
    assert torch.equal(got.prompt_embeds[:, 4], prompt[:, 4])


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (options(normalization=Normalization.PER_DIM), "reference: expected statistics"),
        (options(outlier_mask=OutlierMask.ZERO), "reference: expected statistics"),
        (options(blend=BlendMode.STYLE_DELTA), "neutral: expected the states"),
        (options(blend=BlendMode.TOKEN_WEIGHTS, token_weights=(0.5,)), "token_weights: expected 7, got 1"),
    ],
)
def test_what_an_option_needs_is_chosen_for(chosen: ConditioningOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        condition(rows(7, 1), states(), chosen)


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="expected rows of 15, got 16"):
        condition(rows(7, 1)[:, :15], states(), ConditioningOptions())


def test_options_say_themselves_in_a_few_words() -> None:
    chosen = options(
        blend=BlendMode.GRADUATED, curve=GraduatedCurve.EASE_OUT, outlier_mask=OutlierMask.ZERO, alpha=1 / 3
    )
    assert chosen.summary == "graduated alpha=0.333333 token_rms ease_out zero>10"
    assert ConditioningOptions().summary == "interpolate alpha=0.3 token_rms"


def test_rows_that_do_not_make_an_image_are_refused() -> None:
    with pytest.raises(ValueError, match="3 up to vision_start, 4 image tokens"):
        select_rows(rows(9, 0), None, 3, 4, TokenMode.IMAGE_ONLY)
    with pytest.raises(ValueError, match="expected states for full"):
        select_rows(rows(8, 0), None, 3, 4, TokenMode.FULL)
