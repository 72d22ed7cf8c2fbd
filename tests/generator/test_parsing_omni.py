"""Requests with references: what they become, and the refusal of every one that is wrong."""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.helpers.images import encoded, picture
from zrelay.v1 import content_pb2, info_pb2, vision_pb2
from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.api.replies import loading_info
from zrelay_generator.api.requests import parse_spec
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.omni.spec import OmniLimits, OmniSpec, omni_limits
from zrelay_shared.errors import EncoderMismatch, FeatureMissing, InvalidArgument, PayloadCorrupt, ZrelayError
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.torch_tensors import to_wire
from zrelay_shared.wire import Parcel

from .fixture_types import Load, RequestOf
from .omni import Words, request_with
from .parsing import accepts_of, part_of

FILES = [encoded(picture(100, 80, 1)), encoded(picture(64, 64, 2))]
GRIDS = [torch.randn(6, 8, 96), torch.randn(3, 3, 96)]


@pytest.fixture(scope="module")
def accepts(demo_omni: Path, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    return accepts_of(demo_omni, load(demo_omni), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def request_for(fingerprint: EncoderFingerprint) -> RequestOf:
    """Two references, or as changed."""

    def made(
        words: Words | None = None, files: list[bytes] = FILES, grids: list[Tensor] = GRIDS, **changed: Any
    ) -> Parcel[pb.GenerateRequest]:
        return request_with(fingerprint, words or Words.of(2, 20, 128), files, grids, **changed)

    return made


def test_what_an_omni_checkpoint_takes(accepts: Acceptance) -> None:
    assert omni_limits(accepts.model) == OmniLimits(siglip_width=96, max_side=1024)


def test_references(accepts: Acceptance, request_for: RequestOf) -> None:
    words = Words.of(2, 20, 128)
    parcel = request_for(words, negative=Words.of(2, 3, 128), guidance_scale=2.0)
    spec = parse_spec(parcel, parcel.message.spec, accepts)
    omni = part_of(spec, OmniSpec)
    assert spec.prompt.embeds.shape == (28, 128) and torch.equal(spec.prompt.embeds, words.joined)
    assert spec.prompt.lengths == (4, 2, 20, 2)
    assert part_of(spec, GuidanceSpec).negative_prompt.lengths == (4, 2, 3, 2)
    assert [tuple(found.shape) for found in omni.pictures] == [(3, 80, 96), (3, 64, 64)]
    assert all(torch.equal(mine, sent) for mine, sent in zip(omni.grids, GRIDS, strict=True))
    assert omni.files == tuple(hashlib.sha256(data).hexdigest() for data in FILES)
    assert omni.encoders == ("5" * 64,) * 2


def test_no_references_is_omni_all_the_same(accepts: Acceptance, request_for: RequestOf) -> None:
    parcel = request_for(Words.of(0, 20, 128), [], [])
    spec = parse_spec(parcel, parcel.message.spec, accepts)
    assert part_of(spec, OmniSpec).pictures == () and spec.prompt.lengths == (20,)
    parcel.message.spec.ClearField("omni")
    assert parse_spec(parcel, parcel.message.spec, accepts).feature(OmniSpec) is None


def test_a_picture_lies_upright(accepts: Acceptance, request_for: RequestOf) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    picture(96, 64, 5).save(buffer, "JPEG", exif=exif)
    parcel = request_for(Words.of(1, 4, 128), [buffer.getvalue()], GRIDS[:1])
    (found,) = part_of(parse_spec(parcel, parcel.message.spec, accepts), OmniSpec).pictures
    assert found.shape == (3, 96, 64)


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"grids": GRIDS[:1]}, "spec.omni.siglip_embeds", "SIGLIP_COUNT"),
        ({"files": FILES[:1]}, "spec.omni.siglip_embeds", "SIGLIP_COUNT"),
        ({"files": FILES * 5, "grids": GRIDS * 5}, "spec.omni.images", "REFERENCE_COUNT"),
        ({"words": Words.of(1, 20, 128)}, "spec.prompt.prompt_embeds.segments", "SEGMENT_COUNT"),
        ({"words": Words.of(0, 20, 128)}, "spec.prompt.prompt_embeds.segments", "SEGMENT_COUNT"),
        ({"files": [], "grids": []}, "spec.prompt.prompt_embeds.segments", "SEGMENT_COUNT"),
        ({"negative": Words.of(0, 3, 128), "guidance_scale": 2.0}, "spec.negative_prompt.prompt_embeds.segments",
         "SEGMENT_COUNT"),
        ({"words": Words.of(2, 900, 128), "guidance_scale": 2.0}, "spec.negative_prompt", "NEGATIVE_PROMPT_MISSING"),
        ({"words": Words.of(2, 990, 128)}, "spec.prompt.prompt_embeds.segments", "PROMPT_TOO_LONG"),
        ({"words": Words.of(2, 993, 128)}, "spec.prompt.prompt_embeds.segments[2].prompt_embeds", "PROMPT_TOO_LONG"),
        ({"words": Words.of(2, 20, 64)}, "spec.prompt.prompt_embeds.segments[0].prompt_embeds", "TENSOR_SHAPE"),
        ({"grids": [torch.randn(6, 8, 95), GRIDS[1]]}, "spec.omni.siglip_embeds[0].grid", "SIGLIP_WIDTH"),
        ({"grids": [GRIDS[0], torch.randn(48, 96)]}, "spec.omni.siglip_embeds[1].grid", "TENSOR_RANK"),
        ({"grids": [GRIDS[0], torch.zeros(65, 64, 96)]}, "spec.omni.siglip_embeds[1].grid", "SIGLIP_GRID_TOO_LARGE"),
        ({"grids": [GRIDS[0], torch.full((2, 2, 96), torch.nan)]}, "spec.omni.siglip_embeds[1].grid",
         "TENSOR_NOT_FINITE"),
        ({"files": [FILES[0], b"GIF89a no picture"]}, "spec.omni.images[1]", "IMAGE_FORMAT"),
        ({"files": [FILES[0], FILES[1][:60]]}, "spec.omni.images[1]", "IMAGE_UNREADABLE"),
        ({"files": [b"", FILES[1]]}, "spec.omni.images[0]", "IMAGE_MISSING"),
        ({"files": [encoded(Image.new("RGB", (40, 90))), FILES[1]]}, "spec.omni.images[0]", "REFERENCE_INVALID"),
    ],
)  # fmt: skip
def test_what_is_refused(
    changed: dict[str, Any], field: str, reason: str, accepts: Acceptance, request_for: RequestOf
) -> None:
    parcel = request_for(**changed)
    with pytest.raises(InvalidArgument) as caught:
        parse_spec(parcel, parcel.message.spec, accepts)
    assert (caught.value.field, caught.value.reason) == (field, reason)
    assert "expected" in caught.value.message or "needs it" in caught.value.message


