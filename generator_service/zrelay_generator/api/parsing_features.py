"""The start image and skip-layer guidance of a request."""

import hashlib
import math
from dataclasses import replace

from zrelay.v1 import content_pb2
from zrelay.v1 import generation_pb2 as pb
from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.image_to_image.hooks import first_step
from zrelay_generator.features.offered import missing
from zrelay_generator.features.protocol import Sampling, SkipLayers, StartImage
from zrelay_generator.images.reading import read_image
from zrelay_shared.errors import InvalidArgument

_STRENGTH = 0.6
_SKIP = SkipLayers(scale=2.5, layers=frozenset(range(7, 13)), start=0.05, stop=0.5)
_MAX_SKIP_SCALE = 100.0


def parse_start_image(
    spec: pb.GenerationSpec, sampling: Sampling, accepts: Acceptance
) -> tuple[StartImage | None, Sampling]:
    """The picture to start from, and the sampling that runs only the last steps; None and the sampling as it was
    without one. Decodes the file. Raises InvalidArgument, FeatureMissing."""
    if not spec.HasField("image_to_image"):
        return None, sampling
    given, field = spec.image_to_image, "spec.image_to_image"
    strength = as_written(given.strength) if given.HasField("strength") else _STRENGTH
    steps = sampling.num_inference_steps
    if not 0.0 <= strength <= 1.0 or (begin := first_step(steps, strength)) >= steps:
        raise _refusal(f"{field}.strength", "more than 0 and at most 1", f"{strength:g}", "STRENGTH_INVALID")
    data = image_bytes(given.image, f"{field}.image", accepts)
    try:
        pixels = read_image(data, sampling.width, sampling.height, accepts.max_image_pixels)
    except ValueError as error:
        raise InvalidArgument(f"{field}.image: {error}", field=f"{field}.image", reason="IMAGE_INVALID") from error
    return StartImage(pixels, hashlib.sha256(data).hexdigest(), strength), replace(sampling, first_step=begin)


def parse_skip_layers(spec: pb.GenerationSpec, accepts: Acceptance) -> SkipLayers | None:
    """Skip-layer guidance, None where it is not asked for. Raises InvalidArgument."""
    if not spec.HasField("skip_layer_guidance"):
        return None
    given, field = spec.skip_layer_guidance, "spec.skip_layer_guidance"
    scale = as_written(given.scale) if given.HasField("scale") else _SKIP.scale
    start = as_written(given.start) if given.HasField("start") else _SKIP.start
    stop = as_written(given.stop) if given.HasField("stop") else _SKIP.stop
    layers = frozenset(given.layers) or _SKIP.layers
    if not (math.isfinite(scale) and 0.0 <= scale <= _MAX_SKIP_SCALE):
        raise _refusal(f"{field}.scale", f"0 to {_MAX_SKIP_SCALE:g}", f"{scale:g}", "SCALE_INVALID")
    if not 0.0 <= start <= stop <= 1.0:
        raise _refusal(f"{field}.start", "0 <= start <= stop <= 1", f"{start:g} to {stop:g}", "WINDOW_INVALID")
    if max(layers) >= accepts.layers:
        what = "" if given.layers else " (the default, which is for the published model: name layers)"
        raise _refusal(
            f"{field}.layers",
            f"some of 0 to {accepts.layers - 1}, the transformer's main blocks",
            f"{min(layers)} to {max(layers)}{what}",
            "LAYERS_INVALID",
        )
    return SkipLayers(scale, layers, start, stop)


def image_bytes(given: content_pb2.ImageInput, field: str, accepts: Acceptance) -> bytes:
    """The file of an image, within bounds. Raises InvalidArgument, FeatureMissing for one that is named."""
    if given.WhichOneof("source") == "content":
        raise missing("content.upload", f"{field}.content")
    if not given.data:
        raise _refusal(field, "a PNG, JPEG or WebP file", "none", "IMAGE_MISSING")
    if len(given.data) > accepts.max_image_bytes:
        most = accepts.max_image_bytes
        raise _refusal(field, f"at most {most} bytes", f"{len(given.data)}; save it smaller", "IMAGE_TOO_LARGE")
    return bytes(given.data)


def as_written(value: float) -> float:
    """The decimal that a float32 of the wire was meant to be: 0.6 arrives as 0.60000002384, and 10 steps at a strength
    of that are 7 and not 6. Six digits survive float32."""
    return float(f"{value:.6g}")


def _refusal(field: str, expected: str, got: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"{field}: expected {expected}, got {got}",
        field=field,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )
