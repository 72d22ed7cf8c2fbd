"""The encoder over a real channel, with the demo checkpoint."""

import asyncio
import shutil
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from zrelay.v1 import encoder_pb2 as pb
from zrelay.v1.embeds_pb2 import LongPromptMode, TextLimitSource, ThinkMode
from zrelay.v1.encoder_pb2 import EncodeOptions, EncodePromptsRequest, FormatPromptRequest, Prompt
from zrelay.v1.tensor_pb2 import TensorDtype
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.service import EncoderService
from zrelay_shared import channels, errors
from zrelay_shared.fingerprint import from_message
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.wire import Parcel

from .conftest import Serve, Served, largest_difference, load

CIRCLE = "a small red circle on a blue background"
F32 = EncodeOptions(dtype=TensorDtype.TENSOR_DTYPE_F32)


def request(*prompts: str, options: EncodeOptions | None = None) -> EncodePromptsRequest:
    return EncodePromptsRequest(prompts=[Prompt(text=text) for text in prompts], options=options)


def embeds(reply: Parcel[pb.EncodePromptsResponse], at: int = 0) -> torch.Tensor:
    [segment] = reply.message.results[at].prompt_embeds.segments
    return from_wire(reply, segment.prompt_embeds, field="prompt_embeds", rank=2)


async def encode(served: Served, message: EncodePromptsRequest) -> Parcel[pb.EncodePromptsResponse]:
    return await served.stub.call("EncodePrompts", message, pb.EncodePromptsResponse, timeout=30)


async def test_prompts_become_embeddings(serve: Serve, demo_checkpoint: Path) -> None:
    served = await serve(EncoderConfig(demo_checkpoint, device="cpu", dtype="float32"))
    await served.server.loaded
    reply = await encode(served, request(CIRCLE, "a star", options=F32))
    wanted = load(demo_checkpoint).encode(CIRCLE, "a star")
    for at, theirs in enumerate(wanted):
        assert largest_difference(embeds(reply, at), theirs) < 1e-5
        report = reply.message.results[at].prompt_embeds.report
        assert report.token_count == report.formatted_tokens == len(theirs)
        assert (report.dropped_tokens, report.long_prompt_action) == (0, 0)
        assert (report.text_limit, report.text_limit_source) == (992, TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT)
    assert reply.message.compute_seconds > 0


async def test_the_wire_is_bfloat16_unless_asked(demo: Served) -> None:
    assert embeds(await encode(demo, request(CIRCLE))).dtype is torch.bfloat16
    half = EncodeOptions(dtype=TensorDtype.TENSOR_DTYPE_F16)
    assert embeds(await encode(demo, request(CIRCLE, options=half))).dtype is torch.float16


async def test_every_embedding_carries_its_fingerprint(demo: Served) -> None:
    info = await demo.stub.call("GetInfo", pb.EncoderServiceGetInfoRequest(), pb.EncoderServiceGetInfoResponse)
    thinking = EncodePromptsRequest(
        prompts=[Prompt(text=CIRCLE), Prompt(text=CIRCLE, think_mode=ThinkMode.THINK_MODE_EMPTY)]
    )
    plain, empty = (await encode(demo, thinking)).message.results
    assert plain.prompt_embeds.fingerprint == info.message.fingerprint
    ours = from_message(empty.prompt_embeds.fingerprint)
    assert ours.think_mode == "empty"
    assert ours.digest != plain.prompt_embeds.fingerprint.digest
    shallow = (await encode(demo, request(CIRCLE, options=EncodeOptions(hidden_layer=-3)))).message.results[0]
    assert shallow.prompt_embeds.fingerprint.hidden_layer == -3


async def test_a_long_prompt_is_truncated_and_told(demo: Served) -> None:
    options = EncodeOptions(text_limit=32, return_formatted_prompts=True)
    reply = await encode(demo, request("red and blue " * 60, options=options))
    [result] = reply.message.results
    report = result.prompt_embeds.report
    assert embeds(reply).shape == (32, 128)
    assert report.token_count == report.text_limit == 32
    assert report.dropped_tokens == report.formatted_tokens - 32 > 0
    assert report.long_prompt_action == LongPromptMode.LONG_PROMPT_MODE_TRUNCATE
    assert report.text_limit_source == TextLimitSource.TEXT_LIMIT_SOURCE_REQUEST
    assert result.formatted_prompt.startswith("<|im_start|>user\nred and blue")


async def test_a_long_prompt_may_be_refused(demo: Served) -> None:
    options = EncodeOptions(text_limit=32, long_prompt_mode=LongPromptMode.LONG_PROMPT_MODE_REFUSE)
    with pytest.raises(errors.InvalidArgument, match="at most 32 tokens") as caught:
        await encode(demo, request("short", "red and blue " * 60, options=options))
    assert (caught.value.reason, caught.value.field) == ("PROMPT_TOO_LONG", "prompts[1]")


async def test_pads_are_kept_on_request(demo: Served) -> None:
    plain = embeds(await encode(demo, request(CIRCLE)))
    reply = await encode(demo, request(CIRCLE, options=EncodeOptions(pad_to=40)))
    padded = embeds(reply)
    assert padded.shape == (40, 128)
    assert largest_difference(padded[: len(plain)].float(), plain.float()) < 0.02
    assert reply.message.results[0].prompt_embeds.report.formatted_tokens == len(plain)
    assert list(reply.message.results[0].prompt_embeds.fingerprint.modifications) == ["padding"]
    with pytest.raises(errors.InvalidArgument, match="pad_to"):
        await encode(demo, request(CIRCLE, options=EncodeOptions(pad_to=40, text_limit=39)))


