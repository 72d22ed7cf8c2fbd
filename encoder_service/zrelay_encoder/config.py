"""Everything an encoder process is told, in one frozen object, checked once."""

from dataclasses import dataclass
from pathlib import Path

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """Settings of one encoder process; the limits are what GetInfo tells clients.

    Attributes: `model` a pipeline folder or a bare Qwen3 folder; `threads` torch threads on a CPU, None for all cores
    but one; `cache` where digests of weights are kept between starts, None for nowhere; `max_text_limit` tokens of
    one prompt that a request may ask for; `max_waiting` calls that may wait for the device; `batch_tokens` tokens that
    one forward takes at most (one longer prompt still goes alone).
    """

    model: Path
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None
    hidden_layer: int = -2
    cache: Path | None = None
    max_prompts: int = 64
    max_prompt_chars: int = 65_536
    max_text_limit: int = 4096
    max_waiting: int = 64
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        """Raise ValueError with the setting, what it may be, and what it is."""
        for name, value, known in (("device", self.device, DEVICES), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads: expected at least 1, got {self.threads}")
        if self.hidden_layer >= 0:
            raise ValueError(f"hidden_layer: expected -1 (after the final norm) or less, got {self.hidden_layer}")
        for name in ("max_prompts", "max_prompt_chars", "max_text_limit", "max_waiting", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
