"""GetInfo's messages as the values that callers see."""

from typing import Any

from zrelay.v1.encoder_pb2 import EncoderServiceGetInfoResponse
from zrelay.v1.generator_pb2 import GeneratorLimits, GeneratorServiceGetInfoResponse
from zrelay.v1.vision_pb2 import VisionServiceGetInfoResponse
from zrelay_client._enums import word
from zrelay_client._info import (
    Device,
    EncoderInfo,
    Feature,
    GeneratorInfo,
    Limits,
    Queue,
    VisionEngine,
    VisionInfo,
)
from zrelay_client._replies import fingerprint_of, sampling_of


def encoder_info(endpoint: str, said: EncoderServiceGetInfoResponse) -> EncoderInfo:
    """What an encoder said of itself."""
    return EncoderInfo(
        **_common("encoder", endpoint, said, said.max_message_bytes),
        fingerprint=fingerprint_of(said.fingerprint),
        max_prompts=said.max_prompts,
        max_prompt_chars=said.max_prompt_chars,
        text_limit=said.text_limit,
        text_limit_source=word(said, "text_limit_source"),
        templates=tuple(said.templates),
        loaded_blocks=said.loaded_blocks,
        total_blocks=said.total_blocks,
    )


def generator_info(endpoint: str, said: GeneratorServiceGetInfoResponse) -> GeneratorInfo:
    """What a generator said of itself."""
    return GeneratorInfo(
        **_common("generator", endpoint, said, said.limits.max_message_bytes),
        model_id=said.model_id,
        transformer_digest=said.transformer_digest,
        vae_digest=said.vae_digest,
        expected_encoder=fingerprint_of(said.expected_encoder),
        defaults=sampling_of(said.defaults),
        limits=_limits(said.limits),
    )


def vision_info(endpoint: str, said: VisionServiceGetInfoResponse) -> VisionInfo:
    """What a vision service said of itself."""
    return VisionInfo(
        **_common("vision", endpoint, said, said.max_message_bytes),
        engines=tuple(
            VisionEngine(
                word(e, "engine"),
                e.ready,
                e.fingerprint.model_id,
                tuple(e.calibrations),
                e.fingerprint.width,
                e.fingerprint.hidden_layer,
            )
            for e in said.engines
        ),
        max_images=said.max_images,
        max_image_bytes=said.max_image_bytes,
        max_image_pixels=said.max_image_pixels,
    )


def _limits(said: GeneratorLimits) -> Limits:
    return Limits(
        size_multiple=said.size_multiple,
        min_side=said.min_side,
        max_side=said.max_side,
        max_pixels=said.max_pixels,
        max_steps=said.max_steps,
        max_images=said.max_images,
        text_limit=said.text_limit,
        embeds_width=said.embeds_width,
    )


def _common(
    role: str,
    endpoint: str,
    said: EncoderServiceGetInfoResponse | GeneratorServiceGetInfoResponse | VisionServiceGetInfoResponse,
    max_message_bytes: int,
) -> dict[str, Any]:
    """The fields of ServiceInfo."""
    device = None
    if said.HasField("device"):
        device = Device(
            kind=said.device.kind,
            name=said.device.name,
            memory_total_bytes=said.device.memory_total_bytes,
            memory_free_bytes=said.device.memory_free_bytes,
            compute_dtype=said.device.compute_dtype,
        )
    return {
        "role": role,
        "endpoint": endpoint,
        "version": said.version.version,
        "contract": said.version.contract,
        "libraries": dict(said.version.libraries),
        "ready": said.ready,
        "device": device,
        "queue": Queue(said.queue.waiting, said.queue.running, said.queue.max_waiting, said.queue.estimated_wait_s),
        "features": tuple(Feature(f.name, f.available, f.note) for f in said.features),
        "max_message_bytes": max_message_bytes,
    }
