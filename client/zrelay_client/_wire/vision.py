"""Builds the requests to a vision service from validated options, and reads its replies."""

from collections.abc import Sequence

from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay.v1.vision_pb2 import ConditionOptions as ConditionMessage
from zrelay.v1.vision_pb2 import (
    ConditionPromptRequest,
    ConditionPromptResponse,
    EncodeImagesRequest,
    ScoreImagesRequest,
    ScoreImagesResponse,
)
from zrelay.v1.vision_pb2 import EmbedsStatistics as StatisticsMessage
from zrelay.v1.vision_pb2 import StatesOptions as StatesMessage
from zrelay_client.embeds import Conditioned, ConditionReport, Embeds, EmbedsStatistics
from zrelay_client.image_embeds import ImageEmbeds, ImageScores
from zrelay_client.image_files import ImageFile
from zrelay_client.options import ConditionOptions, EncodeImagesOptions, Engine, StatesOptions, checked_text
from zrelay_shared.enums import set_word
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.wire import Parcel


def encode_request(images: Sequence[ImageFile], engine: Engine, options: EncodeImagesOptions) -> EncodeImagesRequest:
    """Returns a request to encode images. Options of the other engine are sent too; the service refuses them."""
    request = EncodeImagesRequest(images=[ImageInput(data=image.data) for image in images])
    set_word(request, "engine", engine)
    if options.target_area is not None:
        request.target_area = options.target_area
    set_word(request, "dtype", options.dtype)
    _states(request.states_options, options)
    return request


def score_request(images: Sequence[ImageFile], texts: Sequence[str]) -> ScoreImagesRequest:
    """Returns a request to compare images and texts.

    Raises:
        InvalidArgument: TEXT_INVALID or TEXTS[i]_INVALID: a text is not valid.
    """
    checked = [checked_text(f"texts[{index}]", text) for index, text in enumerate(texts)]
    return ScoreImagesRequest(images=[ImageInput(data=image.data) for image in images], texts=checked)


def condition_request(
    embeds: Embeds, image: ImageFile | ImageEmbeds, options: ConditionOptions, *, named: bool = False
) -> Parcel[ConditionPromptRequest]:
    """Returns a request to condition a prompt by an image. Tensors are not copied.

    Args:
        embeds: The prompt.
        image: An image file, or hidden states of an image.
        options: The options.
        named: Whether the request names the image file by its digest.

    Raises:
        InvalidArgument: As `check_states`.
    """
    sources = [embeds.parcel] + ([image.parcel] if isinstance(image, ImageEmbeds) else [])
    parcel = Parcel(ConditionPromptRequest(), *sources)
    request = parcel.message
    request.prompt_embeds.CopyFrom(embeds.parcel.message.prompt.prompt_embeds)
    if isinstance(image, ImageEmbeds):
        check_states(image, options)
        request.states.CopyFrom(image.parcel.message.results[0].states)
    else:
        if named:
            request.image.content.sha256, request.image.content.size_bytes = image.sha256, len(image.data)
        else:
            request.image.data = image.data
        _states(request.states_options, options)
    _blending(request.options, options)
    return parcel


def check_states(image: ImageEmbeds, options: ConditionOptions) -> None:
    """Checks that embeddings can condition a prompt with these options.

    Raises:
        InvalidArgument: STATES_ENGINE, they are a SigLIP2 grid; STATES_ALREADY_READ, the options say how to read an
            image, which was done before.
    """
    if image.engine != "qwen3_vl":
        raise InvalidArgument(
            f"image: expected states of a Qwen3-VL, got a {image.engine} grid: encode it with the engine qwen3_vl",
            field="states",
            reason="STATES_ENGINE",
            metadata={"expected": "qwen3_vl", "got": image.engine},
        )
    if reading := list(options.states_fields()):
        raise InvalidArgument(
            f"{reading[0]}: expected none for an image that is already encoded, got one: encode the image again with "
            "this option, or leave the option out",
            field=reading[0],
            reason="STATES_ALREADY_READ",
        )


def scores_of(reply: ScoreImagesResponse) -> list[ImageScores]:
    """Returns the scores of each image."""
    return [ImageScores(tuple(image.probabilities), tuple(image.cosines)) for image in reply.images]


def conditioned_of(reply: Parcel[ConditionPromptResponse], embeds: Embeds) -> Conditioned:
    """Returns the conditioned prompt, with the negative prompt and the provenance of the original `embeds`."""
    spec = Parcel(GenerationSpec(), embeds.parcel, reply)
    spec.message.CopyFrom(embeds.parcel.message)
    spec.message.prompt.prompt_embeds.CopyFrom(reply.message.prompt_embeds)
    message = reply.message.report
    report = ConditionReport(
        before=_statistics(message.before),
        states=_statistics(message.states),
        after=_statistics(message.after),
        outliers=tuple((outlier.dimension, outlier.ratio) for outlier in message.outliers),
        outlier_count=message.outlier_count,
        calibrated=message.calibrated,
    )
    return Conditioned(Embeds.from_parcel(spec, embeds.encode_s), report, reply.message.image_sha256)


def _states(message: StatesMessage, options: StatesOptions) -> None:
    if options.hidden_layer is not None:
        message.hidden_layer = options.hidden_layer
    set_word(message, "tokens", options.tokens)
    message.text = options.text or ""
    message.system_prompt = options.system_prompt or ""


def _blending(message: ConditionMessage, options: ConditionOptions) -> None:
    if options.alpha is not None:
        message.alpha = options.alpha
    if options.outlier_threshold is not None:
        message.outlier_threshold = options.outlier_threshold
    for name in ("blend", "normalization", "outlier_mask", "curve"):
        set_word(message, name, getattr(options, name))
    message.token_weights.extend(options.token_weights or ())


def _statistics(message: StatisticsMessage) -> EmbedsStatistics:
    return EmbedsStatistics(message.token_rms, message.mean, message.std, message.tokens)
