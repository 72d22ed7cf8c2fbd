"""Files, previews, and the colours that a preview sees in latents."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from zrelay_generator.engine.events import ImagePixels, JobFailed
from zrelay_generator.engine.job import DeviceJob
from zrelay_generator.features.expected_encoder import ExpectedEncoder
from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.image_to_image.spec import ImageToImageSpec
from zrelay_generator.features.omni.spec import OmniSpec
from zrelay_generator.features.protocol import JobSpec, Origin, Output, Prompt
from zrelay_generator.features.provenance import LoadedIdentity, provenance_json
from zrelay_generator.features.registry import FEATURES
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec
from zrelay_generator.images.writing import PREVIEW_BYTES, ImageFormat, pixels_sha256, write_image, write_preview
from zrelay_generator.jobs.image_writer import ImageWriter
from zrelay_shared.errors import InternalError
from zrelay_shared.fingerprint import EncoderComparison, EncoderFingerprint

from .fixture_types import Load, MakeEmbeds, MakeSampling

ENCODER = EncoderFingerprint("qwen3", 48)
EXACTLY = EncoderComparison("exact")
PIXELS = torch.randint(0, 256, (48, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("format", list(ImageFormat))
def test_files_hold_pixels_and_provenance(format: ImageFormat, provenance_in: Callable[[bytes], str]) -> None:
    file = write_image(PIXELS, format, 100, '{"a": "\\u1f98a"}')
    image = Image.open(io.BytesIO(file.data))
    assert image.size == (32, 48) and image.mode == "RGB"
    assert provenance_in(file.data) == '{"a": "\\u1f98a"}'
    if format is not ImageFormat.JPEG:
        assert image.tobytes() == PIXELS.numpy().tobytes()
    assert provenance_in(write_image(PIXELS, format, 80, "").data) == ""


def test_golden_digest_of_pixels() -> None:
    grey = torch.full((2, 3, 3), 128, dtype=torch.uint8)
    assert pixels_sha256(grey) == "ed0e4346cf6fdc62d263ab3e2baf0cde7cf3ee8986b07731e2fcad151daa3f5f"


def test_provenance_too_long_for_a_jpeg() -> None:
    with pytest.raises(ValueError, match="provenance: expected at most 60000 bytes"):
        write_image(PIXELS, ImageFormat.JPEG, 95, "x" * 60_001)


def test_a_preview_of_noise_still_fits() -> None:
    noise = torch.randint(0, 256, (1024, 1024, 3), dtype=torch.uint8)
    preview = write_preview(noise)
    assert len(preview) <= PREVIEW_BYTES and Image.open(io.BytesIO(preview)).size[0] >= 128


def test_provenance_is_complete_and_the_same_again(sampling: MakeSampling, embeds: MakeEmbeds) -> None:
    origin = Origin(encoder=replace(ENCODER, model_id="/home/me/models/demo"), prompt="Fuchs ä", labels=(("k", "v"),))
    spec = JobSpec(Prompt(embeds(3, 4)), sampling(seed=1 << 63), origin=origin)
    loaded = LoadedIdentity("demo", "ab" * 32, "cd" * 32, "ef" * 32, "cpu", "bfloat16")
    text = provenance_json(spec, loaded, EXACTLY, 2, 5, "cd" * 32)
    assert text == provenance_json(spec, loaded, EXACTLY, 2, 5, "cd" * 32) and text.isascii()
    said = json.loads(text)
    assert said["prompt"] == "Fuchs ä" and said["sampling"]["seed"] == 5 and said["image_index"] == 2
    assert said["encoder"]["family"] == "qwen3" and said["encoder"]["model_id"] == "demo"
    assert said["encoder"]["digest"] == ENCODER.digest and said["encoder_relation"] == "exact"
    assert said["sampling"]["sigmas"][-1] == 0.0
    assert said["generator"]["transformer_digest"] == "ab" * 32


def test_golden_provenance_of_every_feature(sampling: MakeSampling, embeds: MakeEmbeds) -> None:
    """The text that older versions wrote and that a replay reads: keys and values stay."""
    features = (
        GuidanceSpec(Prompt(embeds(3, 8))),
        SkipLayerSpec(2.5, frozenset({3, 1}), 0.05, 0.5),
        OmniSpec((), (), ("34" * 32,), ("56" * 32,)),
        ImageToImageSpec(torch.zeros(3, 128, 128), "12" * 32, 0.5),
    )
    assert {type(feature) for feature in features} == {feature.spec for feature in FEATURES}
    spec = JobSpec(Prompt(embeds(4, 8)), sampling(guidance_scale=2.0, steps=2), features=features)
    loaded = LoadedIdentity("demo", "ab" * 32, "cd" * 32, "ef" * 32, "cpu", "float32")
    text = json.loads(provenance_json(spec, loaded, EXACTLY, 1, 8, ""))
    assert text["image_to_image"] == {"file_sha256": "12" * 32, "strength": 0.5}
    assert text["omni"] == {"file_sha256": ["34" * 32], "siglip_encoders": ["56" * 32]}
    assert text["skip_layer_guidance"] == {"scale": 2.5, "layers": [1, 3], "start": 0.05, "stop": 0.5}
    common = "version zrelay generator sampling image_index encoder encoder_relation encoder_differences prompt"
    common += " negative_prompt labels pixels_sha256 image_to_image omni skip_layer_guidance"
    assert list(text) == sorted(common.split()) and text["version"] == 1


def test_previews_show_the_colours_of_the_picture(demo: Path, load: Load) -> None:
    model = load(demo)
    picture = torch.zeros(1, 3, 128, 128) - 1.0
    picture[:, 0, :, :64] = 1.0
    picture[:, 2, :, 64:] = 1.0
    with torch.inference_mode():
        seen = model.latent_to_rgb.pixels(model.vae.encode(picture)[0], 256)
    left, right = seen[:, :6].float().mean((0, 1)), seen[:, 10:].float().mean((0, 1))
    assert left.argmax() == 0 and right.argmax() == 2
    assert left[0] > 150 and right[2] > 150


def test_what_cannot_be_written_ends_the_job_on_the_device_too(sampling: MakeSampling, embeds: MakeEmbeds) -> None:
    output, origin = Output(ImageFormat.JPEG), Origin(prompt="x" * 60_001)
    job = DeviceJob("a", JobSpec(Prompt(embeds(3, 4)), sampling(num_images=2), output, origin), 1)
    told = []
    publish = lambda job, event: told.append((event, job.cancelled))  # noqa: E731
    loaded = LoadedIdentity("demo", "ab" * 32, "cd" * 32, "ef" * 32, "cpu", "bfloat16")
    writer = ImageWriter(loaded, ExpectedEncoder(ENCODER), publish)
    writer.put(job, ImagePixels(0, 7, PIXELS, last=False))
    writer.put(job, ImagePixels(1, 8, PIXELS, last=True))
    writer.close()
    ((event, cancelled),) = told
    assert isinstance(event, JobFailed) and isinstance(event.error, InternalError)
    assert job.cancelled and not cancelled, "it fails; the device hears afterwards that it need not go on"
