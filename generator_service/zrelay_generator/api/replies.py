"""Replies: events, jobs and GetInfo as messages of the contract."""

from pathlib import Path
from typing import assert_never

import grpc

from zrelay.v1 import generation_pb2, generator_pb2, info_pb2
from zrelay.v1 import jobs_pb2 as pb
from zrelay.v1.embeds_pb2 import EncoderRelation
from zrelay_generator.cost.model import CostSnapshot
from zrelay_generator.engine.events import JobFailed, JobStage, StageProgress
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.expected_encoder import ExpectedEncoder, compare_encoder
from zrelay_generator.features.protocol import Capability, JobSpec, SamplingSettings
from zrelay_generator.features.provenance import LoadedIdentity
from zrelay_generator.features.registry import FEATURES, UNBUILT
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.events import ImageFinished, JobAccepted, JobEvent, JobSucceeded, PreviewReady
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.scheduling.scheduler import QueueStanding, Scheduler
from zrelay_generator.store.records import JobState
from zrelay_shared.errors import ZrelayError
from zrelay_shared.fingerprint import RELATIONS, EncoderFingerprint, to_message
from zrelay_shared.receiving import largest_request
from zrelay_shared.service.info import connection_info, device_info, server_version
from zrelay_shared.service.roles import GeneratorConfig
from zrelay_shared.torch_devices import DeviceReport

_SERVICE = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"]
LIBRARIES = ("torch", "diffusers", "transformers", "safetensors", "pillow", "grpcio", "protobuf")
_JOBS = ("jobs.submit", "jobs.watch", "jobs.get", "jobs.list", "jobs.cancel", "content.upload")
_COMMON = (
    Capability("generate.sigmas"),
    Capability("generate.preview"),
    Capability(
        "generate.priority", "interactive jobs lead 19 of 20 units; within a class callers share the device equally"
    ),
    Capability("generate.deterministic", "its images run one at a time"),
)
"""Capabilities that belong to no feature."""
_UNBUILT = (*UNBUILT.values(), "lora.manage")
_STORED = tuple(name for name in _JOBS if name != "jobs.cancel")
_IN_MEMORY = "in memory: lost when the process ends"

_STAGES = {
    JobStage.PREPARE: pb.STAGE_KIND_PREPARE,
    JobStage.DENOISE: pb.STAGE_KIND_DENOISE,
    JobStage.DECODE: pb.STAGE_KIND_DECODE,
    JobStage.ENCODE_IMAGE: pb.STAGE_KIND_ENCODE_IMAGE,
}
_STATES = {
    JobState.QUEUED: pb.JOB_STATE_QUEUED,
    JobState.RUNNING: pb.JOB_STATE_RUNNING,
    JobState.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    JobState.FAILED: pb.JOB_STATE_FAILED,
    JobState.CANCELLED: pb.JOB_STATE_CANCELLED,
}
STATE_OF: dict[int, JobState] = {int(value): state for state, value in _STATES.items()}
_FORMATS = {
    ImageFormat.PNG: generation_pb2.IMAGE_FORMAT_PNG,
    ImageFormat.JPEG: generation_pb2.IMAGE_FORMAT_JPEG,
    ImageFormat.WEBP: generation_pb2.IMAGE_FORMAT_WEBP,
}


def event_message(job: LiveJob, sequence: int, event: JobEvent) -> pb.JobEvent:
    """Returns one event of a job.

    Raises:
        ZrelayError: The job has failed. Its stream ends with the status of this error.
    """
    message = pb.JobEvent(sequence=sequence)
    match event:
        case JobAccepted():
            message.accepted.CopyFrom(pb.JobAccepted.FromString(job.record.accepted))
        case QueueStanding() | StageProgress():
            message.progress.CopyFrom(_progress(event))
        case PreviewReady():
            message.preview.CopyFrom(pb.JobPreview(image_index=event.image_index, step=event.step, jpeg=event.jpeg))
        case ImageFinished():
            message.image.CopyFrom(_image(event))
        case JobSucceeded():
            message.done.CopyFrom(_done(event))
        case JobFailed():
            raise event.error
        case _:
            assert_never(event)
    return message


