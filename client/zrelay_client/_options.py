"""What a caller may ask for, by keyword. What is absent or None is not asked, so that the server's default applies."""

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from zrelay_client._formats import ImageFormat

if TYPE_CHECKING:
    from zrelay_client._vision_embeds import ImageEmbeds
    from zrelay_client._vision_images import ImageSource
    from zrelay_client._vision_options import ConditionOptions

ThinkMode = Literal["none", "empty", "content"]
LongPromptMode = Literal["truncate", "interpolate", "pool", "attention_pool", "refuse"]
QuoteStripping = Literal["none", "json_keys", "all"]
Priority = Literal["interactive", "normal", "batch"]
WireDtype = Literal["bf16", "f16", "f32"]


class EncodeOptions(TypedDict, total=False):
    """How prompts become embeddings: keywords of `encode`, and of `generate`'s `encoding`.

    `text_limit` is in tokens; absent, the client passes the generator's where one is configured. `hidden_layer` counts
    from the end (-2: the last block's input). `pad_to` is in tokens. `image_count` is for Z-Image Omni: places of so
    many images in the prompt; `generate` fills it in.
    """

    system_prompt: str | None
    assistant_prefill: str | None
    think_mode: ThinkMode | None
    thinking_content: str | None
    template: str | None
    quote_stripping: QuoteStripping | None
    clean_whitespace: bool | None
    hidden_layer: int | None
    text_limit: int | None
    long_prompt_mode: LongPromptMode | None
    dtype: WireDtype | None
    pad_to: int | None
    image_count: int | None
    bypass_cache: bool | None
    deterministic: bool | None


class GenerateOptions(TypedDict, total=False):
    """How embeddings become pictures: keywords of `generate` and `stream`, words and meanings as in diffusers.

    `width` and `height` in pixels; `sigmas` falling in (0, 1], in place of steps, taken as they are, or with `shift` as
    diffusers' scheduler of that shift takes them; image i has `seed` + i; `quality` 1 to 100 for jpeg and webp; a
    preview every `preview_every` steps (absent: none), its longer side at most `preview_max_side` pixels.
    `guidance_scale` above 0 leads away from the negative prompt, which is empty unless it is given. `image` (a PNG,
    JPEG or WebP file's bytes) is where the picture starts in place of noise, and `strength` the share of the schedule
    that is run, above 0 to 1 (0.6). `skip_layer_guidance_scale` leads away from a prediction made without the blocks
    `skip_guidance_layers` (7 to 12), between the shares `skip_layer_guidance_start` (0.05) and
    `skip_layer_guidance_stop` (0.5) of the steps. `reference` is an image (path, bytes, states or their file) that the
    vision service blends into the prompt, as `conditioning` says; `omni` are up to 8 images (paths or bytes) that a
    Z-Image Omni generator paints after. `priority` is the job's urgency at the generator: "interactive", "normal" or
    "batch"; absent, none is sent, which means "normal". The file tells how it was made: `keep_prompt` False leaves out
    the prompt, `provenance` False all of it; `labels` are written beside it.
    """

    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    cfg_normalization: float | None
    cfg_truncation: float | None
    shift: float | None
    sigmas: Sequence[float] | None
    seed: int | None
    num_images: int | None
    image: bytes | None
    strength: float | None
    skip_layer_guidance_scale: float | None
    skip_guidance_layers: Sequence[int] | None
    skip_layer_guidance_start: float | None
    skip_layer_guidance_stop: float | None
    reference: "ImageSource | ImageEmbeds | None"
    conditioning: "ConditionOptions | None"
    omni: "Sequence[ImageSource] | None"
    format: ImageFormat | None
    quality: int | None
    provenance: bool | None
    keep_prompt: bool | None
    labels: Mapping[str, str] | None
    preview_every: int | None
    preview_max_side: int | None
    priority: Priority | None
    deterministic: bool | None


def check_keywords(method: Callable[..., Any], given: Mapping[str, object], kind: type) -> None:
    """Raises TypeError, naming the nearest, for a keyword that `kind`, one of the above, does not have."""
    known: frozenset[str] = kind.__optional_keys__  # type: ignore[attr-defined]  # every TypedDict has it
    for name in given:
        if name in known:
            continue
        parameters = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
        near = difflib.get_close_matches(name, [*known, *parameters], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted([*known, *parameters]))}"
        raise TypeError(f"{method.__name__}() knows no keyword {name!r}; {hint}")
