"""ConditionPrompt over a real channel."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.helpers.images import encoded
from tests.helpers.refusals import refused_async
from tests.helpers.servers import serve
from tests.vision.helpers import (
    BLENDS,
    ENCODER,
    IMAGE,
    INPUT,
    MASKS,
    NORMALIZATIONS,
    WIDTH,
    VisionClient,
    client_of,
    condition_request,
    conditioned,
    conditions,
    loaded_qwen,
    prompt,
)
from zrelay.v1.content_pb2 import ContentRef, ImageInput
from zrelay.v1.tensor_pb2 import TensorDtype
from zrelay.v1.vision_pb2 import (
    BlendMode,
    ConditionPromptRequest,
    EncodeImagesRequest,
    GraduatedCurve,
    OutlierMask,
    VisionEngine,
)
from zrelay.v1.vision_pb2 import ConditionOptions as Options
from zrelay_shared import errors
from zrelay_shared.fingerprint import EXPERIMENTAL, compare, from_message
from zrelay_shared.vision_fingerprint import complete_digest
from zrelay_shared.wire import Parcel
from zrelay_vision.api.servicer import VisionServicer
from zrelay_vision.conditioning.blend import resample
from zrelay_vision.conditioning.normalize import normalize_token_rms
from zrelay_vision.config import VisionConfig
from zrelay_vision.qwen3_vl.states import StatesParameters


async def test_a_prompt_is_conditioned(qwen: VisionClient, tiny: Path) -> None:
    text = prompt(dtype=torch.float32)
    reply = await qwen.condition(condition_request(text, conditions()))
    made = loaded_qwen(tiny, -2)
    states = made.run(
        made.prepare("x", IMAGE.size, lambda: IMAGE, StatesParameters(), None), lambda: False
    ).hidden_states
    wanted = 0.3 * resample(normalize_token_rms(states, text), len(text)) + 0.7 * text
    assert torch.allclose(conditioned(reply), wanted, atol=1e-4)
    report = reply.message.report
    assert (report.before.tokens, report.states.tokens, report.after.tokens) == (9, len(states), 9)
    assert report.before.std == pytest.approx(float(text.std(correction=0)), rel=1e-4)
    assert (report.calibrated, report.outlier_count) == (False, 0)


async def test_the_fingerprint_says_what_was_done(qwen: VisionClient) -> None:
    request = condition_request(prompt(), conditions(alpha=0.5, blend=BlendMode.BLEND_MODE_SLERP))
    reply = await qwen.condition(request)
    got = from_message(reply.message.prompt_embeds.fingerprint)
    mark, particulars = got.modifications
    sha256 = reply.message.image_sha256
    digest = complete_digest((await qwen.info()).engines[0].fingerprint)
    assert mark == "conditioning"
    assert particulars == (f"slerp alpha=0.5 token_rms; qwen3_vl {digest[:12]} layer=-2 full image={sha256[:12]}")
    assert replace(got, modifications=()) == ENCODER
    verdict = compare(ENCODER, got)
    assert verdict.relation == EXPERIMENTAL and verdict.differences[0].startswith("modifications: ")
    assert reply.message.prompt_embeds.report == request.message.prompt_embeds.report
    twice = Parcel(ConditionPromptRequest(image=ImageInput(content=ContentRef(sha256=sha256))), reply)
    twice.message.prompt_embeds.CopyFrom(reply.message.prompt_embeds)
    again = await qwen.condition(twice)
    assert len(again.message.prompt_embeds.fingerprint.modifications) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("blend", BLENDS)
async def test_alpha_0_gives_the_message_back_bit_for_bit(
    calibrated: VisionClient, dtype: torch.dtype, blend: int
) -> None:
    weights = [0.5] * 9 if blend == BlendMode.BLEND_MODE_TOKEN_WEIGHTS else []
    request = condition_request(prompt(dtype=dtype), conditions(alpha=0.0, blend=blend, token_weights=weights))
    reply = await calibrated.condition(request)
    given, got = Parcel(request.message.prompt_embeds, request), Parcel(reply.message.prompt_embeds, reply)
    assert given.to_bytes() == got.to_bytes()
    assert reply.message.report.before == reply.message.report.after


@pytest.mark.parametrize("blend", BLENDS)
async def test_every_blend_normalisation_and_mask(calibrated: VisionClient, blend: int) -> None:
    weights = [0.5] * 9 if blend == BlendMode.BLEND_MODE_TOKEN_WEIGHTS else []
    seen = set()
    for how in NORMALIZATIONS:
        for mask in MASKS:
            options: dict[str, Any] = {
                "blend": blend,
                "normalization": how,
                "outlier_mask": mask,
                "outlier_threshold": 1.5,
            }
            reply = await calibrated.condition(
                condition_request(prompt(), conditions(token_weights=weights, **options))
            )
            got = conditioned(reply)
            assert (got.dtype, got.shape) == (torch.bfloat16, (9, WIDTH)) and not torch.equal(got, prompt())
            report = reply.message.report
            assert report.calibrated
            assert (report.outlier_count > 0) == (mask != OutlierMask.OUTLIER_MASK_NONE)
            assert len(report.outliers) == min(20, report.outlier_count)
            assert all(one.ratio > 1.5 for one in report.outliers)
            seen.add(bytes(got.view(torch.uint8).numpy().tobytes()))
    assert len(seen) > 4


async def test_saved_states_do_what_the_image_does(qwen: VisionClient) -> None:
    text = prompt()
    wanted = conditioned(await qwen.condition(condition_request(text, conditions())))
    saved = await qwen.encode(
        EncodeImagesRequest(
            images=[INPUT], engine=VisionEngine.VISION_ENGINE_QWEN3_VL, dtype=TensorDtype.TENSOR_DTYPE_F32
        )
    )
    async with serve(VisionServicer(VisionConfig())) as served:
        without_engine = client_of(served)
        for client in (qwen, without_engine):
            message = ConditionPromptRequest(states=saved.message.results[0].states)
            reply = await client.condition(condition_request(text, message, saved))
            assert torch.equal(conditioned(reply), wanted)
            assert reply.message.image_sha256 == ""
            assert "image=" not in reply.message.prompt_embeds.fingerprint.modifications[1]
        error = await refused_async(
            without_engine.condition(condition_request(text, conditions())),
            errors.FeatureMissing,
            field="image",
            match="--qwen3-vl FOLDER",
        )
        assert error.metadata["feature"] == "vision.condition"
    style = ConditionPromptRequest(
        states=saved.message.results[0].states, options=Options(blend=BlendMode.BLEND_MODE_STYLE_DELTA)
    )
    await refused_async(
        qwen.condition(condition_request(text, style, saved)),
        errors.FailedPrecondition,
        reason="STYLE_DELTA_NEEDS_IMAGE",
        match="send the image",
    )


async def test_a_linear_blend_tells_what_it_cut(qwen: VisionClient) -> None:
    reply = await qwen.condition(condition_request(prompt(64), conditions(blend=BlendMode.BLEND_MODE_LINEAR)))
    rows = len(conditioned(reply))
    report = reply.message.prompt_embeds.report
    assert rows < 64
    assert (report.token_count, report.dropped_tokens, report.formatted_tokens) == (rows, 64 - rows, 64)
    assert (reply.message.report.before.tokens, reply.message.report.after.tokens) == (64, rows)


async def test_a_grey_image_has_no_style(qwen: VisionClient) -> None:
    grey = ImageInput(data=encoded(Image.new("RGB", (40, 40), (128, 128, 128))))
    reply = await qwen.condition(condition_request(prompt(), conditions(grey, blend=BlendMode.BLEND_MODE_STYLE_DELTA)))
    assert torch.equal(conditioned(reply), prompt())


async def test_curves_and_token_weights(qwen: VisionClient) -> None:
    text = prompt()
    for curve in GraduatedCurve.values():
        graduated = conditions(blend=BlendMode.BLEND_MODE_GRADUATED, curve=curve)
        got = conditioned(await qwen.condition(condition_request(text, graduated)))
        assert torch.equal(got[0], text[0]) and not torch.equal(got[1:], text[1:])
    weighted = conditions(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS, token_weights=[0.0] * 8 + [1.0])
    got = conditioned(await qwen.condition(condition_request(text, weighted)))
    assert torch.equal(got[:8], text[:8]) and not torch.equal(got[8], text[8])
