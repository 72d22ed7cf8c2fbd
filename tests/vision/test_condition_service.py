"""ConditionPrompt over a real channel: the prompt's way through the service, and every refusal."""

from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.content_pb2 import ContentRef, ImageInput
from zrelay.v1.embeds_pb2 import PromptSegment
from zrelay.v1.tensor_pb2 import TensorDtype
from zrelay.v1.vision_pb2 import (
    BlendMode,
    ConditionPromptRequest,
    EncodeImagesRequest,
    GraduatedCurve,
    OutlierMask,
    StateNormalization,
    VisionEngine,
)
from zrelay.v1.vision_pb2 import ConditionOptions as Options
from zrelay_shared import errors, reference_file
from zrelay_shared.fingerprint import EXPERIMENTAL, compare, from_message
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel
from zrelay_vision.blend import resample
from zrelay_vision.config import VisionConfig
from zrelay_vision.normalize import normalize_token_rms
from zrelay_vision.token_modes import StatesOptions

from .conftest import (
    ENCODER,
    WIDTH,
    Serve,
    Served,
    condition_request,
    conditioned,
    encoded,
    load,
    picture,
    prompt,
    states_of,
)

IMAGE = picture(50, 40)
FILE = ImageInput(data=encoded(IMAGE))
BLENDS = [mode for mode in BlendMode.values() if mode]
NORMALIZATIONS = [how for how in StateNormalization.values() if how]
MASKS = [mask for mask in OutlierMask.values() if mask]


def asked(image: ImageInput = FILE, **options: Any) -> ConditionPromptRequest:
    return ConditionPromptRequest(image=image, options=Options(**options))


def calibrated(folder: Path, encoder: Any = ENCODER) -> Path:
    """A folder with reference statistics of the tests' encoder."""
    folder.mkdir(exist_ok=True)
    ones, zeros = array("f", [1.0] * WIDTH), array("f", [0.0] * WIDTH)
    found = reference_file.ReferenceSet(
        encoder, zeros, ones, zeros, ones, array("f", [1.0] * 5), prompts=1, tokens=5, corpus="test"
    )
    reference_file.write(folder / "tiny.safetensors", found)
    return folder


@pytest.fixture
async def ready(serve: Serve, tiny: Path, tmp_path: Path) -> Served:
    """A calibrated service."""
    stats = calibrated(tmp_path / "stats")
    served = await serve(
        VisionConfig(qwen3_vl=tiny, device="cpu", dtype="float32", hidden_layer=-2, reference_stats=stats)
    )
    await served.server.loaded
    return served


async def test_a_prompt_is_conditioned(qwen: Served, tiny: Path) -> None:
    text = prompt(dtype=torch.float32)
    reply = await qwen.condition(condition_request(text, asked()))
    made = load(tiny, hidden_layer=-2)
    states = made.run(made.prepare("x", IMAGE.size, lambda: IMAGE, StatesOptions(), None), lambda: False).hidden_states
    wanted = 0.3 * resample(normalize_token_rms(states, text), len(text)) + 0.7 * text
    assert torch.allclose(conditioned(reply), wanted, atol=1e-4)
    report = reply.message.report
    assert (report.before.tokens, report.states.tokens, report.after.tokens) == (9, len(states), 9)
    assert report.before.std == pytest.approx(float(text.std(correction=0)), rel=1e-4)
    assert (report.calibrated, report.outlier_count) == (False, 0)


async def test_the_fingerprint_says_what_was_done(qwen: Served) -> None:
    request = condition_request(prompt(), asked(alpha=0.5, blend=BlendMode.BLEND_MODE_SLERP))
    reply = await qwen.condition(request)
    got = from_message(reply.message.prompt_embeds.fingerprint)
    mark, particulars = got.modifications
    sha256 = reply.message.image_sha256
    info = (await qwen.info()).engines[0].fingerprint
    assert mark == "conditioning"
    assert particulars == (f"slerp alpha=0.5 token_rms; qwen3_vl {info.digest[:12]} layer=-2 full image={sha256[:12]}")
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
async def test_alpha_0_gives_the_message_back_bit_for_bit(ready: Served, dtype: torch.dtype, blend: int) -> None:
    weights = [0.5] * 9 if blend == BlendMode.BLEND_MODE_TOKEN_WEIGHTS else []
    request = condition_request(prompt(dtype=dtype), asked(alpha=0.0, blend=blend, token_weights=weights))
    reply = await ready.condition(request)
    given, got = Parcel(request.message.prompt_embeds, request), Parcel(reply.message.prompt_embeds, reply)
    assert given.to_bytes() == got.to_bytes()
    assert reply.message.report.before == reply.message.report.after


