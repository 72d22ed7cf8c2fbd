"""The tables [generate], [encode], [encode_images] and [condition] of the configuration: defaults of requests.

Their settings are options of `zrelay`, too, whose help must start at once: this module imports little.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from zrelay_shared.service.settings import Setting, describe, setting

_BY_CHECKPOINT = "the checkpoint's"
# Declarations of settings under one heading of the help.
_request = partial(setting, None)
_image = partial(_request, group="Image")
_guidance = partial(_request, group="Guidance")
_prompt = partial(_request, group="Prompt")
_reference = partial(_request, group="Reference images")
_output = partial(_request, group="Output")
_many_images = partial(_request, group="Many images")
_connection = partial(_request, group="Connection")
# Declarations that two tables share.
_dtype = partial(
    _request,
    choices=("bf16", "f16", "f32"),
    default_text="bf16",
    help="Data type of the embeddings.",
    example="bf16",
)
_layer = partial(
    _reference, default_text="the server's", help="Hidden layer of Qwen3-VL, counted from the end.", example=-2
)
_tokens = partial(
    _reference,
    default_text="full",
    choices=("full", "text_only", "image_only", "image_no_markers"),
    example="full",
)
_text = partial(_reference, help="Text that Qwen3-VL reads after the image.", example="a red fox")
_system_turn = partial(
    _reference, help="System turn that Qwen3-VL reads before the image.", example="Describe the image."
)


@dataclass(frozen=True, slots=True)
class GenerateConfig:
    """How images are generated: options of `zrelay generate` and of `generate` in the client library.

    None leaves the choice to the generator.
    """

    width: int | None = _image(default_text=_BY_CHECKPOINT, help="Width of the image in pixels.", example=1024)
    height: int | None = _image(default_text=_BY_CHECKPOINT, help="Height of the image in pixels.", example=1024)
    num_inference_steps: int | None = _image(default_text=_BY_CHECKPOINT, help="Number of denoising steps.", example=8)
    seed: int | None = _image(default_text="random", help="Seed of the first image; image i has seed + i.", example=7)
    num_images: int | None = _image(default_text="1", help="Images of one job; their files get -1, -2, ...", example=1)
    shift: float | None = _image(default_text=_BY_CHECKPOINT, help="Shift of the noise schedule.", example=3.0)
    sigmas: tuple[float, ...] | None = _image(
        default_text="from steps and shift",
        help="Noise levels, falling from at most 1 to above 0, in place of the number of steps.",
        example=(1.0, 0.75, 0.5, 0.25),
    )
    deterministic: bool | None = _image(
        default_text="off",
        help="Make the image the same bit for bit, whatever else runs at the same time; slower.",
        example=True,
    )
    guidance_scale: float | None = _guidance(
        default_text=_BY_CHECKPOINT,
        help="Classifier-free guidance; 0 is off.",
        example=0.0,
    )
    cfg_normalization: float | None = _guidance(
        default_text="0",
        help="Largest norm of the guided prediction, as a multiple of the unguided one's; 0 is off.",
        example=0.0,
    )
    cfg_truncation: float | None = _guidance(
        default_text="1",
        help="Guidance stops once 1 - sigma exceeds this; 1 is never.",
        example=1.0,
    )
    skip_layer_guidance_scale: float | None = _guidance(
        default_text="off", help="Skip-layer guidance; 2.5 is usual.", example=2.5
    )
    skip_guidance_layers: tuple[int, ...] | None = _guidance(
        default_text="7 to 12",
        help="Transformer blocks that skip-layer guidance skips.",
        example=(7, 8, 9, 10, 11, 12),
    )
    skip_layer_guidance_start: float | None = _guidance(
        default_text="0.05",
        help="Share of the steps after which skip-layer guidance starts.",
        example=0.05,
    )
    skip_layer_guidance_stop: float | None = _guidance(
        default_text="0.5",
        help="Share of the steps after which skip-layer guidance stops.",
        example=0.5,
    )
    strength: float | None = _reference(
        default_text="0.6",
        help="Share of the schedule that runs on --image, above 0 to 1.",
        example=0.6,
    )
    format: str | None = _output(
        choices=("png", "jpeg", "webp"),
        default_text="by the file's suffix, else png",
        help="Format of the image file.",
        example="png",
    )
    quality: int | None = _output(
        default_text="the generator's",
        help="Quality of jpeg and webp files, 1 to 100.",
        example=95,
    )
    provenance: bool | None = _output(
        default_text="on",
        help="Write into the image file how it was made.",
        example=True,
    )
    keep_prompt: bool | None = _output(
        flags=("--prompt-in-file",),
        default_text="on",
        help="Write the prompt into the file, too.",
        example=True,
    )
    labels: tuple[str, ...] | None = _output(
        flags=("--label",),
        pairs=True,
        help="A label that is written into the image file; repeat it for more.",
        example=("project=foxes",),
    )
    preview_every: int | None = _output(
        default_text="1", help="Steps from one preview to the next, with --preview.", example=1
    )
    preview_max_side: int | None = _output(
        default_text="256",
        help="Largest side of a preview in pixels.",
        example=256,
    )
    priority: str | None = _many_images(
        choices=("interactive", "normal", "batch"),
        default_text="interactive for one image, normal for more",
        help="Urgency of the jobs at the generator.",
        example="normal",
    )
    timeout_s: float | None = _connection(
        flags=("--timeout",),
        unit="seconds",
        default_text="1800 seconds",
        help="Time for one call, waiting included.",
        example=1800,
    )


@dataclass(frozen=True, slots=True)
class EncodeConfig:
    """How prompts are encoded: options of `zrelay encode`, of `zrelay generate` and of `encode` in the client library.

    None leaves the choice to the encoder.
    """

    system_prompt: str | None = _prompt(
        help="System turn before the prompt (not offered yet).",
        example="Describe the image.",
    )
    assistant_prefill: str | None = _prompt(
        help="Beginning of the answer after the prompt (not offered yet).",
        example="The image shows",
    )
    think_mode: str | None = _prompt(
        choices=("none", "empty", "content"),
        default_text="none",
        help="Think block after the prompt: none, an empty one, or one with --thinking-content.",
        example="none",
    )
    thinking_content: str | None = _prompt(
        help="Text of the think block.",
        example="A fox with red fur.",
    )
    template: str | None = _prompt(
        metavar="NAME",
        default_text=_BY_CHECKPOINT,
        help="Name of another chat template (not offered yet).",
        example="default",
    )
    quote_stripping: str | None = _prompt(
        choices=("none", "json_keys", "all"),
        default_text="none",
        help="Double quotes to remove from the prompt (not offered yet).",
        example="none",
    )
    clean_whitespace: bool | None = _prompt(
        default_text="off",
        help="Trim the prompt and collapse runs of blanks (not offered yet).",
        example=True,
    )
    hidden_layer: int | None = _prompt(
        default_text="the encoder's",
        help="Layer whose output becomes the embeddings, counted from the end; -2 is what Z-Image was trained with.",
        example=-2,
    )
    text_limit: int | None = _prompt(
        unit="tokens",
        default_text="the generator's",
        help="Longest prompt.",
        example=512,
    )
    long_prompt_mode: str | None = _prompt(
        choices=("truncate", "interpolate", "pool", "attention_pool", "refuse"),
        default_text="truncate",
        help="Treatment of a longer prompt; interpolate, pool and attention_pool are not offered yet.",
        example="refuse",
    )
    dtype: str | None = _dtype(group="Prompt")
    pad_to: int | None = _prompt(
        unit="tokens",
        default_text="no padding",
        help="Pad shorter prompts to this length.",
        example=512,
    )
    bypass_cache: bool | None = _prompt(
        default_text="off",
        help="Encode the prompt again although its embeddings are cached; no encoder caches them yet.",
        example=True,
    )
    deterministic: bool | None = _prompt(
        default_text="off",
        help="Make the embeddings the same bit for bit, whatever else runs at the same time; slower.",
        example=True,
    )


@dataclass(frozen=True, slots=True)
class EncodeImagesConfig:
    """How images are encoded: options of `zrelay vision encode` and of `encode_images` in the client library.

    None leaves the choice to the vision service.
    """

    hidden_layer: int | None = _layer(flags=("--layer", "--hidden-layer"))
    tokens: str | None = _tokens(help="Tokens of Qwen3-VL to keep.")
    text: str | None = _text()
    system_prompt: str | None = _system_turn()
    target_area: int | None = _reference(
        unit="pixels",
        default_text="the processor's own size",
        help="Area to which images are resized: width times height of the image to be generated.",
        example=1048576,
    )
    dtype: str | None = _dtype(group="Reference images")


@dataclass(frozen=True, slots=True)
class ConditionConfig:
    """How a reference image is blended into a prompt: options of `zrelay generate --reference`, of
    `zrelay vision condition` and of `condition_prompt` in the client library.

    None leaves the choice to the vision service.
    """

    alpha: float | None = _reference(
        default_text="0.3",
        help="Share of the reference in the prompt, 0 to 1.",
        example=0.3,
    )
    blend: str | None = _reference(
        choices=(
            "interpolate",
            "linear",
            "adain",
            "adain_per_dim",
            "graduated",
            "slerp",
            "style_delta",
            "token_weights",
        ),
        default_text="interpolate",
        help="Method of blending.",
        example="interpolate",
    )
    normalization: str | None = _reference(
        choices=("none", "token_rms", "global", "per_dim", "hybrid"),
        default_text="token_rms",
        help="Normalization of the reference's states before they are blended.",
        example="token_rms",
    )
    outlier_mask: str | None = _reference(
        choices=("none", "zero", "clamp", "scale"),
        default_text="none",
        help="Treatment of dimensions whose deviation is far above that of prompts.",
        example="none",
    )
    outlier_threshold: float | None = _reference(
        default_text="10",
        help="Ratio of deviations above which a dimension is an outlier.",
        example=10.0,
    )
    curve: str | None = _reference(
        choices=("linear", "ease_in", "ease_out"),
        default_text="linear",
        help="Curve of the share over the tokens, for --blend graduated.",
        example="linear",
    )
    token_weights: tuple[float, ...] | None = _reference(
        help="Weight of each token of the prompt, 0 to 1, for --blend token_weights.",
        example=(0.0, 0.5, 1.0),
    )
    hidden_layer: int | None = _layer(flags=("--vision-layer",))
    tokens: str | None = _tokens(flags=("--vision-tokens",), help="Tokens of Qwen3-VL to blend.")
    text: str | None = _text(flags=("--vision-text",))
    system_prompt: str | None = _system_turn(flags=("--vision-system-prompt",))


REQUEST_CONFIGS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "generate": GenerateConfig,
        "encode": EncodeConfig,
        "encode_images": EncodeImagesConfig,
        "condition": ConditionConfig,
    }
)
"""Sections that hold defaults of requests, as tables outside of any profile, and their classes."""


def request_settings(*sections: str) -> tuple[Setting, ...]:
    """Returns the settings of tables of `REQUEST_CONFIGS`."""
    return tuple(one for section in sections for one in describe(REQUEST_CONFIGS[section], section))


def request_setting(dotted: str) -> Setting:
    """Returns the setting with a dotted key, for example `generate.timeout_s`."""
    return next(one for one in request_settings(dotted.partition(".")[0]) if one.dotted == dotted)
