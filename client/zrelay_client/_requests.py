"""What a caller asked for, as messages of the contract; what was not asked for stays absent."""

import operator
from collections.abc import Mapping, Sequence

from zrelay.v1.encoder_pb2 import EncodePromptsRequest, Prompt
from zrelay.v1.generation_pb2 import GenerationSpec, SamplingOptions
from zrelay.v1.generator_pb2 import GenerateRequest
from zrelay_client._embeds import Embeds
from zrelay_client._enums import set_word
from zrelay_client._events import Sampling
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.wire import Parcel

_SAMPLING = (
    ("width", 32),
    ("height", 32),
    ("num_inference_steps", 32),
    ("seed", 64),
    ("num_images", 32),
)
"""Whole numbers of SamplingOptions and their bits."""
_SAMPLING_FLOATS = ("guidance_scale", "cfg_normalization", "cfg_truncation", "shift")


def encode_request(
    prompts: Sequence[str], negative_prompt: str | None, options: EncodeOptions, text_limit: int | None
) -> EncodePromptsRequest:
    """Prompts to encode, the negative one last, all alike but that it may be empty. `text_limit` (tokens) is the
    generator's; the options' own goes first."""
    request = EncodePromptsRequest(prompts=[_prompt("prompt", text, options) for text in prompts])
    if negative_prompt is not None:
        negative = _prompt("negative_prompt", negative_prompt, options)
        negative.allow_empty = True
        request.prompts.append(negative)
    message = request.options
    message.SetInParent()
    limit = options.get("text_limit")
    for name, value in (("text_limit", text_limit if limit is None else limit), ("pad_to", options.get("pad_to"))):
        if value is not None:
            setattr(message, name, _unsigned(name, value, 32))
    if (layer := options.get("hidden_layer")) is not None:
        message.hidden_layer = _whole("hidden_layer", layer, -(1 << 31), (1 << 31) - 1)
    set_word(message, "long_prompt_mode", options.get("long_prompt_mode"))
    set_word(message, "dtype", options.get("dtype"))
    message.bypass_cache = bool(options.get("bypass_cache"))
    message.deterministic = bool(options.get("deterministic"))
    return request


def generate_request(embeds: Embeds, options: GenerateOptions, request_id: str) -> Parcel[GenerateRequest]:
    """A picture to paint from embeddings, whose bytes are passed on as they are."""
    parcel = Parcel(GenerateRequest(request_id=request_id), embeds.parcel)
    spec = parcel.message.spec
    spec.CopyFrom(embeds.parcel.message)
    _sampling(spec.sampling, options)
    _output(spec, options)
    if every := options.get("preview_every"):
        spec.preview.every_steps = _unsigned("preview_every", every, 32)
        if (side := options.get("preview_max_side")) is not None:
            spec.preview.max_side = _unsigned("preview_max_side", side, 32)
    set_word(spec, "priority", options.get("priority"))
    spec.deterministic = bool(options.get("deterministic"))
    return parcel


def guided(options: GenerateOptions, defaults: Sampling) -> bool:
    """Whether guidance is at work, which needs a negative prompt, be it an empty one."""
    scale = options.get("guidance_scale")
    return _number("guidance_scale", defaults.guidance_scale if scale is None else scale) > 0


def _prompt(name: str, text: str, options: EncodeOptions) -> Prompt:
    prompt = Prompt(
        text=_text(name, text),
        system_prompt=_text("system_prompt", options.get("system_prompt") or ""),
        assistant_prefill=_text("assistant_prefill", options.get("assistant_prefill") or ""),
        thinking_content=_text("thinking_content", options.get("thinking_content") or ""),
        template=_text("template", options.get("template") or ""),
    )
    set_word(prompt, "think_mode", options.get("think_mode"))
    set_word(prompt, "quote_stripping", options.get("quote_stripping"))
    if (clean := options.get("clean_whitespace")) is not None:
        prompt.clean_whitespace = clean
    return prompt


def _sampling(message: SamplingOptions, options: GenerateOptions) -> None:
    message.SetInParent()
    values: Mapping[str, object] = options
    for name, bits in _SAMPLING:
        if (whole := values.get(name)) is not None:
            setattr(message, name, _unsigned(name, whole, bits))
    for name in _SAMPLING_FLOATS:
        if (number := values.get(name)) is not None:
            setattr(message, name, _number(name, number))
    message.sigmas.extend(_number("sigmas", sigma) for sigma in options.get("sigmas") or ())


def _output(spec: GenerationSpec, options: GenerateOptions) -> None:
    set_word(spec.output, "format", options.get("format"))
    if (quality := options.get("quality")) is not None:
        spec.output.quality = _unsigned("quality", quality, 32)
    if options.get("provenance") is False:
        spec.output.omit_provenance = True
    if options.get("keep_prompt") is False:
        spec.provenance.ClearField("prompt")
        spec.provenance.ClearField("negative_prompt")
    for label, value in (options.get("labels") or {}).items():
        spec.provenance.labels[_text("labels", label)] = _text("labels", value)


def _unsigned(name: str, value: object, bits: int) -> int:
    return _whole(name, value, 0, (1 << bits) - 1)


def _whole(name: str, value: object, least: int, most: int) -> int:
    try:
        whole = operator.index(value)  # type: ignore[arg-type]  # whatever is a whole number, numpy's included
    except TypeError as error:
        raise _refusal(name, "a whole number", value) from error
    if not least <= whole <= most:
        raise _refusal(name, f"a whole number from {least} to {most}", value)
    return whole


def _number(name: str, value: object) -> float:
    if isinstance(value, str):
        raise _refusal(name, "a number", value)
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as error:
        raise _refusal(name, "a number", value) from error


def _refusal(name: str, expected: str, got: object) -> InvalidArgument:
    return InvalidArgument(
        f"{name}: expected {expected}, got {got!r}",
        field=name,
        reason=f"{name.upper()}_INVALID",
        metadata={"expected": expected, "got": got},
    )


def _text(name: str, text: str) -> str:
    if not isinstance(text, str):
        raise _refusal(name, "a text", type(text).__name__)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            f"{name}: expected valid Unicode, got bytes that are not UTF-8 at character {error.start}",
            field=name,
            reason="TEXT_INVALID",
        ) from error
    return text
