"""The vision service over a real channel: images to states and grids, scores, GetInfo, refusals."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.helpers.gates import ForwardGate
from tests.helpers.images import encoded, picture
from tests.helpers.polling import until_async
from tests.helpers.refusals import refused_async
from tests.helpers.servers import serve
from tests.vision.helpers import (
    ENCODER,
    FILE,
    IMAGE,
    VisionClient,
    client_of,
    condition_request,
    conditions,
    loaded_qwen,
    prompt,
    states_of,
)
from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef, ImageInput
from zrelay.v1.tensor_pb2 import TensorDtype
from zrelay.v1.vision_pb2 import EncodeImagesRequest, ScoreImagesRequest, VisionEngine, VisionTokens
from zrelay.v1.vision_pb2 import StatesOptions as Options
from zrelay_shared import channels, errors
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.vision_fingerprint import from_message
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.config import VisionConfig
from zrelay_vision.qwen3_vl.states import StatesParameters, TokenMode

QWEN, SIGLIP = VisionEngine.VISION_ENGINE_QWEN3_VL, VisionEngine.VISION_ENGINE_SIGLIP
F32 = TensorDtype.TENSOR_DTYPE_F32


def request(*files: bytes, engine: int = QWEN, dtype: int = F32, **more: Any) -> EncodeImagesRequest:
    images = [ImageInput(data=file) for file in files]
    return EncodeImagesRequest(images=images, engine=engine, dtype=dtype, **more)  # type: ignore[arg-type]


def named(sha256: str, size: int = 0) -> ImageInput:
    return ImageInput(content=ContentRef(sha256=sha256, size_bytes=size))


@pytest.mark.parametrize("tokens", VisionTokens.values()[1:])
async def test_an_image_becomes_states(qwen: VisionClient, tiny: Path, tokens: int) -> None:
    options = Options(hidden_layer=-3, tokens=tokens, text="a circle", system_prompt="look")  # type: ignore[arg-type]
    reply = await qwen.encode(request(FILE, states_options=options))
    [result] = reply.message.results
    mode = TokenMode(VisionTokens.Name(tokens).removeprefix("VISION_TOKENS_").lower())
    made = loaded_qwen(tiny, -3)
    wanted = made.run(
        made.prepare("x", IMAGE.size, lambda: IMAGE, StatesParameters(-3, mode, "a circle", "look"), None),
        lambda: False,
    )
    assert torch.allclose(states_of(reply), wanted.hidden_states, atol=1e-5)
    assert (result.states.image_token_start, result.states.image_token_count) == (wanted.start, wanted.count)
    assert result.states.tokens == tokens
    assert result.image_sha256 == hashlib.sha256(FILE).hexdigest()
    assert from_message(result.states.fingerprint, path="x") == made.fingerprint


async def test_the_wire_is_bfloat16_and_the_layer_the_servers_by_default(qwen: VisionClient) -> None:
    reply = await qwen.encode(request(FILE, encoded(picture(20, 20), "JPEG"), dtype=0))
    assert [states_of(reply, at).dtype for at in (0, 1)] == [torch.bfloat16, torch.bfloat16]
    assert [result.states.fingerprint.hidden_layer for result in reply.message.results] == [-2, -2]
    assert reply.message.results[0].states.tokens == VisionTokens.VISION_TOKENS_FULL


async def test_an_image_sent_before_is_named_by_its_digest(qwen: VisionClient) -> None:
    first = await qwen.encode(request(FILE))
    sha256 = first.message.results[0].image_sha256
    again = await qwen.encode(EncodeImagesRequest(images=[named(sha256, len(FILE))], engine=QWEN, dtype=F32))
    assert torch.equal(states_of(first), states_of(again))
    smaller = await qwen.encode(
        EncodeImagesRequest(images=[named(sha256)], engine=QWEN, dtype=F32, target_area=16 * 16)
    )
    assert smaller.message.results[0].states.image_token_count == 1
    with pytest.raises(errors.NotFound) as caught:
        await qwen.encode(EncodeImagesRequest(images=[ImageInput(data=FILE), named("0" * 64)], engine=QWEN))
    assert (caught.value.reason, caught.value.field) == ("CONTENT_UNKNOWN", "images[1].content")


async def test_grids_and_scores(siglip: VisionClient) -> None:
    reply = await siglip.encode(request(FILE, FILE, engine=SIGLIP))
    grids = [from_wire(reply, result.siglip_embeds.grid, field="grid", rank=3) for result in reply.message.results]
    assert torch.equal(grids[0], grids[1]) and grids[0].shape[2] == 96
    assert reply.message.results[0].siglip_embeds.fingerprint.engine == SIGLIP
    scores = await siglip.score(ScoreImagesRequest(images=[ImageInput(data=FILE)] * 2, texts=["a", "b", "c"]))
    assert [len(one.probabilities) for one in scores.images] == [3, 3]
    assert all(0 <= value <= 1 for one in scores.images for value in one.probabilities)
    assert all(-1 <= value <= 1 for one in scores.images for value in one.cosines)
    with pytest.raises(errors.FeatureMissing, match="--qwen3-vl FOLDER") as caught:
        await siglip.encode(request(FILE))
    assert caught.value.metadata == {"feature": "vision.encode.states", "flag": "--qwen3-vl"}


async def test_without_siglip(qwen: VisionClient) -> None:
    with pytest.raises(errors.FeatureMissing, match="--siglip FOLDER") as caught:
        await qwen.encode(request(FILE, engine=SIGLIP))
    assert caught.value.metadata == {"feature": "vision.encode.grids", "flag": "--siglip"}
    with pytest.raises(errors.FeatureMissing) as caught:
        await qwen.score(ScoreImagesRequest(images=[ImageInput(data=FILE)], texts=["a"]))
    assert caught.value.metadata["feature"] == "vision.score"


async def test_get_info(qwen: VisionClient) -> None:
    info = await qwen.info()
    assert info.ready and (info.version.service, info.version.contract) == ("vision", "v1")
    assert {"torch", "transformers", "pillow"} <= set(info.version.libraries)
    [engine] = info.engines
    assert (engine.engine, engine.ready, engine.fingerprint.hidden_layer) == (QWEN, True, -2)
    assert engine.fingerprint.digest == from_message(engine.fingerprint, path="x").message_digest
    assert (info.device.kind, info.device.compute_dtype) == ("cpu", "float32")
    features = {feature.name: feature.available for feature in info.features}
    assert features == {
        "vision.encode": True,
        "vision.encode.states": True,
        "vision.encode.grids": False,
        "vision.layer": True,
        "vision.condition": True,
        "vision.calibrated": False,
        "vision.score": False,
    }
    assert (info.max_images, info.max_image_bytes, info.max_image_pixels) == (16, 48 << 20, 50_000_000)
    assert (info.max_message_bytes, info.queue.max_waiting, info.queue.waiting) == (64 << 20, 16, 0)


async def health(endpoint: str) -> int:
    async with channels.dial(endpoint) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="zrelay.v1.VisionService"), timeout=10)
        return int(answer.status)


async def test_without_an_engine_health_and_info_agree() -> None:
    async with serve(VisionServicer()) as served:
        client = client_of(served)
        info = await client.info()
        assert info.ready and await health(served.endpoint) == health_pb2.HealthCheckResponse.SERVING
        assert {feature.name for feature in info.features if feature.available} == {"vision.condition"}
        for engine in (QWEN, SIGLIP):
            await refused_async(client.encode(request(FILE, engine=engine)), errors.FeatureMissing)


class HeldVision(VisionServicer):
    """A vision service that starts to load when `go` is set."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.go = asyncio.Event()

    async def load(self) -> None:
        await self.go.wait()
        await super().load()


