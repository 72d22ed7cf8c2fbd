"""What a generator accepts: the limits and defaults that follow from configuration and checkpoint."""

from dataclasses import dataclass

from zrelay_generator.model.identity import Identity
from zrelay_generator.model.model import ModelLimits
from zrelay_shared.checkpoints import GenerationDefaults
from zrelay_shared.fingerprint import EncoderFingerprint
from zrelay_shared.service.roles import GeneratorConfig

MAX_IMAGE_BYTES = 32 << 20
"""Limit of an image file in a request. A PNG of 3000 x 3000 random pixels fits; it is half a message."""
MAX_IMAGE_PIXELS = 1 << 25
"""Limit of a picture in a request: twice 4096 x 4096, 100 MB while the file is decoded."""


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """Limits of SamplingOptions.

    Attributes:
        size_multiple: Width and height must be multiples of this number.
        min_side, max_side: Minimum and maximum side in pixels, both multiples of `size_multiple`.
        max_pixels: Maximum area in pixels.
        max_steps: Maximum number of steps.
        max_images: Maximum number of images.
        defaults: Values of the fields that a request does not set.
    """

    size_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int
    defaults: GenerationDefaults


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Limits and defaults of requests.

    Attributes:
        sampling: Limits and defaults of SamplingOptions.
        model: Limits of the checkpoint. Features derive their own limits from it.
        encoder: Fingerprint of the encoder that belongs to the checkpoint; the digest of its weights may still be "".
        max_image_bytes: Maximum size of an image file.
        max_image_pixels: Maximum area of an image in a request.
        deterministic: Whether every job is deterministic, even if the request does not set it.
    """

    sampling: SamplingLimits
    model: ModelLimits
    encoder: EncoderFingerprint
    max_image_bytes: int = MAX_IMAGE_BYTES
    max_image_pixels: int = MAX_IMAGE_PIXELS
    deterministic: bool = False


def acceptance(
    config: GeneratorConfig, model: ModelLimits, defaults: GenerationDefaults, identity: Identity
) -> Acceptance:
    """Returns the stricter of the configured limits and those of the checkpoint; sides are rounded to valid values."""
    multiple = model.size_multiple
    sampling = SamplingLimits(
        size_multiple=multiple,
        min_side=-(-config.min_side // multiple) * multiple,
        max_side=min(config.max_side, model.max_side) // multiple * multiple,
        max_pixels=config.max_pixels,
        max_steps=config.max_steps,
        max_images=config.max_images,
        defaults=defaults,
    )
    return Acceptance(sampling, model, identity.encoder, deterministic=config.deterministic)
