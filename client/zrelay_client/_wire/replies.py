"""Reads the replies of encoders and generators into the values that callers see."""

import hashlib
import re
from typing import Any, TypeAlias

from zrelay.v1.embeds_pb2 import EncoderFingerprint as FingerprintMessage
from zrelay.v1.encoder_pb2 import EncodePromptsResponse, EncoderServiceGetInfoResponse
from zrelay.v1.generation_pb2 import GenerationSpec, SamplingOptions
from zrelay.v1.generator_pb2 import GeneratorLimits, GeneratorServiceGetInfoResponse
from zrelay.v1.info_pb2 import ConnectionInfo
from zrelay.v1.jobs_pb2 import Job as JobMessage
from zrelay.v1.jobs_pb2 import JobAccepted, JobDone, JobEvent, JobImage, JobProgress
from zrelay.v1.vision_pb2 import VisionServiceGetInfoResponse
from zrelay_client.embeds import Embeds
from zrelay_client.events import (
    Accepted,
    Done,
    Event,
    Image,
    Job,
    JobFailure,
    JobTimings,
    Preview,
    Progress,
    Sampling,
    Stage,
)
from zrelay_client.info import (
    ConnectionReport,
    Device,
    EncoderInfo,
    Feature,
    GeneratorInfo,
    Limits,
    Queue,
    VisionEngine,
    VisionInfo,
)
from zrelay_shared.enums import word
from zrelay_shared.errors import InternalError, PayloadCorrupt
from zrelay_shared.fingerprint import EncoderFingerprint, from_message
from zrelay_shared.limits import JOB_ID
from zrelay_shared.wire import Parcel

JobMessageEvent: TypeAlias = JobEvent
"""A message of a job's stream, for the modules that pass it on."""


def embeds_from_reply(
    reply: Parcel[EncodePromptsResponse], prompt: tuple[int, str], negative: tuple[int, str] | None, encode_s: float
) -> Embeds:
    """Returns the embeddings of one prompt of an encoder's reply.

    Args:
        reply: The reply.
        prompt, negative: Index in the reply and text of the prompt and of its negative prompt.
        encode_s: Duration of the call in seconds.

    Raises:
        EncoderMismatch: The reply has no valid fingerprint.
    """
    spec = Parcel(GenerationSpec(), reply)
    message = spec.message
    message.prompt.prompt_embeds.CopyFrom(reply.message.results[prompt[0]].prompt_embeds)
    message.provenance.prompt = prompt[1]
    if negative is not None:
        message.negative_prompt.prompt_embeds.CopyFrom(reply.message.results[negative[0]].prompt_embeds)
        message.provenance.negative_prompt = negative[1]
    return Embeds.from_parcel(spec, encode_s)


def sequence_of(message: JobEvent) -> int:
    """Returns the sequence number of an event within its job."""
    return message.sequence


def event_of(message: JobEvent) -> Event | None:
    """Returns the event of a message, or None for a kind of event that only a newer contract has.

    Raises:
        InternalError: The id of a job is invalid.
    """
    kind = message.WhichOneof("event")
    if kind == "accepted":
        return _accepted(message.accepted)
    if kind == "progress":
        return _progress(message.progress)
    if kind == "preview":
        return Preview(message.preview.image_index, message.preview.step, message.preview.jpeg)
    if kind == "image":
        return _image(message.image)
    if kind == "done":
        return _done(message.done)
    return None


def job_of(endpoint: str, message: JobMessage) -> Job:
    """Returns the job of a message from the generator at `endpoint`. Raises InternalError for an invalid id."""
    failure = JobFailure(message.error.reason, message.error.message) if message.HasField("error") else None
    return Job(
        job_id=_job_id(message.job_id),
        request_id=message.request_id,
        endpoint=endpoint,
        state=word(message, "state"),
        sequence=message.sequence,
        progress=_progress(message.progress) if message.HasField("progress") else None,
        failure=failure,
        accepted_at=message.accepted_at,
        ended_at=message.ended_at,
        sampling=_sampling(message.sampling),
    )


def encoder_info(endpoint: str, message: EncoderServiceGetInfoResponse) -> EncoderInfo:
    """Returns the GetInfo of the encoder at `endpoint`."""
    return EncoderInfo(
        **_common("encoder", endpoint, message, message.max_message_bytes),
        fingerprint=_fingerprint(message.fingerprint),
        max_prompts=message.max_prompts,
        max_prompt_chars=message.max_prompt_chars,
        text_limit=message.text_limit,
        text_limit_source=word(message, "text_limit_source"),
        templates=tuple(message.templates),
        loaded_blocks=message.loaded_blocks,
        total_blocks=message.total_blocks,
    )


def generator_info(endpoint: str, message: GeneratorServiceGetInfoResponse) -> GeneratorInfo:
    """Returns the GetInfo of the generator at `endpoint`."""
    return GeneratorInfo(
        **_common("generator", endpoint, message, message.limits.max_message_bytes),
        model_id=message.model_id,
        transformer_digest=message.transformer_digest,
        vae_digest=message.vae_digest,
        configuration_digest=message.configuration_digest,
        expected_encoder=_fingerprint(message.expected_encoder),
        defaults=_sampling(message.defaults),
        limits=_limits(message.limits),
    )


