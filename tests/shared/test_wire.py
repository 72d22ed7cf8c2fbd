"""wire.Parcel: byte for byte what protobuf writes, whatever it is given to read."""

import random
import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar, cast

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import example, given
from hypothesis import strategies as st

from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.encoder_pb2 import EncodePromptsRequest, EncodePromptsResponse
from zrelay.v1.generation_pb2 import EmbedsInput
from zrelay.v1.generator_pb2 import GenerateRequest, ListJobsResponse
from zrelay.v1.tensor_pb2 import Tensor, TensorDtype
from zrelay.v1.vision_pb2 import ConditionPromptRequest, EncodeImagesResponse
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_MESSAGE_FIELDS
from zrelay_shared.message_scan import scanned_fields
from zrelay_shared.wire import Parcel

M = TypeVar("M", bound=Message)
TYPES: tuple[type[Message], ...] = (
    EncodePromptsRequest,
    EncodePromptsResponse,
    GenerateRequest,
    EncodeImagesResponse,
    ConditionPromptRequest,
    ListJobsResponse,
)
seeds = st.integers(0, 2**32)
types = st.sampled_from(TYPES)


def fill(message: Message, rng: random.Random) -> Message:
    """Random values in random fields, all the way down."""
    for field in cast(Sequence[FieldDescriptor], message.DESCRIPTOR.fields):
        if rng.random() < 0.35:
            continue
        if field.message_type and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[f"k{rng.randrange(9)}"] = "v"
        elif field.message_type:
            into = getattr(message, field.name)
            for part in [into.add() for _ in range(rng.randrange(4))] if field.is_repeated else [into]:
                fill(part, rng)
                if not field.is_repeated:
                    part.SetInParent()
        elif field.is_repeated:
            getattr(message, field.name).extend(scalar(field, rng) for _ in range(rng.randrange(4)))
        else:
            setattr(message, field.name, scalar(field, rng))
    return message


def scalar(field: FieldDescriptor, rng: random.Random) -> bytes | str | int | float:
    if field.type == field.TYPE_BYTES:
        return rng.randbytes(rng.choice((0, 1, 7, 8, 9, 127, 128, 300)))
    if field.type == field.TYPE_STRING:
        return rng.choice(("", "fox", "ein Fuchs, größer", "狐" * 50))
    if field.type == field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_ENUM:
        assert field.enum_type is not None
        return rng.choice((*(value.number for value in field.enum_type.values), 77))
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return float(struct.unpack("f", struct.pack("f", rng.uniform(-9, 9)))[0])
    signed = field.type in (field.TYPE_SINT32, field.TYPE_INT32, field.TYPE_INT64, field.TYPE_SINT64)
    return int(rng.choice((0, 1, 127, 128, 2**31 - 1, *((-1, -(2**31)) if signed else (2**32 - 1,)))))


def plain(parcel: Parcel[M]) -> M:
    return type(parcel.message).FromString(parcel.to_bytes())


def tensors(message: Message) -> Iterator[Tensor]:
    if isinstance(message, Tensor):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type and not field.message_type.GetOptions().map_entry:
            for part in value if field.is_repeated else [value]:
                yield from tensors(part)


def build(parcel: Parcel[M], source: M) -> None:
    """Copies `source` into the parcel's message through `attach`."""
    parcel.message.CopyFrom(source)
    for tensor in list(tensors(parcel.message)):
        parcel.attach(tensor, bytearray(tensor.data))


@given(types, seeds)
def test_reads_and_writes_exactly_what_protobuf_does(kind: type[Message], seed: int) -> None:
    message = fill(kind(), random.Random(seed))
    raw = message.SerializeToString(deterministic=True)
    parcel = Parcel.parse(kind, raw)
    assert plain(parcel) == message
    assert parcel.to_bytes() == parcel.to_bytes()
    assert len(parcel.to_bytes()) == len(raw)
    if kind is not GenerateRequest:  # its map has no order of its own
        assert parcel.to_bytes() == raw
    assert [bytes(parcel.bytes_of(t)) for t in tensors(parcel.message)] == [t.data for t in tensors(message)]
    built = Parcel(kind())
    build(built, message)
    assert plain(built) == message