async def test_format_prompt_counts(demo: Served) -> None:
    message = FormatPromptRequest(prompts=[Prompt(text=CIRCLE), Prompt(text="red " * 60)], text_limit=40)
    reply = await demo.stub.call("FormatPrompt", message, pb.FormatPromptResponse)
    short, long = reply.message.prompts
    assert short.formatted_prompt == f"<|im_start|>user\n{CIRCLE}<|im_end|>\n<|im_start|>assistant\n"
    assert short.token_count == len(short.token_ids) == len(embeds(await encode(demo, request(CIRCLE))))
    assert (short.fits, long.fits, long.text_limit) == (True, False, 40)


async def test_get_info(demo: Served) -> None:
    info = (
        await demo.stub.call("GetInfo", pb.EncoderServiceGetInfoRequest(), pb.EncoderServiceGetInfoResponse)
    ).message
    assert info.ready
    assert (info.version.service, info.version.contract) == ("encoder", "v1")
    assert "torch" in info.version.libraries
    assert (info.loaded_blocks, info.total_blocks) == (3, 4)
    assert (info.fingerprint.family, info.fingerprint.width, info.fingerprint.model_id) == ("qwen3", 128, "zrelay-demo")
    assert (info.device.kind, info.device.compute_dtype) == ("cpu", info.fingerprint.compute_dtype)
    assert (info.text_limit, info.text_limit_source) == (992, TextLimitSource.TEXT_LIMIT_SOURCE_CHECKPOINT)
    assert {"encode.think", "encode.layer"} <= {feature.name for feature in info.features if feature.available}
    assert info.queue.max_waiting == 64


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
    demo: Served, message: EncodePromptsRequest, kind: type[errors.ZrelayError], reason: str
) -> None:
    with pytest.raises(kind) as caught:
        await encode(demo, message)
    assert caught.value.reason == reason
    assert embeds(await encode(demo, request("still there"))).shape[1] == 128


async def test_bytes_that_are_no_request(demo: Served) -> None:
    async with channels.dial(demo.endpoint) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/zrelay.v1.EncoderService/EncodePrompts"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_more_than_one_reply_can_carry(serve: Serve, demo_checkpoint: Path) -> None:
    served = await serve(EncoderConfig(demo_checkpoint, device="cpu", max_prompts=400))
    await served.server.loaded
    options = EncodeOptions(dtype=TensorDtype.TENSOR_DTYPE_F32, pad_to=992)
    with pytest.raises(errors.MessageTooLarge, match="send fewer prompts a call"):
        await encode(served, request(*["a"] * 160, options=options))


class Held(EncoderService):
    """An encoder that begins to load when it is told to."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__(config)
        self.go = asyncio.Event()

    async def load(self) -> None:
        await self.go.wait()
        await super().load()


async def test_while_it_loads(serve: Serve, demo_checkpoint: Path) -> None:
    held = Held(EncoderConfig(demo_checkpoint, device="cpu"))
    served = await serve(held)
    with pytest.raises(errors.ModelLoading) as caught:
        await encode(served, request(CIRCLE))
    assert caught.value.retry_after_s
    info = await served.stub.call("GetInfo", pb.EncoderServiceGetInfoRequest(), pb.EncoderServiceGetInfoResponse)
    assert not info.message.ready
    assert not info.message.HasField("fingerprint")
    held.go.set()
    await served.server.loaded
    await encode(served, request(CIRCLE))


async def test_a_folder_that_lacks_a_file_ends_the_start(serve: Serve, demo_checkpoint: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(demo_checkpoint, tmp_path / "broken"))
    (broken / "tokenizer/tokenizer_config.json").unlink()
    served = await serve(EncoderConfig(broken, device="cpu"))
    with pytest.raises(errors.CheckpointError, match=r"tokenizer/tokenizer_config\.json is missing"):
        await served.server.loaded


async def test_draining_refuses_new_calls(demo: Served) -> None:
    await demo.service.drain(1.0)
    for method, message in (
        ("EncodePrompts", request(CIRCLE)),
        ("FormatPrompt", FormatPromptRequest(prompts=[Prompt(text="a")])),
    ):
        with pytest.raises(errors.Draining):
            await demo.call(method, message)


async def test_health_answers_while_the_device_is_busy(demo: Served) -> None:
    long = request(*["many red and blue shapes " * 150] * 24)
    await encode(demo, request(CIRCLE))
    async with channels.dial(demo.endpoint) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        busy = asyncio.create_task(encode(demo, long))
        took = []
        while not busy.done():
            began = time.perf_counter()
            answer = await health.Check(health_pb2.HealthCheckRequest(service="zrelay.v1.EncoderService"))
            took.append(time.perf_counter() - began)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            await asyncio.sleep(0.005)
        reply = await busy
    assert reply.message.compute_seconds > 5 * sorted(took)[len(took) // 2]
    assert sorted(took)[len(took) // 2] < 0.1


async def test_a_caller_that_goes_away_frees_the_device(demo: Served) -> None:
    long = request(*["many red and blue shapes " * 150] * 32, options=EncodeOptions(deterministic=True))
    for _ in range(3):
        gone = asyncio.create_task(encode(demo, long))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
    began = time.perf_counter()
    await encode(demo, request(CIRCLE))
    alone = time.perf_counter()
    await encode(demo, long)
    assert alone - began < time.perf_counter() - alone
