"""Builds the requests to encoders and generators from validated options. An option that is None stays absent."""

from collections.abc import Mapping, Sequence

from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.encoder_pb2 import EncodePromptsRequest, Prompt
from zrelay.v1.generation_pb2 import EmbedsInput, GenerationSpec, SamplingOptions
from zrelay.v1.generator_pb2 import GenerateRequest, ListJobsRequest, SubmitJobRequest
from zrelay.v1.jobs_pb2 import JobState
from zrelay.v1.vision_pb2 import EncodeImagesResponse
from zrelay_client._wire.contents import Content
from zrelay_client.embeds import Embeds, image_index, is_grid
from zrelay_client.options import EncodeOptions, GenerateOptions, checked_text, refusal
from zrelay_shared.enums import set_word
from zrelay_shared.wire import Parcel

IMAGE = "image"
"""Name of the start image among the contents of a job. Embeddings have the name of their field."""
_SAMPLING = (
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "cfg_normalization",
    "cfg_truncation",
    "shift",
    "seed",
    "num_images",
)
"""Fields that GenerateOptions and SamplingOptions share."""


def encode_request(
    prompts: Sequence[str], negative_prompt: str | None, options: EncodeOptions, text_limit: int | None
) -> EncodePromptsRequest:
    """Returns a request for prompts with the same options, the negative prompt last. Only that one may be empty.

    Args:
        prompts: The prompts.
        negative_prompt: The negative prompt that they share, None for none.
        options: The options of all of them.
        text_limit: The generator's limit in tokens, used if the options have none.

    Raises:
        InvalidArgument: PROMPT_INVALID, TEXT_INVALID: a prompt is not a valid text.
    """
    request = EncodePromptsRequest(prompts=[_prompt("prompt", text, options) for text in prompts])
    if negative_prompt is not None:
        negative = _prompt("negative_prompt", negative_prompt, options)
        negative.allow_empty = True
        request.prompts.append(negative)
    message = request.options
    message.SetInParent()
    limit = text_limit if options.text_limit is None else options.text_limit
    for name, value in (("text_limit", limit), ("pad_to", options.pad_to), ("hidden_layer", options.hidden_layer)):
        if value is not None:
            setattr(message, name, value)
    set_word(message, "long_prompt_mode", options.long_prompt_mode)
    set_word(message, "dtype", options.dtype)
    message.bypass_cache = options.bypass_cache or False
    message.deterministic = options.deterministic or False
    return request


def generate_request(
    embeds: Embeds, options: GenerateOptions, request_id: str, named: Mapping[str, Content] | None = None
) -> Parcel[GenerateRequest]:
    """Returns a request to generate images. The bytes of the embeddings are not copied.

    Args:
        embeds: The embeddings.
        options: The options.
        request_id: Names the job.
        named: Field -> content that the generator holds and the request names by its digest.
    """
    parcel = Parcel(GenerateRequest(request_id=request_id), embeds.parcel, *_grids(embeds))
    _spec(parcel.message.spec, embeds, options, named or {})
    return parcel


def submit_request(
    embeds: Embeds, options: GenerateOptions, request_id: str, named: Mapping[str, Content] | None = None
) -> Parcel[SubmitJobRequest]:
    """Returns a request for a job that runs whether a client watches it or not. Arguments as `generate_request`."""
    parcel = Parcel(SubmitJobRequest(request_id=request_id, detached=True), embeds.parcel, *_grids(embeds))
    _spec(parcel.message.spec, embeds, options, named or {})
    return parcel


def list_request(states: Sequence[str], page_size: int, token: str) -> ListJobsRequest:
    """Returns a request for a page of jobs in these states; in any state if there are none.

    Raises:
        InvalidArgument: STATES_INVALID, there is no such state.
    """
    request = ListJobsRequest(page_size=page_size, page_token=token)
    for state in states:
        name = f"JOB_STATE_{state.upper()}"
        if state == "unspecified" or name not in JobState.keys():  # noqa: SIM118  # an enum's wrapper is no mapping
            raise refusal("states", "one of queued, running, succeeded, failed, cancelled", state)
        request.states.append(JobState.Value(name))  # type: ignore[arg-type]  # the stubs want the enum's own type
    return request


def _prompt(name: str, text: str, options: EncodeOptions) -> Prompt:
    prompt = Prompt(
        text=checked_text(name, text),
        system_prompt=options.system_prompt or "",
        assistant_prefill=options.assistant_prefill or "",
        thinking_content=options.thinking_content or "",
        template=options.template or "",
    )
    set_word(prompt, "think_mode", options.think_mode)
    set_word(prompt, "quote_stripping", options.quote_stripping)
    if options.clean_whitespace is not None:
        prompt.clean_whitespace = options.clean_whitespace
    prompt.image_count = options.image_count or 0
    return prompt


def _spec(spec: GenerationSpec, embeds: Embeds, options: GenerateOptions, named: Mapping[str, Content]) -> None:
    spec.CopyFrom(embeds.parcel.message)
    _sampling(spec.sampling, options)
    if options.image is not None:
        spec.image_to_image.image.data = options.image
        if options.strength is not None:
            spec.image_to_image.strength = options.strength
    _skip_layers(spec, options)
    _omni(spec, embeds, [content for name, content in named.items() if is_grid(name)])
    for name, content in named.items():
        if not is_grid(name):
            place = _place(spec, name)
            place.content.sha256, place.content.size_bytes = content.sha256, content.size_bytes
    _output(spec, options)
    if options.preview_every:
        spec.preview.every_steps = options.preview_every
        if options.preview_max_side is not None:
            spec.preview.max_side = options.preview_max_side
    set_word(spec, "priority", options.priority)
    spec.deterministic = options.deterministic or False


def _sampling(message: SamplingOptions, options: GenerateOptions) -> None:
    message.SetInParent()
    for name in _SAMPLING:
        if (value := getattr(options, name)) is not None:
            setattr(message, name, value)
    message.sigmas.extend(options.sigmas or ())


def _skip_layers(spec: GenerationSpec, options: GenerateOptions) -> None:
    scale, layers = options.skip_layer_guidance_scale, options.skip_guidance_layers
    start, stop = options.skip_layer_guidance_start, options.skip_layer_guidance_stop
    if scale is None and layers is None and start is None and stop is None:
        return
    message = spec.skip_layer_guidance
    message.SetInParent()
    message.layers.extend(layers or ())
    for name, value in (("scale", scale), ("start", start), ("stop", stop)):
        if value is not None:
            setattr(message, name, value)


def _omni(spec: GenerationSpec, embeds: Embeds, named: Sequence[Content]) -> None:
    """Adds the images of an Omni prompt by value; their SigLIP grids by digest if `named` has all, else by value."""
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
    """Returns the field of a content with that name."""
    if (index := image_index(name)) is not None:
        return spec.omni.images[index]
    if name == IMAGE:
        return spec.image_to_image.image
    field: EmbedsInput = getattr(spec, name)
    return field


def _output(spec: GenerationSpec, options: GenerateOptions) -> None:
    set_word(spec.output, "format", options.format)
    if options.quality is not None:
        spec.output.quality = options.quality
    if options.provenance is False:
        spec.output.omit_provenance = True
    if options.keep_prompt is False:
        spec.provenance.ClearField("prompt")
        spec.provenance.ClearField("negative_prompt")
    for label, text in (options.labels or {}).items():
        spec.provenance.labels[label] = text
