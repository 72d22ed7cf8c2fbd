"""What a caller asked for, as messages of the contract; what was not asked for stays absent."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.encoder_pb2 import EncodePromptsRequest, Prompt
from zrelay.v1.generation_pb2 import EmbedsInput, GenerationSpec, SamplingOptions
from zrelay.v1.generator_pb2 import GenerateRequest, ListJobsRequest, SubmitJobRequest
from zrelay.v1.jobs_pb2 import JobState
from zrelay.v1.vision_pb2 import EncodeImagesResponse
from zrelay_client._contents import Content
from zrelay_client._embeds import Embeds
from zrelay_client._enums import set_word
from zrelay_client._events import Sampling
from zrelay_client._omni import image_index, is_grid
from zrelay_client._options import EncodeOptions, GenerateOptions
from zrelay_client._values import number as _number
from zrelay_client._values import refusal as _refusal
from zrelay_client._values import text_of as _text
from zrelay_client._values import whole as _whole
from zrelay_shared.wire import Parcel

EncodePrompts: TypeAlias = EncodePromptsRequest
"""A call to an encoder, for the modules that hand it on."""
IMAGE = "image"
"""The name of the picture to start from among the contents of a job; embeddings go by their field."""
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


def generate_request(
    embeds: Embeds, options: GenerateOptions, request_id: str, named: Mapping[str, Content] | None = None
) -> Parcel[GenerateRequest]:
    """A picture to paint from embeddings, whose bytes are passed on as they are; the fields that are `named` travel by
    their digest alone."""
    parcel = Parcel(GenerateRequest(request_id=request_id), embeds.parcel, *_grids(embeds))
    _spec(parcel.message.spec, embeds, options, named or {})
    return parcel


def submit_request(
    embeds: Embeds, options: GenerateOptions, request_id: str, named: Mapping[str, Content] | None = None
) -> Parcel[SubmitJobRequest]:
    """The same, to be painted whether somebody watches or not."""
    parcel = Parcel(SubmitJobRequest(request_id=request_id, detached=True), embeds.parcel, *_grids(embeds))
    _spec(parcel.message.spec, embeds, options, named or {})
    return parcel


def list_request(states: Sequence[str], page_size: int, token: str) -> ListJobsRequest:
    """A page of jobs in these states, of all where there are none."""
    request = ListJobsRequest(page_size=page_size, page_token=token)
    for state in states:
        name = f"JOB_STATE_{state.upper()}"
        if state == "unspecified" or name not in JobState.keys():  # noqa: SIM118  # an enum's wrapper is no mapping
            raise _refusal("states", "one of queued, running, succeeded, failed, cancelled", state)
        request.states.append(JobState.Value(name))  # type: ignore[arg-type]  # the stubs want the enum's own type
    return request


def _spec(spec: GenerationSpec, embeds: Embeds, options: GenerateOptions, named: Mapping[str, Content]) -> None:
    spec.CopyFrom(embeds.parcel.message)
    _sampling(spec.sampling, options)
    _start(spec, options)
    _skip_layers(spec, options)
    _omni(spec, embeds, [content for name, content in named.items() if is_grid(name)])
    for name, content in named.items():
        if is_grid(name):
            continue
        source = _place(spec, name)
        source.content.sha256, source.content.size_bytes = content.sha256, content.size_bytes
    _output(spec, options)
    if every := options.get("preview_every"):
        spec.preview.every_steps = _unsigned("preview_every", every, 32)
        if (side := options.get("preview_max_side")) is not None:
            spec.preview.max_side = _unsigned("preview_max_side", side, 32)
    set_word(spec, "priority", options.get("priority"))
    spec.deterministic = bool(options.get("deterministic"))


def _omni(spec: GenerationSpec, embeds: Embeds, named: Sequence[Content]) -> None:
    """Files by value; grids by name where all of them have one (what is small has none), else by value."""
    if embeds.omni is None:
        return
    for file in embeds.omni.files:
        spec.omni.images.add().data = file.data
    if len(named) == len(embeds.omni.grids):
        for content in named:
            spec.omni.siglip_contents.add(sha256=content.sha256, size_bytes=content.size_bytes)
        return
    for grid in embeds.omni.grids:
        spec.omni.siglip_embeds.add().CopyFrom(grid.parcel.message.results[0].siglip_embeds)


def _grids(embeds: Embeds) -> list[Parcel[EncodeImagesResponse]]:
    return [grid.parcel for grid in embeds.omni.grids] if embeds.omni is not None else []


def _place(spec: GenerationSpec, name: str) -> EmbedsInput | ImageInput:
    """The field that a content of that name stands in."""
    if (index := image_index(name)) is not None:
        return spec.omni.images[index]
    if name == IMAGE:
        return spec.image_to_image.image
    field: EmbedsInput = getattr(spec, name)
    return field


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
    if images := options.get("image_count"):
        prompt.image_count = _unsigned("image_count", images, 32)
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


def _start(spec: GenerationSpec, options: GenerateOptions) -> None:
    image, strength = options.get("image"), options.get("strength")
    if image is None:
        if strength is not None:
            raise _refusal("strength", "none where there is no image to start from", strength)
        return
    if not isinstance(image, bytes):
        raise _refusal("image", "the bytes of an image file", type(image).__name__)
    spec.image_to_image.image.data = image
    if strength is not None:
        spec.image_to_image.strength = _number("strength", strength)


def _skip_layers(spec: GenerationSpec, options: GenerateOptions) -> None:
    scale, layers = options.get("skip_layer_guidance_scale"), options.get("skip_guidance_layers")
    start, stop = options.get("skip_layer_guidance_start"), options.get("skip_layer_guidance_stop")
    if scale is None and layers is None and start is None and stop is None:
        return
    message = spec.skip_layer_guidance
    message.SetInParent()
    message.layers.extend(_unsigned("skip_guidance_layers", layer, 32) for layer in layers or ())
    for name, value in (("scale", scale), ("start", start), ("stop", stop)):
        if value is not None:
            setattr(message, name, _number(f"skip_layer_guidance_{name}", value))


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
