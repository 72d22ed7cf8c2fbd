"""The provenance of an image: what is needed to generate it again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from zrelay_generator.features.protocol import JobSpec
from zrelay_shared import __version__
from zrelay_shared.fingerprint import EncoderComparison, EncoderFingerprint

VERSION = 1
"""Version of the JSON's form."""


def provenance_text(content: Mapping[str, object]) -> str:
    """Returns JSON in ASCII with sorted keys, with the versions of its form and of zrelay added.

    Equal contents have equal texts.
    """
    versions = {"version": VERSION, "zrelay": __version__}
    return json.dumps({**versions, **content}, sort_keys=True, ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class LoadedIdentity:
    """What identifies a loaded generator in its results.

    Attributes:
        model_id: Name of the checkpoint.
        transformer_digest, vae_digest: SHA-256 (hex) of both components.
        configuration_digest: SHA-256 (hex) of the configuration of both.
        device: Kind of the device, for example `cuda`.
        compute_dtype: Data type of the computation, for example `bfloat16`.
    """

    model_id: str
    transformer_digest: str
    vae_digest: str
    configuration_digest: str
    device: str
    compute_dtype: str


def provenance_json(
    spec: JobSpec, loaded: LoadedIdentity, relation: EncoderComparison, image_index: int, seed: int, pixels_sha256: str
) -> str:
    """Returns the provenance of one image as JSON text. The same image generated again has the same text.

    Args:
        spec: The job.
        loaded: The generator.
        relation: How the encoder of the job relates to the one of the checkpoint.
        image_index: Index of the image in the job.
        seed: Seed of the image.
        pixels_sha256: SHA-256 (hex) of the image's pixels.
    """
    sampling, origin = spec.sampling, spec.origin
    content: dict[str, object] = {
        "generator": {
            "model_id": loaded.model_id,
            "transformer_digest": loaded.transformer_digest,
            "vae_digest": loaded.vae_digest,
            "configuration_digest": loaded.configuration_digest,
            "device": loaded.device,
            "compute_dtype": loaded.compute_dtype,
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
        "encoder": {} if origin.encoder is None else _encoder(origin.encoder),
        "encoder_relation": relation.relation,
        "encoder_differences": list(relation.differences),
        "prompt": origin.prompt,
        "negative_prompt": origin.negative_prompt,
        "labels": dict(origin.labels),
        "pixels_sha256": pixels_sha256,
    }
    for feature in spec.features:
        content.update(feature.provenance())
    return provenance_text(content)


def _encoder(fingerprint: EncoderFingerprint) -> dict[str, object]:
    """Returns the encoder's fingerprint and digest for the file, without local paths of the encoder's machine."""
    content = asdict(fingerprint) | {"digest": fingerprint.digest}
    content["model_id"] = fingerprint.model_id.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return content