def vision_info(endpoint: str, message: VisionServiceGetInfoResponse) -> VisionInfo:
    """Returns the GetInfo of the vision service at `endpoint`."""
    return VisionInfo(
        **_common("vision", endpoint, message, message.max_message_bytes),
        engines=tuple(
            VisionEngine(
                name=word(engine, "engine"),
                ready=engine.ready,
                model_id=engine.fingerprint.model_id,
                calibrations=tuple(engine.calibrations),
                width=engine.fingerprint.width,
                hidden_layer=engine.fingerprint.hidden_layer,
            )
            for engine in message.engines
        ),
        max_images=message.max_images,
        max_image_bytes=message.max_image_bytes,
        max_image_pixels=message.max_image_pixels,
    )


def _common(
    role: str,
    endpoint: str,
    message: EncoderServiceGetInfoResponse | GeneratorServiceGetInfoResponse | VisionServiceGetInfoResponse,
    max_message_bytes: int,
) -> dict[str, Any]:
    """Returns the fields of ServiceInfo."""
    device = None
    if message.HasField("device"):
        device = Device(
            kind=message.device.kind,
            name=message.device.name,
            memory_total_bytes=message.device.memory_total_bytes,
            memory_free_bytes=message.device.memory_free_bytes,
            compute_dtype=message.device.compute_dtype,
        )
    queue = message.queue
    return {
        "role": role,
        "endpoint": endpoint,
        "version": message.version.version,
        "contract": message.version.contract,
        "libraries": dict(message.version.libraries),
        "ready": message.ready,
        "device": device,
        "queue": Queue(queue.waiting, queue.running, queue.max_waiting, queue.estimated_wait_s),
        "features": tuple(Feature(f.name, f.available, f.note) for f in message.features),
        "max_message_bytes": max_message_bytes,
        "connection": _connection(message.connection) if message.HasField("connection") else None,
    }


def _connection(message: ConnectionInfo) -> ConnectionReport:
    return ConnectionReport(
        security=word(message, "security"),
        caller=message.caller,
        permissions=tuple(message.permissions),
        credentials_end=message.credentials_end,
        server_certificate_ends=message.server_certificate_ends,
        server_time=message.server_time,
    )


def _fingerprint(message: FingerprintMessage) -> EncoderFingerprint | None:
    """Returns a fingerprint, or None while the service has not loaded its model."""
    return from_message(message) if message.family else None


def _limits(message: GeneratorLimits) -> Limits:
    return Limits(
        size_multiple=message.size_multiple,
        min_side=message.min_side,
        max_side=message.max_side,
        max_pixels=message.max_pixels,
        max_steps=message.max_steps,
        max_images=message.max_images,
        text_limit=message.text_limit,
        embeds_width=message.embeds_width,
    )


def _job_id(text: str) -> str:
    if re.fullmatch(JOB_ID, text) is None:
        raise InternalError(
            f"expected the id of a job from the generator, at most 64 of A-Z a-z 0-9 . _ -, got {text[:80]!r}: the "
            "server at this address is no generator of zrelay, or has a bug"
        )
    return text


def _sampling(message: SamplingOptions) -> Sampling:
    return Sampling(
        width=message.width,
        height=message.height,
        num_inference_steps=message.num_inference_steps,
        guidance_scale=message.guidance_scale,
        cfg_normalization=message.cfg_normalization,
        cfg_truncation=message.cfg_truncation,
        shift=message.shift,
        seed=message.seed if message.HasField("seed") else None,
        num_images=message.num_images,
    )


def _accepted(message: JobAccepted) -> Accepted:
    return Accepted(
        job_id=_job_id(message.job_id),
        request_id=message.request_id,
        queue_position=message.queue_position,
        estimated_wait_s=message.estimated_wait_s,
        estimated_run_s=message.estimated_run_s,
        seed=message.seed,
        sampling=_sampling(message.sampling),
        sigmas=tuple(message.sigmas),
        plan=tuple(Stage(word(stage, "kind"), stage.total) for stage in message.plan),
        encoder_relation=word(message, "encoder_relation"),
        encoder_differences=tuple(message.encoder_differences),
    )


def _progress(message: JobProgress) -> Progress:
    return Progress(
        state=word(message, "state"),
        stage=word(message, "stage"),
        completed=message.completed,
        total=message.total,
        unit_ms=message.unit_ms,
        eta_s=message.eta_s,
        queue_position=message.queue_position,
    )


def _image(message: JobImage) -> Image:
    """Returns an image. Raises PayloadCorrupt if its file is not the one that the generator wrote."""
    sha256 = hashlib.sha256(message.data).hexdigest()
    if message.file_sha256 and sha256 != message.file_sha256:
        raise PayloadCorrupt(
            f"image {message.image_index}: expected a file with the digest {message.file_sha256[:64]}, got one with "
            f"{sha256}: fetch the job's images again",
            field="image",
            metadata={"expected": message.file_sha256[:64], "got": sha256},
        )
    return Image(
        image_index=message.image_index,
        seed=message.seed,
        width=message.width,
        height=message.height,
        format=word(message, "format"),
        data=message.data,
        file_sha256=message.file_sha256,
        pixels_sha256=message.pixels_sha256,
    )


def _done(message: JobDone) -> Done:
    timings = message.timings
    return Done(
        message.images,
        JobTimings(
            queue_s=timings.queue_s,
            prepare_s=timings.prepare_s,
            denoise_s=timings.denoise_s,
            decode_s=timings.decode_s,
            encode_image_s=timings.encode_image_s,
            total_s=timings.total_s,
        ),
    )
