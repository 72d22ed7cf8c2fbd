"""Size, schedule, guidance and seed of a request, with the checkpoint's defaults filled in."""

import math
import secrets

from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.features.acceptance import SamplingLimits
from zrelay_generator.features.protocol import Sampling
from zrelay_generator.features.schedule import Schedule, explicit_schedule, shifted_schedule
from zrelay_shared.errors import InvalidArgument

_MAX_GUIDANCE = 100.0
_MAX_SHIFT = 1000.0


def parse_sampling(given: pb.SamplingOptions, limits: SamplingLimits) -> Sampling:
    """The sampling that was asked for. Raises InvalidArgument naming the field."""
    defaults = limits.defaults
    width = _side("width", given.width if given.HasField("width") else defaults.width, limits)
    height = _side("height", given.height if given.HasField("height") else defaults.height, limits)
    if width * height > limits.max_pixels:
        raise _refusal("width", f"width * height of at most {limits.max_pixels}", f"{width} x {height}", "SIZE")
    schedule, shift = _schedule(given, limits)
    num_images = given.num_images if given.HasField("num_images") else 1
    if not 1 <= num_images <= limits.max_images:
        raise _refusal("num_images", f"1 to {limits.max_images}", num_images)
    guidance = given.guidance_scale if given.HasField("guidance_scale") else defaults.guidance_scale
    return Sampling(
        width=width,
        height=height,
        guidance_scale=finite("guidance_scale", guidance, 0.0, _MAX_GUIDANCE),
        cfg_normalization=finite("cfg_normalization", given.cfg_normalization, 0.0, math.inf),
        cfg_truncation=_truncation(given),
        shift=shift,
        schedule=schedule,
        # 32 bits: a person can copy it.
        seed=given.seed if given.HasField("seed") else secrets.randbelow(1 << 32),
        num_images=num_images,
    )


def finite(name: str, value: float, least: float, most: float) -> float:
    """A finite number within bounds. Raises InvalidArgument."""
    if not (math.isfinite(value) and least <= value <= most):
        bounds = f"a number of at least {least:g}" + (f" and at most {most:g}" if math.isfinite(most) else "")
        raise _refusal(name, bounds, f"{value:g}")
    return float(value)


def _side(name: str, pixels: int, limits: SamplingLimits) -> int:
    multiple, least = limits.size_multiple, limits.min_side
    if pixels % multiple or not least <= pixels <= limits.max_side:
        near = min(max(round(pixels / multiple) * multiple, least), limits.max_side)
        raise _refusal(
            name, f"{least} to {limits.max_side} pixels, divisible by {multiple}", f"{pixels}; {near} would do"
        )
    return pixels


def _schedule(given: pb.SamplingOptions, limits: SamplingLimits) -> tuple[Schedule, float | None]:
    """The schedule, and the shift that made it (None where the caller gave sigmas)."""
    stated = given.num_inference_steps if given.HasField("num_inference_steps") else None
    shift = given.shift if given.HasField("shift") else None
    if shift is not None and not (math.isfinite(shift) and 0.0 < shift <= _MAX_SHIFT):
        raise _refusal("shift", f"more than 0, at most {_MAX_SHIFT:g}", f"{shift:g}")
    if given.sigmas:
        return _explicit(given, stated, shift, limits), None
    steps = limits.defaults.num_inference_steps if stated is None else stated
    if not 1 <= steps <= limits.max_steps:
        raise _refusal("num_inference_steps", f"1 to {limits.max_steps}", steps)
    shift = limits.defaults.shift if shift is None else shift
    return shifted_schedule(steps, shift), shift


def _explicit(given: pb.SamplingOptions, stated: int | None, shift: float | None, limits: SamplingLimits) -> Schedule:
    if len(given.sigmas) > limits.max_steps:
        raise _refusal("sigmas", f"at most {limits.max_steps} values", len(given.sigmas))
    if stated is not None and stated != len(given.sigmas):
        raise _refusal("num_inference_steps", f"{len(given.sigmas)}, one for each of the sigmas, or none", stated)
    try:
        return explicit_schedule(given.sigmas, shift)
    except ValueError as error:
        raise InvalidArgument(
            f"spec.sampling.{error}", field="spec.sampling.sigmas", reason="SIGMAS_INVALID"
        ) from error


def _truncation(given: pb.SamplingOptions) -> float:
    return finite("cfg_truncation", given.cfg_truncation, 0.0, math.inf) if given.HasField("cfg_truncation") else 1.0


def _refusal(name: str, expected: str, got: object, reason: str = "") -> InvalidArgument:
    return InvalidArgument(
        f"{name}: expected {expected}, got {got}",
        field=f"spec.sampling.{name}",
        reason=f"{reason or name.upper()}_INVALID",
        metadata={"expected": expected, "got": got},
    )
