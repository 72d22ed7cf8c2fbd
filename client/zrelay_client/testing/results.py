"""Images, previews and provenance of the fake generator."""

import hashlib
import json
from dataclasses import asdict

from zrelay.v1 import generation_pb2, jobs_pb2
from zrelay_client.testing import pictures
from zrelay_client.testing.service import BACKEND, DTYPE, sha256_hex
from zrelay_client.testing.specs import PREVIEW_SIDE, FakeSpec
from zrelay_shared import __version__, fingerprint, vision_fingerprint
from zrelay_shared.wire import Parcel


def _colour(spec: FakeSpec, index: int) -> pictures.Colour:
    """Returns the colour of an image, the same for the same spec and seed."""
    embeds = Parcel(spec.message.prompt.prompt_embeds, spec.parcel).to_bytes()
    digest = hashlib.sha256(embeds)
    digest.update(f"{spec.sampling.seed + index} {spec.sampling.guidance_scale} {spec.sigmas}".encode())
    digest.update(spec.message.image_to_image.image.data)
    for image in spec.message.omni.images:
        digest.update(image.data)
    red, green, blue = digest.digest()[:3]
    return red, green, blue


def finished_image(spec: FakeSpec, index: int) -> jobs_pb2.JobImage:
    """Returns one image of a spec as the event that ends it."""
    width, height, colour = spec.sampling.width, spec.sampling.height, _colour(spec, index)
    pixels_sha256 = sha256_hex(bytes(colour) * (width * height))
    provenance = "" if spec.message.output.omit_provenance else _provenance(spec, index, pixels_sha256)
    format = spec.message.output.format or generation_pb2.IMAGE_FORMAT_PNG
    write = {
        generation_pb2.IMAGE_FORMAT_PNG: pictures.png,
        generation_pb2.IMAGE_FORMAT_JPEG: pictures.jpeg,
        generation_pb2.IMAGE_FORMAT_WEBP: pictures.webp,
    }[format]
    data = write(width, height, colour, provenance)
    return jobs_pb2.JobImage(
        image_index=index,
        seed=spec.sampling.seed + index,
        width=width,
        height=height,
        format=format,
        data=data,
        file_sha256=sha256_hex(data),
        pixels_sha256=pixels_sha256,
    )


def preview_jpeg(spec: FakeSpec, index: int) -> bytes:
    """Returns a preview of one image of a spec."""
    side = spec.message.preview.max_side if spec.message.preview.HasField("max_side") else PREVIEW_SIDE
    width, height = spec.sampling.width, spec.sampling.height
    scale = min(1.0, side / max(width, height))
    return pictures.jpeg(max(1, round(width * scale)), max(1, round(height * scale)), _colour(spec, index))


def _provenance(spec: FakeSpec, index: int, pixels_sha256: str) -> str:
    """Returns the provenance of an image, of the same form as the generator's."""
    sampling, texts = spec.sampling, spec.message.provenance
    encoder = fingerprint.from_message(spec.message.prompt.prompt_embeds.fingerprint)
    content: dict[str, object] = {
        "version": 1,
        "zrelay": __version__,
        "generator": {
            "model_id": "fake",
            "transformer_digest": sha256_hex(b"transformer"),
            "vae_digest": sha256_hex(b"vae"),
            "configuration_digest": sha256_hex(b"configuration"),
            "device": BACKEND,
            "compute_dtype": DTYPE,
        },
        "sampling": {
            "width": sampling.width,
            "height": sampling.height,
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
            "cfg_normalization": sampling.cfg_normalization,
            "cfg_truncation": sampling.cfg_truncation,
            "shift": sampling.shift if sampling.HasField("shift") else None,
            "sigmas": list(spec.sigmas),
            "seed": sampling.seed + index,
        },
        "image_index": index,
        "encoder": asdict(encoder) | {"digest": encoder.digest},
        "encoder_relation": spec.comparison.relation,
        "encoder_differences": list(spec.comparison.differences),
        "prompt": texts.prompt if texts.HasField("prompt") else None,
        "negative_prompt": texts.negative_prompt if texts.HasField("negative_prompt") else None,
        "labels": dict(texts.labels),
        "pixels_sha256": pixels_sha256,
    }
    return json.dumps(content | _features_provenance(spec), sort_keys=True, ensure_ascii=True)


def _features_provenance(spec: FakeSpec) -> dict[str, object]:
    message = spec.message
    content: dict[str, object] = {}
    if message.WhichOneof("start") == "image_to_image":
        file_sha256 = sha256_hex(message.image_to_image.image.data)
        content["image_to_image"] = {"file_sha256": file_sha256, "strength": spec.strength}
    if message.HasField("skip_layer_guidance"):
        guidance = generation_pb2.SkipLayerGuidance(scale=2.5, start=0.05, stop=0.5)
        guidance.MergeFrom(message.skip_layer_guidance)
        content["skip_layer_guidance"] = {
            "scale": guidance.scale,
            "layers": sorted(guidance.layers) or list(range(7, 13)),
            "start": guidance.start,
            "stop": guidance.stop,
        }
    if message.HasField("omni"):
        content["omni"] = {
            "file_sha256": [sha256_hex(image.data) for image in message.omni.images],
            "siglip_encoders": [
                vision_fingerprint.complete_digest(grid.fingerprint) for grid in message.omni.siglip_embeds
            ],
        }
    return content
