"""Statistics of embeddings, compared with torch and with the results of version 0.1.0."""

import importlib
import math
import sys
from array import array

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zrelay_shared.errors import FeatureMissing
from zrelay_shared.statistics import (
    EmbedsAccumulator,
    Moments,
    TokenRows,
    correlation,
    decode,
    overall_std,
    token_rms,
    upper_median,
)


def rows_of(tensor: torch.Tensor, *, has_first: bool = True) -> TokenRows:
    return TokenRows(tensor.numpy(), has_first)


def pseudo_random(seed: int, count: int, width: int) -> np.ndarray:
    """Returns float32 [count, width] of a linear congruential generator; column 1 has a large mean."""
    state, out = seed, array("f")
    for _ in range(count * width):
        state = (1103515245 * state + 12345) & 0x7FFFFFFF
        out.append((state / 0x7FFFFFFF - 0.5) * 8 + (200.0 if len(out) % width == 1 else 0))
    return np.frombuffer(out, np.float32).reshape(count, width)


def test_moments_equal_those_of_torch() -> None:
    torch.manual_seed(0)
    prompts = [torch.randn(length, 6) * 50 + 7 for length in (9, 1, 4, 30)]
    accumulator = EmbedsAccumulator(6)
    for prompt in prompts:
        accumulator.add(rows_of(prompt))
    rest, every = torch.cat([prompt[1:] for prompt in prompts]), torch.cat(prompts)
    for moments, values in ((accumulator.rest, rest), (accumulator.all_tokens, every)):
        assert moments.count == len(values)
        assert torch.allclose(torch.tensor(moments.mean).float(), values.mean(0), rtol=1e-5)
        assert torch.allclose(torch.tensor(moments.std).float(), values.std(0, correction=0), rtol=1e-5)
    assert torch.allclose(torch.tensor(accumulator.token_rms).float(), rest.square().mean(1).sqrt(), rtol=1e-5)


def test_results_equal_those_of_the_arithmetic_without_numpy() -> None:
    """The values were computed by version 0.1.0, which used arrays of Python floats."""
    accumulator = EmbedsAccumulator(3)
    for seed, (count, has_first) in enumerate([(7, True), (1, True), (5, False), (40, True)], 1):
        accumulator.add(TokenRows(pseudo_random(seed, count, 3), has_first))
    rest, every = accumulator.rest, accumulator.all_tokens
    assert (rest.count, every.count) == (50, 53)
    for got, expected in (
        (rest.mean, [-0.22011983394622803, 199.4777374267578, -0.10809686779975891]),
        (rest.std, [2.166618824005127, 2.161693572998047, 2.358586311340332]),
        (every.mean, [-0.34395191073417664, 199.52383422851562, -0.18630975484848022]),
        (every.std, [2.205474376678467, 2.1634764671325684, 2.3130247592926025]),
    ):
        assert got.astype(np.float32).tolist() == pytest.approx(expected, rel=1e-6)
    assert float(accumulator.token_rms.sum()) == pytest.approx(5759.1731934567715, rel=1e-12)
    assert upper_median(accumulator.token_rms) == pytest.approx(115.23164791088806, rel=1e-12)
    pairs = pseudo_random(5, 1, 40)[0], pseudo_random(6, 1, 40)[0]
    assert correlation(*pairs) == pytest.approx(0.9938475874821151, rel=1e-12)


def test_a_large_mean_does_not_hide_a_small_deviation() -> None:
    values = np.array([[2752.0], [2752.5], [2753.0], [2752.5]], np.float32)
    assert Moments.of(values).std[0] == pytest.approx(math.sqrt(0.125), rel=1e-12)
    merged = Moments.of(values[:1]).merged(Moments.of(values[1:]))
    assert merged.std[0] == pytest.approx(math.sqrt(0.125), rel=1e-9)


def test_no_rows_have_no_deviation() -> None:
    assert Moments.none(2).merged(Moments.none(2)).count == 0
    with pytest.raises(ValueError, match="at least one row"):
        _ = Moments.none(2).std


def test_embeddings_that_do_not_fit_are_refused() -> None:
    accumulator = EmbedsAccumulator(2)
    with pytest.raises(ValueError, match="width: expected 2 dimensions, got 3"):
        accumulator.add(rows_of(torch.ones(2, 3)))
    with pytest.raises(ValueError, match="expected finite"):
        accumulator.add(rows_of(torch.tensor([[1.0, 1.0], [math.inf, 1.0]])))


@pytest.mark.parametrize(("name", "dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_bytes_are_decoded_as_torch_decodes_them(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = (torch.randn(64) * 300).to(dtype)
    data = memoryview(values.view(torch.uint8).numpy().tobytes())
    decoded = decode(name, data)
    assert decoded.dtype == np.float32 and decoded.tolist() == values.float().tolist()
    with pytest.raises(ValueError, match="dtype: expected BF16, F16 or F32, got U8"):
        decode("U8", data)


@given(st.lists(st.tuples(*[st.floats(-1e3, 1e3, width=32)] * 2), min_size=3, max_size=20))
def test_correlation_equals_that_of_torch(pairs: list[tuple[float, float]]) -> None:
    one, other = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    if one.std() > 1e-3 and other.std() > 1e-3:
        expected = float(torch.corrcoef(torch.stack([one, other]))[0, 1])
        assert math.isclose(correlation(one.tolist(), other.tolist()), expected, abs_tol=1e-6)


def test_small_functions() -> None:
    assert correlation([1.0, 1.0], [1.0, 2.0]) == 0.0
    assert token_rms(np.array([[3.0, 4.0]], np.float32)).tolist() == [math.sqrt(12.5)]
    assert upper_median([3.0, 1.0, 2.0]) == 2.0 and upper_median([4.0, 1.0, 2.0, 3.0]) == 3.0
    with pytest.raises(ValueError, match="at least one"):
        upper_median([])
    values = torch.randn(50, 4, dtype=torch.float64) + torch.arange(4)
    wanted = float(values.std(correction=0))
    assert overall_std(values.mean(0).numpy(), values.std(0, correction=0).numpy()) == pytest.approx(wanted)


@pytest.mark.parametrize("module", ["zrelay_shared.statistics", "zrelay_client.calibration", "zrelay_client.analysis"])
def test_without_numpy_the_import_names_the_install_command(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("zrelay_shared.statistics", "zrelay_client.calibration", "zrelay_client.analysis"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(FeatureMissing, match=r"need numpy, .*pip install 'zrelay\[analysis\]'"):
        importlib.import_module(module)
