"""ConditionPrompt over a real channel: every refusal."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.refusals import refused_async
from tests.vision.helpers import ENCODER, INPUT, WIDTH, VisionClient, condition_request, conditions, prompt, states_of
from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.embeds_pb2 import PromptSegment
from zrelay.v1.vision_pb2 import (
    BlendMode,
    ConditionPromptRequest,
    EncodeImagesRequest,
    OutlierMask,
    StateNormalization,
    VisionEngine,
)
from zrelay_shared import errors
from zrelay_shared.torch_tensors import to_wire


@pytest.mark.parametrize(
    ("message", "reason", "field"),
    [
        (ConditionPromptRequest(), "IMAGE_MISSING", "image"),
        (conditions(ImageInput()), "IMAGE_MISSING", "image"),
        (conditions(ImageInput(data=b"no image")), "IMAGE_FORMAT", "image.data"),
        (conditions(alpha=-0.1), "ALPHA_INVALID", "options.alpha"),
        (conditions(alpha=1.1), "ALPHA_INVALID", "options.alpha"),
        (conditions(alpha=float("nan")), "ALPHA_INVALID", "options.alpha"),
        (conditions(alpha=float("inf")), "ALPHA_INVALID", "options.alpha"),
        (conditions(blend=99), "BLEND_UNKNOWN", "options.blend"),
        (conditions(normalization=99), "NORMALIZATION_UNKNOWN", "options.normalization"),
        (conditions(outlier_mask=99), "OUTLIER_MASK_UNKNOWN", "options.outlier_mask"),
        (conditions(curve=99), "CURVE_UNKNOWN", "options.curve"),
        (conditions(outlier_threshold=0.0), "OUTLIER_THRESHOLD_INVALID", "options.outlier_threshold"),
        (conditions(outlier_threshold=float("nan")), "OUTLIER_THRESHOLD_INVALID", "options.outlier_threshold"),
        (conditions(token_weights=[0.5] * 9), "TOKEN_WEIGHTS_INVALID", "options.token_weights"),
        (conditions(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS), "TOKEN_WEIGHTS_INVALID", "options.token_weights"),
        (conditions(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS, token_weights=[0.5] * 8), "TOKEN_WEIGHTS_INVALID",
         "options.token_weights"),
        (conditions(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS, token_weights=[1.5] * 9), "TOKEN_WEIGHTS_INVALID",
         "options.token_weights"),
        (ConditionPromptRequest(image=INPUT, states_options=pb.StatesOptions(hidden_layer=-9)), "HIDDEN_LAYER_INVALID",
         "states_options.hidden_layer"),
    ],
)  # fmt: skip
async def test_bad_requests(qwen: VisionClient, message: ConditionPromptRequest, reason: str, field: str) -> None:
    request = condition_request(prompt(), message)
    await refused_async(qwen.condition(request), errors.InvalidArgument, reason=reason, field=field)


async def test_prompts_that_are_not_as_the_encoder_sent_them(qwen: VisionClient) -> None:
    where = "prompt_embeds.segments[0].prompt_embeds"
    odd = condition_request(prompt(width=WIDTH + 1), conditions())
    nan = prompt()
    nan[2, 3] = float("nan")
    none = condition_request(prompt(), conditions())
    none.message.prompt_embeds.ClearField("segments")
    two = condition_request(prompt(), conditions())
    to_wire(two, two.message.prompt_embeds.segments.add().prompt_embeds, prompt())
    empty = condition_request(prompt(), conditions())
    empty.message.prompt_embeds.segments[0].CopyFrom(PromptSegment())
    for request, reason, field in (
        (odd, "TENSOR_SHAPE", where),
        (condition_request(nan, conditions()), "TENSOR_NOT_FINITE", where),
        (none, "PROMPT_MISSING", "prompt_embeds"),
        (two, "PROMPT_SEGMENTS", "prompt_embeds.segments"),
        (empty, "TENSOR_DTYPE", where),
    ):
        await refused_async(qwen.condition(request), errors.InvalidArgument, reason=reason, field=field)
    unsigned = condition_request(prompt(), conditions())
    unsigned.message.prompt_embeds.fingerprint.hidden_layer = -5
    await refused_async(qwen.condition(unsigned), errors.EncoderMismatch, reason="FINGERPRINT_INVALID")
    bent = condition_request(prompt(), conditions())
    bent.message.prompt_embeds.segments[0].prompt_embeds.crc32c ^= 1
    await refused_async(qwen.condition(bent), errors.PayloadCorrupt)


async def test_another_width_than_the_states(qwen: VisionClient) -> None:
    wide = condition_request(prompt(width=48), conditions(), encoder=replace(ENCODER, width=48))
    error = await refused_async(
        qwen.condition(wide), errors.FailedPrecondition, reason="STATES_WIDTH", match="expected rows of 32 values"
    )
    assert error.metadata == {"expected": "32", "got": "48"}


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": StateNormalization.STATE_NORMALIZATION_PER_DIM},
        {"normalization": StateNormalization.STATE_NORMALIZATION_HYBRID},
        {"outlier_mask": OutlierMask.OUTLIER_MASK_CLAMP},
    ],
)
async def test_statistics_that_are_not_there(
    qwen: VisionClient, calibrated: VisionClient, options: dict[str, Any]
) -> None:
    other = replace(ENCODER, hidden_layer=-3)
    for client, encoder, held, found in (
        (qwen, ENCODER, "0", "none"),
        (calibrated, other, "1", "only those of others"),
    ):
        error = await refused_async(
            client.condition(condition_request(prompt(), conditions(**options), encoder=encoder)),
            errors.FailedPrecondition,
            reason="REFERENCE_STATISTICS_MISSING",
            field="options",
            match=f"this service has {found}; run `zrelay calibrate`",
        )
        assert error.metadata["held"] == held
    assert list((await calibrated.info()).engines[0].calibrations) == [ENCODER.digest]


async def test_a_result_that_overflows_its_dtype(qwen: VisionClient) -> None:
    huge = prompt(dtype=torch.float16)
    huge[:] = 60000.0
    huge[:, ::2] = -60000.0
    style = conditions(alpha=1.0, blend=BlendMode.BLEND_MODE_STYLE_DELTA)
    request = condition_request(huge, style)
    await refused_async(qwen.condition(request), errors.FailedPrecondition, reason="RESULT_NOT_FINITE", match="BF16")


async def test_bad_saved_states(qwen: VisionClient) -> None:
    saved = await qwen.encode(EncodeImagesRequest(images=[INPUT], engine=VisionEngine.VISION_ENGINE_QWEN3_VL))
    good = saved.message.results[0].states

    def changed(**fields: Any) -> ConditionPromptRequest:
        request = ConditionPromptRequest(states=good)
        for name, value in fields.items():
            setattr(request.states, name, value)
        return request

    other = ConditionPromptRequest(states=good)
    other.states.fingerprint.hidden_layer = -3
    grid = ConditionPromptRequest(states=good)
    grid.states.fingerprint.ClearField("digest")
    options = ConditionPromptRequest(states=good, states_options=pb.StatesOptions(text="a"))
    for message, reason, field in (
        (other, "FINGERPRINT_INVALID", "states.fingerprint"),
        (grid, "FINGERPRINT_INVALID", "states.fingerprint"),
        (options, "STATES_OPTIONS_UNUSED", "states_options"),
        (changed(tokens=9), "TOKENS_UNKNOWN", "states.tokens"),
        (changed(image_token_count=4000), "IMAGE_TOKENS_INVALID", "states.image_token_count"),
        (changed(image_token_start=2**32 - 1), "IMAGE_TOKENS_INVALID", "states.image_token_count"),
    ):
        request = condition_request(prompt(), message, saved)
        await refused_async(qwen.condition(request), errors.ZrelayError, reason=reason, field=field)
    assert states_of(saved).shape[1] == WIDTH
