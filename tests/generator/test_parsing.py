"""Every request that is wrong, and the refusal it gets."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import generator_pb2 as pb
from zrelay.v1 import tensor_pb2
from zrelay_generator.api.requests import parse_request_id, parse_spec
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.expected_encoder import compare_encoder
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.provenance import LoadedIdentity, provenance_json
from zrelay_generator.features.registry import UNBUILT
from zrelay_shared.errors import EncoderMismatch, FeatureMissing, InvalidArgument, PayloadCorrupt
from zrelay_shared.fingerprint import EncoderComparison, EncoderFingerprint, to_message
from zrelay_shared.wire import Parcel

from .fixture_types import Load, MakeEmbeds, Parse, RequestOf
from .parsing import accepts_of, part_of, refused_request


@pytest.fixture(scope="session")
def accepts(demo: Path, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Acceptance:
    return accepts_of(demo, load(demo), tmp_path_factory.mktemp("cache"))


@pytest.fixture
def parse(accepts: Acceptance) -> Parse:
    return lambda parcel: parse_spec(parcel, parcel.message.spec, accepts)


def tensor_of(parcel: Parcel[pb.GenerateRequest]) -> tensor_pb2.Tensor:
    return parcel.message.spec.prompt.prompt_embeds.segments[0].prompt_embeds


def test_defaults_are_the_checkpoints(parse: Parse, request_of: RequestOf, fingerprint: EncoderFingerprint) -> None:
    spec = parse(request_of())
    asked = spec.sampling
    assert (asked.width, asked.height, asked.num_inference_steps, asked.shift) == (128, 128, 8, 3.0)
    assert (asked.guidance_scale, asked.cfg_truncation, asked.num_images) == (0.0, 1.0, 1)
    assert spec.prompt.embeds.shape == (20, 128) and spec.origin.encoder == fingerprint


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"width": 0}, "width"),
        ({"width": 130}, "width"),
        ({"height": 16}, "height"),
        ({"height": 1 << 31}, "height"),
        ({"width": 2064}, "width"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 10_000}, "num_inference_steps"),
        ({"num_images": 0}, "num_images"),
        ({"num_images": 17}, "num_images"),
        ({"num_images": 2, "seed": (1 << 64) - 1}, "seed"),
        ({"num_images": 16, "seed": (1 << 64) - 15}, "seed"),
        ({"guidance_scale": -1.0}, "guidance_scale"),
        ({"guidance_scale": math.nan}, "guidance_scale"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"cfg_normalization": -0.5}, "cfg_normalization"),
        ({"cfg_truncation": math.nan}, "cfg_truncation"),
        ({"shift": 0.0}, "shift"),
        ({"shift": 1e-17}, "shift"),
        ({"shift": math.nan}, "shift"),
        ({"sigmas": [0.5, 0.75]}, "sigmas"),
        ({"sigmas": [1.5]}, "sigmas"),
        ({"sigmas": [1.0, math.nan]}, "sigmas"),
        ({"sigmas": [1 - i / 200 for i in range(101)]}, "sigmas"),
        ({"sigmas": [1.0, 0.5], "shift": 0.0}, "shift"),
        ({"sigmas": [1.0, 0.9999999], "shift": 1000.0}, "sigmas"),
        ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "num_inference_steps"),
    ],
)
def test_sampling_that_cannot_be(given: dict[str, Any], field: str, parse: Parse, request_of: RequestOf) -> None:
    error = refused_request(parse, request_of(**given))
    assert error.field == f"spec.sampling.{field}" and error.reason.endswith("_INVALID")


def test_refusal_of_a_size_suggests_a_valid_one(parse: Parse, request_of: RequestOf) -> None:
    assert "1000; use 1008" not in refused_request(parse, request_of(width=1001)).message
    assert "1001; use 1008" in refused_request(parse, request_of(width=1001)).message


def test_a_server_may_make_every_job_deterministic(accepts: Acceptance, request_of: RequestOf) -> None:
    parcel = request_of()
    for server in (False, True):
        spec = parse_spec(parcel, parcel.message.spec, replace(accepts, deterministic=server))
        assert spec.deterministic is server
    parcel.message.spec.deterministic = True
    assert parse_spec(parcel, parcel.message.spec, accepts).deterministic


def test_too_many_pixels(accepts: Acceptance, request_of: RequestOf) -> None:
    parcel = request_of(width=1024, height=1024)
    small = replace(accepts, sampling=replace(accepts.sampling, max_pixels=512 * 512))
    assert refused_request(lambda p: parse_spec(p, p.message.spec, small), parcel).reason == "SIZE_INVALID"


def test_sigmas_are_taken_as_they_are(parse: Parse, request_of: RequestOf) -> None:
    asked = parse(request_of(sigmas=[1.0, 0.75, 0.25])).sampling
    assert asked.schedule.sigmas == (1.0, 0.75, 0.25, 0.0) and asked.shift is None
    assert parse(request_of(sigmas=[1.0, 0.75], num_inference_steps=2)).sampling.num_inference_steps == 2


def test_reported_sigmas_reproduce_the_schedule(parse: Parse, request_of: RequestOf) -> None:
    asked = parse(request_of(sigmas=[1.0, 0.75, 0.25], shift=3.0)).sampling
    assert asked.schedule.sigmas == pytest.approx((1.0, 0.9, 0.5, 0.0)) and asked.shift is None
    again = parse(request_of(sigmas=asked.schedule.sigmas[:-1])).sampling
    assert again.schedule == asked.schedule


def test_guidance_needs_a_negative_prompt(parse: Parse, request_of: RequestOf, embeds: MakeEmbeds) -> None:
    assert refused_request(parse, request_of(guidance_scale=2.0)).field == "spec.negative_prompt"
    spec = parse(request_of(guidance_scale=2.0, negative=embeds(3, 128)))
    assert part_of(spec, GuidanceSpec).negative_prompt.embeds.shape == (3, 128)


def test_no_prompt(parse: Parse, request_of: RequestOf) -> None:
    parcel = request_of()
    parcel.message.spec.ClearField("prompt")
    assert refused_request(parse, parcel).reason == "PROMPT_MISSING"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_embeddings_that_are_not_finite(bad: float, parse: Parse, request_of: RequestOf, embeds: MakeEmbeds) -> None:
    tensor = embeds(20, 128)
    tensor[7, 9] = bad
    assert refused_request(parse, request_of(tensor)).reason == "TENSOR_NOT_FINITE"


def test_embeddings_of_another_shape(parse: Parse, request_of: RequestOf, embeds: MakeEmbeds) -> None:
    error = refused_request(parse, request_of(embeds(20, 64)))
    assert error.reason == "TENSOR_SHAPE" and "rows of 128 values, got rows of 64" in error.message
    assert refused_request(parse, request_of(torch.ones(20))).reason == "TENSOR_RANK"


def test_a_prompt_over_the_limit(parse: Parse, request_of: RequestOf, embeds: MakeEmbeds) -> None:
    assert parse(request_of(embeds(992, 128))).prompt.embeds.shape[0] == 992
    error = refused_request(parse, request_of(embeds(993, 128)))
    assert error.reason == "PROMPT_TOO_LONG" and "992" in error.message and "993" in error.message


def test_damaged_embeddings(parse: Parse, request_of: RequestOf) -> None:
    parcel = request_of()
    tensor = tensor_of(parcel)
    whole = bytes(parcel.bytes_of(tensor))
    parcel.attach(tensor, whole[:-2])
    assert refused_request(parse, parcel).reason == "TENSOR_SIZE"
    parcel.attach(tensor, whole[:-1] + bytes([whole[-1] ^ 1]))
    assert refused_request(parse, parcel, PayloadCorrupt).reason == "CHECKSUM_MISMATCH"
    tensor.ClearField("crc32c")
    assert refused_request(parse, parcel).reason == "TENSOR_CHECKSUM_MISSING"


@pytest.mark.parametrize("dtype", [tensor_pb2.TENSOR_DTYPE_UNSPECIFIED, tensor_pb2.TENSOR_DTYPE_I64, 77])
def test_a_dtype_that_is_none(dtype: Any, parse: Parse, request_of: RequestOf) -> None:
    parcel = request_of()
    tensor_of(parcel).dtype = dtype
    assert refused_request(parse, parcel).reason == "TENSOR_DTYPE"


@pytest.mark.parametrize(("name", "value"), [("family", "t5"), ("width", 2560), ("tokenizer_digest", "0" * 64)])
def test_an_encoder_that_does_not_belong_here(
    name: str, value: Any, parse: Parse, request_of: RequestOf, fingerprint: EncoderFingerprint
) -> None:
    parcel = request_of()
    other = to_message(replace(fingerprint, **{name: value}))
    parcel.message.spec.prompt.prompt_embeds.fingerprint.CopyFrom(other)
    error = refused_request(parse, parcel, EncoderMismatch)
    assert error.metadata["field"] == name and error.metadata["got"] == str(value)
    assert "zrelay serve encoder --model" in error.message


@pytest.mark.parametrize(
    ("changed", "relation"),
    [
        ({"hidden_layer": -3}, "experimental"),
        ({"compute_dtype": "float32"}, "exact"),
        ({"weights_digest": "1" * 64}, "experimental"),
        ({"modifications": ("steering",)}, "experimental"),
    ],
)
def test_differences_are_reported(
    changed: dict[str, Any],
    relation: str,
    accepts: Acceptance,
    parse: Parse,
    request_of: RequestOf,
    fingerprint: EncoderFingerprint,
) -> None:
    parcel = request_of()
    parcel.message.spec.prompt.prompt_embeds.fingerprint.CopyFrom(to_message(replace(fingerprint, **changed)))
    assert compare_encoder(accepts.encoder, parse(parcel).origin.encoder).relation == relation


def test_a_forged_fingerprint(parse: Parse, request_of: RequestOf) -> None:
    parcel = request_of()
    parcel.message.spec.prompt.prompt_embeds.fingerprint.hidden_layer = -9
    assert refused_request(parse, parcel, EncoderMismatch).reason == "FINGERPRINT_INVALID"


@pytest.mark.parametrize(
    ("change", "feature"),
    [
        (lambda spec: spec.omni.SetInParent(), "generate.omni"),
        (lambda spec: spec.prompt.prompt_embeds.segments.add(), "generate.omni"),
        (lambda spec: spec.prompt.content.SetInParent(), "content.upload"),
    ],
)
def test_what_is_not_built(
    change: Callable[[gpb.GenerationSpec], None], feature: str, parse: Parse, request_of: RequestOf
) -> None:
    parcel = request_of()
    change(parcel.message.spec)
    error = refused_request(parse, parcel, FeatureMissing)
    assert error.metadata["feature"] == feature and error.reason == "FEATURE_MISSING"


@pytest.mark.parametrize(("field", "capability"), UNBUILT.items())
def test_an_unbuilt_feature_is_refused_before_anything_else(
    field: str, capability: str, parse: Parse, request_of: RequestOf
) -> None:
    parcel = request_of(width=1)
    value = getattr(parcel.message.spec, field)
    value.add() if hasattr(value, "add") else value.SetInParent()
    error = refused_request(parse, parcel, FeatureMissing)
    assert (error.reason, error.field) == ("FEATURE_MISSING", f"spec.{field}")
    assert error.metadata == {"feature": capability}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda spec: setattr(spec.output, "format", 9), "spec.output.format"),
        (lambda spec: setattr(spec.output, "quality", 0), "spec.output.quality"),
        (lambda spec: setattr(spec.output, "quality", 101), "spec.output.quality"),
        (lambda spec: setattr(spec.preview, "max_side", 0), "spec.preview.max_side"),
        (lambda spec: setattr(spec, "priority", 9), "spec.priority"),
        (lambda spec: spec.provenance.labels.update({str(i): "" for i in range(33)}), "spec.provenance.labels"),
        (lambda spec: spec.provenance.labels.update({"a": "x" * 1025}), "spec.provenance.labels"),
        (lambda spec: setattr(spec.provenance, "prompt", "x" * (1 << 20)), "spec.provenance"),
    ],
)
def test_output_that_cannot_be(
    change: Callable[[gpb.GenerationSpec], None], field: str, parse: Parse, request_of: RequestOf
) -> None:
    parcel = request_of()
    change(parcel.message.spec)
    assert refused_request(parse, parcel).field == field


def test_long_words_in_a_jpeg(parse: Parse, request_of: RequestOf) -> None:
    parcel = request_of()
    parcel.message.spec.provenance.prompt = "狐" * 10_000
    parse(parcel)
    parcel.message.spec.output.format = gpb.IMAGE_FORMAT_JPEG
    assert refused_request(parse, parcel).reason == "PROVENANCE_TOO_LARGE"
    parcel.message.spec.output.omit_provenance = True
    parse(parcel)


def test_the_encoders_path_stays_at_home(parse: Parse, request_of: RequestOf) -> None:
    spec = parse(request_of())
    assert spec.origin.encoder is not None and "/home/somebody" in spec.origin.encoder.model_id
    loaded = LoadedIdentity("demo", "", "", "", "cpu", "float32")
    assert "/home/somebody" not in provenance_json(spec, loaded, EncoderComparison("exact"), 0, 1, "")


@pytest.mark.parametrize("text", ["a b", "x" * 65, "ä", "../etc", "a\n"])
def test_request_ids(text: str) -> None:
    with pytest.raises(InvalidArgument, match="request_id: expected"):
        parse_request_id(text)
    assert parse_request_id("A-z_0.9") == "A-z_0.9"
    assert len(parse_request_id("")) == 32
