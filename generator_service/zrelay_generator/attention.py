"""Self-attention over a packed sequence: every segment attends to itself alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring segments of equal length, attended to in one call: tokens [start, start + count * length)."""

    start: int
    count: int
    length: int


def runs_of(lengths: Sequence[int]) -> tuple[Run, ...]:
    """The runs of segments that stand one after another in a packed sequence, given their lengths."""
    runs: list[Run] = []
    start = 0
    for length in lengths:
        last = runs[-1] if runs else None
        if last is not None and last.length == length:
            runs[-1] = Run(last.start, last.count + 1, length)
        else:
            runs.append(Run(start, 1, length))
        start += length
    return tuple(runs)


def ragged_attention(query: Tensor, key: Tensor, value: Tensor, runs: Sequence[Run]) -> Tensor:
    """Full attention inside each segment. All tensors are [tokens, heads, head_dim]; so is the result."""
    outputs = [_attend(query, key, value, run) for run in runs]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, run: Run) -> Tensor:
    tokens = run.count * run.length
    shape = (run.count, run.length, *query.shape[1:])
    q, k, v = (t.narrow(0, run.start, tokens).view(shape).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens, *query.shape[1:])
