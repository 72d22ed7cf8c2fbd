"""tensors.check: everything that can be wrong with a tensor, refused in the promised order; golden bytes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zrelay.v1.embeds_pb2 import PromptSegment
from zrelay.v1.tensor_pb2 import Tensor, TensorDtype
from zrelay_shared import tensors
from zrelay_shared.errors import InvalidArgument, PayloadCorrupt
from zrelay_shared.limits import MAX_TENSOR_BYTES
from zrelay_shared.wire import Parcel

# prompt_embeds [2, 3] bf16 = [[1, -2, 0.5], [0, 3, -0.25]], as the one field of a PromptSegment
GOLDEN = bytes.fromhex("0a 19 08 01 12 02 02 03 1d 68 6b cf 4e 22 0c 80 3f 00 c0 00 3f 00 00 40 40 80 be")
DATA = GOLDEN[-12:]


def tensor(**changes: Any) -> Tensor:
    return Tensor(**{"dtype": 1, "shape": [2, 3], "crc32c": tensors.crc32c(DATA), **changes})


def check(message: Tensor, data: bytes = DATA, **bounds: Any) -> tensors.TensorView:
    return tensors.check(message, memoryview(data), field="prompt_embeds", **bounds)


def test_golden_bytes() -> None:
    parcel = Parcel(PromptSegment())
    parcel.message.prompt_embeds.CopyFrom(tensors.header("BF16", (2, 3), DATA))
    parcel.attach(parcel.message.prompt_embeds, DATA)
    assert parcel.to_bytes() == GOLDEN
    received = Parcel.parse(PromptSegment, GOLDEN)
    message = received.message.prompt_embeds
    view = tensors.check(message, received.bytes_of(message), field="x", rank=2, dtypes=("BF16",))
    assert (view.dtype, view.shape, bytes(view.data)) == ("BF16", (2, 3), DATA)


def test_the_checksum_is_castagnoli() -> None:
    assert tensors.crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
    assert tensors.crc32c(memoryview(b"123456789")[0:0]) == 0


HUGE = 2**62
WRONG = [
    # (what is wrong, tensor, data, bounds, reason): each row is also wrong in everything below it
    ("unspecified dtype", tensor(dtype=0, shape=[0, -1, 1, 1, 1]), b"", {}, "TENSOR_DTYPE"),
    ("unknown dtype", tensor(dtype=99, shape=[]), b"", {}, "TENSOR_DTYPE"),
    ("dtype not taken here", tensor(dtype=5, shape=[]), b"", {}, "TENSOR_DTYPE"),
    ("rank 0", tensor(shape=[]), b"", {}, "TENSOR_RANK"),
    ("rank 5", tensor(shape=[1, 1, 1, 1, -1]), b"", {}, "TENSOR_RANK"),
    ("another rank", tensor(shape=[0, 0, 0]), b"", {"rank": 2}, "TENSOR_RANK"),
    ("a dimension of 0", tensor(shape=[2, 0]), b"x", {}, "TENSOR_SHAPE"),
    ("a negative dimension", tensor(shape=[-2, -3]), DATA, {}, "TENSOR_SHAPE"),
    ("dimensions that overflow", tensor(shape=[HUGE, HUGE, HUGE, HUGE]), DATA, {}, "TENSOR_SIZE"),
    ("dimensions that wrap to the size", tensor(shape=[2**63 - 1, 2, 3, 3]), DATA, {}, "TENSOR_SIZE"),
    ("more than the limit", tensor(shape=[1 << 20, 1 << 10], crc32c=1), DATA, {}, "TENSOR_SIZE"),
    ("too few bytes", tensor(crc32c=1), DATA[:-1], {}, "TENSOR_SIZE"),
    ("too many bytes", tensor(crc32c=1), DATA + b"\0", {}, "TENSOR_SIZE"),
    ("over the limit of this field", tensor(crc32c=1), DATA, {"max_bytes": 11}, "TENSOR_SIZE"),
    ("no checksum", Tensor(dtype=TensorDtype.TENSOR_DTYPE_BF16, shape=[2, 3]), DATA, {}, "TENSOR_CHECKSUM_MISSING"),
]


@pytest.mark.parametrize(("message", "data", "bounds", "reason"), [row[1:] for row in WRONG], ids=[r[0] for r in WRONG])
def test_refuses_in_the_promised_order(message: Tensor, data: bytes, bounds: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        check(message, data, **bounds)
    error = refusal.value
    assert (error.reason, error.field) == (reason, "prompt_embeds")
    assert error.message.startswith("prompt_embeds: expected ") and set(error.metadata) == {"expected", "got"}


def test_the_byte_count_comes_before_the_limit_and_both_before_the_checksum() -> None:
    with pytest.raises(InvalidArgument, match="expected 12 bytes for shape"):
        check(tensor(crc32c=1), DATA[:3], max_bytes=1)
    with pytest.raises(InvalidArgument, match="at most 1 bytes"):
        check(tensor(crc32c=1), max_bytes=1)


def test_a_wrong_checksum_is_data_loss() -> None:
    with pytest.raises(PayloadCorrupt) as refusal:
        check(tensor(crc32c=0))
    assert refusal.value.reason == "CHECKSUM_MISMATCH"
    assert refusal.value.metadata == {"expected": "0x00000000", "got": "0x4ecf6b68"}


def test_every_wire_dtype_has_a_size_and_a_name() -> None:
    known = [name for name in TensorDtype.keys() if TensorDtype.Value(name)]  # noqa: SIM118
    assert [name.removeprefix("TENSOR_DTYPE_") for name in known] == list(tensors.ITEM_BYTES)
    for name in tensors.ITEM_BYTES:
        assert tensors.dtype_name(tensors.dtype_value(name)) == name
    with pytest.raises(ValueError, match="got 'F64'"):
        tensors.dtype_value("F64")


def test_the_longest_prompt_fits_the_limit() -> None:
    assert MAX_TENSOR_BYTES > 6 * 1504 * 2560 * 2


@given(
    st.sampled_from(sorted(tensors.ITEM_BYTES)),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.data(),
)
def test_accepts_what_header_makes(dtype: str, shape: list[int], draw: st.DataObject) -> None:
    size = tensors.ITEM_BYTES[dtype]
    for n in shape:
        size *= n
    data = draw.draw(st.binary(min_size=size, max_size=size))
    view = check(tensors.header(dtype, shape, data), data, dtypes=tuple(tensors.ITEM_BYTES))
    assert (view.dtype, view.shape, bytes(view.data)) == (dtype, tuple(shape), data)


@given(st.integers(-(2**31), 2**31 - 1), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6), st.binary(max_size=40))
def test_never_fails_in_any_other_way(dtype: int, shape: list[int], data: bytes) -> None:
    message = Tensor(dtype=dtype, shape=shape, crc32c=tensors.crc32c(data))  # type: ignore[arg-type]
    try:
        view = check(message, data)
    except InvalidArgument:
        return
    assert len(view.data) == len(data)
