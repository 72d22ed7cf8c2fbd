"""Which engines a folder holds, where one folder was given for all of them."""

from pathlib import Path

from zrelay_shared.checkpoint_files import read_json, refusal


def engines_in(model: Path) -> tuple[Path | None, Path | None]:
    """The Qwen3-VL and the SigLIP folder of `model`: its qwen3_vl/ and siglip/, or itself, if it is one of both.

    A Z-Image Omni pipeline has its siglip/ so. Raises CheckpointError where there is neither.
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
        "give a Qwen3-VL folder with --qwen3-vl or a SigLIP2 folder with --siglip, or a folder of both with --model",
    )