async def test_while_it_loads_and_while_it_drains(tiny: Path) -> None:
    held = HeldVision(VisionConfig(qwen3_vl=tiny, device="cpu", hidden_layer=-2))
    async with serve(held, loaded=False) as served:
        client = client_of(served)
        error = await refused_async(client.encode(request(FILE)), errors.ModelLoading)
        assert error.retry_after_s
        info = await client.info()
        assert not info.ready and await health(served.endpoint) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert [(engine.engine, engine.ready) for engine in info.engines] == [(QWEN, False)]
        held.go.set()
        await served.server.loaded
        await client.encode(request(FILE))
        await held.drain(1.0)
        assert not (await client.info()).ready
        await refused_async(client.encode(request(FILE)), errors.Draining)
        await refused_async(client.condition(condition_request(prompt(), conditions())), errors.Draining)


async def test_a_layer_that_the_checkpoint_lacks_ends_the_start(tiny: Path) -> None:
    config = VisionConfig(qwen3_vl=tiny, device="cpu", hidden_layer=-20)
    async with serve(VisionServicer(config), loaded=False) as served:
        with pytest.raises(errors.CheckpointError, match="expected -7 to -1, got -20"):
            await served.server.loaded


@pytest.mark.parametrize(
    ("message", "reason", "field"),
    [
        (request(FILE, engine=0), "ENGINE_MISSING", "engine"),
        (request(FILE, engine=7), "ENGINE_UNKNOWN", "engine"),
        (request(), "IMAGE_COUNT", "images"),
        (request(*[FILE] * 17), "IMAGE_COUNT", "images"),
        (request(b""), "IMAGE_MISSING", "images[0].data"),
        (EncodeImagesRequest(images=[ImageInput()], engine=QWEN), "IMAGE_MISSING", "images[0]"),
        (EncodeImagesRequest(images=[named("abc")], engine=QWEN), "DIGEST_INVALID", "images[0].content.sha256"),
        (request(FILE, b"no image"), "IMAGE_FORMAT", "images[1].data"),
        (request(FILE, FILE[:400]), "IMAGE_UNREADABLE", "images[1].data"),
        (request(FILE, target_area=1), "TARGET_AREA_INVALID", "target_area"),
        (request(FILE, dtype=4), "DTYPE_INVALID", "dtype"),
        (request(FILE, dtype=99), "DTYPE_INVALID", "dtype"),
        (request(FILE, states_options=Options(tokens=9)), "TOKENS_UNKNOWN",  # type: ignore[arg-type]
         "states_options.tokens"),
        (request(FILE, states_options=Options(hidden_layer=-9)), "HIDDEN_LAYER_INVALID",
         "states_options.hidden_layer"),
        (request(FILE, states_options=Options(hidden_layer=3)), "HIDDEN_LAYER_INVALID",
         "states_options.hidden_layer"),
        (request(FILE, states_options=Options(text="x" * 8193)), "TEXT_TOO_LARGE", "states_options.text"),
        (request(FILE, states_options=Options(text="<|image_pad|>")), "TEXT_HAS_IMAGE", "states_options"),
        (request(encoded(picture(900, 4))), "IMAGE_ASPECT", "images[0].data"),
        (request(FILE, engine=SIGLIP, states_options=Options(text="a")), "STATES_OPTIONS_UNUSED", "states_options"),
        (ScoreImagesRequest(images=[ImageInput(data=FILE)]), "TEXT_COUNT", "texts"),
        (ScoreImagesRequest(images=[ImageInput(data=FILE)], texts=["a", " "]), "TEXT_EMPTY", "texts[1]"),
        (ScoreImagesRequest(texts=["a"]), "IMAGE_COUNT", "images"),
    ],
)  # fmt: skip
async def test_bad_requests(
    qwen: VisionClient, message: EncodeImagesRequest | ScoreImagesRequest, reason: str, field: str
) -> None:
    call = qwen.score(message) if isinstance(message, ScoreImagesRequest) else qwen.encode(message)
    await refused_async(call, errors.InvalidArgument, reason=reason, field=field)
    await qwen.encode(request(FILE))


