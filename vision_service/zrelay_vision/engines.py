"""What the engines have in common: their kinds, the protocol, and the digest of their settings."""

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zrelay_shared.errors import FeatureMissing
from zrelay_shared.vision_fingerprint import VisionFingerprint

if TYPE_CHECKING:
    import torch


class EngineKind(StrEnum):
    """Which model reads the image. The values are those of fingerprints."""

    SIGLIP = "siglip"
    QWEN3_VL = "qwen3_vl"


_FLAGS = {EngineKind.SIGLIP: "--siglip", EngineKind.QWEN3_VL: "--qwen3-vl"}


class ImageEngine(Protocol):
    """A model behind the service. All methods run in the device thread, one at a time."""

    @property
    def kind(self) -> EngineKind:
        """Which model it is."""

    @property
    def fingerprint(self) -> VisionFingerprint | None:
        """The fingerprint of its embeddings with default options, or None until it is loaded."""

    def load(self, device: "torch.device", cache: Path | None) -> None:
        """Loads the weights.

        Args:
            device: Where to compute.
            cache: Folder that keeps digests of weights between starts, None for none.

        Raises:
            CheckpointError: The checkpoint is damaged.
            OutOfMemory: The weights do not fit.
        """

    def warm_up(self) -> None:
        """Runs one small image, so that the first call does not pay for one-time set-up."""


def settings_digest(settings: Mapping[str, object]) -> str:
    """Returns the SHA-256 (hex) of settings as ASCII JSON with sorted keys and without blanks."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def engine_missing(kind: EngineKind, capability: str, field: str) -> FeatureMissing:
    """Makes the refusal of a request field that needs an engine which this process does not run."""
    flag = _FLAGS[kind]
    return FeatureMissing(
        f"{field}: this vision service runs without {kind.value}; start it with {flag} FOLDER, or use another one",
        field=field,
        metadata={"feature": capability, "flag": flag},
    )
