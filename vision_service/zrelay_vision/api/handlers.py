"""The methods of VisionService once torch is loaded: parse the request, run the operation, make the reply."""

import asyncio

from zrelay.v1 import vision_pb2 as pb
from zrelay_shared import fingerprint as encoder_fingerprint
from zrelay_shared import torch_devices, vision_fingerprint
from zrelay_shared.receiving import off_loop
from zrelay_shared.service.info import device_info, queue_info
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel
from zrelay_vision.api import requests
from zrelay_vision.conditioning.normalize import EmbeddingStatistics
from zrelay_vision.engines import EngineKind
from zrelay_vision.operations.condition import ConditionedPrompt, condition_prompt
from zrelay_vision.operations.encode import EncodedImage, encode_images, score_images
from zrelay_vision.qwen3_vl.states import ImageStates, TokenMode
from zrelay_vision.runtime import VisionRuntime
from zrelay_vision.siglip.scores import Scores

_MAX_OUTLIERS = 20
"""Outlier dimensions that a report lists; it also has their total number."""
_TOKENS = {mode: getattr(pb.VisionTokens, f"VISION_TOKENS_{mode.name}") for mode in TokenMode}


async def encode(runtime: VisionRuntime, parcel: Parcel[pb.EncodeImagesRequest]) -> Parcel[pb.EncodeImagesResponse]:
    """Answers EncodeImages."""
    request = await off_loop(parcel.size, lambda: requests.parse_encode(parcel.message, runtime.config))
    images = await encode_images(runtime, request)
    return await off_loop(_embeds_bytes(images), lambda: _encode_reply(images))


async def condition(
    runtime: VisionRuntime, parcel: Parcel[pb.ConditionPromptRequest]
) -> Parcel[pb.ConditionPromptResponse]:
    """Answers ConditionPrompt."""
    request = await off_loop(parcel.size, lambda: requests.parse_condition(parcel, runtime.config))
    conditioned = await condition_prompt(runtime, request)
    return await off_loop(parcel.size, lambda: _condition_reply(parcel, conditioned))


async def score(runtime: VisionRuntime, parcel: Parcel[pb.ScoreImagesRequest]) -> pb.ScoreImagesResponse:
    """Answers ScoreImages."""
    request = await off_loop(parcel.size, lambda: requests.parse_score(parcel.message, runtime.config))
    return _score_reply(await score_images(runtime, request))


async def describe(runtime: VisionRuntime, info: pb.VisionServiceGetInfoResponse) -> None:
    """Adds to GetInfo what only the runtime knows: fingerprints, calibrations, queue, device."""
    queue, loaded = runtime.worker, {engine.kind: engine for engine in runtime.engines}
    info.queue.CopyFrom(queue_info(queue, runtime.config.max_waiting))
    for entry in info.engines:
        kind = requests.ENGINES[entry.engine]
        if kind in loaded and (fingerprint := loaded[kind].fingerprint) is not None:
            entry.ready = runtime.ready
            entry.fingerprint.CopyFrom(vision_fingerprint.to_message(fingerprint))
            entry.calibrations.extend(runtime.references.digests if kind is EngineKind.QWEN3_VL else ())
    if runtime.device is not None:
        device = await asyncio.to_thread(torch_devices.report, runtime.device)  # the driver may block
        dtype = info.engines[0].fingerprint.compute_dtype if info.engines else ""
        info.device.CopyFrom(device_info(device, dtype))


def _embeds_bytes(images: list[EncodedImage]) -> int:
    tensors = [one.result.hidden_states if isinstance(one.result, ImageStates) else one.result for one in images]
    return sum(tensor.nbytes for tensor in tensors)


def _encode_reply(images: list[EncodedImage]) -> Parcel[pb.EncodeImagesResponse]:
    """Makes the reply of EncodeImages."""
    reply = Parcel(pb.EncodeImagesResponse())
    for image in images:
        result = reply.message.results.add(image_sha256=image.sha256)
        fingerprint = vision_fingerprint.to_message(image.fingerprint)
        if isinstance(image.result, ImageStates):
            states = result.states
            states.fingerprint.CopyFrom(fingerprint)
            states.image_token_start, states.image_token_count = image.result.start, image.result.count
            states.tokens = _TOKENS[image.result.tokens]
            to_wire(reply, states.hidden_states, image.result.hidden_states.contiguous())
        else:
            result.siglip_embeds.fingerprint.CopyFrom(fingerprint)
            to_wire(reply, result.siglip_embeds.grid, image.result.contiguous())
    return reply


def _score_reply(scores: list[Scores]) -> pb.ScoreImagesResponse:
    """Makes the reply of ScoreImages."""
    return pb.ScoreImagesResponse(
        images=[
            pb.ImageScores(probabilities=one.probabilities[0].tolist(), cosines=one.cosines[0].tolist())
            for one in scores
        ]
    )


def _condition_reply(
    request: Parcel[pb.ConditionPromptRequest], conditioned: ConditionedPrompt
) -> Parcel[pb.ConditionPromptResponse]:
    """Makes the reply of ConditionPrompt: the request's PromptEmbeds with the conditioned tensor."""
    reply = Parcel(pb.ConditionPromptResponse(image_sha256=conditioned.sha256), request)
    embeds, result = reply.message.prompt_embeds, conditioned.result
    embeds.CopyFrom(request.message.prompt_embeds)
    if conditioned.changed:
        embeds.fingerprint.CopyFrom(encoder_fingerprint.to_message(conditioned.fingerprint))
        to_wire(reply, embeds.segments[0].prompt_embeds, result.prompt_embeds.contiguous())
        embeds.report.token_count = result.after.tokens
        embeds.report.dropped_tokens += max(0, result.before.tokens - result.after.tokens)
    outliers = list(zip(result.outliers.dimensions, result.outliers.ratios, strict=True))
    reply.message.report.CopyFrom(
        pb.ConditionReport(
            before=_statistics(result.before),
            states=_statistics(result.states),
            after=_statistics(result.after),
            outliers=[
                pb.OutlierDimension(dimension=dimension, ratio=ratio) for dimension, ratio in outliers[:_MAX_OUTLIERS]
            ],
            outlier_count=len(outliers),
            calibrated=conditioned.calibrated,
        )
    )
    return reply


def _statistics(measured: EmbeddingStatistics) -> pb.EmbedsStatistics:
    return pb.EmbedsStatistics(
        token_rms=measured.token_rms, mean=measured.mean, std=measured.std, tokens=measured.tokens
    )
