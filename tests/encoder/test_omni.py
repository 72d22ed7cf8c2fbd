"""Omni prompts: segments as ZImageOmniPipeline encodes them, held to a generator's limit, and refusals."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageOmniPipeline
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, Qwen3Model

from tests.encoder.helpers import EncoderClient, loaded
from tests.helpers.comparisons import largest_token_difference
from tests.helpers.refusals import refused, refused_async
from zrelay.v1 import encoder_pb2 as pb
from zrelay.v1.embeds_pb2 import LongPromptMode
from zrelay_encoder.api import requests
from zrelay_encoder.config import EncoderConfig
from zrelay_encoder.prompts.fitting import truncate_omni
from zrelay_encoder.prompts.formatting import OmniPrompt
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.omni import fits, last_position, segment_count
from zrelay_shared.torch_tensors import from_wire

REFUSE = LongPromptMode.LONG_PROMPT_MODE_REFUSE
PROMPTS = ["the fox of the first picture in the second", "x", "  два кота\n\n一只猫 🎨", ""]


@cache
def pipeline(folder: Path) -> Any:
    tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    text_encoder = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    parts = dict.fromkeys(("scheduler", "vae", "transformer", "siglip", "siglip_processor"))
    return ZImageOmniPipeline(
        **parts,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        text_encoder=Qwen3Model.from_pretrained(text_encoder, dtype=torch.float32),
    )


def reference(folder: Path, prompt: str, images: int, limit: int = 512) -> list[torch.Tensor]:
    """Returns the segments of one prompt as diffusers encodes them."""
    with torch.no_grad():
        (segments,), _ = pipeline(folder).encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=limit,
            num_condition_images=images,
            device=torch.device("cpu"),
        )
    return list(segments)


@pytest.mark.parametrize("images", [1, 2, 3])
@pytest.mark.parametrize("name", ["demo_checkpoint", "tiny"])
def test_segments_are_those_of_the_pipeline(name: str, images: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    encoder = loaded(folder)
    for prompt in PROMPTS:
        [formatted] = encoder.formatter.format([OmniPrompt(prompt, images)])
        fitted = truncate_omni(formatted.ids, formatted.segments, 512)
        assert fitted.dropped == 0 and len(fitted.sequences) == images + 2
        ours = encoder.embed(fitted.sequences)
        for mine, theirs in zip(ours, reference(folder, prompt, images), strict=True):
            assert largest_token_difference(mine, theirs) < 1e-5


def test_a_long_prompt_loses_its_last_words_as_in_the_pipeline(tiny: Path) -> None:
    encoder, prompt = loaded(tiny), "many red and blue shapes, " * 60
    [formatted] = encoder.formatter.format([OmniPrompt(prompt, 2)])
    fitted = truncate_omni(formatted.ids, formatted.segments, 128)
    assert fitted.dropped > 0 and fits(fitted.segments, 128)
    assert [kept for at, kept in enumerate(fitted.segments) if at != 2] == [
        length for at, length in enumerate(formatted.segments) if at != 2
    ]
    ours = encoder.embed(fitted.sequences)
    for mine, theirs in zip(ours, reference(tiny, prompt, 2, limit=fitted.segments[2]), strict=True):
        assert largest_token_difference(mine, theirs) < 1e-5


@given(st.integers(1, 8), st.integers(1, 3000), st.sampled_from([96, 512, 992, 1504]))
def test_what_fits_is_the_longest_that_does(images: int, words: int, limit: int) -> None:
    lengths = [3, *[2] * (images - 1), words, 2]
    fitted = truncate_omni(range(sum(lengths)), lengths, limit)
    kept = fitted.segments[images]
    assert sum(fitted.segments) == len(fitted.ids) and fits(fitted.segments, limit)
    assert kept == words or not fits([*lengths[:images], kept + 1, 2], limit)
    assert fitted.ids[-2:] == (sum(lengths) - 2, sum(lengths) - 1)
    assert list(fitted.ids[: sum(lengths[:images]) + kept]) == list(range(sum(lengths[:images]) + kept))


def test_positions() -> None:
    assert [segment_count(images) for images in (0, 1, 2)] == [1, 3, 4]
    assert last_position([5]) == 32 and last_position([32]) == 33
    assert last_position([4, 20, 2]) == 1 + 6 + 22 + 31
    assert last_position([4, 32, 2]) == 7 + 34 + 31


async def test_over_a_channel(demo: EncoderClient) -> None:
    request = pb.EncodePromptsRequest(
        prompts=[
            pb.Prompt(text="a red circle", image_count=2),
            pb.Prompt(text="a red circle"),
            pb.Prompt(allow_empty=True, image_count=1),
        ],
        options=pb.EncodeOptions(return_formatted_prompts=True),
    )
    parcel = await demo.encode(request)
    two, none, empty = parcel.message.results
    assert [len(result.prompt_embeds.segments) for result in (two, none, empty)] == [4, 1, 3]
    rows = [
        from_wire(parcel, segment.prompt_embeds, field="segment", rank=2).shape
        for segment in two.prompt_embeds.segments
    ]
    report = two.prompt_embeds.report
    assert report.token_count == report.formatted_tokens == sum(shape[0] for shape in rows)
    assert {shape[1] for shape in rows} == {128}
    assert two.prompt_embeds.fingerprint == none.prompt_embeds.fingerprint
    assert two.formatted_prompt == (
        "<|im_start|>user\n<|vision_start|><|vision_end|><|vision_start|><|vision_end|>a red circle<|im_end|>\n"
        "<|im_start|>assistant\n<|vision_start|><|vision_end|><|im_end|>"
    )


async def test_counted_over_a_channel(demo: EncoderClient) -> None:
    request = pb.FormatPromptRequest(prompts=[pb.Prompt(text="red " * 60, image_count=1)], text_limit=96)
    short = pb.FormatPromptRequest(prompts=[pb.Prompt(text="red", image_count=1)], text_limit=96)
    prompt = (await demo.format(request)).prompts[0]
    assert prompt.token_count == len(prompt.token_ids) > 60
    assert not prompt.fits and (await demo.format(short)).prompts[0].fits


@pytest.mark.parametrize(
    ("options", "field", "reason"),
    [
        (pb.EncodeOptions(text_limit=32), "prompts[0].image_count", "IMAGE_COUNT_INVALID"),
        (
            pb.EncodeOptions(text_limit=64, long_prompt_mode=REFUSE),
            "prompts[0]",
            "PROMPT_TOO_LONG",
        ),
    ],
)
async def test_what_a_limit_refuses(demo: EncoderClient, options: pb.EncodeOptions, field: str, reason: str) -> None:
    request = pb.EncodePromptsRequest(prompts=[pb.Prompt(text="red " * 60, image_count=2)], options=options)
    await refused_async(demo.encode(request), InvalidArgument, reason=reason, field=field)


@pytest.mark.parametrize(
    ("text", "field", "reason"),
    [
        ("prompts { text: 'a' image_count: 9 }", "prompts[0].image_count", "IMAGE_COUNT_INVALID"),
        ("prompts { text: 'a' image_count: 1 think_mode: THINK_MODE_EMPTY }", "prompts[0].think_mode",
         "THINK_MODE_INVALID"),
        ("prompts { image_count: 1 }", "prompts[0].text", "PROMPT_EMPTY"),
        ("prompts { text: 'a' image_count: 1 } options { pad_to: 512 }", "options.pad_to", "PAD_TO_INVALID"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, field: str, reason: str) -> None:
    message, config = text_format.Parse(text, pb.EncodePromptsRequest()), EncoderConfig(model=Path("model"))
    refused(lambda: requests.parse_encode(message, config), reason=reason, field=field)
