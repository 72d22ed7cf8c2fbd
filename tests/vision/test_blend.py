"""Every blend against the formula of its document, written out in numpy or token by token."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zrelay_vision.conditioning import blend
from zrelay_vision.conditioning.blend import GraduatedCurve

alphas = st.floats(0, 1)
lengths = st.integers(1, 12)


def rows(tokens: int, seed: int, width: int = 6) -> torch.Tensor:
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) * 3 + 1


@given(alpha=alphas, tokens=lengths)
def test_mix(alpha: float, tokens: int) -> None:
    x, v = rows(tokens, 0), rows(tokens, 1)
    assert torch.allclose(blend.mix(x, v, alpha), alpha * v + (1 - alpha) * x)


@given(source=lengths, target=lengths)
def test_resample_is_linear_with_corners_not_aligned(source: int, target: int) -> None:
    v = rows(source, 2)
    at = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    wanted = np.stack([np.interp(at, np.arange(source), v[:, d].numpy()) for d in range(v.shape[1])], 1)
    assert np.allclose(blend.resample(v, target).numpy(), wanted, atol=1e-5)


@given(alpha=alphas, text=lengths, image=lengths)
def test_linear_cuts_both(alpha: float, text: int, image: int) -> None:
    x, v = rows(text, 0), rows(image, 1)
    n = min(text, image)
    assert torch.allclose(blend.linear(x, v, alpha), alpha * v[:n] + (1 - alpha) * x[:n])


@given(alpha=alphas, tokens=lengths)
def test_adain(alpha: float, tokens: int) -> None:
    x, v = rows(tokens, 0).numpy(), rows(tokens, 1).numpy()
    for at in range(tokens):
        styled = (x[at] - x[at].mean()) / x[at].std() * v[at].std() + v[at].mean()
        got = blend.adain(torch.from_numpy(x), torch.from_numpy(v), alpha)[at].numpy()
        assert np.allclose(got, alpha * styled + (1 - alpha) * x[at], atol=1e-4)


@given(alpha=alphas, text=st.integers(2, 12), image=lengths)
def test_adain_per_dim_takes_all_of_the_image(alpha: float, text: int, image: int) -> None:
    x, v = rows(text, 0).numpy(), rows(image, 1).numpy()
    styled = (x - x.mean(0)) / x.std(0) * v.std(0) + v.mean(0)
    got = blend.adain_per_dim(torch.from_numpy(x), torch.from_numpy(v), alpha).numpy()
    assert np.allclose(got, alpha * styled + (1 - alpha) * x, atol=1e-3)


@pytest.mark.parametrize(
    ("curve", "shape"),
    [
        (GraduatedCurve.LINEAR, lambda t: t),
        (GraduatedCurve.EASE_IN, lambda t: t * t),
        (GraduatedCurve.EASE_OUT, lambda t: 1 - (1 - t) ** 2),
    ],
)
def test_graduated_alphas(curve: GraduatedCurve, shape: Callable[[float], float]) -> None:
    got = blend.graduated_alphas(5, 0.3, curve).flatten().tolist()
    assert got == pytest.approx([0.6 * shape(at / 4) for at in range(5)])
    assert max(blend.graduated_alphas(9, 0.9, curve).flatten().tolist()) == 1.0
    assert blend.graduated_alphas(1, 0.3, GraduatedCurve.LINEAR).tolist() == [[pytest.approx(0.3)]]


@given(alpha=alphas, seed=st.integers(0, 50))
def test_slerp(alpha: float, seed: int) -> None:
    x, v = rows(4, seed), rows(4, seed + 1000)
    for got, a, b in zip(blend.slerp(x, v, alpha), x, v, strict=True):
        theta = math.acos(float(torch.dot(a / a.norm(), b / b.norm())))
        turned = math.sin((1 - alpha) * theta) * a / a.norm() + math.sin(alpha * theta) * b / b.norm()
        length = (1 - alpha) * a.norm() + alpha * b.norm()
        assert torch.allclose(got, turned / math.sin(theta) * length, atol=1e-3)
        assert math.isclose(float(got.norm()), float(length), rel_tol=1e-3)


def test_slerp_of_parallel_opposite_and_empty_tokens_is_a_mix() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
    v = torch.tensor([[2.0, 4.0], [-1.0, -2.0], [1.0, 1.0], [0.0, 0.0]])
    assert torch.allclose(blend.slerp(x, v, 0.25), blend.mix(x, v, 0.25), atol=1e-6)


@given(alpha=alphas, text=st.integers(2, 12), image=st.integers(2, 12))
def test_style_delta(alpha: float, text: int, image: int) -> None:
    x, v, neutral = rows(text, 0, 16), rows(image, 1, 16), rows(image, 2, 16)
    delta = blend.resample(v - neutral, text)
    wanted = x + alpha * delta * x.std(correction=0) / delta.std(correction=0)
    assert torch.allclose(blend.style_delta(x, v, neutral, alpha), wanted, atol=1e-4)


def test_style_delta_of_a_neutral_image_changes_nothing() -> None:
    x, v = rows(3, 0), rows(5, 1)
    assert torch.equal(blend.style_delta(x, v, v, 0.7), x)


def test_style_delta_is_not_scaled_by_a_sink() -> None:
    """F4: two dimensions of the first token would make the step ten times as long."""
    x, v, neutral = rows(8, 0, 16), rows(8, 1, 16), rows(8, 2, 16)
    sink = x.clone()
    sink[0, 3] = 3000.0
    plain, got = (blend.style_delta(text, v, neutral, 0.5) - text for text in (x, sink))
    assert float(got.norm() / plain.norm()) == pytest.approx(1.0, rel=0.15)
