"""What a job asks of skip-layer guidance."""

from collections.abc import Mapping
from dataclasses import dataclass

from zrelay_generator.features.protocol import FeatureSpec


@dataclass(frozen=True, slots=True)
class SkipLayerSpec(FeatureSpec):
    """Guidance away from the prediction without some main blocks.

    Attributes:
        scale: Strength; 0 is off.
        layers: Indices of the blocks to skip.
        start, stop: First and last share of the steps that run, 0 to 1; the last is excluded.
    """

    scale: float
    layers: frozenset[int]
    start: float
    stop: float

    def provenance(self) -> Mapping[str, object]:
        entry = {"scale": self.scale, "layers": sorted(self.layers), "start": self.start, "stop": self.stop}
        return {"skip_layer_guidance": entry}
