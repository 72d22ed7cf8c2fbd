"""Events and jobs as the contract's messages."""

from typing import assert_never

import grpc

from zrelay.v1 import generation_pb2 as gpb
from zrelay.v1 import jobs_pb2 as pb
from zrelay_generator.engine.events import Accepted, Done, Event, Failed, Image, Preview, Progress, Stage, Waiting
from zrelay_generator.engine.job import JobSpec, Sampling
from zrelay_generator.images.writing import ImageFormat
from zrelay_generator.jobs.entry import Entry, State
from zrelay_shared.errors import ZrelayError
from zrelay_shared.fingerprint import RELATIONS

_STAGES = {
    Stage.PREPARE: pb.STAGE_KIND_PREPARE,
    Stage.DENOISE: pb.STAGE_KIND_DENOISE,
    Stage.DECODE: pb.STAGE_KIND_DECODE,
    Stage.ENCODE_IMAGE: pb.STAGE_KIND_ENCODE_IMAGE,
}
_STATES = {
    State.QUEUED: pb.JOB_STATE_QUEUED,
    State.RUNNING: pb.JOB_STATE_RUNNING,
    State.SUCCEEDED: pb.JOB_STATE_SUCCEEDED,
    State.FAILED: pb.JOB_STATE_FAILED,
    State.CANCELLED: pb.JOB_STATE_CANCELLED,
}
STATE_OF = {value: state for state, value in _STATES.items()}
_FORMATS = {
    ImageFormat.PNG: gpb.IMAGE_FORMAT_PNG,
    ImageFormat.JPEG: gpb.IMAGE_FORMAT_JPEG,
    ImageFormat.WEBP: gpb.IMAGE_FORMAT_WEBP,
}


def event_message(entry: Entry, sequence: int, event: Event) -> pb.JobEvent:
    """One event of a job. Raises the job's error where it failed: its stream ends with a status."""
    message = pb.JobEvent(sequence=sequence)
    match event:
        case Accepted():
            message.accepted.CopyFrom(pb.JobAccepted.FromString(entry.accepted))
        case Waiting() | Progress():
            message.progress.CopyFrom(_progress(event))
        case Preview():
            message.preview.CopyFrom(pb.JobPreview(image_index=event.image_index, step=event.step, jpeg=event.jpeg))
        case Image():
            message.image.CopyFrom(_image(event))
        case Done():
            message.done.CopyFrom(_done(event))
        case Failed():
            raise event.error
        case _:
            assert_never(event)
    return message


def job_message(entry: Entry, standing: Waiting | None = None) -> pb.Job:
    """A job at a glance; `standing` where it waits now, if that is known better than by its events."""
    latest = standing or entry.latest
    return pb.Job(
        job_id=entry.id,
        request_id=entry.request_id,
        state=_STATES[entry.state],
        sequence=entry.sequence,
        progress=_progress(latest) if latest is not None else None,
        error=_error(entry.error) if entry.error is not None else None,
        accepted_at=entry.accepted_at,
        ended_at=entry.ended_at,
        sampling=pb.JobAccepted.FromString(entry.accepted).sampling,
    )


def accepted_bytes(job_id: str, request_id: str, spec: JobSpec, event: Accepted) -> bytes:
    """The serialized JobAccepted of a new job: all that is told and listed of it while it is kept."""
    sampling, origin = spec.sampling, spec.origin
    images = sampling.num_images
    plan = (
        (Stage.PREPARE, 1),
        (Stage.DENOISE, images * sampling.run_steps),
        (Stage.DECODE, images),
        (Stage.ENCODE_IMAGE, images),
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


def _progress(event: Progress | Waiting) -> pb.JobProgress:
    if isinstance(event, Waiting):
        return pb.JobProgress(state=pb.JOB_STATE_QUEUED, queue_position=event.queue_position, eta_s=event.eta_s)
    return pb.JobProgress(
        state=pb.JOB_STATE_RUNNING,
        stage=_STAGES[event.stage],
        completed=event.completed,
        total=event.total,
        unit_ms=event.unit_s * 1e3,
        eta_s=event.eta_s,
    )


def _image(event: Image) -> pb.JobImage:
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


def _done(event: Done) -> pb.JobDone:
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
