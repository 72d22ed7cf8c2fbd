"""What a generator accepts: the configuration and the checkpoint together."""

from dataclasses import dataclass

from zrelay_generator.model.identity import Identity
from zrelay_generator.model.model import ModelLimits
from zrelay_generator.settings import GeneratorConfig
from zrelay_shared.checkpoints import GenerationDefaults
from zrelay_shared.fingerprint import EncoderFingerprint

MAX_IMAGE_BYTES = 32 << 20
"""Half a message: a 3000 x 3000 PNG of pure noise."""
MAX_IMAGE_PIXELS = 1 << 25
"""Twice 4096 x 4096: 100 MB while the file is being read."""


@dataclass(frozen=True, slots=True)
class OmniLimits:
    """Of reference images: the width of their SigLIP grids, pixels of a side once they are resized."""

    siglip_width: int
    max_side: int


@dataclass(frozen=True, slots=True)
class SamplingLimits:
    """What a request may ask for; sides in pixels, divisible by `size_multiple`. `defaults` fill what it leaves out."""

    size_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    max_steps: int
    max_images: int
    defaults: GenerationDefaults


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Limits and defaults of a request, the prompt's bounds, the encoder that belongs to the checkpoint, the number of
    its main blocks, what an image of a request may be (bytes of the file, pixels of the picture), and what reference
    images may be, None for a transformer without SigLIP parts; whether every job is `deterministic`, asked or not."""

    sampling: SamplingLimits
    text_limit: int
    embeds_width: int
    encoder: EncoderFingerprint
    layers: int
    max_image_bytes: int = MAX_IMAGE_BYTES
    max_image_pixels: int = MAX_IMAGE_PIXELS
    omni: OmniLimits | None = None
    deterministic: bool = False


def acceptance(
    config: GeneratorConfig, model: ModelLimits, defaults: GenerationDefaults, identity: Identity
) -> Acceptance:
    """The narrower of what the configuration and the checkpoint allow; sides rounded to what can be asked for."""
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
    # A grid is spread over its picture's latents, of which there are twice as many as positions are counted for.
    omni = OmniLimits(model.siglip_width, model.max_side // 2) if model.siglip_width else None
    return Acceptance(
        sampling,
        model.text_limit,
        model.embeds_width,
        identity.encoder,
        model.layers,
        omni=omni,
        deterministic=config.deterministic,
    )
