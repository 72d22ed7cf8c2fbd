"""Options of the client's calls, as frozen dataclasses that validate their values when they are made.

    options = GenerateOptions(width=768, height=512, seed=7)
    client.generate("a red fox", options)
    client.generate("a red fox", options, seed=8)  # keywords replace fields of the options
    client.generate("a red fox", width=768)        # keywords alone

None means that the option is absent, and the service's default applies. A value that is not valid raises
InvalidArgument with the name of the field. After construction no value is checked or converted again: `replaced`
checks the values that it replaces.
"""

# ruff: noqa: RUF009  # `_option` returns dataclasses.field

import copy
import difflib
import inspect
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, TypeVar, get_args, get_origin

from zrelay_client.events import ImageFormat
from zrelay_client.image_files import ImageSource
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.limits import MAX_OMNI_IMAGES, MAX_SEED

if TYPE_CHECKING:
    from zrelay_client.image_embeds import ImageEmbeds

ThinkMode = Literal["none", "empty", "content"]
LongPromptMode = Literal["truncate", "interpolate", "pool", "attention_pool", "refuse"]
QuoteStripping = Literal["none", "json_keys", "all"]
Priority = Literal["interactive", "normal", "batch"]
WireDtype = Literal["bf16", "f16", "f32"]
Engine = Literal["siglip", "qwen3_vl"]
Tokens = Literal["full", "text_only", "image_only", "image_no_markers"]
Blend = Literal["interpolate", "linear", "adain", "adain_per_dim", "graduated", "slerp", "style_delta", "token_weights"]
Normalization = Literal["none", "token_rms", "global", "per_dim", "hybrid"]
OutlierMask = Literal["none", "zero", "clamp", "scale"]
Curve = Literal["linear", "ease_in", "ease_out"]
Rule = Callable[[str, Any], Any]
"""Takes a field's name and its value, and returns the normalised value. Raises InvalidArgument."""


def refusal(name: str, expected: str, got: object, *, reason: str = "") -> InvalidArgument:
    """Returns the error for a value that is not valid: <NAME>_INVALID unless another reason is given."""
    return InvalidArgument(
        f"{name}: expected {expected}, got {got!r}",
        field=name,
        reason=reason or f"{name.upper()}_INVALID",
        metadata={"expected": expected, "got": got},
    )


def checked_integer(name: str, value: object, least: int, most: int) -> int:
    """Returns an integer of a range; those of numpy are accepted. Raises InvalidArgument (<NAME>_INVALID)."""
    try:
        number = int(operator.index(value))  # type: ignore[arg-type]  # raises TypeError for anything else
    except TypeError as error:
        raise refusal(name, "a whole number", value) from error
    if not least <= number <= most:
        raise refusal(name, f"a whole number from {least} to {most}", value)
    return number


def checked_number(name: str, value: object) -> float:
    """Returns a finite number. Raises InvalidArgument (<NAME>_INVALID)."""
    if isinstance(value, (str, bytes)):
        raise refusal(name, "a number", value)
    try:
        number = float(value)  # type: ignore[arg-type]  # raises TypeError for anything else
    except (TypeError, ValueError, OverflowError) as error:
        raise refusal(name, "a number", value) from error
    if not math.isfinite(number):
        raise refusal(name, "a finite number", number)
    return number


def checked_text(name: str, value: object) -> str:
    """Returns a text that can be encoded as UTF-8. Raises InvalidArgument (<NAME>_INVALID, TEXT_INVALID)."""
    if not isinstance(value, str):
        raise refusal(name, "a text", type(value).__name__)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{name}: expected valid Unicode, got bytes that are not UTF-8 at character {error.start}",
            field=name,
            reason="TEXT_INVALID",
        ) from error
    return value


def checked_word(name: str, value: object, kind: Any) -> str:
    """Returns a word of a Literal. Raises InvalidArgument (<NAME>_INVALID)."""
    known = get_args(kind)
    if not isinstance(value, str) or value not in known:
        raise InvalidArgument(
            f"{name}: expected one of {', '.join(known)}, got {value!r}",
            field=name,
            reason=f"{name.upper()}_INVALID",
            metadata={"got": value},
        )
    return value


def checked_seconds(name: str, value: object) -> float:
    """Returns a number of seconds above 0. Raises InvalidArgument (TIMEOUT_INVALID)."""
    expected, reason = "a number of seconds above 0", "TIMEOUT_INVALID"
    try:
        seconds = checked_number(name, value)
    except InvalidArgument as error:
        raise refusal(name, expected, value, reason=reason) from error
    if seconds <= 0:
        raise refusal(name, expected, value, reason=reason)
    return seconds


