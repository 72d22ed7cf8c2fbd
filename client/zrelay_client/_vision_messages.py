"""A vision service's requests and replies, between messages of the contract and what callers see."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.generation_pb2 import GenerationSpec
from zrelay.v1.vision_pb2 import ConditionOptions as OptionsMessage
from zrelay.v1.vision_pb2 import (
    ConditionPromptRequest,
    ConditionPromptResponse,
    EncodedImage,
    EncodeImagesRequest,
    EncodeImagesResponse,
    ScoreImagesRequest,
    ScoreImagesResponse,
)
from zrelay.v1.vision_pb2 import EmbedsStatistics as StatisticsMessage
from zrelay.v1.vision_pb2 import StatesOptions as StatesMessage
from zrelay_client._embeds import Embeds
from zrelay_client._enums import set_word, word
from zrelay_client._replies import embeds_from_spec
from zrelay_client._values import number, refusal, text_of, whole
from zrelay_client._vision_embeds import Conditioned, ConditionReport, EmbedsStatistics, ImageEmbeds, ImageScores
from zrelay_client._vision_images import ImageFile
from zrelay_client._vision_options import ConditionOptions, EncodeImagesOptions, Engine
from zrelay_shared import vision_fingerprint
from zrelay_shared.errors import InvalidArgument
from zrelay_shared.vision_file import tensor_of
from zrelay_shared.wire import Parcel

_AREA_BITS = 64
_READING = ("hidden_layer", "tokens", "text", "system_prompt")
"""Options that say how an image is read."""


def encode_request(images: Sequence[ImageFile], engine: Engine, options: EncodeImagesOptions) -> EncodeImagesRequest:
    """Images to encode; options of the other engine are sent too, for the service to refuse."""
    request = EncodeImagesRequest(images=[ImageInput(data=image.data) for image in images])
    set_word(request, "engine", engine)
    if (area := options.get("target_area")) is not None:
        request.target_area = whole("target_area", area, 0, (1 << _AREA_BITS) - 1)
    set_word(request, "dtype", options.get("dtype"))
    _states(request.states_options, options)
    return request


def score_request(images: Sequence[ImageFile], texts: Sequence[str]) -> ScoreImagesRequest:
    """Images and texts to compare."""
    said = [text_of(f"texts[{index}]", text) for index, text in enumerate(texts)]
    return ScoreImagesRequest(images=[ImageInput(data=image.data) for image in images], texts=said)


def condition_request(
    embeds: Embeds, image: ImageFile | ImageEmbeds, options: ConditionOptions, *, named: bool = False
) -> Parcel[ConditionPromptRequest]:
    """A prompt as the encoder sent it, and what to condition it with; tensors are passed on as they are, a file that is
    `named` goes by its digest. Raises InvalidArgument."""
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
    """Raises InvalidArgument (STATES_ENGINE, STATES_ALREADY_READ) for embeddings that cannot be blended as asked."""
    if image.engine != "qwen3_vl":
        raise InvalidArgument(
            f"image: expected states of a Qwen3-VL, got a {image.engine} grid: encode it with the engine qwen3_vl",
            field="states",
            reason="STATES_ENGINE",
            metadata={"expected": "qwen3_vl", "got": image.engine},
        )
    values: Mapping[str, object] = options
    if given := [name for name in _READING if values.get(name) is not None]:
        raise InvalidArgument(
            f"{given[0]}: expected none beside states that were read before, got one: encode the image again with "
            "it, or leave it out",
            field=given[0],
            reason="STATES_ALREADY_READ",
        )


def check_alpha(options: ConditionOptions) -> None:
    """Raises InvalidArgument (ALPHA_INVALID) for a share that is none."""
    alpha = options.get("alpha")
    if alpha is not None and not 0.0 <= number("alpha", alpha) <= 1.0:
        raise refusal("alpha", "a share of the image from 0 (the prompt alone) to 1", alpha)


def split(images: Parcel[EncodeImagesResponse]) -> list[ImageEmbeds]:
    """Each image of a reply or a file on its own. Raises InvalidArgument (FINGERPRINT_INVALID)."""
    return [_embeds(images, result, f"results[{index}]") for index, result in enumerate(images.message.results)]


def joined(images: Sequence[ImageEmbeds]) -> Parcel[EncodeImagesResponse]:
    """Several images as one reply."""
    parcel = Parcel(EncodeImagesResponse(), *(image.parcel for image in images))
    for image in images:
        parcel.message.results.add().CopyFrom(image.parcel.message.results[0])
    return parcel


def only(path: Path, images: Sequence[ImageEmbeds]) -> ImageEmbeds:
    """The image of a file. Raises InvalidArgument (VISION_FILE_INVALID) where it has several."""
    if len(images) != 1:
        raise InvalidArgument(
            f"{path.name}: expected one image, got {len(images)}: encode each to a file of its own",
            field="images",
            reason="VISION_FILE_INVALID",
            metadata={"expected": 1, "got": len(images)},
        )
    return images[0]


def scores_of(reply: ScoreImagesResponse) -> list[ImageScores]:
    """Scores of each image."""
    return [ImageScores(tuple(said.probabilities), tuple(said.cosines)) for said in reply.images]


def conditioned_of(reply: Parcel[ConditionPromptResponse], embeds: Embeds) -> Conditioned:
    """The conditioned prompt, with the negative prompt and the provenance of the one it was made from."""
    spec = Parcel(GenerationSpec(), embeds.parcel, reply)
    spec.message.CopyFrom(embeds.parcel.message)
    spec.message.prompt.prompt_embeds.CopyFrom(reply.message.prompt_embeds)
    said = reply.message.report
    report = ConditionReport(
        before=_statistics(said.before),
        states=_statistics(said.states),
        after=_statistics(said.after),
        outliers=tuple((outlier.dimension, outlier.ratio) for outlier in said.outliers),
        outlier_count=said.outlier_count,
        calibrated=said.calibrated,
    )
    return Conditioned(embeds_from_spec(spec, embeds.encode_s), report, reply.message.image_sha256)


def _embeds(images: Parcel[EncodeImagesResponse], result: EncodedImage, path: str) -> ImageEmbeds:
    parcel = Parcel(EncodeImagesResponse(), images)
    parcel.message.results.add().CopyFrom(result)
    kind, tensor = tensor_of(result)
    made_by = result.states.fingerprint if kind == "hidden_states" else result.siglip_embeds.fingerprint
    return ImageEmbeds(
        parcel,
        fingerprint=vision_fingerprint.from_message(made_by, path=f"{path}.fingerprint"),
        shape=tuple(tensor.shape),
        tokens=word(result.states, "tokens") if kind == "hidden_states" else "",
        image_sha256=result.image_sha256,
    )


def _states(message: StatesMessage, options: EncodeImagesOptions | ConditionOptions) -> None:
    if (layer := options.get("hidden_layer")) is not None:
        message.hidden_layer = whole("hidden_layer", layer, -(1 << 31), (1 << 31) - 1)
    set_word(message, "tokens", options.get("tokens"))
    message.text = text_of("text", options.get("text") or "")
    message.system_prompt = text_of("system_prompt", options.get("system_prompt") or "")


def _blending(message: OptionsMessage, options: ConditionOptions) -> None:
    check_alpha(options)
    values: Mapping[str, object] = options
    for name in ("alpha", "outlier_threshold"):
        if (said := values.get(name)) is not None:
            setattr(message, name, number(name, said))
    for name in ("blend", "normalization", "outlier_mask", "curve"):
        chosen = values.get(name)
        set_word(message, name, chosen if chosen is None else str(chosen))
    message.token_weights.extend(number("token_weights", weight) for weight in options.get("token_weights") or ())


def _statistics(said: StatisticsMessage) -> EmbedsStatistics:
    return EmbedsStatistics(said.token_rms, said.mean, said.std, said.tokens)
