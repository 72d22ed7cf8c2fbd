"""The image that a job starts from, and the parsing of the request fields for it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from zrelay_generator.features.protocol import FeatureSpec, SamplingSettings
from zrelay_generator.features.request import SpecRequest, decimal
from zrelay_generator.images.reading import read_image
from zrelay_shared.errors import invalid


@dataclass(frozen=True, slots=True, eq=False)
class ImageToImageSpec(FeatureSpec):
    """The picture that a job starts from.

    Attributes:
        pixels: [3, height, width] uint8, of the result's size.
        file_sha256: SHA-256 (hex) of the file that was sent.
        strength: Share of the schedule that runs, above 0 to 1.
    """

    pixels: Tensor
    file_sha256: str
    strength: float

    def applied_to(self, sampling: SamplingSettings) -> SamplingSettings:
        """Returns the sampling with only the last steps, according to the strength."""
        return replace(sampling, first_step=first_step(sampling.num_inference_steps, self.strength))

    def provenance(self) -> Mapping[str, object]:
        return {"image_to_image": {"file_sha256": self.file_sha256, "strength": self.strength}}


def first_step(num_inference_steps: int, strength: float) -> int:
    """Returns the first step that runs at a strength from 0 to 1: N - N * strength, rounded down.

    The formula is that of `get_timesteps` in diffusers' ZImageImg2ImgPipeline. N means that no step runs.
    """
    run = min(num_inference_steps * strength, num_inference_steps)
    return int(max(num_inference_steps - run, 0))


_DEFAULT_STRENGTH = 0.6


def parse_image_to_image(request: SpecRequest) -> ImageToImageSpec | None:
    """Returns the picture to start from, None if the request has none. Decodes the file.

    Raises:
        InvalidArgument: STRENGTH_INVALID, IMAGE_MISSING, IMAGE_TOO_LARGE, or as `decode_picture`.
        Cancelled: The caller has left.
    """
    if not request.spec.HasField("image_to_image"):
        return None
    message, path = request.spec.image_to_image, "spec.image_to_image"
    sampling, steps = request.sampling, request.sampling.num_inference_steps
    strength = decimal(message.strength) if message.HasField("strength") else _DEFAULT_STRENGTH
    if not 0.0 <= strength <= 1.0 or first_step(steps, strength) >= steps:
        raise invalid(f"{path}.strength", "more than 0 and at most 1", f"{strength:g}")
    data = request.image(message.image, f"{path}.image")
    limit, field = request.accepts.max_image_pixels, f"{path}.image"
    pixels = read_image(data, sampling.width, sampling.height, limit, field=field, decoding=request.decoding)
    return ImageToImageSpec(pixels, hashlib.sha256(data).hexdigest(), strength)
