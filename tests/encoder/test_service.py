"""The encoder over a real channel, with the demo checkpoint."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.encoder.helpers import EncoderClient, client_of, embeds_of, loaded
from tests.helpers.comparisons import largest_token_difference
from tests.helpers.gates import ForwardGate
from tests.helpers.large_messages import with_unknown_bytes
from tests.helpers.polling import until_async
from tests.helpers.refusals import refused_async
from tests.helpers.servers import serve
from zrelay.v1.embeds_pb2 import LongPromptMode, TextLimitSource, ThinkMode
from zrelay.v1.encoder_pb2 import EncodeOptions, EncodePromptsRequest, FormatPromptRequest, Prompt
from zrelay.v1.tensor_pb2 import TensorDtype
from zrelay_encoder.api.servicer import EncoderServicer
from zrelay_encoder.config import EncoderConfig
from zrelay_shared import channels, errors
from zrelay_shared.fingerprint import from_message
from zrelay_shared.limits import MIB, PROMPTS_MESSAGE_BYTES

CIRCLE = "a small red circle on a blue background"
F32 = EncodeOptions(dtype=TensorDtype.TENSOR_DTYPE_F32)


def request(*prompts: str, options: EncodeOptions | None = None) -> EncodePromptsRequest:
    return EncodePromptsRequest(prompts=[Prompt(text=text) for text in prompts], options=options)


async def test_prompts_become_embeddings(demo: EncoderClient, demo_checkpoint: Path) -> None:
    reply = await demo.encode(request(CIRCLE, "a star", options=F32))
    expected = loaded(demo_checkpoint).encode(CIRCLE, "a star")
    for at, theirs in enumerate(expected):
        assert largest_token_difference(embeds_of(reply, at), theirs) < 1e-5
        report = reply.message.results[at].prompt_embeds.report
        assert report.token_count == report.formatted_tokens == len(theirs)
        assert (report.dropped_tokens, report.long_prompt_action) == (0, 0)
        assert (report.text_limit, report.text_limit_source) == (992, TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT)
    assert reply.message.compute_seconds > 0


async def test_the_wire_is_bfloat16_unless_requested_otherwise(demo: EncoderClient) -> None:
    assert embeds_of(await demo.encode(request(CIRCLE))).dtype is torch.bfloat16
    half = EncodeOptions(dtype=TensorDtype.TENSOR_DTYPE_F16)
    assert embeds_of(await demo.encode(request(CIRCLE, options=half))).dtype is torch.float16


async def test_every_embedding_carries_its_fingerprint(demo: EncoderClient) -> None:
    info = await demo.info()
    thinking = EncodePromptsRequest(
        prompts=[Prompt(text=CIRCLE), Prompt(text=CIRCLE, think_mode=ThinkMode.THINK_MODE_EMPTY)]
    )
    plain, empty = (await demo.encode(thinking)).message.results
    assert plain.prompt_embeds.fingerprint == info.fingerprint
    ours = from_message(empty.prompt_embeds.fingerprint)
    assert ours.think_mode == "empty"
    assert ours.digest != plain.prompt_embeds.fingerprint.digest
    shallow = (await demo.encode(request(CIRCLE, options=EncodeOptions(hidden_layer=-3)))).message.results[0]
    assert shallow.prompt_embeds.fingerprint.hidden_layer == -3


async def test_a_long_prompt_is_truncated_and_reported(demo: EncoderClient) -> None:
    options = EncodeOptions(text_limit=32, return_formatted_prompts=True)
    reply = await demo.encode(request("red and blue " * 60, options=options))
    [result] = reply.message.results
    report = result.prompt_embeds.report
    assert embeds_of(reply).shape == (32, 128)
    assert report.token_count == report.text_limit == 32
    assert report.dropped_tokens == report.formatted_tokens - 32 > 0
    assert report.long_prompt_action == LongPromptMode.LONG_PROMPT_MODE_TRUNCATE
    assert report.text_limit_source == TextLimitSource.TEXT_LIMIT_SOURCE_REQUEST
    assert result.formatted_prompt.startswith("<|im_start|>user\nred and blue")


async def test_a_long_prompt_may_be_refused(demo: EncoderClient) -> None:
    options = EncodeOptions(text_limit=32, long_prompt_mode=LongPromptMode.LONG_PROMPT_MODE_REFUSE)
    await refused_async(
        demo.encode(request("short", "red and blue " * 60, options=options)),
        errors.InvalidArgument,
        reason="PROMPT_TOO_LONG",
        field="prompts[1]",
        match="at most 32 tokens",
    )


async def test_pads_are_kept_on_request(demo: EncoderClient) -> None:
    plain = embeds_of(await demo.encode(request(CIRCLE)))
    reply = await demo.encode(request(CIRCLE, options=EncodeOptions(pad_to=40)))
    padded = embeds_of(reply)
    assert padded.shape == (40, 128)
    assert largest_token_difference(padded[: len(plain)].float(), plain.float()) < 0.02
    assert reply.message.results[0].prompt_embeds.report.formatted_tokens == len(plain)
    assert list(reply.message.results[0].prompt_embeds.fingerprint.modifications) == ["padding"]
    too_long = EncodeOptions(pad_to=40, text_limit=39)
    await refused_async(demo.encode(request(CIRCLE, options=too_long)), errors.InvalidArgument, field="options.pad_to")


async def test_format_prompt_counts(demo: EncoderClient) -> None:
    message = FormatPromptRequest(prompts=[Prompt(text=CIRCLE), Prompt(text="red " * 60)], text_limit=40)
    short, long = (await demo.format(message)).prompts
    assert short.formatted_prompt == f"<|im_start|>user\n{CIRCLE}<|im_end|>\n<|im_start|>assistant\n"
    assert short.token_count == len(short.token_ids) == len(embeds_of(await demo.encode(request(CIRCLE))))
    assert (short.fits, long.fits, long.text_limit) == (True, False, 40)


async def test_get_info(demo: EncoderClient) -> None:
    info = await demo.info()
    assert info.ready
    assert (info.version.service, info.version.contract) == ("encoder", "v1")
    assert "torch" in info.version.libraries
    assert (info.loaded_blocks, info.total_blocks) == (3, 4)
    assert (info.fingerprint.family, info.fingerprint.width, info.fingerprint.model_id) == ("qwen3", 128, "zrelay-demo")
    assert (info.device.kind, info.device.compute_dtype) == ("cpu", info.fingerprint.compute_dtype)
    assert (info.text_limit, info.text_limit_source) == (992, TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT)
    assert {"encode.think", "encode.layer"} <= {feature.name for feature in info.features if feature.available}
    assert info.queue.max_waiting == 64
    assert info.max_message_bytes == PROMPTS_MESSAGE_BYTES


@pytest.mark.parametrize(
    ("message", "kind", "reason"),
    [
        (request(""), errors.InvalidArgument, "PROMPT_EMPTY"),
        (request(*["a"] * 65), errors.InvalidArgument, "PROMPT_COUNT"),
        (request("a" * 65_537), errors.InvalidArgument, "PROMPT_TOO_LARGE"),
        (request("a", options=EncodeOptions(hidden_layer=-9)), errors.InvalidArgument, "HIDDEN_LAYER_INVALID"),
        (request("a", options=EncodeOptions(hidden_layer=0)), errors.InvalidArgument, "HIDDEN_LAYER_INVALID"),
        (request("a", options=EncodeOptions(hidden_layer=-1)), errors.FeatureMissing, "FEATURE_MISSING"),
        (request("a", options=EncodeOptions(long_prompt_mode=9)), errors.InvalidArgument,  # type: ignore[arg-type]
         "LONG_PROMPT_MODE_UNKNOWN"),
    ],
)  # fmt: skip
async def test_bad_requests(
    demo: EncoderClient, message: EncodePromptsRequest, kind: type[errors.ZrelayError], reason: str
) -> None:
    await refused_async(demo.encode(message), kind, reason=reason)
    assert embeds_of(await demo.encode(request("still there"))).shape[1] == 128


async def test_bytes_that_are_no_request(demo_endpoint: str) -> None:
    async with channels.dial(demo_endpoint) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/zrelay.v1.EncoderService/EncodePrompts"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_above_the_largest_request_is_refused_by_grpc(demo: EncoderClient) -> None:
    """gRPC reads the size first. The service copies, scans and parses nothing."""
    largest = FormatPromptRequest(prompts=[Prompt(text="a")])
    largest = with_unknown_bytes(largest, PROMPTS_MESSAGE_BYTES - largest.ByteSize() - 6)
    assert PROMPTS_MESSAGE_BYTES - 2 <= largest.ByteSize() <= PROMPTS_MESSAGE_BYTES
    assert (await demo.format(largest)).prompts[0].fits
    refused = await refused_async(
        demo.format(with_unknown_bytes(largest, MIB)), errors.MessageTooLarge, match="over the limit of 17 MiB"
    )
    assert refused.metadata["max_bytes"] == str(PROMPTS_MESSAGE_BYTES)


async def test_more_than_one_reply_can_carry(demo_checkpoint: Path) -> None:
    options = EncodeOptions(dtype=TensorDtype.TENSOR_DTYPE_F32, pad_to=992)
    async with serve(EncoderServicer(EncoderConfig(model=demo_checkpoint, device="cpu", max_prompts=400))) as served:
        await refused_async(
            client_of(served).encode(request(*["a"] * 160, options=options)),
            errors.MessageTooLarge,
            match="send fewer prompts per call",
        )


class HeldEncoder(EncoderServicer):
    """An encoder that starts to load when `go` is set."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.go = asyncio.Event()

    async def load(self) -> None:
        await self.go.wait()
        await super().load()


async def test_while_it_loads_and_while_it_drains(demo_checkpoint: Path) -> None:
    async with serve(HeldEncoder(EncoderConfig(model=demo_checkpoint, device="cpu")), loaded=False) as served:
        client = client_of(served)
        error = await refused_async(client.encode(request(CIRCLE)), errors.ModelLoading)
        assert error.retry_after_s
        info = await client.info()
        assert not info.ready
        assert not info.HasField("fingerprint")
        served.service.go.set()
        await served.server.loaded
        await client.encode(request(CIRCLE))
        await served.service.drain(1.0)
        await refused_async(client.encode(request(CIRCLE)), errors.Draining)
        await refused_async(client.format(FormatPromptRequest(prompts=[Prompt(text="a")])), errors.Draining)


async def test_a_folder_that_lacks_a_file_ends_the_start(demo_checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(demo_checkpoint, tmp_path / "broken"))
    (broken / "tokenizer/tokenizer_config.json").unlink()
    async with serve(EncoderServicer(EncoderConfig(model=broken, device="cpu")), loaded=False) as served:
        with pytest.raises(errors.CheckpointError, match=r"tokenizer/tokenizer_config\.json is missing"):
            await served.server.loaded


def gate_of(service: EncoderServicer) -> ForwardGate:
    """Returns a gate before the forward passes of a service's encoder."""
    assert service.runtime.encoder is not None
    return ForwardGate(service.runtime.encoder.model)


