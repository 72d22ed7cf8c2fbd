"""Classifier-free guidance of a job, and the parsing of the request fields for it."""

from dataclasses import dataclass

from zrelay_generator.features.protocol import FeatureSpec, Prompt
from zrelay_generator.features.request import SpecRequest
from zrelay_shared.errors import invalid


@dataclass(frozen=True, slots=True, eq=False)
class GuidanceSpec(FeatureSpec):
    """Classifier-free guidance with the scale, bound and truncation of the job's `SamplingSettings`.

    It adds nothing to the provenance: `sampling` and `negative_prompt` are written for every job.

    Attributes:
        negative_prompt: Embeddings of the negative prompt.
    """

    negative_prompt: Prompt


def check_negative_prompt(request: SpecRequest) -> None:
    """Refuses guidance without a negative prompt.

    Raises:
        InvalidArgument: NEGATIVE_PROMPT_MISSING.
    """
    scale = request.sampling.guidance_scale
    if scale > 0.0 and not request.spec.HasField("negative_prompt"):
        raise invalid(
            "spec.negative_prompt",
            f"one with guidance_scale {scale:g}",
            "none",
            reason="NEGATIVE_PROMPT_MISSING",
            remedy="encode a negative prompt (it may be empty), or set guidance_scale 0",
        )


def parse_guidance(request: SpecRequest) -> GuidanceSpec | None:
    """Returns the negative prompt, None if guidance is off. Raises as `SpecRequest.prompt`."""
    if request.sampling.guidance_scale <= 0.0:
        return None
    return GuidanceSpec(request.prompt("negative_prompt"))
