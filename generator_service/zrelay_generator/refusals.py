"""What a caller is told when the device could not do a job: what happened, and what to do about it."""

import math
from collections.abc import Sequence

import torch

from zrelay_generator.job import ImageState
from zrelay_shared.errors import FailedPrecondition, InternalError, OutOfMemory
from zrelay_shared.torch_devices import dtype_name, report

_GIB = 1 << 30
_SIZE_MULTIPLE = 16


def out_of_memory(images: Sequence[ImageState], device: torch.device) -> OutOfMemory:
    """Fewer images at once where there were several, else half the pixels: memory is about linear in both."""
    job, sampling = images[0].job, images[0].job.spec.sampling
    found = report(device)
    scale = math.sqrt(0.5)
    width, height = (_fitting(side * scale) for side in (sampling.width, sampling.height))
    count = 1 if len(job.images) > 1 else sampling.num_images
    if len(images) > 1:
        width, height = sampling.width, sampling.height
        remedy = f"ask for one image at a time, or for fewer than {len(images)}"
    else:
        remedy = f"ask for at most about {width} x {height}"
    return OutOfMemory(
        f"{len(job.images)} image(s) of {sampling.width} x {sampling.height} need more memory than {found.kind} has: "
        f"{found.memory_free_bytes / _GIB:.1f} of {found.memory_total_bytes / _GIB:.1f} GiB are free; {remedy}",
        metadata={
            "free_bytes": found.memory_free_bytes,
            "total_bytes": found.memory_total_bytes,
            "fits_width": width,
            "fits_height": height,
            "fits_num_images": count,
        },
    )


def not_finite(image: ImageState, sigma: float, dtype: torch.dtype) -> FailedPrecondition:
    """The latents of an image hold NaN or infinity after a step."""
    steps = image.job.spec.sampling.num_inference_steps
    return FailedPrecondition(
        f"the latents of image {image.index} are not finite after step {image.step} of {steps} (sigma {sigma:.4g}, "
        f"computed in {dtype_name(dtype)}); {_overflow_remedy(dtype)}",
        reason="LATENTS_NOT_FINITE",
        metadata={"step": image.step, "sigma": f"{sigma:.6g}", "compute_dtype": dtype_name(dtype)},
    )


def not_decodable(image: ImageState, dtype: torch.dtype) -> FailedPrecondition:
    """The VAE made NaN or infinity of finite latents."""
    return FailedPrecondition(
        f"the pixels of image {image.index} are not finite (decoded in {dtype_name(dtype)}); {_overflow_remedy(dtype)}",
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