async def test_a_layer_that_was_not_loaded(qwen: VisionClient) -> None:
    with pytest.raises(errors.FeatureMissing, match="--hidden-layer -1") as caught:
        await qwen.encode(request(FILE, states_options=Options(hidden_layer=-1)))
    assert caught.value.metadata["feature"] == "vision.layer"


async def test_limits_are_those_it_was_started_with(tiny: Path) -> None:
    config = VisionConfig(
        qwen3_vl=tiny, device="cpu", hidden_layer=-2, max_images=1, max_image_bytes=20_000, max_image_pixels=1999
    )
    async with serve(VisionServicer(config)) as served:
        client = client_of(served)
        assert (await client.info()).max_image_pixels == 1999
        for files, reason in (
            ([FILE], "IMAGE_TOO_MANY_PIXELS"),
            ([b"x" * 20_001], "IMAGE_TOO_LARGE"),
            ([FILE] * 2, "IMAGE_COUNT"),
        ):
            await refused_async(client.encode(request(*files)), errors.InvalidArgument, reason=reason)


async def test_more_than_one_reply_can_carry(tiny: Path) -> None:
    config = VisionConfig(qwen3_vl=tiny, device="cpu", hidden_layer=-2, max_reply_bytes=20_000)
    async with serve(VisionServicer(config)) as served:
        error = await refused_async(
            client_of(served).encode(request(*[FILE] * 16)),
            errors.MessageTooLarge,
            match="send fewer images per call",
        )
        assert 0 < int(error.metadata["fits_images"]) < 16


