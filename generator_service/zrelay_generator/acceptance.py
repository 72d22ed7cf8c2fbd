"""What a generator accepts: the configuration and the checkpoint together."""

from dataclasses import dataclass

from zrelay_generator.config import GeneratorConfig
from zrelay_generator.identity import Identity
from zrelay_shared.checkpoints import GenerationDefaults
from zrelay_shared.fingerprint import EncoderFingerprint


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the checkpoint itself allows: prompt tokens, embedding width, pixels of a side, the side's divisor."""

    text_limit: int
    embeds_width: int
    max_side: int
    size_multiple: int


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
    """Limits and defaults of a request, the prompt's bounds, and the encoder that belongs to the checkpoint."""

    sampling: SamplingLimits
    text_limit: int
    embeds_width: int
    encoder: EncoderFingerprint


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
    return Acceptance(sampling, model.text_limit, model.embeds_width, identity.encoder)
