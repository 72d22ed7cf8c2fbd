"""Self-attention over a packed sequence: each segment attends to itself only."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionRun:
    """Neighbouring segments of equal length, computed in one call.

    Attributes:
        start: First token.
        count: Number of segments.
        length: Tokens of each segment.
    """

    start: int
    count: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Positions of the segments of a packed sequence, in the forms that the kernels need.

    Attributes:
        lengths: Tokens of each segment.
        runs: Runs of segments of equal length.
        ends: int32 [segments + 1] from 0 on the device for a kernel with variable lengths, None if it is not used.
    """

    lengths: list[int]
    runs: tuple[AttentionRun, ...]
    ends: Tensor | None


def spans_of(lengths: Sequence[int], device: torch.device) -> Spans:
    """Returns the spans of consecutive segments on `device`."""
    runs = runs_of(lengths)
    ends = None
    if device.type == "cuda" and len(runs) > 1 and _varlen_kernel() is not None:
        ends = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    return Spans(list(lengths), runs, ends)


def runs_of(lengths: Sequence[int]) -> tuple[AttentionRun, ...]:
    """Returns the runs of consecutive segments of equal length."""
    runs: list[AttentionRun] = []
    start = 0
    for length in lengths:
        last = runs[-1] if runs else None
        if last is not None and last.length == length:
            runs[-1] = AttentionRun(last.start, last.count + 1, length)
        else:
            runs.append(AttentionRun(start, 1, length))
        start += length
    return tuple(runs)


def ragged_attention(query: Tensor, key: Tensor, value: Tensor, spans: Spans) -> Tensor:
    """Computes full attention inside each segment.

    If lengths differ on CUDA in half precision, this is one call of a kernel for variable lengths (not measured).
    Otherwise it is one `scaled_dot_product_attention` for each run of equal lengths.

    Args:
        query, key, value: [tokens, heads, head_dim].
        spans: Positions of the segments.

    Returns:
        [tokens, heads, head_dim].
    """
    kernel = _varlen_kernel() if spans.ends is not None and query.dtype.itemsize == 2 else None
    if kernel is not None:
        longest = max(spans.lengths)
        result: Tensor = kernel(query, key, value, spans.ends, spans.ends, longest, longest)
        return result
    outputs = [_attend(query, key, value, run) for run in spans.runs]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, run: AttentionRun) -> Tensor:
    tokens = run.count * run.length
    shape = (run.count, run.length, *query.shape[1:])
    q, k, v = (t.narrow(0, run.start, tokens).view(shape).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(tokens, *query.shape[1:])


@cache
def _varlen_kernel() -> Any:
    """Returns torch's own kernel (2.10 and later), else that of the [flash] extra, else None."""
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
