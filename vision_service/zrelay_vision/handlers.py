"""What VisionService does once torch is there: parse, call, wrap."""

import asyncio

from zrelay.v1 import vision_pb2 as pb
from zrelay_shared import torch_devices, vision_fingerprint
from zrelay_shared.service.info import device_info, queue_info
from zrelay_shared.wire import Parcel
from zrelay_vision import messages, parsing, parsing_conditioning
from zrelay_vision.condition_prompt import condition_prompt
from zrelay_vision.encode_images import encode_images, score_images
from zrelay_vision.engines import EngineKind
from zrelay_vision.runtime import VisionRuntime


async def encode(runtime: VisionRuntime, parcel: Parcel[pb.EncodeImagesRequest]) -> Parcel[pb.EncodeImagesResponse]:
    """EncodeImages: images through one of the engines, all or none."""
    call = parsing.encode_call(parcel.message, runtime.config)
    return messages.encode_reply(await encode_images(runtime, call))


async def condition(
    runtime: VisionRuntime, parcel: Parcel[pb.ConditionPromptRequest]
) -> Parcel[pb.ConditionPromptResponse]:
    """ConditionPrompt: an image's states blended into a prompt."""
    call = parsing_conditioning.condition_call(parcel, runtime.config)
    return messages.condition_reply(parcel, await condition_prompt(runtime, call))


async def score(runtime: VisionRuntime, parcel: Parcel[pb.ScoreImagesRequest]) -> pb.ScoreImagesResponse:
    """ScoreImages: how well texts describe images."""
    call = parsing.score_call(parcel.message, runtime.config)
    return messages.score_reply(await score_images(runtime, call))


async def describe(runtime: VisionRuntime, info: pb.VisionServiceGetInfoResponse) -> None:
    """GetInfo: adds what only a runtime knows: fingerprints, calibrations, queue, device."""
    queue, loaded = runtime.worker, {engine.kind.value: engine for engine in runtime.engines}
    info.queue.CopyFrom(queue_info(queue, runtime.config.max_waiting))
    for said in info.engines:
        kind = parsing.ENGINES[said.engine].value
        if kind in loaded and (made := loaded[kind].fingerprint) is not None:
            said.ready = runtime.ready
            said.fingerprint.CopyFrom(vision_fingerprint.to_message(made))
            said.calibrations.extend(runtime.references.digests if kind == EngineKind.QWEN3_VL else ())
    if runtime.device is not None:
        device = await asyncio.to_thread(torch_devices.report, runtime.device)  # a driver may make it wait
        dtype = info.engines[0].fingerprint.compute_dtype if info.engines else ""
        info.device.CopyFrom(device_info(device, dtype))
