"""Skip-layer guidance of a job, and the parsing of the request fields for it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from zrelay_generator.features.protocol import FeatureSpec
from zrelay_generator.features.request import SpecRequest, decimal
from zrelay_shared.errors import invalid


@dataclass(frozen=True, slots=True)
class SkipLayerSpec(FeatureSpec):
    """Skip-layer guidance of a job.

    Attributes:
        scale: Scale of the guidance; 0 is off.
        layers: Indices of the blocks to skip.
        start, stop: Shares of the run steps, 0 to 1, at which guidance starts and stops; `stop` is excluded.
    """

    scale: float
    layers: frozenset[int]
    start: float
    stop: float

    def provenance(self) -> Mapping[str, object]:
        entry = {"scale": self.scale, "layers": sorted(self.layers), "start": self.start, "stop": self.stop}
        return {"skip_layer_guidance": entry}


_DEFAULT = SkipLayerSpec(scale=2.5, layers=frozenset(range(7, 13)), start=0.05, stop=0.5)
_MAX_SCALE = 100.0


def parse_skip_layers(request: SpecRequest) -> SkipLayerSpec | None:
    """Returns skip-layer guidance, None if the request does not ask for it.

    Raises:
        InvalidArgument: SCALE_INVALID, WINDOW_INVALID or LAYERS_INVALID.
    """
    if not request.spec.HasField("skip_layer_guidance"):
        return None
    message, path, blocks = request.spec.skip_layer_guidance, "spec.skip_layer_guidance", request.accepts.model.layers
    scale = decimal(message.scale) if message.HasField("scale") else _DEFAULT.scale
    start = decimal(message.start) if message.HasField("start") else _DEFAULT.start
    stop = decimal(message.stop) if message.HasField("stop") else _DEFAULT.stop
    layers = frozenset(message.layers) or _DEFAULT.layers
    if not (math.isfinite(scale) and 0.0 <= scale <= _MAX_SCALE):
        raise invalid(f"{path}.scale", f"0 to {_MAX_SCALE:g}", f"{scale:g}")
    if not 0.0 <= start <= stop <= 1.0:
        raise invalid(f"{path}.start", "0 <= start <= stop <= 1", f"{start:g} to {stop:g}", reason="WINDOW_INVALID")
    if max(layers) >= blocks:
        remedy = "" if message.layers else "these are the defaults, which are for the published model: name layers"
        raise invalid(
            f"{path}.layers",
            f"some of 0 to {blocks - 1}, the transformer's main blocks",
            f"{min(layers)} to {max(layers)}",
            remedy=remedy,
        )
    return SkipLayerSpec(scale, layers, start, stop)
