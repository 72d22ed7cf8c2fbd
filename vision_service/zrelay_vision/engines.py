"""What the service asks of an engine, whichever model is in it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zrelay_vision.identity import VisionFingerprint

if TYPE_CHECKING:
    import torch


class EngineKind(StrEnum):
    """Which model reads the image; the value is how fingerprints spell it."""

    SIGLIP = "siglip"
    QWEN3_VL = "qwen3_vl"


class Engine(Protocol):
    """A model behind the service. All but the construction runs in the device thread, one call at a time."""

    @property
    def kind(self) -> EngineKind:
        """Which one."""

    @property
    def fingerprint(self) -> VisionFingerprint | None:
        """What it writes on its embeddings; None until it is loaded."""

    def load(self, device: "torch.device", cache: Path | None) -> None:
        """Loads the weights. `cache` is where digests of weights are kept. Raises CheckpointError, OutOfMemory."""

    def warm_up(self) -> None:
        """One small forward, so that the first call does not pay for what is set up once."""