def job_message(job: LiveJob, standing: QueueStanding | None = None) -> pb.Job:
    """Returns the summary of a job.

    Args:
        job: The job.
        standing: Its present place in the queue, if that is newer than its latest event.
    """
    record, latest = job.record, standing or job.log.latest_progress
    return pb.Job(
        job_id=record.job_id,
        request_id=record.request_id,
        state=_STATES[record.state],
        sequence=job.log.sequence,
        progress=_progress(latest) if latest is not None else None,
        error=_error(record.error) if record.error is not None else None,
        accepted_at=record.accepted_at,
        ended_at=record.ended_at,
        sampling=pb.JobAccepted.FromString(record.accepted).sampling,
    )


def accepted_bytes(expected: ExpectedEncoder, job_id: str, request_id: str, spec: JobSpec, event: JobAccepted) -> bytes:
    """Returns the serialized JobAccepted of a new job. It is stored with the job and listed from there.

    While the expected encoder is not known, it lacks the relation, and `related_bytes` adds that later.
    """
    sampling = spec.sampling
    images = sampling.num_images
    plan = (
        (JobStage.PREPARE, 1),
        (JobStage.DENOISE, images * sampling.run_steps),
        (JobStage.DECODE, images),
        (JobStage.ENCODE_IMAGE, images),
    )
    message = pb.JobAccepted(
        job_id=job_id,
        request_id=request_id,
        queue_position=event.queue_position,
        estimated_wait_s=event.wait_s,
        estimated_run_s=event.run_s,
        seed=sampling.seed,
        sampling=sampling_message(sampling),
        sigmas=sampling.schedule.sigmas,
        plan=[pb.Stage(kind=_STAGES[stage], total=total) for stage, total in plan],
    )
    plain = message.SerializeToString()
    return plain if expected.known is None else related_bytes(plain, expected.known, spec)


def is_related(accepted: bytes) -> bool:
    """Returns whether a serialized JobAccepted has the relation of the encoder."""
    unknown = EncoderRelation.ENCODER_RELATION_UNSPECIFIED
    return pb.JobAccepted.FromString(accepted).encoder_relation != unknown


def related_bytes(accepted: bytes, expected: EncoderFingerprint, spec: JobSpec) -> bytes:
    """Returns a serialized JobAccepted with the relation of the job's encoder to the expected one."""
    found = compare_encoder(expected, spec.origin.encoder)
    message = pb.JobAccepted.FromString(accepted)
    message.encoder_relation = RELATIONS[found.relation]
    message.encoder_differences[:] = found.differences
    return message.SerializeToString()


def sampling_message(sampling: SamplingSettings) -> generation_pb2.SamplingOptions:
    """Returns every setting as it is used. A request with these values gives the same sampling."""
    message = generation_pb2.SamplingOptions(
        width=sampling.width,
        height=sampling.height,
        num_inference_steps=sampling.num_inference_steps,
        guidance_scale=sampling.guidance_scale,
        cfg_normalization=sampling.cfg_normalization,
        cfg_truncation=sampling.cfg_truncation,
        seed=sampling.seed,
        num_images=sampling.num_images,
    )
    if sampling.shift is None:
        message.sigmas.extend(sampling.schedule.sigmas[:-1])
    else:
        message.shift = sampling.shift
    return message


def loading_info(
    model_id: str, state: Path | None, accepts: Acceptance | None = None
) -> generator_pb2.GeneratorServiceGetInfoResponse:
    """Returns what is known before the model is loaded.

    Args:
        model_id: Name of the checkpoint.
        state: Folder of stored jobs, None if they are kept in memory.
        accepts: What requests may ask for, known once the model is loaded.
    """
    return generator_pb2.GeneratorServiceGetInfoResponse(
        version=server_version("generator", LIBRARIES),
        model_id=model_id,
        features=[
            info_pb2.Feature(name=each.name, available=each.available, note=each.note)
            for each in _capabilities(state, accepts)
        ],
        connection=connection_info(),
    )