def test_further_refusals(accepts: Acceptance, request_for: RequestOf) -> None:
    def refused(change: Callable[[Parcel[pb.GenerateRequest], gpb.GenerationSpec], None]) -> ZrelayError:
        parcel = request_for()
        change(parcel, parcel.message.spec)
        with pytest.raises(ZrelayError) as caught:
            parse_spec(parcel, parcel.message.spec, accepts)
        return caught.value

    def another_engine(parcel: Parcel[pb.GenerateRequest], spec: gpb.GenerationSpec) -> None:
        spec.omni.siglip_embeds[1].fingerprint.engine = vision_pb2.VISION_ENGINE_QWEN3_VL

    def damaged(parcel: Parcel[pb.GenerateRequest], spec: gpb.GenerationSpec) -> None:
        spec.omni.siglip_embeds[0].grid.crc32c ^= 1

    def by_name(parcel: Parcel[pb.GenerateRequest], spec: gpb.GenerationSpec) -> None:
        spec.omni.images[1].content.CopyFrom(content_pb2.ContentRef(sha256="0" * 64))

    def nothing(parcel: Parcel[pb.GenerateRequest], spec: gpb.GenerationSpec) -> None:
        spec.omni.images[0].ClearField("source")

    def integers(parcel: Parcel[pb.GenerateRequest], spec: gpb.GenerationSpec) -> None:
        to_wire(parcel, spec.omni.siglip_embeds[0].grid, torch.ones(2, 2, 96, dtype=torch.int64))

    def stranger(parcel: Parcel[pb.GenerateRequest], spec: gpb.GenerationSpec) -> None:
        spec.prompt.prompt_embeds.fingerprint.tokenizer_digest = "0" * 64
        spec.prompt.prompt_embeds.fingerprint.digest = ""

    assert refused(another_engine).reason == "SIGLIP_ENGINE"
    assert isinstance(refused(damaged), PayloadCorrupt)
    assert isinstance(refused(by_name), FeatureMissing)
    assert refused(nothing).reason == "IMAGE_MISSING"
    assert refused(integers).reason == "TENSOR_DTYPE"
    assert isinstance(refused(stranger), EncoderMismatch)


def test_reference_over_size_limits_is_refused(accepts: Acceptance, request_for: RequestOf) -> None:
    parcel = request_for()
    few_bytes, few_pixels = replace(accepts, max_image_bytes=99), replace(accepts, max_image_pixels=64)
    for narrow, field in ((few_bytes, "spec.omni.images[0]"), (few_pixels, "images[0]")):
        with pytest.raises(InvalidArgument) as caught:
            parse_spec(parcel, parcel.message.spec, narrow)
        assert field in caught.value.field and caught.value.reason in ("IMAGE_TOO_LARGE", "IMAGE_TOO_MANY_PIXELS")


@pytest.mark.parametrize("with_omni", [True, False])
def test_a_transformer_without_siglip_parts(with_omni: bool, accepts: Acceptance, request_for: RequestOf) -> None:
    parcel = request_for()
    if not with_omni:
        parcel.message.spec.ClearField("omni")
    with pytest.raises(FeatureMissing) as caught:
        parse_spec(parcel, parcel.message.spec, replace(accepts, model=replace(accepts.model, siglip_width=0)))
    assert caught.value.metadata == {"feature": "generate.omni"}
    assert "SigLIP parts" in caught.value.message and "Omni checkpoint" in caught.value.message


def test_segments_without_references_say_what_is_missing(accepts: Acceptance, request_for: RequestOf) -> None:
    parcel = request_for()
    parcel.message.spec.ClearField("omni")
    with pytest.raises(InvalidArgument, match="send its references"):
        parse_spec(parcel, parcel.message.spec, accepts)


def test_info_tells_truly(accepts: Acceptance) -> None:
    def feature(given: Acceptance | None) -> info_pb2.Feature:
        return next(f for f in loading_info("demo", None, given).features if f.name == "generate.omni")

    assert not feature(None).available and "SigLIP" in feature(None).note
    assert feature(accepts).available and "at most 8 references" in feature(accepts).note