async def test_health_and_info_answer_while_the_device_is_busy(demo_checkpoint: Path) -> None:
    async with (
        serve(EncoderServicer(EncoderConfig(model=demo_checkpoint, device="cpu"))) as served,
        channels.dial(served.endpoint) as channel,
    ):
        gate, client = gate_of(served.service), client_of(served)
        health: Any = health_pb2_grpc.HealthStub(channel)
        busy = asyncio.create_task(client.encode(request(CIRCLE)))

        async def running() -> bool:
            return (await client.info()).queue.running == 1

        await until_async(running, "the call runs")
        answer = await health.Check(health_pb2.HealthCheckRequest(service="zrelay.v1.EncoderService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not busy.done()
        gate.permit()
        await busy


async def test_a_cancelled_call_frees_the_device(demo_checkpoint: Path) -> None:
    prompts = 32
    async with serve(EncoderServicer(EncoderConfig(model=demo_checkpoint, device="cpu"))) as served:
        gate, client = gate_of(served.service), client_of(served)
        call = asyncio.create_task(
            client.encode(request(*[CIRCLE] * prompts, options=EncodeOptions(deterministic=True)))
        )

        async def started() -> bool:
            return gate.started == 1

        async def idle() -> bool:
            gate.permit()
            return (await client.info()).queue.running == 0

        await until_async(started, "the first forward pass starts")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until_async(idle, "the device is free")
        assert gate.started < prompts
        gate.permit(prompts)
        await client.encode(request(CIRCLE))
