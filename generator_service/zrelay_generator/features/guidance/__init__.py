"""Classifier-free guidance."""

from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.guidance.hooks import guidance_hooks
from zrelay_generator.features.guidance.spec import GuidanceSpec, check_negative_prompt, parse_guidance
from zrelay_generator.features.protocol import Capability, FeatureSlice


def _capabilities(accepts: Acceptance | None) -> tuple[Capability, ...]:
    names = ("generate.cfg", "generate.cfg_normalization", "generate.cfg_truncation")
    return tuple(Capability(name) for name in names)


SLICE = FeatureSlice(
    fields=("negative_prompt",),
    spec=GuidanceSpec,
    capabilities=_capabilities,
    check=check_negative_prompt,
    parse=parse_guidance,
    hooks=guidance_hooks,
)
