"""What this vision service can do of the contract, told by GetInfo, and the refusal of the rest."""

from dataclasses import dataclass

from zrelay_shared.errors import FeatureMissing
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind

_FLAGS = {EngineKind.SIGLIP: "--siglip", EngineKind.QWEN3_VL: "--qwen3-vl"}
_STATES, _GRIDS = "vision.encode.states", "vision.encode.grids"
ENCODE = {EngineKind.SIGLIP: _GRIDS, EngineKind.QWEN3_VL: _STATES}
"""The feature that encoding with an engine is."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Whether a named capability is there; `note` says under which restriction, or what to do without it."""

    name: str
    available: bool
    note: str = ""


def features(config: VisionConfig, *, can_score: bool, calibrations: int) -> tuple[Feature, ...]:
    """Those of a service with these settings. `can_score`: its SigLIP2 has a text tower."""
    qwen, siglip = config.qwen3_vl is not None, config.siglip is not None
    no_qwen, no_siglip = (f"start the vision service with {flag} FOLDER" for flag in ("--qwen3-vl", "--siglip"))
    return (
        Feature("vision.encode", qwen or siglip, "" if qwen or siglip else f"{no_qwen}, or with --siglip FOLDER"),
        Feature(_STATES, qwen, f"at most {config.max_area} pixels; larger images are scaled down" if qwen else no_qwen),
        Feature(_GRIDS, siglip, "" if siglip else no_siglip),
        Feature("vision.layer", qwen, "those that the loaded blocks reach (--hidden-layer)" if qwen else no_qwen),
        Feature("vision.condition", True, "" if qwen else f"with saved states alone; for images {no_qwen}"),
        Feature(
            "vision.calibrated",
            calibrations > 0,
            f"{calibrations} sets of reference statistics"
            if calibrations
            else "run `zrelay calibrate` for per_dim, "
            "hybrid and outlier masks, and start the vision service with --reference-stats FOLDER",
        ),
        Feature("vision.score", can_score, "" if can_score else no_siglip),
    )


def engine_missing(kind: EngineKind, feature: str, field: str) -> FeatureMissing:
    """The refusal of request field `field`, which needs an engine that was not started."""
    flag = _FLAGS[kind]
    return FeatureMissing(
        f"{field}: this vision service runs without {kind.value}: start it with {flag} FOLDER, or use another one",
        field=field,
        metadata={"feature": feature, "flag": flag},
    )