def checked_id(name: str, value: object) -> str | None:
    """Returns the name of a job or of a batch, None for none; the generator checks its characters.

    Raises:
        InvalidArgument: <NAME>_INVALID, it is not a text.
    """
    if value is not None and not isinstance(value, str):
        raise refusal(name, "a text", value)
    return value


def checked_images(name: str, images: object) -> tuple[ImageSource, ...]:
    """Returns images as a tuple. Raises TypeError for one image, InvalidArgument (<NAME>_INVALID) for other values."""
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, Sequence):
        raise TypeError(f"{name}: expected several images, got one: put it into a list")
    for image in images:
        if not isinstance(image, (str, bytes, os.PathLike)):
            raise refusal(name, "paths or bytes of image files", type(image).__name__)
    return tuple(images)


def _integer(least: int, most: int) -> Rule:
    return lambda name, value: checked_integer(name, value, least, most)


def _word(kind: Any) -> Rule:
    return lambda name, value: checked_word(name, value, kind)


def _many(rule: Rule, expected: str) -> Rule:
    def check(name: str, values: object) -> tuple[Any, ...]:
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise refusal(name, expected, values)
        return tuple(rule(name, value) for value in values)

    return check


def _flag(name: str, value: Any) -> bool:
    try:
        valid = not isinstance(value, (str, bytes)) and bool(value == 0 or value == 1)
    except (TypeError, ValueError):  # an array
        valid = False
    if not valid:
        raise refusal(name, "True or False", value)
    return bool(value)


def _image_bytes(name: str, value: object) -> bytes:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise refusal(name, "the bytes of an image file", type(value).__name__)
    return bytes(value)


def _reference(name: str, value: Any) -> "ImageSource | ImageEmbeds":
    if not isinstance(value, (str, bytes, os.PathLike)):
        from zrelay_client.image_embeds import ImageEmbeds  # loads protobuf, which `zrelay --help` does not need

        if not isinstance(value, ImageEmbeds):
            raise refusal(name, "a path, the bytes of an image file, or ImageEmbeds", type(value).__name__)
    return value  # type: ignore[no-any-return]  # narrowed by both checks


def _omni(name: str, value: object) -> tuple[ImageSource, ...]:
    images = checked_images(name, value)
    if len(images) > MAX_OMNI_IMAGES:
        raise _conflict(name, "REFERENCE_COUNT", f"at most {MAX_OMNI_IMAGES} images", len(images))
    return images


def _conditioning(name: str, value: Any) -> "ConditionOptions":
    options: ConditionOptions = options_of(ConditionOptions, value, argument=name)
    return options


