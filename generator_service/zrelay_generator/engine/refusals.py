"""What a caller is told when the device could not do a job: what happened, and what to do about it."""

import logging
import math
import uuid

import torch

from zrelay_generator.engine.job import ImageState, Job
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.model.weights import TransformerWeights
from zrelay_shared.errors import FailedPrecondition, InternalError, OutOfMemory, ZrelayError
from zrelay_shared.torch_devices import dtype_name, is_out_of_memory, report

log = logging.getLogger(__name__)
_GIB = 1 << 30
_SIZE_MULTIPLE = 16


def without_frames(error: Exception) -> Exception:
    """The error as it may be kept: the frames of one that ran out of memory hold the tensors that did not fit."""
    if is_out_of_memory(error):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def explained(error: Exception, job: Job, weights: TransformerWeights) -> ZrelayError:
    """What the caller is told of a failure; the log keeps the rest under the same incident id."""
    if is_out_of_memory(error):
        return out_of_memory(job.spec, weights.device)
    if isinstance(error, FloatingPointError):
        return not_decodable(weights.dtype)
    incident = uuid.uuid4().hex[:12]
    log.error("incident %s: the device failed at a job", incident, exc_info=error)
    return device_failure(incident)


def unexpected(error: Exception) -> ZrelayError:
    """What the callers are told of a tick that failed where no one job did; the log keeps the rest."""
    incident = uuid.uuid4().hex[:12]
    log.error("incident %s: a tick of the engine failed; the jobs on the device end", incident, exc_info=error)
    return device_failure(incident)


def out_of_memory(spec: JobSpec, device: torch.device, needed_bytes: int = 0) -> OutOfMemory:
    """Half the pixels would do: memory is about linear in them, and an image that failed had no company."""
    sampling, found = spec.sampling, report(device)
    width, height = (_fitting(side * math.sqrt(0.5)) for side in (sampling.width, sampling.height))
    needs = f", about {needed_bytes / _GIB:.1f} GiB beside the weights" if needed_bytes else ""
    return OutOfMemory(
        f"an image of {sampling.width} x {sampling.height} needs more memory than {found.kind} has{needs}: "
        f"{found.memory_free_bytes / _GIB:.1f} of {found.memory_total_bytes / _GIB:.1f} GiB are free; ask for at most "
        f"about {width} x {height}",
        metadata={
            "free_bytes": found.memory_free_bytes,
            "total_bytes": found.memory_total_bytes,
            "fits_width": width,
            "fits_height": height,
        },
    )


def not_finite(image: ImageState, sigma: float, dtype: torch.dtype) -> FailedPrecondition:
    """The latents of an image hold NaN or infinity after a step."""
    steps = image.job.spec.sampling.run_steps
    return FailedPrecondition(
        f"the latents of image {image.index} are not finite after step {image.done} of {steps} (sigma {sigma:.4g}, "
        f"computed in {dtype_name(dtype)}); {_overflow_remedy(dtype)}",
        reason="LATENTS_NOT_FINITE",
        metadata={"step": image.done, "sigma": f"{sigma:.6g}", "compute_dtype": dtype_name(dtype)},
    )


def not_decodable(dtype: torch.dtype) -> FailedPrecondition:
    """The VAE made NaN or infinity of finite latents."""
    return FailedPrecondition(
        f"the pixels of an image are not finite (decoded in {dtype_name(dtype)}); {_overflow_remedy(dtype)}",
        reason="PIXELS_NOT_FINITE",
        metadata={"compute_dtype": dtype_name(dtype)},
    )


def device_failure(incident: str) -> InternalError:
    """A bug: the caller gets a number to ask the operator about, and nothing else."""
    return InternalError(
        f"the generator failed at this job (incident {incident}); the server's log says why",
        metadata={"incident": incident},
    )


def _fitting(side: float) -> int:
    return max(_SIZE_MULTIPLE, int(side) // _SIZE_MULTIPLE * _SIZE_MULTIPLE)


def _overflow_remedy(dtype: torch.dtype) -> str:
    if dtype is torch.float16:
        return "float16 overflows: start the generator with --dtype bfloat16 or float32"
    return "lower guidance_scale if it is high, and check which encoder made the prompt_embeds"
