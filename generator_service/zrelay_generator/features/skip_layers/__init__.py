"""Skip-layer guidance."""

from zrelay_generator.features.acceptance import Acceptance
from zrelay_generator.features.protocol import Capability, FeatureSlice
from zrelay_generator.features.skip_layers.hooks import skip_layer_hooks
from zrelay_generator.features.skip_layers.spec import SkipLayerSpec, parse_skip_layers


def _capabilities(accepts: Acceptance | None) -> tuple[Capability, ...]:
    return (Capability("generate.skip_layer_guidance"),)


SLICE = FeatureSlice(
    fields=("skip_layer_guidance",),
    spec=SkipLayerSpec,
    capabilities=_capabilities,
    parse=parse_skip_layers,
    hooks=skip_layer_hooks,
)
