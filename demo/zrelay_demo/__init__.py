"""The bundled demo checkpoint and the recipe that trained it."""

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""Folder of the bundled checkpoint, in diffusers' ZImagePipeline layout."""

VISION_CHECKPOINT: Path = Path(__file__).parent / "vision_checkpoint"
"""What the vision service runs beside it: qwen3_vl/, siglip/, and omni/ with what `omni_folder` puts together."""
