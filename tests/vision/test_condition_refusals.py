"""ConditionPrompt over a real channel: every refusal."""

from dataclasses import replace
from typing import Any

import pytest
import torch

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

from .conditions import FILE, asked
from .conftest import (
    ENCODER,
    WIDTH,
    Served,
    condition_request,
    prompt,
    states_of,
)


@pytest.mark.parametrize(
    ("message", "reason", "field"),
    [
        (ConditionPromptRequest(), "IMAGE_MISSING", "image"),
        (asked(ImageInput()), "IMAGE_MISSING", "image"),
        (asked(ImageInput(data=b"no image")), "IMAGE_FORMAT", "image.data"),
        (asked(alpha=-0.1), "ALPHA_INVALID", "options.alpha"),
        (asked(alpha=1.1), "ALPHA_INVALID", "options.alpha"),
        (asked(alpha=float("nan")), "ALPHA_INVALID", "options.alpha"),
        (asked(alpha=float("inf")), "ALPHA_INVALID", "options.alpha"),
        (asked(blend=99), "BLEND_UNKNOWN", "options.blend"),
        (asked(normalization=99), "NORMALIZATION_UNKNOWN", "options.normalization"),
        (asked(outlier_mask=99), "OUTLIER_MASK_UNKNOWN", "options.outlier_mask"),
        (asked(curve=99), "CURVE_UNKNOWN", "options.curve"),
        (asked(outlier_threshold=0.0), "OUTLIER_THRESHOLD_INVALID", "options.outlier_threshold"),
        (asked(outlier_threshold=float("nan")), "OUTLIER_THRESHOLD_INVALID", "options.outlier_threshold"),
        (asked(token_weights=[0.5] * 9), "TOKEN_WEIGHTS_INVALID", "options.token_weights"),
        (asked(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS), "TOKEN_WEIGHTS_INVALID", "options.token_weights"),
        (asked(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS, token_weights=[0.5] * 8), "TOKEN_WEIGHTS_INVALID",
         "options.token_weights"),
        (asked(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS, token_weights=[1.5] * 9), "TOKEN_WEIGHTS_INVALID",
         "options.token_weights"),
        (ConditionPromptRequest(image=FILE, states_options=pb.StatesOptions(hidden_layer=-9)), "HIDDEN_LAYER_INVALID",
         "states_options.hidden_layer"),
    ],
)  # fmt: skip
async def test_bad_requests(qwen: Served, message: ConditionPromptRequest, reason: str, field: str) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        await qwen.condition(condition_request(prompt(), message))
    assert (caught.value.reason, caught.value.field) == (reason, field)


async def test_prompts_that_are_not_as_the_encoder_sent_them(qwen: Served) -> None:
    where = "prompt_embeds.segments[0].prompt_embeds"
    odd = condition_request(prompt(width=WIDTH + 1), asked())
    nan = prompt()
    nan[2, 3] = float("nan")
    none = condition_request(prompt(), asked())
    none.message.prompt_embeds.ClearField("segments")
    two = condition_request(prompt(), asked())
    to_wire(two, two.message.prompt_embeds.segments.add().prompt_embeds, prompt())
    empty = condition_request(prompt(), asked())
    empty.message.prompt_embeds.segments[0].CopyFrom(PromptSegment())
    for request, reason, field in (
        (odd, "TENSOR_SHAPE", where),
        (condition_request(nan, asked()), "TENSOR_NOT_FINITE", where),
        (none, "PROMPT_MISSING", "prompt_embeds"),
        (two, "PROMPT_SEGMENTS", "prompt_embeds.segments"),
        (empty, "TENSOR_DTYPE", where),
    ):
        with pytest.raises(errors.InvalidArgument) as caught:
            await qwen.condition(request)
        assert (caught.value.reason, caught.value.field) == (reason, field)
    unsigned = condition_request(prompt(), asked())
    unsigned.message.prompt_embeds.fingerprint.hidden_layer = -5
    with pytest.raises(errors.EncoderMismatch) as mismatch:
        await qwen.condition(unsigned)
    assert mismatch.value.reason == "FINGERPRINT_INVALID"
    bent = condition_request(prompt(), asked())
    bent.message.prompt_embeds.segments[0].prompt_embeds.crc32c ^= 1
    with pytest.raises(errors.PayloadCorrupt):
        await qwen.condition(bent)


async def test_another_width_than_the_states(qwen: Served) -> None:
    wide = condition_request(prompt(width=48), asked(), encoder=replace(ENCODER, width=48))
    with pytest.raises(errors.FailedPrecondition, match="expected rows of 32 values") as caught:
        await qwen.condition(wide)
    assert (caught.value.reason, caught.value.metadata) == ("STATES_WIDTH", {"expected": "32", "got": "48"})


@pytest.mark.parametrize(
    "options",
    [
        {"normalization": StateNormalization.STATE_NORMALIZATION_PER_DIM},
        {"normalization": StateNormalization.STATE_NORMALIZATION_HYBRID},
        {"outlier_mask": OutlierMask.OUTLIER_MASK_CLAMP},
    ],
)
async def test_statistics_that_are_not_there(qwen: Served, ready: Served, options: dict[str, Any]) -> None:
    other = replace(ENCODER, hidden_layer=-3)
    for served, encoder, held, said in ((qwen, ENCODER, "0", "none"), (ready, other, "1", "those of others")):
        with pytest.raises(errors.FailedPrecondition, match="zrelay calibrate") as caught:
            await served.condition(condition_request(prompt(), asked(**options), encoder=encoder))
        assert caught.value.reason == "REFERENCE_STATISTICS_MISSING" and caught.value.field == "options"
        assert caught.value.metadata["held"] == held and f"this service holds {said}:" in caught.value.message
    assert list((await ready.info()).engines[0].calibrations) == [ENCODER.digest]


async def test_a_result_that_overflows_its_dtype(qwen: Served) -> None:
    huge = prompt(dtype=torch.float16)
    huge[:] = 60000.0
    huge[:, ::2] = -60000.0
    style = asked(alpha=1.0, blend=BlendMode.BLEND_MODE_STYLE_DELTA)
    with pytest.raises(errors.FailedPrecondition, match="BF16") as caught:
        await qwen.condition(condition_request(huge, style))
    assert caught.value.reason == "RESULT_NOT_FINITE"


async def test_bad_saved_states(qwen: Served) -> None:
    saved = await qwen.encode(EncodeImagesRequest(images=[FILE], engine=VisionEngine.VISION_ENGINE_QWEN3_VL))
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
        with pytest.raises(errors.ZrelayError) as caught:
            await qwen.condition(condition_request(prompt(), message, saved))
        assert (caught.value.reason, caught.value.field) == (reason, field)
    assert states_of(saved).shape[1] == WIDTH
