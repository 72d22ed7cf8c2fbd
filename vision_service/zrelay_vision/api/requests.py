"""Parses requests. Every field is checked, and every error contains the path of the field."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from zrelay.v1 import vision_pb2 as pb
from zrelay.v1.content_pb2 import ImageInput
from zrelay.v1.embeds_pb2 import PromptEmbeds
from zrelay.v1.tensor_pb2 import Tensor
from zrelay_shared import vision_fingerprint
from zrelay_shared.errors import invalid
from zrelay_shared.fingerprint import EncoderFingerprint, from_message
from zrelay_shared.limits import MAX_EMBEDS_ROWS
from zrelay_shared.service.parsing import enum_choice
from zrelay_shared.tensors import FLOATS, dtype_name
from zrelay_shared.torch_tensors import from_wire
from zrelay_shared.vision_fingerprint import VisionFingerprint
from zrelay_shared.wire import Parcel
from zrelay_vision.conditioning.blend import BlendMode, GraduatedCurve
from zrelay_vision.conditioning.condition import ConditioningOptions
from zrelay_vision.conditioning.normalize import Normalization
from zrelay_vision.conditioning.outliers import OutlierMask
from zrelay_vision.config import VisionConfig
from zrelay_vision.engines import EngineKind
from zrelay_vision.images.store import ImageRef
from zrelay_vision.operations.condition import ConditionPromptParameters, SavedStates
from zrelay_vision.operations.encode import EncodeImagesParameters, ScoreImagesParameters
from zrelay_vision.qwen3_vl.states import ImageStates, StatesParameters, TokenMode

ENGINES: Mapping[int, EngineKind] = {
    pb.VisionEngine.VISION_ENGINE_SIGLIP: EngineKind.SIGLIP,
    pb.VisionEngine.VISION_ENGINE_QWEN3_VL: EngineKind.QWEN3_VL,
}
_TOKENS = {getattr(pb.VisionTokens, f"VISION_TOKENS_{mode.name}"): mode for mode in TokenMode}
_BLENDS = {getattr(pb.BlendMode, f"BLEND_MODE_{mode.name}"): mode for mode in BlendMode}
_NORMALIZATIONS = {getattr(pb.StateNormalization, f"STATE_NORMALIZATION_{n.name}"): n for n in Normalization}
_MASKS = {getattr(pb.OutlierMask, f"OUTLIER_MASK_{mask.name}"): mask for mask in OutlierMask}
_CURVES = {getattr(pb.GraduatedCurve, f"GRADUATED_CURVE_{curve.name}"): curve for curve in GraduatedCurve}
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_encode(request: pb.EncodeImagesRequest, config: VisionConfig) -> EncodeImagesParameters:
    """Parses a request of EncodeImages. Raises InvalidArgument."""
    engine = enum_choice(request.engine, pb.VisionEngine, ENGINES, "engine")
    if engine is None:
        raise invalid("engine", "VISION_ENGINE_SIGLIP or VISION_ENGINE_QWEN3_VL", "none", reason="ENGINE_MISSING")
    if engine is EngineKind.SIGLIP and request.states_options.ListFields():
        raise invalid("states_options", "none with VISION_ENGINE_SIGLIP", "some", reason="STATES_OPTIONS_UNUSED")
    return EncodeImagesParameters(
        images=_images(request.images, config),
        engine=engine,
        target_area=request.target_area if request.HasField("target_area") else None,
        states=_states_parameters(request.states_options, config),
        dtype=_dtype(request.dtype),
    )


def parse_score(request: pb.ScoreImagesRequest, config: VisionConfig) -> ScoreImagesParameters:
    """Parses a request of ScoreImages. Raises InvalidArgument."""
    if not 1 <= len(request.texts) <= config.max_texts:
        raise invalid("texts", f"1 to {config.max_texts} texts", len(request.texts), reason="TEXT_COUNT")
    for index, text in enumerate(request.texts):
        if not text.strip():
            raise invalid(f"texts[{index}]", "a text", "an empty one", reason="TEXT_EMPTY")
        _check_length(text, f"texts[{index}]", config)
    return ScoreImagesParameters(_images(request.images, config), tuple(request.texts))


def parse_condition(parcel: Parcel[pb.ConditionPromptRequest], config: VisionConfig) -> ConditionPromptParameters:
    """Parses a request of ConditionPrompt. Raises InvalidArgument, PayloadCorrupt, EncoderMismatch."""
    request = parcel.message
    options = _conditioning_options(request.options)
    parameters = _states_parameters(request.states_options, config)
    prompt, fingerprint = _prompt(parcel, request.prompt_embeds)
    source: ImageRef | SavedStates
    match request.WhichOneof("source"):
        case "image":
            source = _image(request.image, "image", config)
        case "states":
            if request.states_options.ListFields():
                raise invalid("states_options", "none with saved states", "some", reason="STATES_OPTIONS_UNUSED")
            source = _saved_states(parcel, request.states)
        case _:
            expected = "an image, the digest of one sent before, or states"
            raise invalid("image", expected, "none", reason="IMAGE_MISSING")
    weights = len(options.token_weights)
    if options.blend is BlendMode.TOKEN_WEIGHTS and weights != len(prompt):
        raise invalid("options.token_weights", f"{len(prompt)} weights, one for each token of the prompt", weights)
    return ConditionPromptParameters(prompt, fingerprint, source, parameters, options)


def _images(inputs: Sequence[ImageInput], config: VisionConfig) -> tuple[ImageRef, ...]:
    if not 1 <= len(inputs) <= config.max_images:
        raise invalid("images", f"1 to {config.max_images} images", len(inputs), reason="IMAGE_COUNT")
    return tuple(_image(given, f"images[{index}]", config) for index, given in enumerate(inputs))


def _image(given: ImageInput, field: str, config: VisionConfig) -> ImageRef:
    """Checks what can be checked without decoding the file."""
    match given.WhichOneof("source"):
        case "data":
            data = given.data  # protobuf copies the file on every access
            if not data:
                raise invalid(f"{field}.data", "an image file", "0 bytes", reason="IMAGE_MISSING")
            if len(data) > config.max_image_bytes:
                expected = f"at most {config.max_image_bytes} bytes"
                raise invalid(f"{field}.data", expected, len(data), reason="IMAGE_TOO_LARGE")
            return ImageRef(f"{field}.data", data)
        case "content":
            sha256 = given.content.sha256
            if not _SHA256.fullmatch(sha256):
                expected = "64 lower-case hex digits"
                raise invalid(f"{field}.content.sha256", expected, f"{sha256[:80]!r}", reason="DIGEST_INVALID")
            return ImageRef(f"{field}.content", None, sha256, given.content.size_bytes)
    raise invalid(field, "an image file, or the digest of one sent before", "neither", reason="IMAGE_MISSING")


def _states_parameters(options: pb.StatesOptions, config: VisionConfig) -> StatesParameters:
    field = "states_options"
    tokens = enum_choice(options.tokens, pb.VisionTokens, _TOKENS, f"{field}.tokens") or TokenMode.FULL
    _check_length(options.text, f"{field}.text", config)
    _check_length(options.system_prompt, f"{field}.system_prompt", config)
    layer = options.hidden_layer if options.HasField("hidden_layer") else None
    return StatesParameters(layer, tokens, options.text, options.system_prompt)


def _prompt(parcel: Parcel[Any], given: PromptEmbeds) -> tuple[torch.Tensor, EncoderFingerprint]:
    """Returns the embeddings [T, width] of the only segment, and their fingerprint."""
    if not given.segments:
        expected = "the embeddings of a prompt as the encoder sent them"
        raise invalid("prompt_embeds", expected, "none", reason="PROMPT_MISSING", remedy="encode a prompt first")
    if len(given.segments) > 1:
        raise invalid(
            "prompt_embeds.segments",
            "one segment",
            len(given.segments),
            reason="PROMPT_SEGMENTS",
            remedy="condition ordinary prompts; an Omni prompt takes images instead",
        )
    fingerprint = from_message(given.fingerprint, path="prompt_embeds.fingerprint")
    field = "prompt_embeds.segments[0].prompt_embeds"
    tensor = given.segments[0].prompt_embeds
    _check_rows(tensor, field, "PROMPT_TOO_LONG", "encode a shorter prompt")
    embeds = from_wire(parcel, tensor, field=field, rank=2)
    _check_width(embeds, fingerprint.width, field)
    return embeds, fingerprint


def _saved_states(parcel: Parcel[Any], given: pb.VisionStates) -> SavedStates:
    fingerprint = _states_fingerprint(given.fingerprint)
    field = "states.hidden_states"
    _check_rows(given.hidden_states, field, "STATES_TOO_LONG", "encode a smaller image, or with a smaller target_area")
    rows = from_wire(parcel, given.hidden_states, field=field, rank=2)
    _check_width(rows, fingerprint.width, field)
    tokens = enum_choice(given.tokens, pb.VisionTokens, _TOKENS, "states.tokens") or TokenMode.FULL
    start, count = given.image_token_start, given.image_token_count
    if start + count > len(rows):
        raise invalid(
            "states.image_token_count",
            f"image tokens among the {len(rows)} rows",
            f"{count} from row {start} on",
            reason="IMAGE_TOKENS_INVALID",
        )
    return SavedStates(ImageStates(rows, start, count, tokens), fingerprint)


def _states_fingerprint(message: pb.VisionFingerprint) -> VisionFingerprint:
    fingerprint = vision_fingerprint.from_message(message, path="states.fingerprint")
    if fingerprint.engine != EngineKind.QWEN3_VL:
        field = "states.fingerprint.engine"
        raise invalid(field, "VISION_ENGINE_QWEN3_VL", fingerprint.engine, reason="STATES_ENGINE")
    return fingerprint


def _conditioning_options(options: pb.ConditionOptions) -> ConditioningOptions:
    default = ConditioningOptions()
    alpha = options.alpha if options.HasField("alpha") else default.alpha
    if not 0.0 <= alpha <= 1.0:  # also refuses NaN
        raise invalid("options.alpha", "0 to 1", f"{alpha:g}")
    threshold = options.outlier_threshold if options.HasField("outlier_threshold") else default.outlier_threshold
    if not 0.0 < threshold < math.inf:
        raise invalid("options.outlier_threshold", "a number above 0", f"{threshold:g}")
    blend = enum_choice(options.blend, pb.BlendMode, _BLENDS, "options.blend") or default.blend
    normalization = enum_choice(options.normalization, pb.StateNormalization, _NORMALIZATIONS, "options.normalization")
    mask = enum_choice(options.outlier_mask, pb.OutlierMask, _MASKS, "options.outlier_mask")
    curve = enum_choice(options.curve, pb.GraduatedCurve, _CURVES, "options.curve")
    return ConditioningOptions(
        alpha=alpha,
        blend=blend,
        normalization=normalization or default.normalization,
        outlier_mask=mask or default.outlier_mask,
        outlier_threshold=threshold,
        curve=curve or default.curve,
        token_weights=_token_weights(options.token_weights, blend),
    )


def _token_weights(weights: Sequence[float], blend: BlendMode) -> tuple[float, ...]:
    field = "options.token_weights"
    if weights and blend is not BlendMode.TOKEN_WEIGHTS:
        raise invalid(field, f"none with {blend}", len(weights))
    for weight in weights:
        if not 0.0 <= weight <= 1.0:
            raise invalid(field, "weights of 0 to 1", f"{weight:g}")
    return tuple(weights)


def _check_rows(tensor: Tensor, field: str, reason: str, remedy: str) -> None:
    """Refuses embeddings of more rows than any model makes, which narrow ones may have."""
    if tensor.shape and tensor.shape[0] > MAX_EMBEDS_ROWS:
        raise invalid(field, f"at most {MAX_EMBEDS_ROWS} rows", tensor.shape[0], reason=reason, remedy=remedy)


def _check_width(rows: torch.Tensor, width: int, field: str) -> None:
    if rows.shape[1] != width:
        expected = f"rows of {width} values, as the fingerprint states"
        raise invalid(field, expected, f"rows of {rows.shape[1]}", reason="TENSOR_SHAPE")


def _check_length(text: str, field: str, config: VisionConfig) -> None:
    if len(text) > config.max_text_chars:
        raise invalid(field, f"at most {config.max_text_chars} characters", len(text), reason="TEXT_TOO_LARGE")


def _dtype(value: int) -> str:
    if not value:
        return "BF16"
    name = dtype_name(value)
    if name not in FLOATS:
        raise invalid("dtype", " or ".join(FLOATS), name or value)
    return name