@pytest.mark.parametrize("blend", BLENDS)
async def test_every_blend_normalisation_and_mask(ready: Served, blend: int) -> None:
    weights = [0.5] * 9 if blend == BlendMode.BLEND_MODE_TOKEN_WEIGHTS else []
    seen = set()
    for how in NORMALIZATIONS:
        for mask in MASKS:
            options = {"blend": blend, "normalization": how, "outlier_mask": mask, "outlier_threshold": 1.5}
            reply = await ready.condition(condition_request(prompt(), asked(token_weights=weights, **options)))
            got = conditioned(reply)
            assert (got.dtype, got.shape) == (torch.bfloat16, (9, WIDTH)) and not torch.equal(got, prompt())
            report = reply.message.report
            assert report.calibrated
            assert (report.outlier_count > 0) == (mask != OutlierMask.OUTLIER_MASK_NONE)
            assert len(report.outliers) == min(20, report.outlier_count)
            assert all(one.ratio > 1.5 for one in report.outliers)
            seen.add(bytes(got.view(torch.uint8).numpy().tobytes()))
    assert len(seen) > 4


async def test_saved_states_do_what_the_image_does(qwen: Served, serve: Serve) -> None:
    text = prompt()
    wanted = conditioned(await qwen.condition(condition_request(text, asked())))
    saved = await qwen.encode(
        EncodeImagesRequest(
            images=[FILE], engine=VisionEngine.VISION_ENGINE_QWEN3_VL, dtype=TensorDtype.TENSOR_DTYPE_F32
        )
    )
    bare = await serve(VisionConfig())
    await bare.server.loaded
    for served in (qwen, bare):
        message = ConditionPromptRequest(states=saved.message.results[0].states)
        reply = await served.condition(condition_request(text, message, saved))
        assert torch.equal(conditioned(reply), wanted)
        assert reply.message.image_sha256 == ""
        assert "image=" not in reply.message.prompt_embeds.fingerprint.modifications[1]
    with pytest.raises(errors.FeatureMissing, match="--qwen3-vl FOLDER") as caught:
        await bare.condition(condition_request(text, asked()))
    assert (caught.value.field, caught.value.metadata["feature"]) == ("image", "vision.condition")
    style = ConditionPromptRequest(
        states=saved.message.results[0].states, options=Options(blend=BlendMode.BLEND_MODE_STYLE_DELTA)
    )
    with pytest.raises(errors.FailedPrecondition, match="send the image") as refused:
        await qwen.condition(condition_request(text, style, saved))
    assert refused.value.reason == "STYLE_DELTA_NEEDS_IMAGE"


async def test_a_linear_blend_tells_what_it_cut(qwen: Served) -> None:
    reply = await qwen.condition(condition_request(prompt(64), asked(blend=BlendMode.BLEND_MODE_LINEAR)))
    rows = len(conditioned(reply))
    report = reply.message.prompt_embeds.report
    assert rows < 64
    assert (report.token_count, report.dropped_tokens, report.formatted_tokens) == (rows, 64 - rows, 64)
    assert (reply.message.report.before.tokens, reply.message.report.after.tokens) == (64, rows)


async def test_a_grey_image_has_no_style(qwen: Served) -> None:
    from PIL import Image

    grey = ImageInput(data=encoded(Image.new("RGB", (40, 40), (128, 128, 128))))
    reply = await qwen.condition(condition_request(prompt(), asked(grey, blend=BlendMode.BLEND_MODE_STYLE_DELTA)))
    assert torch.equal(conditioned(reply), prompt())


async def test_curves_and_token_weights(qwen: Served) -> None:
    text = prompt()
    for curve in GraduatedCurve.values():
        graduated = asked(blend=BlendMode.BLEND_MODE_GRADUATED, curve=curve)
        got = conditioned(await qwen.condition(condition_request(text, graduated)))
        assert torch.equal(got[0], text[0]) and not torch.equal(got[1:], text[1:])
    weighted = asked(blend=BlendMode.BLEND_MODE_TOKEN_WEIGHTS, token_weights=[0.0] * 8 + [1.0])
    got = conditioned(await qwen.condition(condition_request(text, weighted)))
    assert torch.equal(got[:8], text[:8]) and not torch.equal(got[8], text[8])


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
