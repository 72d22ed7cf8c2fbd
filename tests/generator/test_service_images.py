"""The images of the service: seeds, several at once, guidance, formats, provenance, previews."""

import hashlib
import io
import json
from collections.abc import Callable

import pytest
from PIL import Image

from tests.helpers.hostile_pictures import jpeg_of_scans
from tests.helpers.refusals import refused_async
from zrelay.v1 import generation_pb2 as gpb
from zrelay_shared.errors import InvalidArgument

from .fixture_types import MakeEmbeds, RequestOf
from .generator_client import GeneratorClient, images

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.hostile]


async def test_same_seed_same_pixels(caller: GeneratorClient, request_of: RequestOf) -> None:
    first, again = [await caller.image(request_of(seed=11)) for _ in range(2)]
    other = await caller.image(request_of(seed=12))
    assert first.data == again.data
    assert other.pixels_sha256 != first.pixels_sha256
    pixels = Image.open(io.BytesIO(first.data)).tobytes()
    assert hashlib.sha256(pixels).hexdigest() == first.pixels_sha256
    assert hashlib.sha256(first.data).hexdigest() == first.file_sha256


async def test_a_seed_is_picked_and_reported(caller: GeneratorClient, request_of: RequestOf) -> None:
    events = await caller.generate(request_of(num_inference_steps=1))
    seed = events[0].accepted.seed
    (image,) = images(events)
    assert image.seed == seed
    again = await caller.image(request_of(num_inference_steps=1, seed=seed))
    assert again.pixels_sha256 == image.pixels_sha256


async def test_two_images(caller: GeneratorClient, request_of: RequestOf, embeds: MakeEmbeds) -> None:
    both = images(await caller.generate(request_of(seed=3, num_images=2)))
    assert [(image.image_index, image.seed) for image in both] == [(0, 3), (1, 4)]
    request = request_of(seed=3, num_images=2)
    request.message.spec.deterministic = True
    singly = images(await caller.generate(request))
    alone = [await caller.image(request_of(seed=seed)) for seed in (3, 4)]
    assert [image.pixels_sha256 for image in singly] == [image.pixels_sha256 for image in alone]


async def test_guidance(caller: GeneratorClient, request_of: RequestOf, embeds: MakeEmbeds) -> None:
    plain = await caller.image(request_of(seed=3))
    guided = await caller.image(request_of(seed=3, guidance_scale=2.0, negative=embeds(4, 128, 9)))
    assert plain.pixels_sha256 != guided.pixels_sha256


@pytest.mark.parametrize(("format", "name"), [("PNG", "PNG"), ("JPEG", "JPEG"), ("WEBP", "WEBP")])
async def test_formats_carry_their_provenance(
    caller: GeneratorClient, request_of: RequestOf, provenance_in: Callable[[bytes], str], format: str, name: str
) -> None:
    request = request_of(seed=21, num_inference_steps=2)
    spec = request.message.spec
    spec.output.format = getattr(gpb, f"IMAGE_FORMAT_{format}")
    spec.provenance.prompt = "ein rötlicher Fuchs 🦊"
    spec.provenance.labels["album"] = "tests"
    image = await caller.image(request)
    assert Image.open(io.BytesIO(image.data)).format == name
    said = json.loads(provenance_in(image.data))
    assert said["prompt"] == "ein rötlicher Fuchs 🦊" and said["labels"] == {"album": "tests"}
    assert said["sampling"]["seed"] == 21 and said["pixels_sha256"] == image.pixels_sha256
    assert said["encoder_relation"] == "exact" and said["encoder"]["model_id"] == "demo"
    assert len(said["generator"]["transformer_digest"]) == 64


async def test_provenance_may_be_left_out(
    caller: GeneratorClient, request_of: RequestOf, provenance_in: Callable[[bytes], str]
) -> None:
    request = request_of(seed=21, num_inference_steps=2)
    request.message.spec.output.omit_provenance = True
    assert provenance_in((await caller.image(request)).data) == ""


async def test_previews_are_small_jpegs(caller: GeneratorClient, request_of: RequestOf) -> None:
    request = request_of(num_inference_steps=6)
    request.message.spec.preview.every_steps = 2
    events = await caller.generate(request)
    previews = [event.preview for event in events if event.WhichOneof("event") == "preview"]
    assert previews and all(preview.step in (2, 4) and len(preview.jpeg) <= 32768 for preview in previews)
    assert Image.open(io.BytesIO(previews[0].jpeg)).size == (16, 16)


async def test_a_picture_that_takes_hours_to_decode_is_refused_at_once(
    caller: GeneratorClient, request_of: RequestOf
) -> None:
    """2 MB in 200,000 scans, each of which passes over 33 megapixels."""
    request = request_of(num_inference_steps=1)
    request.message.spec.image_to_image.image.data = jpeg_of_scans(5760, 200_000)
    await refused_async(caller.generate(request), InvalidArgument, reason="IMAGE_UNREADABLE", match="scans")
