"""Messages of the contract as the values that callers see."""

from typing import TypeAlias

from zrelay.v1.embeds_pb2 import EncoderFingerprint as FingerprintMessage
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.embeds_pb2 import PromptReport as ReportMessage
from zrelay.v1.encoder_pb2 import EncodePromptsResponse
from zrelay.v1.generation_pb2 import GenerationSpec, SamplingOptions
from zrelay.v1.jobs_pb2 import Job as JobMessage
from zrelay.v1.jobs_pb2 import JobAccepted, JobDone, JobEvent, JobImage, JobProgress
from zrelay_client._embeds import Embeds, PromptReport
from zrelay_client._enums import word
from zrelay_client._events import Accepted, Done, Event, Image, JobTimings, Preview, Progress, Sampling, Stage
from zrelay_client._jobs import Job, JobFailure
from zrelay_shared.fingerprint import EncoderFingerprint, from_message
from zrelay_shared.wire import Parcel


def embeds_from_reply(
    reply: Parcel[EncodePromptsResponse],
    prompt: tuple[int, str],
    negative: tuple[int, str] | None,
    encode_s: float,
) -> Embeds:
    """A prompt's embeddings out of an encoder's reply; `prompt` and `negative` are (index, text)."""
    spec = Parcel(GenerationSpec(), reply)
    message = spec.message
    message.prompt.prompt_embeds.CopyFrom(reply.message.results[prompt[0]].prompt_embeds)
    message.provenance.prompt = prompt[1]
    if negative is not None:
        message.negative_prompt.prompt_embeds.CopyFrom(reply.message.results[negative[0]].prompt_embeds)
        message.provenance.negative_prompt = negative[1]
    return embeds_from_spec(spec, encode_s)


def embeds_from_spec(spec: Parcel[GenerationSpec], encode_s: float = 0.0) -> Embeds:
    """Embeddings as the beginning of a GenerationSpec holds them. Raises EncoderMismatch without a fingerprint."""
    message = spec.message
    negative = message.negative_prompt.prompt_embeds if message.HasField("negative_prompt") else None
    embeds: PromptEmbeds = message.prompt.prompt_embeds
    return Embeds(
        spec,
        fingerprint=from_message(embeds.fingerprint),
        report=_report(embeds.report),
        negative_report=_report(negative.report) if negative is not None else None,
        encode_s=encode_s,
    )


def fingerprint_of(message: FingerprintMessage) -> EncoderFingerprint | None:
    """A service's fingerprint, None where it says none (yet)."""
    return from_message(message) if message.family else None


EncodePromptsReply: TypeAlias = Parcel[EncodePromptsResponse]
Message: TypeAlias = JobEvent
"""What a stream of a job's events consists of, for the modules that hand it on."""


def sequence_of(message: JobEvent) -> int:
    """Its number within the job."""
    return message.sequence


def event_of(message: JobEvent) -> Event | None:
    """An event as callers see it; None for a kind that a newer server has and this client does not know."""
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
    """A job at a glance."""
    failure = JobFailure(message.error.reason, message.error.message) if message.HasField("error") else None
    return Job(
        job_id=message.job_id,
        request_id=message.request_id,
        endpoint=endpoint,
        state=word(message, "state"),
        sequence=message.sequence,
        progress=_progress(message.progress) if message.HasField("progress") else None,
        failure=failure,
        accepted_at=message.accepted_at,
        ended_at=message.ended_at,
        sampling=sampling_of(message.sampling),
    )


def sampling_of(message: SamplingOptions) -> Sampling:
    """Settings as a generator uses them."""
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


def _report(message: ReportMessage) -> PromptReport:
    return PromptReport(
        formatted_tokens=message.formatted_tokens,
        token_count=message.token_count,
        dropped_tokens=message.dropped_tokens,
        long_prompt_action=word(message, "long_prompt_action"),
        text_limit=message.text_limit,
        text_limit_source=word(message, "text_limit_source"),
    )


def _accepted(message: JobAccepted) -> Accepted:
    return Accepted(
        job_id=message.job_id,
        request_id=message.request_id,
        queue_position=message.queue_position,
        estimated_wait_s=message.estimated_wait_s,
        estimated_run_s=message.estimated_run_s,
        seed=message.seed,
        sampling=sampling_of(message.sampling),
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
    said = message.timings
    timings = JobTimings(
        queue_s=said.queue_s,
        prepare_s=said.prepare_s,
        denoise_s=said.denoise_s,
        decode_s=said.decode_s,
        encode_image_s=said.encode_image_s,
        total_s=said.total_s,
    )
    return Done(message.images, timings)
