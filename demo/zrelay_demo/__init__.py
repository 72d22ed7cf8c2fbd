"""The bundled demo checkpoint and the recipe that trained it."""

from pathlib import Path

CHECKPOINT: Path = Path(__file__).parent / "checkpoint"
"""Folder of the bundled checkpoint, in diffusers' ZImagePipeline layout."""
