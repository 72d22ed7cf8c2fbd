"""The capabilities that GetInfo lists."""

from zrelay.v1.info_pb2 import Feature
from zrelay_vision.config import VisionConfig


def capabilities(config: VisionConfig, *, can_score: bool, calibrations: int) -> list[Feature]:
    """Lists every capability of the contract; `note` states a restriction, or what to do without the capability.

    Args:
        config: The settings.
        can_score: Whether the SigLIP2 checkpoint has a text tower.
        calibrations: Number of sets of reference statistics.
    """
    qwen, siglip = config.qwen3_vl is not None, config.siglip is not None
    no_qwen, no_siglip = (f"start the vision service with {flag} FOLDER" for flag in ("--qwen3-vl", "--siglip"))
    calibrate = (
        "run `zrelay calibrate` for per_dim, hybrid and outlier masks, and start the vision service with "
        "--reference-stats FOLDER"
    )
    rows = [
        ("vision.encode", qwen or siglip, "" if qwen or siglip else f"{no_qwen}, or with --siglip FOLDER"),
        (
            "vision.encode.states",
            qwen,
            f"at most {config.max_area} pixels; larger images are scaled down" if qwen else no_qwen,
        ),
        ("vision.encode.grids", siglip, "" if siglip else no_siglip),
        ("vision.layer", qwen, "layers that the loaded blocks reach (--hidden-layer)" if qwen else no_qwen),
        ("vision.condition", True, "" if qwen else f"with saved states only; for images {no_qwen}"),
        (
            "vision.calibrated",
            calibrations > 0,
            f"{calibrations} sets of reference statistics" if calibrations else calibrate,
        ),
        ("vision.score", can_score, "" if can_score else no_siglip),
    ]
    return [Feature(name=name, available=available, note=note) for name, available, note in rows]
