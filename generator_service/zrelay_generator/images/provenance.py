"""What a file says of how it was made: enough to make it again, nothing that changes from run to run."""

import json
from dataclasses import dataclass

from zrelay_generator.features.protocol import JobSpec
from zrelay_shared import __version__

VERSION = 1
"""Of this JSON's form."""


@dataclass(frozen=True, slots=True)
class Painter:
    """What painted: the checkpoint's name, digests of its transformer and VAE (SHA-256 hex), the device's kind, its
    dtype."""

    model_id: str
    transformer_digest: str
    vae_digest: str
    device: str
    compute_dtype: str


def provenance_json(spec: JobSpec, painter: Painter, image_index: int, seed: int, pixels_sha256: str) -> str:
    """ASCII JSON with sorted keys: the same picture made again carries the same text."""
    sampling, origin = spec.sampling, spec.origin
    content: dict[str, object] = {
        "version": VERSION,
        "zrelay": __version__,
        "generator": {
            "model_id": painter.model_id,
            "transformer_digest": painter.transformer_digest,
            "vae_digest": painter.vae_digest,
            "device": painter.device,
            "compute_dtype": painter.compute_dtype,
        },
        "sampling": {
            "width": sampling.width,
            "height": sampling.height,
            "num_inference_steps": sampling.num_inference_steps,
            "guidance_scale": sampling.guidance_scale,
            "cfg_normalization": sampling.cfg_normalization,
            "cfg_truncation": sampling.cfg_truncation,
            "shift": sampling.shift,
            "sigmas": list(sampling.schedule.sigmas),
            "seed": seed,
        },
        "image_index": image_index,
        "encoder": json.loads(origin.encoder),
        "encoder_relation": origin.relation,
        "encoder_differences": list(origin.differences),
        "prompt": origin.prompt,
        "negative_prompt": origin.negative_prompt,
        "labels": dict(origin.labels),
        "pixels_sha256": pixels_sha256,
    }
    if (start := spec.start_image) is not None:
        content["image_to_image"] = {"file_sha256": start.file_sha256, "strength": start.strength}
    if (omni := spec.omni) is not None:
        content["omni"] = {"file_sha256": list(omni.files), "siglip_encoders": list(omni.encoders)}
    if (skip := spec.skip_layers) is not None:
        content["skip_layer_guidance"] = {
            "scale": skip.scale,
            "layers": sorted(skip.layers),
            "start": skip.start,
            "stop": skip.stop,
        }
    return json.dumps(content, sort_keys=True, ensure_ascii=True)