@given(types, seeds, seeds)
def test_merges_repeated_and_unordered_fields_as_protobuf_does(kind: type[Message], one: int, two: int) -> None:
    raw = b"".join(fill(kind(), random.Random(seed)).SerializeToString() for seed in (one, two))
    assert plain(Parcel.parse(kind, raw)) == kind.FromString(raw)


def test_merges_the_parts_of_one_tensor() -> None:
    first = Tensor(dtype=TensorDtype.TENSOR_DTYPE_BF16, shape=[1], data=b"old!")
    second = Tensor(shape=[2, 3], crc32c=7, data=b"new")
    pieces = [EmbedsInput(prompt_embeds=PromptEmbeds(segments=[{"prompt_embeds": t}])) for t in (first, second)]
    segment = pieces[0].prompt_embeds.segments[0].SerializeToString() + (
        pieces[1].prompt_embeds.segments[0].SerializeToString()
    )
    raw = b"\x0a" + bytes([len(segment)]) + segment
    parcel = Parcel.parse(PromptEmbeds, raw)
    tensor = parcel.message.segments[0].prompt_embeds
    assert (list(tensor.shape), tensor.dtype, bytes(parcel.bytes_of(tensor))) == ([1, 2, 3], 1, b"new")
    assert plain(parcel) == PromptEmbeds.FromString(raw)


@given(st.binary(max_size=20), st.integers(100, 2**29 - 1))
def test_keeps_unknown_fields(content: bytes, number: int) -> None:
    unknown = key(number, 2) + bytes([len(content)]) + content
    group = key(number, 3) + key(5, 0) + b"\x2a" + key(9, 3) + key(1, 2) + b"\x01x" + key(9, 4) + key(number, 4)
    tensor = Tensor(dtype=TensorDtype.TENSOR_DTYPE_BF16, shape=[1, 1], data=b"ab").SerializeToString() + unknown
    segment = b"\x0a" + varint(len(tensor)) + tensor + group
    raw = b"\x0a" + varint(len(segment)) + segment + unknown + group
    parcel = Parcel.parse(PromptEmbeds, raw)
    assert parcel.to_bytes() == raw
    assert bytes(parcel.bytes_of(parcel.message.segments[0].prompt_embeds)) == b"ab"


@given(types, seeds, st.sampled_from(["cut", "flip", "insert", "noise"]))
def test_agrees_with_protobuf_on_damaged_bytes(kind: type[Message], seed: int, how: str) -> None:
    rng = random.Random(seed)
    raw = bytearray(fill(kind(), rng).SerializeToString() or b"\x0a\x00")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(raw))
        if how == "cut":
            raw = raw[: max(at, 1)]
        elif how == "flip":
            raw[at] ^= 1 << rng.randrange(8)
        elif how == "insert":
            raw[at:at] = rng.randbytes(rng.randrange(1, 5))
        else:
            raw = bytearray(rng.randbytes(rng.randrange(1, 60)))
    try:
        expected = kind.FromString(bytes(raw))
    except DecodeError:
        with pytest.raises(InvalidArgument) as refusal:
            Parcel.parse(kind, bytes(raw))
        assert refusal.value.reason == "MESSAGE_MALFORMED"
    else:
        got = plain(Parcel.parse(kind, bytes(raw)))
        assert got.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)


@given(st.binary(max_size=200))
@example(b"\x0b" * 200)  # groups in groups
@example(b"\x0c")  # the end of none
@example(b"\x12\xff\xff\xff\xff\x0f")  # 4 GiB announced
@example(b"\x12" + b"\xff" * 11)
@example(b"\x00\x00")  # field number 0
def test_refuses_or_reads_any_bytes(raw: bytes) -> None:
    for kind in TYPES:
        try:
            Parcel.parse(kind, raw).to_bytes()
        except InvalidArgument as error:
            assert error.reason == "MESSAGE_MALFORMED"


