"""The bundled demo checkpoint and the recipe that trained it."""

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""Folder of the bundled checkpoint, in the layout of diffusers' ZImagePipeline."""

VISION_CHECKPOINT: Path = Path(__file__).parent / "vision_checkpoint"
"""Folder of the bundled vision checkpoints: qwen3_vl/, siglip/, and omni/ with the tensors that Omni adds."""