def gate_of(service: VisionServicer) -> ForwardGate:
    """Returns a gate before the runs of a service's vision tower."""
    assert service.runtime is not None and service.runtime.qwen3_vl is not None
    return ForwardGate(service.runtime.qwen3_vl.model.visual)


def uncached(tiny: Path, **settings: Any) -> VisionServicer:
    """A service that computes every image anew."""
    return VisionServicer(VisionConfig(qwen3_vl=tiny, device="cpu", hidden_layer=-2, state_cache_bytes=0, **settings))


async def test_the_queue_is_bounded(tiny: Path) -> None:
    async with serve(uncached(tiny, max_waiting=1)) as served:
        gate, client = gate_of(served.service), client_of(served)
        calls = [asyncio.create_task(client.encode(request(FILE))) for _ in range(3)]  # 2 admitted, 1 waiting

        async def full() -> bool:
            queue = (await client.info()).queue
            return (queue.running, queue.waiting) == (2, 1)

        await until_async(full, "the queue is full")
        error = await refused_async(client.encode(request(FILE)), errors.QueueFull)
        assert error.retry_after_s and error.retry_after_s > 0
        gate.permit(4)
        await asyncio.gather(*calls)
        await client.encode(request(FILE))


async def test_health_and_info_answer_while_the_device_is_busy(tiny: Path) -> None:
    async with serve(uncached(tiny)) as served:
        gate, client = gate_of(served.service), client_of(served)
        busy = asyncio.create_task(client.encode(request(FILE)))

        async def running() -> bool:
            return gate.started == 1 and (await client.info()).queue.running == 1

        await until_async(running, "the vision tower runs")
        assert await health(served.endpoint) == health_pb2.HealthCheckResponse.SERVING
        assert not busy.done()
        gate.permit()
        await busy


@pytest.mark.parametrize("deadline_s", [None, 0.2])
async def test_a_cancelled_call_and_a_deadline_free_the_device(tiny: Path, deadline_s: float | None) -> None:
    images = 16
    async with serve(uncached(tiny)) as served:
        gate, client = gate_of(served.service), client_of(served)
        call = asyncio.create_task(
            client.stub.call("EncodeImages", request(*[FILE] * images), pb.EncodeImagesResponse, timeout=deadline_s)
        )

        async def started() -> bool:
            return gate.started == 1 or call.done()

        async def idle() -> bool:
            gate.permit()
            return (await client.info()).queue.running == 0

        await until_async(started, "the first image runs")
        if deadline_s is None:
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        else:
            await refused_async(call, errors.DeadlineExceeded)
        await until_async(idle, "the device is free")
        assert gate.started < images
        gate.permit(images)
        await client.encode(request(FILE))


def test_the_encoder_of_the_tests_is_as_wide(tiny: Path) -> None:
    assert loaded_qwen(tiny).width == ENCODER.width
