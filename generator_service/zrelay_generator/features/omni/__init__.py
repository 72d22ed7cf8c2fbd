"""Z-Image Omni: images generated from a prompt and reference images."""

from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.omni.hooks import omni_hooks
from zrelay_generator.features.omni.spec import (
    CAPABILITY,
    OmniSpec,
    check_reference_counts,
    check_references,
    omni_limits,
    parse_references,
)
from zrelay_generator.features.protocol import Capability, FeatureSlice
from zrelay_shared.limits import MAX_OMNI_IMAGES


def _capabilities(accepts: Acceptance | None) -> tuple[Capability, ...]:
    limits = omni_limits(accepts.model) if accepts is not None else None
    if limits is None:
        return (Capability(CAPABILITY, "needs a transformer with SigLIP parts", available=False),)
    note = (
        f"at most {MAX_OMNI_IMAGES} references of up to {limits.max_side} pixels a side, with SigLIP grids "
        f"{limits.siglip_width} wide"
    )
    return (Capability(CAPABILITY, note),)


SLICE = FeatureSlice(
    fields=("omni",),
    spec=OmniSpec,
    capabilities=_capabilities,
    check=check_references,
    check_counts=check_reference_counts,
    parse=parse_references,
    hooks=omni_hooks,
)
