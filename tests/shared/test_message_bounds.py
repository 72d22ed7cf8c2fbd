"""Bounds of messages: every rpc and every repeated field has one, and a message beyond it is refused before parsing."""

import gc
import importlib
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from tests.helpers.hostile_messages import MIB, field, hostile, varint
from zrelay.v1 import embeds_pb2, generator_pb2, jobs_pb2, vision_pb2
from zrelay_shared import rpc, status
from zrelay_shared.errors import InvalidArgument, MessageTooLarge, invalid
from zrelay_shared.limits import (
    MAX_ELEMENTS,
    MAX_MESSAGE_BYTES,
    MAX_REQUEST_BYTES,
    MAX_STRING_BYTES,
    MAX_TEXT_BYTES,
    SMALL_MESSAGE_BYTES,
    TEXT_FIELDS,
    UNBOUNDED_STRINGS,
)
from zrelay_shared.message_scan import is_repeated
from zrelay_shared.wire import Parcel

from .conftest import StartFake

pytestmark = pytest.mark.hostile

FILES = sorted(path.stem for path in (Path(__file__).parents[2] / "proto/zrelay/v1").glob("*.proto"))
MODULES: list[Any] = [importlib.import_module(f"zrelay.v1.{stem}_pb2") for stem in FILES]
METHODS = {
    f"{service.name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
CARRIERS = {"Generate", "SubmitJob", "EncodeImages", "ConditionPrompt", "ScoreImages"}


def contract_fields() -> dict[str, Any]:
    """Returns every field of the contract by `Message.field`."""
    return {
        f"{message.name}.{one.name}": one
        for module in MODULES
        for message in module.DESCRIPTOR.message_types_by_name.values()
        for one in message.fields
    }


def refusal(kind: Any, raw: bytes) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as refused:
        Parcel.parse(kind, raw)
    return refused.value


def test_every_method_and_every_repeated_field_has_a_limit() -> None:
    assert {name.replace("/", ".") for name in METHODS} == set(MAX_REQUEST_BYTES)
    fields = contract_fields()
    assert {name for name, one in fields.items() if is_repeated(one)} == set(MAX_ELEMENTS)
    strings = {name for name, one in fields.items() if one.type == one.TYPE_STRING}
    assert strings >= TEXT_FIELDS | UNBOUNDED_STRINGS and not TEXT_FIELDS & UNBOUNDED_STRINGS
    carriers = {name.partition(".")[2] for name, size in MAX_REQUEST_BYTES.items() if size == MAX_MESSAGE_BYTES}
    assert carriers == CARRIERS, "the methods that carry tensors or files"


def element_payloads(one: Any, count: int) -> Iterator[bytes]:
    """Yields fields with `count` elements: one by one, and packed if the type allows it."""
    kind = {one.TYPE_FLOAT: 5}.get(one.type, 0)
    if one.message_type or one.type == one.TYPE_STRING:
        yield field(b"", one.number) * count
        return
    element = b"\0\0\0\x3f" if kind else b"\x01"
    if count <= 5000:
        yield (varint(one.number << 3 | kind) + element) * count
    yield field(element * count, one.number)
    yield field(element * (count - 1), one.number) + field(element, one.number)


@pytest.mark.parametrize("name", MAX_ELEMENTS)
def test_more_elements_than_the_limit_are_refused(name: str) -> None:
    one, limit = contract_fields()[name], MAX_ELEMENTS[name]
    kind = GetMessageClass(one.containing_type)
    for raw in element_payloads(one, limit):
        assert len(getattr(Parcel.parse(kind, raw).message, one.name)) in (limit, 1), "a map has one entry per key"
    for raw in element_payloads(one, limit + 1):
        refused = refusal(kind, raw)
        assert (refused.reason, refused.field) == ("MESSAGE_TOO_COMPLEX", one.name)
        assert f"at most {limit} elements" in refused.message


def test_elements_of_a_message_that_is_sent_in_parts_add_up() -> None:
    """protobuf merges the parts of a message, so a limit of each part would be no limit."""
    limit = MAX_ELEMENTS["ConditionOptions.token_weights"]
    half = field(bytes(4 * (limit // 2)), 5, 7)
    parsed = Parcel.parse(vision_pb2.ConditionPromptRequest, half * 2)
    assert len(parsed.message.options.token_weights) == limit
    refused = refusal(vision_pb2.ConditionPromptRequest, half * 2 + field(bytes(4), 5, 7))
    assert refused.field == "options.token_weights"


def test_every_prompt_has_its_own_elements() -> None:
    response = jobs_pb2.JobAccepted(sigmas=[0.5] * 4097)
    assert len(Parcel.parse(jobs_pb2.JobAccepted, response.SerializeToString()).message.sigmas) == 4097
    one = field(b"", 9) * 200
    embeds = embeds_pb2.PromptEmbeds.FromString(field(one, 2))
    assert Parcel.parse(embeds_pb2.PromptEmbeds, embeds.SerializeToString()).message == embeds
    events = [generator_pb2.GenerateResponse(event={"accepted": response}).SerializeToString()] * 2
    assert all(Parcel.parse(generator_pb2.GenerateResponse, event) for event in events)


@pytest.mark.parametrize(
    ("path", "limit"), [((1,), MAX_STRING_BYTES), ((2, 15, 1), MAX_TEXT_BYTES), ((2, 1, 1, 2, 2), MAX_STRING_BYTES)]
)
def test_a_longer_string_than_the_limit_is_refused(path: tuple[int, ...], limit: int) -> None:
    Parcel.parse(generator_pb2.GenerateRequest, field(b"a" * limit, *path))
    refused = refusal(generator_pb2.GenerateRequest, field(b"a" * (limit + 1), *path))
    assert refused.reason == "TEXT_TOO_LARGE" and f"at most {limit} bytes" in refused.message
    assert len(refused.message) < 200


def test_hostile_messages_are_refused_without_being_parsed() -> None:
    """The scan stops at the first limit. protobuf alone takes seconds for these messages."""
    messages = hostile(16 * MIB)
    served = {"conversations", "the longest prompts", "the longest prompts, encoded", "a large image"}
    served |= {"a long job id", "a large picture"}
    spent = 0.0
    for method, build in (messages[name] for name in sorted(messages.keys() - served)):
        raw, kind = build(), GetMessageClass(METHODS[method].input_type)
        began = time.process_time()
        refusal(kind, raw)
        spent += time.process_time() - began
    assert spent < 0.5, "about 0.05 s is usual"


def test_a_long_text_in_an_error_costs_what_is_sent_of_it() -> None:
    began = time.process_time()
    for text in ("a" * (20 * MIB), "狐" * (5 * MIB)):
        status.to_status(invalid("text", "a short one", text, metadata={"more": text}))
    assert time.process_time() - began < 0.5, "about 0.1 s is usual: the message is made of the text"


async def test_a_message_above_the_size_of_its_method_is_refused(fake: StartFake) -> None:
    async def GetJob(parcel: Parcel[generator_pb2.GetJobRequest], context: rpc.Context) -> generator_pb2.GetJobResponse:
        return generator_pb2.GetJobResponse(job={"job_id": parcel.message.job_id[:4]})

    server = await fake(GetJob=GetJob)
    longest = SMALL_MESSAGE_BYTES - 4
    request = generator_pb2.GetJobRequest(job_id="a" * longest)
    assert request.ByteSize() == SMALL_MESSAGE_BYTES
    await server.stub.call("GetJob", request, generator_pb2.GetJobResponse)
    request.job_id += "a"
    with pytest.raises(MessageTooLarge) as refused:
        await server.stub.call("GetJob", request, generator_pb2.GetJobResponse)
    assert refused.value.metadata == {"method": "GetJob", "bytes": "65537", "max_bytes": "65536"}


async def test_a_compressed_message_is_refused_before_it_is_expanded(fake: StartFake) -> None:
    """60 KiB become 60 MiB, which old versions of grpcio expand before they look at the size."""
    server = await fake()
    async with grpc.aio.insecure_channel(server.endpoint, compression=grpc.Compression.Gzip) as channel:
        call: Any = channel.unary_unary("/zrelay.v1.GeneratorService/GetInfo")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(bytes(60 * MIB))
    assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_refused_messages_are_released_at_once(fake: StartFake) -> None:
    """Not when the garbage collector runs: gRPC's task, the error and its frames refer to each other."""
    server, size = await fake(), 4 * MIB
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(6):
            with pytest.raises(MessageTooLarge):
                await server.stub.call("GetJob", bytes(size), generator_pb2.GetJobResponse)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 2 * size
