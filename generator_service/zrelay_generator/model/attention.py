"""Self-attention over a packed sequence: every segment attends to itself alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring segments of equal length, attended to in one call: tokens [start, start + count * length)."""

    start: int
    count: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Where the segments of a packed sequence are, in the forms that the kernels want.

    Attributes: `lengths` of the segments; `runs`; `ends` int32 [segments + 1] from 0, on the device, where a kernel of
    variable lengths is used, else None.
    """

    lengths: list[int]
    runs: tuple[Run, ...]
    ends: Tensor | None


def spans_of(lengths: Sequence[int], device: torch.device) -> Spans:
    """The spans of segments that stand one after another on `device`."""
    runs = runs_of(lengths)
    ends = None
    if device.type == "cuda" and len(runs) > 1 and _varlen_kernel() is not None:
        ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Spans(list(lengths), runs, ends)


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


def ragged_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """Full attention inside each segment. All tensors are [tokens, heads, head_dim]; so is the result.

    On CUDA in half precision one call of a kernel for variable lengths where lengths differ (unmeasured); elsewhere one
    scaled_dot_product_attention for each run of equal lengths.
    """
    kernel = _varlen_kernel() if spans.ends is not None and query.dtype.itemsize == 2 else None
    if kernel is not None:
        longest = max(spans.lengths)
        result: Tensor = kernel(query, key, value, spans.ends, spans.ends, longest, longest)
        return result
    outputs = [_attend(query, key, value, run) for run in spans.runs]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, run: Run) -> Tensor:
    tokens = run.count * run.length
    shape = (run.count, run.length, *query.shape[1:])
    q, k, v = (t.narrow(0, run.start, tokens).view(shape).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens, *query.shape[1:])


@cache
def _varlen_kernel() -> Any:
    """torch's own kernel (2.10 and later), else that of the [flash] extra, None where there is neither."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        pass
    else:
        return varlen_attn
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func