class Labels(Mapping[str, str]):
    """A mapping of texts that cannot change, so that the options that hold it are hashable."""

    __slots__ = ("_texts",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = dict(texts)

    def __getitem__(self, label: str) -> str:
        return self._texts[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __hash__(self) -> int:
        return hash(frozenset(self._texts.items()))

    def __repr__(self) -> str:
        return repr(self._texts)


def _labels(name: str, value: Any) -> Labels:
    if not isinstance(value, Mapping):
        raise refusal(name, "a mapping of texts", type(value).__name__)
    return Labels({checked_text(name, label): checked_text(name, text) for label, text in value.items()})


def _share(name: str, value: object) -> float:
    number = checked_number(name, value)
    if not 0.0 <= number <= 1.0:
        raise refusal(name, "a share of the image from 0 (the prompt alone) to 1", value)
    return number


def _strength(name: str, value: object) -> float:
    number = checked_number(name, value)
    if not 0.0 < number <= 1.0:
        raise refusal(name, "more than 0 and at most 1", value)
    return number


_UINT32, _UINT64 = _integer(0, (1 << 32) - 1), _integer(0, (1 << 64) - 1)
_INT32 = _integer(-(1 << 31), (1 << 31) - 1)
_NUMBERS = _many(checked_number, "a sequence of numbers")
_INDICES = _many(_UINT32, "a sequence of whole numbers")


def _option(rule: Any) -> Any:
    """Returns a dataclass field that is None by default.

    Args:
        rule: The Rule that normalises the value, or a Literal whose words are valid.
    """
    return field(default=None, metadata={"rule": _word(rule) if get_origin(rule) is Literal else rule})


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """The base of all options: applies the rule of each field once, in the constructor."""

    def __post_init__(self) -> None:
        self._set({item.name: getattr(self, item.name) for item in fields(self)})
        self._check_together()

    def replaced(self, **values: Any) -> Self:
        """Returns a copy with other values of some fields. Only these values are checked, and how fields go together.

        Raises:
            InvalidArgument: A value is not valid.
        """
        made = copy.copy(self)
        made._set(values)
        made._check_together()
        return made

    def _set(self, values: Mapping[str, Any]) -> None:
        """Sets fields to their values, normalised by the rules of the fields. Raises InvalidArgument."""
        for item in fields(self):
            if item.name in values:
                value = values[item.name]
                normalised = None if value is None else item.metadata["rule"](item.name, value)
                object.__setattr__(self, item.name, normalised)

    def _check_together(self) -> None:
        """Checks the rules that relate several fields to each other. Raises InvalidArgument."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeOptions(CallOptions):
    """How prompts become embeddings: options of `encode`, and `encoding` of `generate`.

    Attributes:
        system_prompt, assistant_prefill, thinking_content: Texts of the chat template.
        think_mode: The think block of the chat template.
        template: Name of a prompt template of the encoder.
        quote_stripping: Which quotation marks are removed from the prompt.
        clean_whitespace: Whether repeated whitespace is removed.
        hidden_layer: Layer whose output is used, counted from the end; -2 is the input of the last block.
        text_limit: Limit in tokens. Default: that of the client's generator if it has one.
        long_prompt_mode: What happens to a prompt above the limit.
        dtype: Data type of the embeddings.
        pad_to: Tokens to pad the embeddings to.
        image_count: Number of reference images that the prompt has places for (Z-Image Omni). `generate` sets it.
        bypass_cache: Whether to encode again although the encoder's cache holds the prompt.
        deterministic: Whether the embeddings must not depend on other prompts in the batch, bit for bit.
    """

    system_prompt: str | None = _option(checked_text)
    assistant_prefill: str | None = _option(checked_text)
    think_mode: ThinkMode | None = _option(ThinkMode)
    thinking_content: str | None = _option(checked_text)
    template: str | None = _option(checked_text)
    quote_stripping: QuoteStripping | None = _option(QuoteStripping)
    clean_whitespace: bool | None = _option(_flag)
    hidden_layer: int | None = _option(_INT32)
    text_limit: int | None = _option(_UINT32)
    long_prompt_mode: LongPromptMode | None = _option(LongPromptMode)
    dtype: WireDtype | None = _option(WireDtype)
    pad_to: int | None = _option(_UINT32)
    image_count: int | None = _option(_UINT32)
    bypass_cache: bool | None = _option(_flag)
    deterministic: bool | None = _option(_flag)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatesOptions(CallOptions):
    """How Qwen3-VL reads an image: the base of the options of the vision service.

    Attributes:
        hidden_layer: Layer whose output is used, counted from the end.
        tokens: Which tokens are kept.
        text: Text after the image.
        system_prompt: Text of the system turn.
    """

    hidden_layer: int | None = _option(_INT32)
    tokens: Tokens | None = _option(Tokens)
    text: str | None = _option(checked_text)
    system_prompt: str | None = _option(checked_text)

    def states_fields(self) -> dict[str, Any]:
        """Returns the fields of StatesOptions that are set."""
        values = {item.name: getattr(self, item.name) for item in fields(StatesOptions)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeImagesOptions(StatesOptions):
    """Options of `encode_images`.

    Attributes:
        target_area: Width times height in pixels of the image to generate; larger images are resized to it.
        dtype: Data type of the embeddings.
    """

    target_area: int | None = _option(_UINT64)
    dtype: WireDtype | None = _option(WireDtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionOptions(StatesOptions):
    """How an image conditions a prompt: options of `condition_prompt`, and `conditioning` of `generate`.

    Attributes:
        alpha: Share of the image, 0 (the prompt alone) to 1.
        blend: How the image's states are blended into the prompt.
        normalization: How the states are scaled to the prompt.
        outlier_mask: What happens to dimensions whose deviation is an outlier.
        outlier_threshold: Ratio of the image's standard deviation to the encoder's above which a dimension is an
            outlier.
        curve: How the image's share grows along the tokens, for the blend "graduated".
        token_weights: Weight of each token of the prompt, 0 to 1, for the blend "token_weights".
    """

    alpha: float | None = _option(_share)
    blend: Blend | None = _option(Blend)
    normalization: Normalization | None = _option(Normalization)
    outlier_mask: OutlierMask | None = _option(OutlierMask)
    outlier_threshold: float | None = _option(checked_number)
    curve: Curve | None = _option(Curve)
    token_weights: Sequence[float] | None = _option(_NUMBERS)


_DEFAULT_CONDITIONING = ConditionOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions(CallOptions):
    """How embeddings become images: options of `generate`, `stream`, `generate_many` and `submit`.

    Names and meanings are those of diffusers where it has the option.

    Attributes:
        width, height: Size of the image in pixels. Default: with `image` its size, upright, rounded to the generator's
            multiple and scaled down to the checkpoint's default area where it is larger; else the checkpoint's. With
            one of the two alone, the other one keeps the shape of `image`.
        num_inference_steps: Number of denoising steps.
        guidance_scale: Strength of classifier-free guidance; 0 is off. Above 0 the negative prompt is used, which is
            empty unless it is given.
        cfg_normalization: Largest norm of the guided prediction, as a multiple of the unguided one's; 0 is off.
        cfg_truncation: Guidance stops once 1 - sigma exceeds this; 1 never stops it.
        shift: Shift of the noise schedule.
        sigmas: Falling noise levels in (0, 1] in place of steps: used as they are, or shifted if `shift` is set.
        seed: Seed of the first image; image i gets `seed` + i.
        num_images: Number of images of the job.
        image: Bytes of a PNG, JPEG or WebP file to start from in place of noise.
        strength: Share of the schedule that is run on `image`, above 0 to 1. Default: 0.6.
        skip_layer_guidance_scale: Strength of guidance away from a prediction without some blocks.
        skip_guidance_layers: The blocks to leave out. Default: 7 to 12.
        skip_layer_guidance_start, skip_layer_guidance_stop: The share of the steps in which it applies. Default: 0.05
            to 0.5.
        reference: An image (path, bytes, ImageEmbeds or the path of their file) that the vision service blends into the
            prompt.
        conditioning: How `reference` is blended: ConditionOptions, or a mapping of its fields.
        omni: Up to 8 reference images (paths or bytes) for a Z-Image Omni generator.
        format: Format of the image file.
        quality: Quality of jpeg and webp files, 1 to 100. It needs such a `format`.
        provenance: False leaves the settings out of the image file.
        keep_prompt: False leaves the prompt out of the image file.
        labels: Texts that are written to the image file beside the settings.
        preview_every: Steps from preview to preview. Default: no previews.
        preview_max_side: Longest side of a preview in pixels.
        priority: Urgency of the job. Default: "normal".
        deterministic: Whether the image must not depend on other jobs in the batch, bit for bit.

    Raises:
        InvalidArgument: A value is not valid (<NAME>_INVALID), `strength` without `image` (STRENGTH_INVALID),
            `quality` for a png file (QUALITY_INVALID), `conditioning` without `reference` (REFERENCE_MISSING),
            `reference` and `omni` (REFERENCE_AND_OMNI), or too many images (REFERENCE_COUNT).
    """

    width: int | None = _option(_UINT32)
    height: int | None = _option(_UINT32)
    num_inference_steps: int | None = _option(_UINT32)
    guidance_scale: float | None = _option(checked_number)
    cfg_normalization: float | None = _option(checked_number)
    cfg_truncation: float | None = _option(checked_number)
    shift: float | None = _option(checked_number)
    sigmas: Sequence[float] | None = _option(_NUMBERS)
    seed: int | None = _option(_UINT64)
    num_images: int | None = _option(_integer(1, (1 << 32) - 1))
    image: bytes | None = _option(_image_bytes)
    strength: float | None = _option(_strength)
    skip_layer_guidance_scale: float | None = _option(checked_number)
    skip_guidance_layers: Sequence[int] | None = _option(_INDICES)
    skip_layer_guidance_start: float | None = _option(checked_number)
    skip_layer_guidance_stop: float | None = _option(checked_number)
    reference: "ImageSource | ImageEmbeds | None" = _option(_reference)
    conditioning: "ConditionOptions | ConditionKeywords | None" = _option(_conditioning)
    omni: Sequence[ImageSource] | None = _option(_omni)
    format: ImageFormat | None = _option(ImageFormat)
    quality: int | None = _option(_integer(1, 100))
    provenance: bool | None = _option(_flag)
    keep_prompt: bool | None = _option(_flag)
    labels: Mapping[str, str] | None = _option(_labels)
    preview_every: int | None = _option(_UINT32)
    preview_max_side: int | None = _option(_UINT32)
    priority: Priority | None = _option(Priority)
    deterministic: bool | None = _option(_flag)

    def _check_together(self) -> None:
        if self.image is None and self.strength is not None:
            raise refusal("strength", "none where there is no image to start from", self.strength)
        most = MAX_SEED - (self.num_images or 1) + 1
        if self.seed is not None and self.seed > most:
            expected = f"a whole number from 0 to {most} for {self.num_images} images, of which image i has seed + i"
            raise refusal("seed", expected, self.seed)
        if self.quality is not None and self.format in (None, "png"):
            expected = "none for a png file, which is lossless"
            raise _conflict("quality", "QUALITY_INVALID", expected, f"{self.quality}: set `format` to jpeg or webp")
        if self.reference is None and self.condition_options != _DEFAULT_CONDITIONING:
            raise _conflict("conditioning", "REFERENCE_MISSING", "a reference image", "none: set reference too")
        if self.reference is not None and self.omni:
            raise _conflict(
                "omni",
                "REFERENCE_AND_OMNI",
                "a reference that is blended into the prompt, or omni images beside it",
                "both: choose one",
            )

    @property
    def condition_options(self) -> ConditionOptions:
        """`conditioning` as ConditionOptions; the defaults if it is None."""
        return self.conditioning if isinstance(self.conditioning, ConditionOptions) else _DEFAULT_CONDITIONING


class EncodeKeywords(TypedDict, total=False):
    """The fields of EncodeOptions, as keywords."""

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


class StatesKeywords(TypedDict, total=False):
    """The fields of StatesOptions, as keywords."""

    hidden_layer: int | None
    tokens: Tokens | None
    text: str | None
    system_prompt: str | None


class EncodeImagesKeywords(StatesKeywords, total=False):
    """The fields of EncodeImagesOptions, as keywords."""

    target_area: int | None
    dtype: WireDtype | None


class ConditionKeywords(StatesKeywords, total=False):
    """The fields of ConditionOptions, as keywords."""

    alpha: float | None
    blend: Blend | None
    normalization: Normalization | None
    outlier_mask: OutlierMask | None
    outlier_threshold: float | None
    curve: Curve | None
    token_weights: Sequence[float] | None


class GenerateKeywords(TypedDict, total=False):
    """The fields of GenerateOptions, as keywords."""

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
    conditioning: "ConditionOptions | ConditionKeywords | None"
    omni: Sequence[ImageSource] | None
    format: ImageFormat | None
    quality: int | None
    provenance: bool | None
    keep_prompt: bool | None
    labels: Mapping[str, str] | None
    preview_every: int | None
    preview_max_side: int | None
    priority: Priority | None
    deterministic: bool | None


O = TypeVar("O", bound=CallOptions)  # noqa: E741


def options_of(
    kind: type[O],
    options: "O | Mapping[str, Any] | None",
    keywords: Mapping[str, Any] | None = None,
    method: Callable[..., Any] | None = None,
    *,
    argument: str = "",
) -> O:
    """Returns options as one validated object.

    Args:
        kind: The class of the options.
        options: Options, or a mapping of their fields.
        keywords: Fields that replace those of `options`.
        method: The method that the caller called, which the error for an unknown keyword names.
        argument: The argument that `options` are, if it is not `options` itself; errors name it.

    Raises:
        InvalidArgument: A value is not valid.
        TypeError: There is no such option; the message names the nearest one.
    """
    if options is not None and not isinstance(options, (kind, Mapping)):
        subject = f"{argument}: " if argument else ""
        raise TypeError(f"{subject}expected {kind.__name__} or a mapping of its fields, got {type(options).__name__}")
    values = {**options, **(keywords or {})} if isinstance(options, Mapping) else (keywords or {})
    known = [item.name for item in fields(kind)]
    for name in values:
        if name not in known:
            if argument:
                raise TypeError(f"{argument}: unknown option {name!r}; {_hint(name, known)}")
            raise _unknown_keyword(name, known, method or kind)
    if isinstance(options, kind):
        return options.replaced(**values) if values else options
    return kind(**values)


def _unknown_keyword(name: str, known: Iterable[str], method: Callable[..., Any]) -> TypeError:
    parameters = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    hint = _hint(name, {*known, *parameters})
    return TypeError(f"{method.__name__}() got an unexpected keyword argument {name!r}; {hint}")


def _hint(name: object, known: Iterable[str]) -> str:
    """Returns a hint for an unknown option: the option with the most similar name, or all options if none is similar.

    A name that is similar to the beginning of an option counts first.
    """
    valid = sorted(known)
    wrong = str(name)
    starts = {option[: len(wrong)]: option for option in reversed(valid)}
    by_start = [starts[start] for start in difflib.get_close_matches(wrong, starts, n=1, cutoff=0.8)]
    if near := by_start or difflib.get_close_matches(wrong, valid, n=1):
        return f"did you mean {near[0]!r}?"
    return f"expected one of {', '.join(valid)}"


def _conflict(name: str, reason: str, expected: str, got: object) -> InvalidArgument:
    return InvalidArgument(
        f"{name}: expected {expected}, got {got}",
        field=name,
        reason=reason,
        metadata={"expected": expected, "got": got},
    )
