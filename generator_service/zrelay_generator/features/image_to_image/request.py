"""Reads the start picture of a request."""

import hashlib

from zrelay_generator.features.image_to_image.spec import ImageToImageSpec, first_step
from zrelay_generator.features.request import SpecRequest, decimal
from zrelay_generator.images.reading import read_image
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.service.parsing import invalid

_DEFAULT_STRENGTH = 0.6


def parse_image_to_image(request: SpecRequest) -> ImageToImageSpec | None:
    """Returns the picture to start from, None if the request has none. Decodes the file.

    Raises:
        InvalidArgument: STRENGTH_INVALID, IMAGE_MISSING, IMAGE_TOO_LARGE or IMAGE_INVALID.
    """
    if not request.spec.HasField("image_to_image"):
        return None
    message, path = request.spec.image_to_image, "spec.image_to_image"
    sampling, steps = request.sampling, request.sampling.num_inference_steps
    strength = decimal(message.strength) if message.HasField("strength") else _DEFAULT_STRENGTH
    if not 0.0 <= strength <= 1.0 or first_step(steps, strength) >= steps:
        raise invalid(f"{path}.strength", "more than 0 and at most 1", f"{strength:g}")
    data = request.image(message.image, f"{path}.image")
    try:
        pixels = read_image(data, sampling.width, sampling.height, request.accepts.max_image_pixels)
    except ValueError as error:
        raise InvalidArgument(f"{path}.image: {error}", field=f"{path}.image", reason="IMAGE_INVALID") from error
    return ImageToImageSpec(pixels, hashlib.sha256(data).hexdigest(), strength)
