"""torch_tensors: every dtype and layout arrives as it left, and no NaN or infinity does."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch
else:
    torch = pytest.importorskip("torch")

from zrelay.v1.embeds_pb2 import PromptSegment
from zrelay_shared import torch_tensors
from zrelay_shared.errors import InvalidArgument, PayloadCorrupt
from zrelay_shared.tensors import FLOATS, ITEM_BYTES
from zrelay_shared.wire import Parcel

ALL = tuple(ITEM_BYTES)


def sent(tensor: "torch.Tensor") -> Parcel[PromptSegment]:
    parcel = Parcel(PromptSegment())
    torch_tensors.to_wire(parcel, parcel.message.prompt_embeds, tensor)
    return Parcel.parse(PromptSegment, parcel.to_bytes())


def received(parcel: Parcel[PromptSegment], **bounds: Any) -> "torch.Tensor":
    bounds = {"dtypes": ALL, **bounds}
    return torch_tensors.from_wire(parcel, parcel.message.prompt_embeds, field="prompt_embeds", **bounds)


def values(dtype: "torch.dtype", *shape: int) -> "torch.Tensor":
    generator = torch.Generator().manual_seed(7)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 255, shape, generator=generator).to(dtype)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "layout",
    [
        lambda dtype: values(dtype, 5, 7),
        lambda dtype: values(dtype, 5, 7).t(),
        lambda dtype: values(dtype, 9, 14)[1::2, ::3],
        lambda dtype: values(dtype, 7).expand(5, 7),
        lambda dtype: values(dtype, 1, 8).t(),  # counts as contiguous, with a last stride that is not 1
        lambda dtype: values(dtype, 1),
        lambda dtype: values(dtype, 1, 1, 1, 1),
        lambda dtype: values(dtype, 2, 3, 4, 5).permute(3, 1, 0, 2),
    ],
    ids=["plain", "transposed", "strided", "expanded", "column", "scalar", "ones", "permuted"],
)
def test_round_trip(name: str, layout: Callable[[torch.dtype], torch.Tensor]) -> None:
    tensor = layout(torch_tensors.DTYPES[name])
    out = received(sent(tensor))
    assert out.dtype == tensor.dtype and torch.equal(out, tensor)


def test_the_bytes_are_little_endian_and_row_major() -> None:
    parcel = sent(torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -0.25]], dtype=torch.bfloat16))
    data = bytes(parcel.bytes_of(parcel.message.prompt_embeds))
    assert data == bytes.fromhex("803f 00c0 003f 0000 4040 80be")


def test_a_tensor_with_a_gradient_travels() -> None:
    tensor = torch.ones(2, 2, requires_grad=True)
    assert torch.equal(received(sent(tensor)), torch.ones(2, 2))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf"), -float("nan")])
def test_refuses_what_is_not_finite(name: str, bad: float) -> None:
    tensor = values(torch_tensors.DTYPES[name], 33, 17)
    tensor[32, 16] = bad
    with pytest.raises(InvalidArgument) as refusal:
        received(sent(tensor))
    assert (refusal.value.reason, refusal.value.field) == ("TENSOR_NOT_FINITE", "prompt_embeds")


@pytest.mark.parametrize("name", FLOATS)
def test_takes_the_greatest_and_least_finite_values(name: str) -> None:
    info = torch.finfo(torch_tensors.DTYPES[name])
    extremes = [info.max, info.min, info.tiny, info.smallest_normal, -0.0]
    tensor = torch.tensor(extremes, dtype=torch_tensors.DTYPES[name])
    assert torch.equal(received(sent(tensor)), tensor)


@pytest.mark.parametrize(
    "tensor",
    [lambda: torch.tensor(1.0), lambda: torch.zeros(0, 4), lambda: torch.zeros(1, 1, 1, 1, 1)],
    ids=["rank 0", "empty", "rank 5"],
)
def test_does_not_send_what_would_be_refused(tensor: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="1 to 4 dimensions"):
        sent(tensor())
    with pytest.raises(ValueError, match=r"got torch\.float64"):
        sent(torch.zeros(1, dtype=torch.float64))


def test_bounds_and_checksums_are_checked_on_arrival() -> None:
    parcel = sent(torch.zeros(2, 3))
    with pytest.raises(InvalidArgument, match="expected dtype BF16, got F32"):
        received(parcel, dtypes=("BF16",))
    with pytest.raises(InvalidArgument, match="expected 3 dimensions, got 2 dimensions"):
        received(parcel, rank=3)
    raw = bytearray(parcel.to_bytes())
    raw[-1] ^= 1
    with pytest.raises(PayloadCorrupt):
        received(Parcel.parse(PromptSegment, bytes(raw)))


def test_reads_without_a_copy_from_any_offset() -> None:
    for pad in range(9):
        parcel = Parcel(PromptSegment())
        parcel.message.prompt_embeds.crc32c = 1
        tensor = values(torch.bfloat16, 3, 5)
        torch_tensors.to_wire(parcel, parcel.message.prompt_embeds, tensor)
        raw = parcel.to_bytes() + b"\xa2\x06" + bytes([pad]) + b"x" * pad
        shifted = (b"\xa2\x06" + bytes([pad]) + b"x" * pad) + raw
        assert torch.equal(received(Parcel.parse(PromptSegment, shifted)), tensor)
