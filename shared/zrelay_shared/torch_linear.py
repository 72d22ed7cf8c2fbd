"""Linear layers whose weights are stored in one dtype and computed in another, a few rows at a time.

A CPU without bfloat16 units multiplies bfloat16 slower than float32, but float32 weights need twice the memory. Here
the weights stay in bfloat16, and each group of rows is converted to float32 right before it is multiplied. The
conversion is exact, so results are those of float32 weights, to the rounding of the matrix product. One conversion
serves all tokens of a forward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK_BYTES = 31 << 20
"""Size of the converted rows. They stay in the CPU's cache until they are multiplied: whole layers, which do not, took
1.5 times the processor time at 100 tokens, and 4 MiB took 1.2 times (36 MiB of L3 cache, layers of Qwen3-4B). Larger
buffers would not stay on the heap (`keep_large_buffers`)."""


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns `inputs @ weight.T + bias`, computed in the dtype of the inputs.

    Args:
        inputs: [..., in].
        weight: [out, in], of the same dtype or of another.
        bias: [out], of any dtype.

    Returns:
        [..., out] in the dtype of the inputs.
    """
    if bias is not None:
        bias = bias.to(inputs.dtype)
    if weight.dtype is inputs.dtype:
        return F.linear(inputs, weight, bias)
    rows, width = weight.shape
    flat = inputs.reshape(-1, width)
    result = flat.new_empty(len(flat), rows)
    step = min(rows, max(1, CHUNK_BYTES // (width * inputs.dtype.itemsize)))
    converted = flat.new_empty(step, width)
    for first in range(0, rows, step):
        part = weight[first : first + step]
        torch.mm(flat, converted[: len(part)].copy_(part).t(), out=result[:, first : first + len(part)])
    if bias is not None:
        result += bias
    return result.view(*inputs.shape[:-1], rows)


class StoredLinear(nn.Module):
    """A linear layer that computes in the dtype of its inputs, whatever the dtype of its weight.

    It has the names of `nn.Linear`, whose tensors it takes over.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Computes `linear`."""
        return linear(inputs, self.weight, self.bias)


def store_linears(module: nn.Module, dtype: torch.dtype) -> None:
    """Makes a loaded module compute in `dtype` while its linear layers and embeddings keep the dtype of their weights.

    All other parameters, which are small, are converted. An embedding still returns rows in the dtype of its weights.
    """
    kept: set[int] = set()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, StoredLinear(child))
    for part in module.modules():
        if isinstance(part, StoredLinear | nn.Embedding):
            kept.add(id(part.weight))
    for parameter in module.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)
