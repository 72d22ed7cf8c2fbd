"""Start images and skip-layer guidance of a request, and the refusals of those that cannot be."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from zrelay.v1 import generator_pb2 as pb
from zrelay_generator.api.requests import parse_spec
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.provenance import LoadedIdentity, provenance_json
from zrelay_generator.features.request import decimal
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec
from zrelay_shared.errors import FeatureMissing
from zrelay_shared.fingerprint import EncoderComparison
from zrelay_shared.wire import Parcel

from .fixture_types import Load, Parse, RequestOf
from .parsing import accepts_of, part_of, refused_request


@pytest.fixture(scope="session")
def parse(demo: Path, load: Load, tmp_path_factory: pytest.TempPathFactory) -> Parse:
    accepts = accepts_of(demo, load(demo), tmp_path_factory.mktemp("cache"))
    return lambda parcel: parse_spec(parcel, parcel.message.spec, accepts)


@pytest.fixture
def from_picture(request_of: RequestOf) -> RequestOf:
    """A request that starts from a grey picture."""

    def made(strength: float | None = None, data: bytes | None = None, **sampling: Any) -> Parcel[pb.GenerateRequest]:
        parcel = request_of(**sampling)
        if data is None:
            buffer = io.BytesIO()
            Image.new("RGB", (50, 70), (128, 128, 128)).save(buffer, "PNG")
            data = buffer.getvalue()
        given = parcel.message.spec.image_to_image
        given.image.data = data
        if strength is not None:
            given.strength = strength
        return parcel

    return made


def test_a_start_image(parse: Parse, from_picture: RequestOf) -> None:
    spec = parse(from_picture(width=64, height=96))
    start = part_of(spec, ImageToImageSpec)
    assert start.pixels.shape == (3, 96, 64) and (start.pixels == 128).all()
    assert (start.strength, spec.sampling.first_step, spec.sampling.run_steps) == (0.6, 3, 5)
    assert spec.sampling.num_inference_steps == 8 and len(start.file_sha256) == 64


def test_a_strength_is_the_decimal_that_was_written(parse: Parse, from_picture: RequestOf) -> None:
    asked = parse(from_picture(strength=0.6, num_inference_steps=10)).sampling
    assert asked.first_step == 4, "as diffusers has it for 0.6, which float32 is not"
    for tenths in range(1, 100):
        assert decimal(torch.tensor(tenths / 100).item()) == tenths / 100


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_strength_that_runs_nothing(strength: float, parse: Parse, from_picture: RequestOf) -> None:
    error = refused_request(parse, from_picture(strength=strength))
    assert error.reason == "STRENGTH_INVALID" and error.field == "spec.image_to_image.strength"
    assert "more than 0 and at most 1" in error.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "IMAGE_MISSING"), (b"no image", "IMAGE_FORMAT"), (bytes((32 << 20) + 1), "IMAGE_TOO_LARGE")],
)
def test_an_image_that_is_none(data: bytes, reason: str, parse: Parse, from_picture: RequestOf) -> None:
    error = refused_request(parse, from_picture(data=data))
    assert error.reason == reason and error.field == "spec.image_to_image.image"


def test_no_image_at_all(parse: Parse, request_of: RequestOf) -> None:
    parcel = request_of()
    parcel.message.spec.image_to_image.SetInParent()
    assert refused_request(parse, parcel).reason == "IMAGE_MISSING"
    parcel.message.spec.image_to_image.image.content.sha256 = "0" * 64
    assert refused_request(parse, parcel, FeatureMissing).metadata["feature"] == "content.upload"


def skipping(request_of: RequestOf, **given: Any) -> Parcel[pb.GenerateRequest]:
    parcel = request_of()
    into = parcel.message.spec.skip_layer_guidance
    into.SetInParent()
    for name, value in given.items():
        into.layers.extend(value) if name == "layers" else setattr(into, name, value)
    return parcel


def test_skip_layers(parse: Parse, request_of: RequestOf) -> None:
    found = part_of(parse(skipping(request_of, layers=[2, 3, 3])), SkipLayerSpec)
    assert (found.scale, found.layers, found.start, found.stop) == (2.5, frozenset({2, 3}), 0.05, 0.5)
    assert parse(request_of()).feature(SkipLayerSpec) is None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "LAYERS_INVALID"),
        ({"layers": [6]}, "LAYERS_INVALID"),
        ({"layers": [(1 << 32) - 1]}, "LAYERS_INVALID"),
        ({"layers": [1], "scale": -1.0}, "SCALE_INVALID"),
        ({"layers": [1], "scale": math.nan}, "SCALE_INVALID"),
        ({"layers": [1], "start": 0.6}, "WINDOW_INVALID"),
        ({"layers": [1], "stop": 1.5}, "WINDOW_INVALID"),
        ({"layers": [1], "start": math.nan}, "WINDOW_INVALID"),
    ],
)
def test_skip_layers_that_cannot_be(given: dict[str, Any], reason: str, parse: Parse, request_of: RequestOf) -> None:
    assert refused_request(parse, skipping(request_of, **given)).reason == reason


def test_the_published_default_is_refused_with_the_reason_where_blocks_are_fewer(
    parse: Parse, request_of: RequestOf
) -> None:
    message = refused_request(parse, skipping(request_of)).message
    assert "some of 0 to 5" in message and "name layers" in message


def test_provenance_says_where_a_picture_started(parse: Parse, from_picture: RequestOf) -> None:
    spec = parse(from_picture(strength=0.5))
    loaded = LoadedIdentity("demo", "", "", "", "cpu", "float32")
    text = provenance_json(spec, loaded, EncoderComparison("exact"), 0, 1, "")
    assert f'"file_sha256": "{part_of(spec, ImageToImageSpec).file_sha256}", "strength": 0.5' in text
