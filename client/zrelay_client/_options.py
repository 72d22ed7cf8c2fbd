"""What a caller may ask for: frozen values in which None means "not asked", so that the server's default applies."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]
ThinkMode = Literal["none", "empty", "content"]
LongPromptMode = Literal["truncate", "interpolate", "pool", "attention_pool", "refuse"]
QuoteStripping = Literal["none", "json_keys", "all"]
Priority = Literal["interactive", "normal", "batch"]
WireDtype = Literal["bf16", "f16", "f32"]


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How prompts become embeddings.

    `text_limit` is in tokens; absent, the client passes the generator's where one is configured. `hidden_layer` counts
    from the end (-2: the last block's input). `pad_to` is in tokens.
    """

    system_prompt: str | None = None
    assistant_prefill: str | None = None
    think_mode: ThinkMode | None = None
    thinking_content: str | None = None
    template: str | None = None
    quote_stripping: QuoteStripping | None = None
    clean_whitespace: bool | None = None
    hidden_layer: int | None = None
    text_limit: int | None = None
    long_prompt_mode: LongPromptMode | None = None
    dtype: WireDtype | None = None
    pad_to: int | None = None
    bypass_cache: bool = False
    deterministic: bool = False


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """How embeddings become pictures; words and meanings as in diffusers.

    `width` and `height` in pixels; `sigmas` falling in (0, 1], in place of steps and shift; image i has `seed` + i;
    `quality` 1 to 100 for jpeg and webp; a preview every `preview_every` steps (0: none), its longer side at most
    `preview_max_side` pixels. `keep_prompt` writes the prompt into the file's provenance, `provenance` False leaves out
    all of it; `labels` are written beside it.
    """

    width: int | None = None
    height: int | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    cfg_normalization: float | None = None
    cfg_truncation: float | None = None
    shift: float | None = None
    sigmas: tuple[float, ...] = ()
    seed: int | None = None
    num_images: int | None = None
    format: ImageFormat | None = None
    quality: int | None = None
    provenance: bool = True
    keep_prompt: bool = True
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    preview_every: int = 0
    preview_max_side: int | None = None
    priority: Priority | None = None
    deterministic: bool = False
