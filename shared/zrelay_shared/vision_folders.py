"""Finds the engines' checkpoints in a folder, which may contain one or both."""

from dataclasses import replace
from pathlib import Path

from zrelay_shared.checkpoint_files import read_json, refusal
from zrelay_shared.service.roles import VisionConfig


def engines_in(model: Path) -> tuple[Path | None, Path | None]:
    """Returns the Qwen3-VL folder and the SigLIP folder of `model`.

    These are its sub-folders qwen3_vl/ and siglip/ (a Z-Image Omni pipeline has the latter), or `model` itself if it is
    a checkpoint of either kind.

    Raises:
        CheckpointError: The folder holds neither.
    """
    inside = [model / name if (model / name / "config.json").is_file() else None for name in ("qwen3_vl", "siglip")]
    if any(inside):
        return inside[0], inside[1]
    kind = read_json(model, "config.json").get("model_type") if (model / "config.json").is_file() else None
    if kind == "qwen3_vl":
        return model, None
    if isinstance(kind, str) and kind.startswith("siglip"):
        return None, model
    raise refusal(
        model,
        "",
        "holds no engine: neither qwen3_vl/ nor siglip/, nor is it such a checkpoint itself",
        "name a Qwen3-VL folder (--qwen3-vl or --model), a SigLIP2 folder (--siglip or --model), or a folder of both "
        "(--model)",
    )


def with_engines(config: VisionConfig) -> VisionConfig:
    """Returns the settings with the engines that `model` holds. Raises CheckpointError."""
    if config.model is None:
        return config
    qwen3_vl, siglip = engines_in(config.model)
    return replace(config, qwen3_vl=config.qwen3_vl or qwen3_vl, siglip=config.siglip or siglip)
