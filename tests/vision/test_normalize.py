"""Normalisations and outlier masks against their formulas, in numpy, and the effect of massive dimensions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zrelay_vision.conditioning import normalize, outliers
from zrelay_vision.conditioning.normalize import Normalization
from zrelay_vision.conditioning.outliers import OutlierMask

WIDTH = 24
Normalize = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def rows(tokens: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) + 0.3


def with_sink(embeds: torch.Tensor) -> torch.Tensor:
    """The first token with two massive dimensions, as Qwen3 has them at 4 and 396."""
    out = embeds.clone()
    out[0, 4], out[0, 11] = 9000.0, -3000.0
    return out


def test_statistics_are_plain() -> None:
    values = rows(5, 0)
    got = normalize.embedding_statistics(values.bfloat16())
    plain = values.bfloat16().float().numpy()
    assert got.tokens == 5
    assert got.mean == pytest.approx(plain.mean(), abs=1e-5)
    assert got.std == pytest.approx(plain.std(), abs=1e-5)
    assert got.token_rms == pytest.approx(np.median(np.sqrt((plain**2).mean(1))), abs=1e-5)


def test_massive_dimensions_are_those_far_from_the_median() -> None:
    assert normalize.ordinary_dimensions(with_sink(rows(6, 0))).logical_not().nonzero().flatten().tolist() == [4, 11]
    assert bool(normalize.ordinary_dimensions(rows(6, 0), rows(3, 1)).all())
    assert bool(normalize.ordinary_dimensions(torch.zeros(2, WIDTH)).all())


@given(tokens=st.integers(1, 9), scale=st.floats(0.01, 100))
def test_token_rms_brings_every_token_to_the_prompts_median(tokens: int, scale: float) -> None:
    states, prompt = rows(tokens, 1, scale), rows(7, 2)
    got = normalize.normalize_token_rms(states, prompt).numpy()
    target = np.median(np.sqrt((prompt.numpy() ** 2).mean(1)))
    assert np.sqrt((got**2).mean(1)) == pytest.approx(np.full(tokens, target), rel=1e-4)
    assert np.allclose(got / np.linalg.norm(got, axis=1, keepdims=True),
                       states.numpy() / states.norm(dim=1, keepdim=True).numpy(), atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("which", [normalize.normalize_token_rms, normalize.normalize_global])
def test_a_sink_in_the_prompt_does_not_blow_states_up(which: Normalize) -> None:
    states, prompt = rows(6, 1, 0.1), rows(9, 2)
    plain, sink = which(states, prompt), which(states, with_sink(prompt))
    assert float(sink.norm() / plain.norm()) == pytest.approx(1.0, rel=0.1)
    naive = float(with_sink(prompt).std() / states.std() / (prompt.std() / states.std()))
    assert naive > 100


@given(scale=st.floats(0.01, 100))
def test_global(scale: float) -> None:
    states, prompt = rows(6, 1, scale), rows(7, 2)
    wanted = states.numpy() * prompt.numpy().std() / states.numpy().std()
    assert np.allclose(normalize.normalize_global(states, prompt).numpy(), wanted, rtol=1e-3)


@given(tokens=st.integers(2, 20))
def test_per_dim(tokens: int) -> None:
    states, mean, std = rows(tokens, 1), rows(1, 3)[0], rows(1, 4)[0].abs()
    values = states.numpy()
    z = np.clip((values - values.mean(0)) / np.maximum(values.std(0), 1e-6), -3, 3)
    wanted = z * std.numpy() + mean.numpy()
    assert np.allclose(normalize.normalize_per_dim(states, mean, std).numpy(), wanted, atol=1e-3)


def test_per_dim_holds_what_is_far_off_within_three() -> None:
    states = torch.zeros(100, 2)
    states[0] = 1000.0
    got = normalize.normalize_per_dim(states, torch.zeros(2), torch.ones(2))
    assert float(got.max()) == 3.0


def test_one_token_becomes_the_references_mean() -> None:
    mean, std = rows(1, 3)[0], rows(1, 4)[0].abs()
    assert torch.allclose(normalize.normalize_per_dim(rows(1, 1), mean, std)[0], mean)


def test_hybrid_is_half_of_each() -> None:
    states, prompt, mean, std = rows(6, 1), rows(7, 2), rows(1, 3)[0], rows(1, 4)[0].abs()
    wanted = 0.5 * normalize.normalize_per_dim(states, mean, std) + 0.5 * normalize.normalize_global(states, prompt)
    assert torch.equal(normalize.normalize(states, prompt, Normalization.HYBRID, (mean, std)), wanted)


def test_none_is_none_and_a_reference_is_required() -> None:
    states, prompt = rows(6, 1), rows(7, 2)
    assert normalize.normalize(states, prompt, Normalization.NONE, None) is states
    for how in (Normalization.PER_DIM, Normalization.HYBRID):
        with pytest.raises(ValueError, match="expected statistics"):
            normalize.normalize(states, prompt, how, None)


def ratios_of(states: torch.Tensor, reference: torch.Tensor) -> NDArray[np.float32]:
    ratios: NDArray[np.float32] = states.numpy().std(0) / reference.numpy()
    return ratios


@given(threshold=st.floats(0.5, 20))
def test_outliers_are_found_and_masked(threshold: float) -> None:
    states = rows(30, 1)
    states[:, 3] *= 50
    states[:, 7] *= 12
    reference = torch.ones(WIDTH)
    ratios = ratios_of(states, reference)
    found = outliers.find_outliers(states, reference, threshold)
    assert set(found.dimensions) == set(np.nonzero(ratios > threshold)[0].tolist())
    assert list(found.ratios) == sorted(found.ratios, reverse=True)
    assert list(found.ratios) == pytest.approx([ratios[d] for d in found.dimensions], rel=1e-4)
    untouched = [d for d in range(WIDTH) if d not in found.dimensions]
    for mask, factor in (
        (OutlierMask.ZERO, lambda ratio: 0.0),
        (OutlierMask.CLAMP, lambda ratio: threshold / ratio),
        (OutlierMask.SCALE, lambda ratio: (threshold / ratio) ** 0.5),
    ):
        got = outliers.mask_outliers(states, found, mask, threshold)
        assert torch.equal(got[:, untouched], states[:, untouched])
        for dimension, ratio in zip(found.dimensions, found.ratios, strict=True):
            assert torch.allclose(got[:, dimension], states[:, dimension] * factor(ratio), atol=1e-4)
    assert outliers.mask_outliers(states, found, OutlierMask.NONE, threshold) is states


def test_clamp_brings_the_deviation_to_the_threshold_and_scale_leaves_more() -> None:
    states, reference = rows(30, 1), torch.full((WIDTH,), 0.01)
    found = outliers.find_outliers(states, reference, 10.0)
    clamped = outliers.mask_outliers(states, found, OutlierMask.CLAMP, 10.0)
    scaled = outliers.mask_outliers(states, found, OutlierMask.SCALE, 10.0)
    assert ratios_of(clamped, reference) == pytest.approx(np.full(WIDTH, 10.0), rel=1e-3)
    assert bool((scaled.std(0) > clamped.std(0)).all() and (scaled.std(0) < states.std(0)).all())
