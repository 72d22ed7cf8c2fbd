"""status: every refusal over a real channel and back, within what headers may hold; transport errors explained."""

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.refusals import refused_async
from zrelay.v1 import encoder_pb2
from zrelay.v1 import generator_pb2 as pb
from zrelay_shared import channels, errors, rpc, status
from zrelay_shared.errors import ZrelayError
from zrelay_shared.limits import MAX_DETAILS_BYTES, MAX_MESSAGE_BYTES, MAX_RETRY_AFTER_S
from zrelay_shared.wire import Parcel

from .conftest import StartFake

EXTREME: dict[str, Any] = {
    "message": "größer als erwartet % \n 狐 " * 2000,
    "reason": "R" * 900,
    "field": "spec." * 900,
    "metadata": {f"key{i}" * 50: "value 狐" * 500 for i in range(60)} | {"subject": "s" * 5000},
    "retry_after_s": 1e6,
}


async def received(fake: StartFake, error: Exception) -> ZrelayError:
    """Returns what a client receives where a handler raises `error`."""

    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> NoReturn:
        raise error

    server = await fake(GetJob=GetJob)
    return await refused_async(
        server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse, timeout=20), ZrelayError
    )


def details(error: ZrelayError) -> dict[str, Any]:
    found = {}
    for packed in status.to_status(error).details:
        kind = getattr(error_details_pb2, packed.type_url.rsplit(".", 1)[1])
        found[kind.__name__] = kind.FromString(packed.value)
    return found


@pytest.mark.parametrize(
    ("sent", "got"), [(float("inf"), 3600.0), (float("nan"), 3600.0), (1e18, 3600.0), (-1.0, 0.0), (2.5, 2.5)]
)
async def test_a_retry_hint_is_bounded_when_it_is_sent(fake: StartFake, sent: float, got: float) -> None:
    error = await received(fake, errors.QueueFull("the queue is full", retry_after_s=sent))
    assert isinstance(error, errors.QueueFull) and error.retry_after_s == got


@pytest.mark.parametrize(("seconds", "got"), [(10**18, 3600.0), (-(10**18), 0.0), (3, 3.0)])
async def test_a_retry_hint_is_bounded_when_it_is_received(fake: StartFake, seconds: int, got: float) -> None:
    """A server of another make may send any hint."""
    status_message = status_pb2.Status(code=8, message="full")
    status_message.details.add().Pack(error_details_pb2.RetryInfo(retry_delay={"seconds": seconds}))

    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> NoReturn:
        trailers = ((status.DETAILS_KEY, status_message.SerializeToString()),)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailers)
        raise AssertionError("abort raises")

    server = await fake(GetJob=GetJob)
    error = await refused_async(server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse), ZrelayError)
    assert error.retry_after_s == got


@pytest.mark.parametrize("kind", status.CLASSES, ids=lambda kind: kind.__name__)
async def test_every_class_over_the_wire_and_back(fake: StartFake, kind: type[ZrelayError]) -> None:
    sent = kind("width: expected 16, got 17 (größer)", field="spec.width", metadata={"got": 17, "é": "ü"})
    got = await received(fake, sent)
    assert type(got) is kind
    assert (got.message, got.field, got.reason) == (sent.message, sent.field, sent.reason)
    assert (got.metadata, got.retry_after_s) == (sent.metadata, sent.retry_after_s)


async def test_a_reason_of_its_own_keeps_the_code(fake: StartFake) -> None:
    got = await received(fake, errors.InvalidArgument("no", reason="TENSOR_DTYPE"))
    assert (type(got), got.reason) == (errors.InvalidArgument, "TENSOR_DTYPE")
    got = await received(fake, errors.EncoderMismatch("no", reason="FINGERPRINT_INVALID"))
    assert (type(got), got.reason) == (errors.EncoderMismatch, "FINGERPRINT_INVALID")
    got = await received(fake, errors.EncoderMismatch("no", reason="NEWER_THAN_THIS_CLIENT"))
    assert (type(got), got.reason) == (errors.FailedPrecondition, "NEWER_THAN_THIS_CLIENT")


@pytest.mark.parametrize("kind", [errors.InvalidArgument, errors.EncoderMismatch, errors.QueueFull])
async def test_long_texts_are_cut_and_still_arrive(fake: StartFake, kind: type[ZrelayError]) -> None:
    got = await received(fake, kind(**EXTREME))
    assert got.code == kind.code  # not RESOURCE_EXHAUSTED for headers that are too large
    assert got.message.startswith("größer als erwartet") and got.message.endswith("...")
    assert got.reason.startswith("RRR") and got.field.startswith("spec.spec.")
    assert got.metadata and got.retry_after_s == MAX_RETRY_AFTER_S, "a longer hint is cut"
    ascii_only = await received(fake, kind(**{**EXTREME, "message": "x" * 9000}))
    assert ascii_only.message.startswith("x" * 1000)


@given(st.text(max_size=3000), st.text(max_size=400), st.dictionaries(st.text(max_size=90), st.text(max_size=600)))
def test_details_never_pass_their_limit(message: str, name: str, metadata: dict[str, str]) -> None:
    error = errors.EncoderMismatch(message, reason=name or None, field=name, metadata=metadata, retry_after_s=1.5)
    assert status.to_status(error).ByteSize() <= MAX_DETAILS_BYTES
    assert status.to_status(errors.EncoderMismatch(**EXTREME)).ByteSize() <= MAX_DETAILS_BYTES
    assert len(status.to_status(error).details) == 3 + bool(name)


