"""Errors for callers when the device could not run a job: what happened, and what the caller can do."""

import logging
import math
import uuid

import torch

from zrelay_generator.engine.job import DeviceJob, ImageState
from zrelay_generator.features.protocol import JobSpec
from zrelay_generator.model.weights import TransformerWeights
from zrelay_shared.errors import FailedPrecondition, InternalError, OutOfMemory, ZrelayError
from zrelay_shared.torch_devices import dtype_name, is_out_of_memory, report

log = logging.getLogger(__name__)
_GIB = 1 << 30
_SIZE_MULTIPLE = 16


def without_frames(error: Exception) -> Exception:
    """Returns the error. If it is out of memory, its traceback frames are removed, because they hold the tensors."""
    if is_out_of_memory(error):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def explained(error: Exception, job: DeviceJob, weights: TransformerWeights) -> ZrelayError:
    """Returns the error that the caller receives. An unexpected failure is logged under the error's incident id."""
    if is_out_of_memory(error):
        return out_of_memory(job.spec, weights.device)
    if isinstance(error, FloatingPointError):
        return not_decodable(weights.dtype)
    incident = uuid.uuid4().hex[:12]
    log.error("incident %s: the device failed at a job", incident, exc_info=error)
    return device_failure(incident)


def unexpected(error: Exception) -> ZrelayError:
    """Returns the error for callers if a tick failed and no single job is the cause. The log has the details."""
    incident = uuid.uuid4().hex[:12]
    log.error("incident %s: a tick of the engine failed; the jobs on the device end", incident, exc_info=error)
    return device_failure(incident)


def out_of_memory(spec: JobSpec, device: torch.device, needed_bytes: int = 0) -> OutOfMemory:
    """Returns the error for an image that does not fit, with a suggested size of half its pixels.

    Memory is roughly proportional to the pixels.

    Args:
        spec: The job.
        device: The device that ran out of memory.
        needed_bytes: Estimated bytes in addition to the weights, 0 if there is no estimate.
    """
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
    """Returns the error for an image whose latents contain NaN or infinity after a step."""
    steps = image.job.spec.sampling.run_steps
    return FailedPrecondition(
        f"the latents of image {image.index} are not finite after step {image.done} of {steps} (sigma {sigma:.4g}, "
        f"computed in {dtype_name(dtype)}); {_overflow_remedy(dtype)}",
        reason="LATENTS_NOT_FINITE",
        metadata={"step": image.done, "sigma": f"{sigma:.6g}", "compute_dtype": dtype_name(dtype)},
    )


def not_decodable(dtype: torch.dtype) -> FailedPrecondition:
    """Returns the error for an image that the VAE decoded to NaN or infinity."""
    return FailedPrecondition(
        f"the pixels of an image are not finite (decoded in {dtype_name(dtype)}); {_overflow_remedy(dtype)}",
        reason="PIXELS_NOT_FINITE",
        metadata={"compute_dtype": dtype_name(dtype)},
    )


def device_failure(incident: str) -> InternalError:
    """Returns the error for a bug: the caller receives only an incident id, which the operator finds in the log."""
    return InternalError(
        f"the generator failed at this job (incident {incident}); the server's log has the details",
        metadata={"incident": incident},
    )


def _fitting(side: float) -> int:
    return max(_SIZE_MULTIPLE, int(side) // _SIZE_MULTIPLE * _SIZE_MULTIPLE)


def _overflow_remedy(dtype: torch.dtype) -> str:
    if dtype is torch.float16:
        return "float16 overflows: start the generator with --dtype bfloat16 or float32"
    return "lower guidance_scale if it is high, and check which encoder made the prompt_embeds"