def ready_info(
    config: GeneratorConfig,
    accepts: Acceptance,
    loaded: LoadedIdentity,
    device: DeviceReport,
    scheduler: Scheduler,
    cost: CostSnapshot,
) -> generator_pb2.GeneratorServiceGetInfoResponse:
    """Returns everything about a generator whose model is loaded."""
    info = loading_info(loaded.model_id, config.state, accepts)
    info.ready = True
    info.transformer_digest, info.vae_digest = loaded.transformer_digest, loaded.vae_digest
    info.configuration_digest = loaded.configuration_digest
    info.expected_encoder.CopyFrom(to_message(accepts.encoder))
    info.defaults.CopyFrom(_defaults(accepts))
    info.limits.CopyFrom(_limits(accepts))
    info.device.CopyFrom(device_info(device, loaded.compute_dtype))
    info.queue.CopyFrom(
        info_pb2.QueueInfo(
            waiting=scheduler.waiting,
            running=scheduler.running,
            max_waiting=config.max_waiting,
            estimated_wait_s=scheduler.total_s,
        )
    )
    info.cost.CopyFrom(_cost(cost))
    return info


def _capabilities(state: Path | None, accepts: Acceptance | None) -> list[Capability]:
    kept = "" if state is not None else _IN_MEMORY
    return [
        *(capability for feature in FEATURES for capability in feature.capabilities(accepts)),
        *_COMMON,
        *(Capability(name, kept if name in _STORED else "") for name in _JOBS),
        *(Capability(name, available=False) for name in _UNBUILT),
    ]


def _cost(cost: CostSnapshot) -> generator_pb2.CostModel:
    return generator_pb2.CostModel(
        forward_s=cost.forward_base_s,
        forward_s_per_token=cost.forward_s_per_token,
        forward_s_per_token_squared=cost.forward_s_per_token_squared,
        decode_s=cost.decode_base_s,
        decode_s_per_pixel=cost.decode_s_per_pixel,
        bytes_per_token=cost.bytes_per_token,
        bytes_per_pixel=cost.bytes_per_pixel,
    )


def _defaults(accepts: Acceptance) -> generation_pb2.SamplingOptions:
    defaults = accepts.sampling.defaults
    return generation_pb2.SamplingOptions(
        width=defaults.width,
        height=defaults.height,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        cfg_normalization=0.0,
        cfg_truncation=1.0,
        shift=defaults.shift,
        num_images=1,
    )


def _limits(accepts: Acceptance) -> generator_pb2.GeneratorLimits:
    sampling = accepts.sampling
    return generator_pb2.GeneratorLimits(
        size_multiple=sampling.size_multiple,
        min_side=sampling.min_side,
        max_side=sampling.max_side,
        max_pixels=sampling.max_pixels,
        max_steps=sampling.max_steps,
        max_images=sampling.max_images,
        text_limit=accepts.model.text_limit,
        embeds_width=accepts.model.embeds_width,
        max_message_bytes=largest_request(_SERVICE),
        max_image_bytes=accepts.max_image_bytes,
    )


def _progress(event: StageProgress | QueueStanding) -> pb.JobProgress:
    if isinstance(event, QueueStanding):
        return pb.JobProgress(state=pb.JOB_STATE_QUEUED, queue_position=event.queue_position, eta_s=event.eta_s)
    return pb.JobProgress(
        state=pb.JOB_STATE_RUNNING,
        stage=_STAGES[event.stage],
        completed=event.completed,
        total=event.total,
        unit_ms=event.unit_s * 1e3,
        eta_s=event.eta_s,
    )


def _image(event: ImageFinished) -> pb.JobImage:
    return pb.JobImage(
        image_index=event.image_index,
        seed=event.seed,
        width=event.width,
        height=event.height,
        format=_FORMATS[event.format],
        data=event.data,
        file_sha256=event.file_sha256,
        pixels_sha256=event.pixels_sha256,
    )


def _done(event: JobSucceeded) -> pb.JobDone:
    t = event.timings
    timings = pb.JobTimings(
        queue_s=t.queue_s,
        prepare_s=t.prepare_s,
        denoise_s=t.denoise_s,
        decode_s=t.decode_s,
        encode_image_s=t.encode_image_s,
        total_s=t.total_s,
    )
    return pb.JobDone(images=event.images, timings=timings)


def _error(error: ZrelayError) -> pb.JobError:
    code = getattr(grpc.StatusCode, error.code).value[0]
    return pb.JobError(code=code, reason=error.reason, message=error.message)
