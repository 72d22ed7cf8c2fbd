"""The fingerprint of a vision engine, and the digest of what its processor does with images and texts."""

import hashlib
import json
from collections.abc import Mapping

from zrelay_shared.vision_fingerprint import VisionFingerprint

__all__ = ["VisionFingerprint", "settings_digest"]


def settings_digest(settings: Mapping[str, object]) -> str:
    """SHA-256 (hex) of a processor's settings as ASCII JSON, keys sorted, no blanks."""
    said = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(said.encode("ascii")).hexdigest()
