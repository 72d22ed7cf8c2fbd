"""Everything a vision process is told, in one frozen object, checked once."""

from dataclasses import dataclass
from pathlib import Path

from zrelay_shared.limits import MAX_MESSAGE_BYTES

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """Settings of one vision process; the limits are what GetInfo tells clients.

    Attributes: `qwen3_vl` and `siglip` checkpoint folders, None for an engine that is not wanted; `reference_stats` a
    folder of what `zrelay calibrate` wrote; `threads` torch threads on a CPU, None for all cores but one;
    `hidden_layer` of a request that names none, None for the checkpoint's own; `cache` where digests of weights are
    kept between starts, None for nowhere. `max_area` pixels that Qwen3-VL sees of one image at most;
    `max_reply_bytes` of embeddings in one reply; `image_cache_bytes` of files that were sent, `state_cache_bytes` of
    what they became; `max_waiting` calls.
    """

    qwen3_vl: Path | None = None
    siglip: Path | None = None
    reference_stats: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    hidden_layer: int | None = None
    cache: Path | None = None
    max_images: int = 16
    max_image_bytes: int = 48 * MIB
    max_image_pixels: int = 50_000_000
    max_area: int = 1024 * 1024
    max_texts: int = 64
    max_text_chars: int = 8192
    max_waiting: int = 16
    max_reply_bytes: int = MAX_MESSAGE_BYTES - MIB
    image_cache_bytes: int = 256 * MIB
    state_cache_bytes: int = 512 * MIB

    def __post_init__(self) -> None:
        """Raise ValueError with the setting, what it may be, and what it is."""
        for name, value, known in (("device", self.device, DEVICES), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if self.hidden_layer is not None and self.hidden_layer >= 0:
            raise ValueError(f"hidden_layer: expected -1 (after the final norm) or less, got {self.hidden_layer}")
        for name in ("max_images", "max_image_bytes", "max_image_pixels", "max_area", "max_texts", "max_text_chars",
                     "max_waiting", "max_reply_bytes"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("image_cache_bytes", "state_cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
