"""Events and jobs as the contract's messages."""

from typing import assert_never

import grpc

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import jobs_pb2 as pb
from zrelay_generator.engine.events import JobFailed, JobStage, StageProgress
from zrelay_generator.features.protocol import JobSpec, Sampling
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.events import ImageFinished, JobAccepted, JobEvent, JobSucceeded, PreviewReady
from zrelay_generator.jobs.live import LiveJob
from zrelay_generator.scheduling.scheduler import QueueStanding
from zrelay_generator.store.records import JobState
from zrelay_shared.errors import ZrelayError
from zrelay_shared.fingerprint import RELATIONS

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
STATE_OF = {value: state for state, value in _STATES.items()}
_FORMATS = {
    ImageFormat.PNG: gpb.IMAGE_FORMAT_PNG,
    ImageFormat.JPEG: gpb.IMAGE_FORMAT_JPEG,
    ImageFormat.WEBP: gpb.IMAGE_FORMAT_WEBP,
}


def event_message(job: LiveJob, sequence: int, event: JobEvent) -> pb.JobEvent:
    """One event of a job. Raises the job's error where it failed: its stream ends with a status."""
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
    """A job at a glance; `standing` where it waits now, if that is known better than by its events."""
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


def accepted_bytes(job_id: str, request_id: str, spec: JobSpec, event: JobAccepted) -> bytes:
    """The serialized JobAccepted of a new job: all that is told and listed of it while it is kept."""
    sampling, origin = spec.sampling, spec.origin
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
        encoder_relation=RELATIONS[origin.relation],
        encoder_differences=origin.differences,
    )
    return message.SerializeToString()


def sampling_message(sampling: Sampling) -> gpb.SamplingOptions:
    """Every setting as it is used; sending it back asks for the same."""
    message = gpb.SamplingOptions(
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
