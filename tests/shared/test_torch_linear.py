"""Linear layers with bfloat16 weights that compute in float32."""

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as reference

from zrelay_shared import torch_linear
from zrelay_shared.torch_linear import linear, store_linears


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 64 * 7, torch_linear.CHUNK_BYTES])
@pytest.mark.parametrize("shape", [(1, 64), (5, 64), (2, 9, 64)])
def test_equals_float32_weights(chunk_bytes: int, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_linear, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    inputs, weight, bias = torch.randn(shape), torch.randn(50, 64).bfloat16(), torch.randn(50).bfloat16()
    for part in (None, bias):
        expected = reference(inputs, weight.float(), None if part is None else part.float())
        torch.testing.assert_close(linear(inputs, weight, part), expected, rtol=1e-6, atol=1e-5)


def test_weights_of_the_same_dtype_are_not_copied() -> None:
    inputs, weight = torch.randn(3, 8), torch.randn(4, 8)
    assert torch.equal(linear(inputs, weight), reference(inputs, weight))


def test_only_linear_layers_and_embeddings_keep_their_dtype() -> None:
    module = nn.ModuleDict(
        {"embed": nn.Embedding(5, 8), "block": nn.ModuleList([nn.Linear(8, 8)]), "norm": nn.LayerNorm(8)}
    ).to(torch.bfloat16)
    names = set(module.state_dict())
    store_linears(module, torch.float32)
    assert set(module.state_dict()) == names
    dtypes = {name: parameter.dtype for name, parameter in module.named_parameters()}
    kept = {name for name, dtype in dtypes.items() if dtype is torch.bfloat16}
    assert kept == {"embed.weight", "block.0.weight"}