@pytest.mark.parametrize(
    "field", [b"\x0a\x00", b"\x08\x01", b"\x0a\x04\x0a\x02\x0a\x00", b"\xa3\x06\x08\x01\xa4\x06"], ids=bytes.hex
)
def test_refuses_more_fields_than_any_message_has(field: bytes) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        Parcel.parse(EncodePromptsRequest, field * (MAX_MESSAGE_FIELDS + 1))
    assert refusal.value.reason == "MESSAGE_TOO_COMPLEX"


def test_moves_sub_messages_between_parcels() -> None:
    embeds = PromptEmbeds()
    segment = embeds.segments.add().prompt_embeds
    segment.MergeFrom(Tensor(dtype=TensorDtype.TENSOR_DTYPE_BF16, shape=[1, 2], data=b"abcd"))
    response = EncodePromptsResponse()
    response.results.add().prompt_embeds.CopyFrom(embeds)
    received = Parcel.parse(EncodePromptsResponse, response.SerializeToString())
    request = Parcel(GenerateRequest(request_id="r"), received)
    request.message.spec.prompt.prompt_embeds.CopyFrom(received.message.results[0].prompt_embeds)
    request.message.spec.negative_prompt.prompt_embeds.CopyFrom(received.message.results[0].prompt_embeds)
    expected = GenerateRequest(
        request_id="r",
        spec={"prompt": {"prompt_embeds": embeds}, "negative_prompt": {"prompt_embeds": embeds}},
    )
    assert request.to_bytes() == expected.SerializeToString()


def test_says_when_the_bytes_of_a_tensor_were_left_behind() -> None:
    tensor = Tensor(data=b"abcd")
    embeds = PromptEmbeds(segments=[{"prompt_embeds": tensor}])
    received = Parcel.parse(PromptEmbeds, embeds.SerializeToString())
    for message in (received.message, embeds):  # a marker without its source, raw bytes without attach
        alone = Parcel(PromptEmbeds.FromString(message.SerializeToString()))
        with pytest.raises(ValueError, match="name the parcel"):
            alone.to_bytes()
        with pytest.raises(ValueError, match="name the parcel"):
            alone.bytes_of(alone.message.segments[0].prompt_embeds)


def test_copies_nothing_when_it_reads() -> None:
    raw = PromptEmbeds(segments=[{"prompt_embeds": Tensor(data=b"abcd" * 100)}]).SerializeToString()
    parcel = Parcel.parse(PromptEmbeds, raw)
    assert parcel.bytes_of(parcel.message.segments[0].prompt_embeds).obj is raw


def test_no_message_of_the_contract_contains_itself() -> None:
    from zrelay.v1 import (
        content_pb2,
        embeds_pb2,
        encoder_pb2,
        generation_pb2,
        generator_pb2,
        info_pb2,
        jobs_pb2,
        tensor_pb2,
        vision_pb2,
    )

    files = (content_pb2, embeds_pb2, encoder_pb2, generation_pb2, generator_pb2, info_pb2, jobs_pb2, tensor_pb2)
    for file in (*files, vision_pb2):
        for descriptor in file.DESCRIPTOR.message_types_by_name.values():
            assert isinstance(scanned_fields(descriptor), dict)


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def key(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def test_a_message_of_many_mib_is_joined_as_protobuf_does() -> None:
    """Its bytes are copied in parts, and the last part is a short one."""
    data = random.Random(1).randbytes((9 << 20) + 5)
    plain = EmbedsInput()
    plain.prompt_embeds.segments.add().prompt_embeds.data = data
    parcel = Parcel(EmbedsInput())
    parcel.attach(parcel.message.prompt_embeds.segments.add().prompt_embeds, memoryview(data))
    assert parcel.attached_bytes == len(data)
    assert parcel.to_bytes() == plain.SerializeToString()
