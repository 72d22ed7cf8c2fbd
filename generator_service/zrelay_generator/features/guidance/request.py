"""Reads the negative prompt of a request."""

from zrelay_generator.features.guidance.spec import GuidanceSpec
from zrelay_generator.features.request import SpecRequest
from zrelay_shared.errors import InvalidArgument


def check_negative_prompt(request: SpecRequest) -> None:
    """Refuses guidance without a negative prompt.

    Raises:
        InvalidArgument: NEGATIVE_PROMPT_MISSING.
    """
    scale = request.sampling.guidance_scale
    if scale > 0.0 and not request.spec.HasField("negative_prompt"):
        raise InvalidArgument(
            f"spec.negative_prompt: guidance_scale {scale:g} needs it, got none; encode a negative prompt (it may be "
            "empty), or set guidance_scale 0",
            field="spec.negative_prompt",
            reason="NEGATIVE_PROMPT_MISSING",
        )


def parse_guidance(request: SpecRequest) -> GuidanceSpec | None:
    """Returns the negative prompt, None if guidance is off. Raises as `SpecRequest.prompt`."""
    if request.sampling.guidance_scale <= 0.0:
        return None
    return GuidanceSpec(request.prompt("negative_prompt"))