def test_which_details_travel() -> None:
    plain = details(errors.NotFound("no such job"))
    assert set(plain) == {"ErrorInfo"}
    info = plain["ErrorInfo"]
    assert (info.reason, info.domain) == ("NOT_FOUND", "zrelay")
    field = details(errors.InvalidArgument("width: no", field="width"))["BadRequest"]
    assert [(v.field, v.description) for v in field.field_violations] == [("width", "width: no")]
    retry = details(errors.QueueFull("full", retry_after_s=2.5))["RetryInfo"]
    assert retry.retry_delay.ToMilliseconds() == 2500
    assert "RetryInfo" not in details(errors.OutOfMemory("too big"))
    broken = details(errors.EncoderMismatch("no", metadata={"subject": "encoder"}))["PreconditionFailure"]
    assert [(v.type, v.subject) for v in broken.violations] == [("ENCODER_MISMATCH", "encoder")]


async def test_the_standard_library_of_grpc_reads_our_details(fake: StartFake) -> None:
    from grpc_status import rpc_status

    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> NoReturn:
        raise errors.QueueFull("ganz voll: 狐", field="x")

    server = await fake(GetJob=GetJob)
    get_job: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(
        "/zrelay.v1.GeneratorService/GetJob"
    )
    with pytest.raises(grpc.RpcError) as refusal:
        await get_job(b"")
    trailers: Any = refusal.value.trailing_metadata()

    class Call:
        code = refusal.value.code
        details = refusal.value.details
        trailing_metadata = staticmethod(lambda: [tuple(pair) for pair in trailers])

    rich = rpc_status.from_call(Call)  # raises where code or message differ
    assert rich.message == "ganz voll: 狐" and rich.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def test_an_unreachable_port_is_explained() -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    async with channels.dial(endpoint) as channel:
        stub = rpc.Stub(channel, pb.DESCRIPTOR.services_by_name["GeneratorService"], endpoint)
        with pytest.raises(errors.Unavailable) as refusal:
            await stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse, timeout=20)
    assert refusal.value.message == (
        f"cannot reach the generator service at {endpoint}: connection refused; is it running, and is the endpoint "
        "right? `zrelay doctor` checks every hop"
    )
    assert refusal.value.metadata["endpoint"] == endpoint


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:1: No route to host",
            "no route to host",
        ),
        ("failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:1: FD Shutdown", "no answer"),
        ("DNS resolution failed for box:1: C-ares status is not ARES_SUCCESS", "the name does not resolve"),
        ("failed to connect; last error: Failed parsing HTTP/2", "another program answers, which does not speak gRPC"),
        ("no healthy upstream", "no healthy upstream"),
        ("", "no answer"),
    ],
)
def test_texts_of_grpc_are_put_in_plain_words(text: str, plain: str) -> None:
    assert status.plain_words(text) == plain


async def test_a_message_over_the_limit_is_explained_both_ways(fake: StartFake) -> None:
    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> pb.UploadBlobRequest:
        return pb.UploadBlobRequest(data=bytes(MAX_MESSAGE_BYTES + 1))

    server = await fake(GetJob=GetJob)
    for request in (pb.GetJobRequest(), pb.UploadBlobRequest(data=bytes(MAX_MESSAGE_BYTES + 1))):
        with pytest.raises(errors.MessageTooLarge, match="64 MiB") as refusal:
            await server.stub.call("GetJob", request, pb.GetJobResponse, timeout=60)
        assert refusal.value.reason == "MESSAGE_TOO_LARGE"


async def test_an_unknown_method_or_service_is_explained(fake: StartFake) -> None:
    server = await fake()
    encoder = rpc.Stub(server.channel, encoder_pb2.DESCRIPTOR.services_by_name["EncoderService"], server.endpoint)
    for stub, method in ((server.stub, "Nonsense"), (encoder, "GetInfo")):
        with pytest.raises(errors.FeatureMissing, match="another service or an older zrelay"):
            await stub.call(method, pb.GetJobRequest(), pb.GetJobResponse, timeout=20)


async def test_a_deadline_is_explained(fake: StartFake) -> None:
    async def GetJob(parcel: Parcel[pb.GetJobRequest], context: rpc.Context) -> None:
        await asyncio.Event().wait()

    server = await fake(GetJob=GetJob)
    with pytest.raises(errors.DeadlineExceeded, match="did not answer in time") as refusal:
        await server.stub.call("GetJob", pb.GetJobRequest(), pb.GetJobResponse, timeout=0.2)
    assert refusal.value.metadata["stage"] == "generator"


class Foreign(grpc.RpcError):
    """A failed call of a server that is not ours."""

    def __init__(self, code: grpc.StatusCode, text: str, trailers: Sequence[tuple[str, str | bytes]] = ()) -> None:
        self._code, self._text, self._trailers = code, text, trailers

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._trailers


@pytest.mark.parametrize("code", list(grpc.StatusCode)[1:], ids=lambda code: code.name)
def test_any_status_of_another_server_is_some_refusal(code: grpc.StatusCode) -> None:
    error = status.from_call(Foreign(code, "why"), service="vision", endpoint="box:1")
    assert isinstance(error, ZrelayError) and "the vision service at box:1" in error.message
    assert error.code in (code.name, "INTERNAL")


@pytest.mark.parametrize("raw", [b"\xff\xff", b"", status_pb2.Status(message="m").SerializeToString()])
def test_details_that_are_not_ours_do_no_harm(raw: bytes) -> None:
    trailers: list[tuple[str, str | bytes]] = [("x", "y"), (status.DETAILS_KEY, raw)]
    error = status.from_call(Foreign(grpc.StatusCode.NOT_FOUND, "text", trailers), service="vision")
    assert type(error) is errors.NotFound and error.message
